"""The services' log: one bounded line an event, logfmt or JSON, to standard error, through structlog.

Must never: let a byte of a message end a line, move a terminal's cursor or grow a line without bound; raise because
nobody reads standard error; log a body.

An event is a word and its fields: `get("milter").info("message", queue_id="4XY", verdict="reject")`. A line is one
write(2), so that processes sharing standard error do not mix theirs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, cast

import structlog

__all__ = ["FORMATS", "Logger", "bounded", "configure", "get", "to_json", "to_logfmt"]

Logger = structlog.typing.FilteringBoundLogger

_LINE = 16 * 1024  # bytes of one line; a longer one is rendered again within the narrow bounds
_WIDE = (1000, 100)  # characters of a text, members of a list or mapping
_NARROW = (100, 10)
_DEPTH = 4
_PLAIN = frozenset((bool, int, float, type(None)))
_JSON = json.JSONEncoder(ensure_ascii=False, default=str, separators=(",", ":"))
_STANDARD_ERROR = 2
_BARE = re.compile(r"[a-zA-Z0-9.\-_@/:+*<>\[\](){}~!$%&^|;#?',]+")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}
_KEY = re.compile(r"[^a-zA-Z0-9._\-]")
_HIDDEN = frozenset("\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def bounded(value: object, text: int = _WIDE[0], members: int = _WIDE[1], depth: int = _DEPTH) -> object:
    """Return a value as plain JSON types, no text longer than `text` characters, no list than `members`.

    Bytes are read as UTF-8 with escapes; what is of no plain type becomes its str(). What was cut off is counted.
    """
    kind = type(value)
    if kind is str and len(value) <= text:  # type: ignore[arg-type]
        return value
    if kind in _PLAIN:
        return value
    if isinstance(value, str) and len(value) <= text:
        return str(value)
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        value = value[: 4 * text].decode("utf-8", "backslashreplace")
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if depth == 0:
            return f"({len(value)} more)" if value else ""
        if isinstance(value, Mapping):
            pairs = list(value.items())[:members]
            return {str(key)[:text]: bounded(one, text, members, depth - 1) for key, one in pairs}
        some = [bounded(one, text, members, depth - 1) for one in list(value)[:members]]
        return [*some, f"({len(value) - members} more)"] if len(value) > members else some
    said = str(value)
    return said if len(said) <= text else f"{said[:text]}…({len(said) - text} more)"


def to_json(event: Mapping[str, Any]) -> str:
    """Return an event as one line of ASCII JSON."""
    return json.dumps(event, ensure_ascii=True, default=str, separators=(",", ":")).replace("\x7f", "\\u007f")


def to_logfmt(event: Mapping[str, Any]) -> str:
    """Return an event as one line of key=value, values quoted where they hold blanks, quotes or `=`."""
    return " ".join(f"{_key(key)}={_logfmt(value)}" for key, value in event.items() if value is not None)


FORMATS = {"logfmt": to_logfmt, "json": to_json}


@lru_cache(256)
def _key(key: str) -> str:
    return _KEY.sub("_", key) or "_"


def _escaped(text: str) -> str:
    if text.isprintable():  # which nothing in _HIDDEN is
        return text.replace("\\", "\\\\").replace('"', '\\"')
    out = []
    for char in text:
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isprintable() and char not in _HIDDEN:
            out.append(char)
        else:
            out.append(f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
    return "".join(out)


def _logfmt(value: object) -> str:
    if type(value) is str:
        return value if _BARE.fullmatch(value) else f'"{_escaped(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) and not ("," in one or '"' in one) for one in value):
        text = ",".join(value)
    elif isinstance(value, Mapping) and all(type(one) is float and key.isalnum() for key, one in value.items()):
        text = "{" + ",".join([f'"{key}":{one!r}' for key, one in value.items()]) + "}"
    elif isinstance(value, (list, Mapping)):
        text = _JSON.encode(value)
    else:
        text = str(value)
    return text if _BARE.fullmatch(text) else f'"{_escaped(text)}"'


class _Renderer:
    """The last processor: the event's fields in reading order, bounded, as one line."""

    def __init__(self, form: str) -> None:
        self.render = FORMATS[form]

    def __call__(self, _logger: object, level: str, event: MutableMapping[str, Any]) -> str:
        exc_info = event.pop("exc_info", None)
        if exc_info:
            event["error"] = _explain(exc_info)
        said = {
            "time": _now(),
            "level": {"warn": "warning", "exception": "error"}.get(level, level),
            "service": event.pop("service", ""),
            "event": event.pop("event", ""),
            **event,
        }
        line = self.render(_wide(said))
        if len(line.encode("utf-8", "replace")) > _LINE:
            line = self.render(cast("Mapping[str, Any]", bounded(said, *_NARROW, depth=2)))
        return line


def _wide(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `bounded` makes of an event, with less ado for what is within the bounds already."""
    text, members = _WIDE
    if len(event) > members:
        return cast("Mapping[str, Any]", bounded(event))
    return {
        key if len(key) <= text else key[:text]: (
            value
            if (kind := type(value)) in _PLAIN or (kind is str and len(value) <= text)
            else bounded(value, text, members, _DEPTH - 1)
        )
        for key, value in event.items()
    }


def _now() -> str:
    now = time.time()
    return f"{_second(int(now))}.{int(now % 1 * 1000):03}Z"


@lru_cache(1)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))


def _explain(exc_info: object) -> str:
    """Return an exception as its type, its words and the last places it came through; no lines of code."""
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    if error is None:
        return ""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        places.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    words = str(error)[:300]
    return f"{type(error).__name__}: {words} (at {' '.join(places[-8:])})"


class _Stderr:
    """What structlog's loggers write to: one write(2) a line, whatever becomes of it."""

    def msg(self, line: str) -> None:
        """Write a line. A log that nobody takes is no reason to fail a message."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            os.write(_STANDARD_ERROR, data)
        except OSError:
            pass  # closed, full, or nobody reads: the message matters more than its line

    debug = info = warning = warn = error = critical = exception = fatal = msg


def _stderr(*_: object) -> _Stderr:
    return _Stderr()


def configure(form: str = "logfmt") -> None:
    """Say how this process logs: `logfmt` or `json`. Raises ValueError on another word."""
    if form not in FORMATS:
        raise ValueError(f"log: found {form!r}, expected one of: {', '.join(FORMATS)}")
    structlog.configure(
        processors=[_Renderer(form)],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=_stderr,
        cache_logger_on_first_use=False,
    )


def get(service: str) -> Logger:
    """Return the log of a service, by its command's word: milter, monitor, submit, ..."""
    if not structlog.is_configured():
        configure()
    return cast("Logger", structlog.get_logger(service=service))
