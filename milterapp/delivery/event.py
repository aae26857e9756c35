"""The log lines of monitor, resolver and zygote: what `milterapp.log` writes, from the standard library alone.

Must never: import anything but the standard library; parse what an agent reports (it is one quoted text here); let a
value end the line or grow it without bound; fail.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["FORMATS", "Log", "line"]

FORMATS = ("logfmt", "json")
_MOST = 1000  # characters of a value
_MOST_DECIDED = 8000  # of what an agent reports
_BARE = re.compile(r"[a-zA-Z0-9.\-_@/:+*<>\[\](){}~!$%&^|;#?',]+")

Value = str | int | float | bytes | None


def _quoted(value: str | int | float) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")


@lru_cache(1)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def line(form: str, moment: float, level: str, service: str, event: str, fields: Mapping[str, Value]) -> bytes:
    """Return one line with its newline. moment: seconds since 1970; fields: in reading order, None is left out."""
    stamp = f"{_second(int(moment))}.{int(moment % 1 * 1000):03}Z"
    said: dict[str, str | int | float] = {"time": stamp, "level": level, "service": service, "event": event}
    for key, value in fields.items():
        if value is None:
            continue
        plain = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        most = _MOST_DECIDED if key == "decided" else _MOST
        said[key] = f"{plain[:most]}…" if isinstance(plain, str) and len(plain) > most else plain
    if form == "json":
        text = json.dumps(said, separators=(",", ":")).replace("\x7f", "\\u007f")
    else:
        text = " ".join(f"{key}={_quoted(value)}" for key, value in said.items())
    return text.encode("ascii", "backslashreplace") + b"\n"


class Log:
    """Where a service says what happened; one write(2) a line, to standard error."""

    def __init__(self, service: str, form: str = "logfmt") -> None:
        self.service, self.form = service, form

    def __call__(self, level: str, event: str, **fields: Value) -> None:
        """Say it. event: a word; fields: what belongs to it, None is left out."""
        try:
            os.write(2, line(self.form, time.time(), level, self.service, event, fields))
        except OSError:
            pass  # nobody reads: the message matters more than its line
