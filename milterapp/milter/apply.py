"""From a Decision to the calls of libmilter that carry it out at the end of a message.

Must never: let a line end, a NUL or a byte that is no ASCII into a call, begin before every call has been checked, or
edit a message that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from milterapp.mail.edits import header_changes
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision, Verdict

__all__ = ["Call", "calls_for", "removals"]

_NAME = re.compile(r"[!-9;-~]{1,200}\Z")  # RFC 5322 section 3.6.8: printable ASCII but the colon
# Printable ASCII, folded before blanks, never to a blank line. The group is not possessive: CPython 3.11.2 keeps what
# such a group matched before it failed.
_VALUE = re.compile(r"[\t -~]*(?:\n[\t ]+[!-~][\t -~]*)*\Z")
_ADDRESS = re.compile(r"<[!-~]*>\Z")
_VALUE_BYTES = 60_000  # of 64 K that Postfix takes in one packet
_REASON = 100  # characters of it that Postfix logs

_CARRIED_OUT = (Verdict.NONE, Verdict.ACCEPT, Verdict.HOLD)


@dataclass(frozen=True, slots=True)
class Call:
    """One call on libmilter's context: the method's name and its arguments."""

    method: str
    arguments: tuple[object, ...]


def calls_for(
    decision: Decision, mail: Mail | None, came_as: Mapping[str, str], *, blank: str = " "
) -> tuple[Call, ...]:
    """Return what carries a decision out, in order.

    mail: the message, its header at least, needed only where there are edits. came_as: each recipient as RCPT TO gave
    it, by address. blank: what stands before a header value, "" where the mail server adds one itself.
    Raises ValueError where the decision cannot be put into calls.
    """
    if decision.verdict not in _CARRIED_OUT:
        return ()
    calls: list[Call] = []
    if decision.edits:
        if mail is None:
            raise ValueError("edits, and no header to edit")
        calls += _header_calls(mail, decision, blank)
    calls += _removals(decision, came_as)
    if decision.verdict is Verdict.HOLD:
        calls.append(Call("quarantine", (_reason(decision.hold_reason),)))
    return tuple(calls)


def removals(occurrences: Sequence[tuple[str, int]]) -> tuple[Call, ...]:
    """Return what deletes header fields, from the last up, before anything else is changed. Raises ValueError."""
    for name, _ in occurrences:
        if not _NAME.match(name):
            raise ValueError(f"header name {name[:40]!a} cannot be sent")
    return tuple(Call("chgheader", (name, number, None)) for name, number in reversed(occurrences))


def _header_calls(mail: Mail, decision: Decision, blank: str) -> Iterable[Call]:
    for change in header_changes(mail, decision.edits):
        value = change.value
        if not _NAME.match(change.name):
            raise ValueError(f"header name {change.name[:40]!a} cannot be sent")
        if value is None:
            yield Call("chgheader", (change.name, change.occurrence, None))
            continue
        value = value.replace("\r\n", "\n")
        if not _VALUE.match(value) or len(value) > _VALUE_BYTES:
            raise ValueError(f"the value of header {change.name} cannot be sent")
        value = value if value[:1] in (" ", "\t") else blank + value
        if change.occurrence:
            yield Call("chgheader", (change.name, change.occurrence, value))
        else:
            yield Call("addheader", (change.name, value))


def _removals(decision: Decision, came_as: Mapping[str, str]) -> Sequence[Call]:
    calls = []
    for one in decision.recipients:
        if one.verdict is Verdict.DISCARD:
            given = came_as[one.address]
            if not _ADDRESS.match(given):
                raise ValueError("a recipient that is no ASCII cannot be removed")
            calls.append(Call("delrcpt", (given,)))
    return calls


def _reason(text: str) -> str:
    plain = "".join(char if " " <= char <= "~" else "?" for char in text[:_REASON])
    return plain.strip() or "held by a rule"
