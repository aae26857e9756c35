"""The text of a refusal as SMTP and the milter protocol carry it (RFC 5321 section 4.2, smfi_setmlreply).

Must never: let a text through that Postfix would refuse; then milter_default_action speaks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from milterapp.rules.decision import Reply, Verdict

__all__ = ["FAULT", "WireReply", "wire_reply"]

_LINES = 20  # libmilter would take 32
_LINE = 400  # bytes of a line before `%` is doubled; RFC 5321 section 4.5.3.1.5 allows 512 with code and status
_STATUS = re.compile(r"[45]\.\d{1,3}\.\d{1,3}\Z", re.ASCII)

DEFAULTS: Mapping[Verdict, Reply] = {
    Verdict.REJECT: Reply(550, "5.7.1", "Refused by a rule of this site"),
    Verdict.DEFER: Reply(451, "4.7.1", "Please try again later"),
}
FAULT = Reply(451, "4.3.0", "The mail filter could not decide, please try again later")


@dataclass(frozen=True, slots=True)
class WireReply:
    """What protocol.refusal takes: code and enhanced status as text, lines of printable ASCII with `%` doubled."""

    code: str
    status: str
    lines: tuple[str, ...]


def wire_reply(verdict: Verdict, reply: Reply | None) -> WireReply:
    """Return a reply fit to send. verdict: REJECT or DEFER, which says 5xx or 4xx where the reply says neither.

    Long text is wrapped into several lines, what is beyond 20 lines is left out, and every character that is no
    printable ASCII becomes `?`.
    """
    default = DEFAULTS[verdict]
    said = reply or default
    first = str(default.code)[0]
    code = str(said.code) if 400 <= said.code <= 559 and str(said.code)[0] == first else str(default.code)
    status = said.status if _STATUS.match(said.status) and said.status[0] == first else default.status
    lines: list[str] = []
    for line in said.text.splitlines():
        plain = "".join(char if " " <= char <= "~" else " " if char == "\t" else "?" for char in line)
        lines += textwrap.wrap(plain, _LINE) or [" "] if plain else []
    if not any(line.strip() for line in lines):
        lines = [default.text]
    return WireReply(code, status, tuple(line.replace("%", "%%") for line in lines[:_LINES]))
