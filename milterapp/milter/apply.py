"""From a Decision to the edits of the milter protocol that carry it out at the end of a message.

Must never: let a line end, a NUL or a byte that is no ASCII into a call but the body's, begin before every call has
been checked, or edit a message that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from milterapp.mail import findings
from milterapp.mail.edits import body_change, header_changes
from milterapp.mail.message import Mail
from milterapp.rules.decision import AddRecipient, Decision, RemoveRecipient, SetSender, Transport, Verdict

__all__ = ["CAN", "TRANSPORT", "Call", "calls_for", "is_empty", "removals"]

# Of the words that only an edge can carry out or answer (rules.reading.CAN), those that this one can.
CAN = frozenset(
    (
        "prepend_header",
        "banner",
        "footer",
        "drop_attachments",
        "replace_body",
        "set_sender",
        "add_recipient",
        "remove_recipient",
        "transport",
        "log",
        "rate",
        "duplicate",
        "script",
    )
)

TRANSPORT = "X-Milterapp-Transport"  # what Postfix's milter_header_checks make FILTER of

_NAME = re.compile(r"[!-9;-~]{1,200}\Z")  # RFC 5322 section 3.6.8: printable ASCII but the colon
# Printable ASCII, folded before blanks, never to a blank line. The group is not possessive: CPython 3.11.2 keeps what
# such a group matched before it failed.
_VALUE = re.compile(r"[\t -~]*(?:\n[\t ]+[!-~][\t -~]*)*\Z")
_ADDRESS = re.compile(r"<[!-~]*>\Z")
_VALUE_BYTES = 60_000  # of 64 K that Postfix takes in one packet
_CHUNK = 65_535  # bytes of a body in one packet
_REASON = 100  # characters of it that Postfix logs

_CARRIED_OUT = (Verdict.NONE, Verdict.ACCEPT, Verdict.HOLD)
_NOT_TAKEN = (Verdict.REJECT, Verdict.DEFER)


@dataclass(frozen=True, slots=True)
class Call:
    """One edit, by the name of libmilter's call and its arguments."""

    method: str
    arguments: tuple[object, ...]


def calls_for(
    decision: Decision, mail: Mail | None, came_as: Mapping[str, str], *, queue_id: str = "", blank: str = " "
) -> tuple[Call, ...]:
    """Return what carries a decision out, in order.

    mail: the message, its header at least, needed only where there are edits, and its body where they are the body's.
    came_as: each recipient as RCPT TO gave it, by address. queue_id: under which delivery will know score and tags.
    blank: what stands before a header value, "" where the mail server adds one itself.
    Raises ValueError where the decision cannot be put into calls, LimitHit.
    """
    if decision.verdict not in _CARRIED_OUT:
        return ()
    calls: list[Call] = []
    if decision.edits:
        if mail is None:
            raise ValueError("edits, and no header to edit")
        calls += _header_calls(mail, decision, blank)
        calls += _body_calls(body_change(mail, decision.edits))
    calls += _envelope_calls(decision, came_as, blank)
    if found := findings.value_of(queue_id, decision.score, decision.tags):
        calls.append(Call("addheader", (findings.FIELD, blank + found)))
    if decision.verdict is Verdict.HOLD:
        calls.append(Call("quarantine", (_reason(decision.hold_reason),)))
    return tuple(calls)


def removals(occurrences: Sequence[tuple[str, int]]) -> tuple[Call, ...]:
    """Return what deletes header fields, from the last up, before anything else is changed. Raises ValueError."""
    for name, _ in occurrences:
        if not _NAME.match(name):
            raise ValueError(f"header name {name[:40]!a} cannot be sent")
    return tuple(Call("chgheader", (name, number, None)) for name, number in reversed(occurrences))


def is_empty(decision: Decision) -> bool:
    """Tell whether each recipient that was not refused is to be removed, and none added."""
    live = [one for one in decision.recipients if one.verdict not in _NOT_TAKEN]
    if not live or any(isinstance(one, AddRecipient) for one in decision.envelope):
        return False
    gone = _taken_off(decision)
    return all(one.verdict is Verdict.DISCARD or one.address.lower() in gone for one in live)


def _header_calls(mail: Mail, decision: Decision, blank: str) -> Iterator[Call]:
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
        elif change.first:
            yield Call("addheader", (change.name, value, 0))
        else:
            yield Call("addheader", (change.name, value))


def _body_calls(body: bytes | None) -> Iterable[Call]:
    if body is None:
        return
    for start in range(0, len(body) or 1, _CHUNK):
        yield Call("replacebody", (body[start : start + _CHUNK],))


def _taken_off(decision: Decision) -> set[str]:
    return {one.address.lower() for one in decision.envelope if isinstance(one, RemoveRecipient)}


def _envelope_calls(decision: Decision, came_as: Mapping[str, str], blank: str) -> Iterator[Call]:
    gone = _taken_off(decision)
    for recipient in decision.recipients:
        if recipient.verdict is Verdict.DISCARD or (
            recipient.address.lower() in gone and recipient.verdict not in _NOT_TAKEN
        ):
            yield Call("delrcpt", (_checked(came_as[recipient.address]),))
    # The last one counts: for Postfix too, but each would be logged.
    for sender in [one.sender for one in decision.envelope if isinstance(one, SetSender)][-1:]:
        yield Call("chgfrom", (_checked(sender if sender == "<>" else f"<{sender}>"),))
    added = [one.address for one in decision.envelope if isinstance(one, AddRecipient)]
    for address in dict.fromkeys(added):
        yield Call("addrcpt", (_checked(f"<{address}>"),))
    for transport in [one.to for one in decision.envelope if isinstance(one, Transport)][-1:]:
        if not _VALUE.match(transport) or "\n" in transport:
            raise ValueError("a transport that cannot be sent")
        # milter_header_checks look at what is added; it need not stay, and those of the message are gone by now.
        yield Call("addheader", (TRANSPORT, blank + transport))
        yield Call("chgheader", (TRANSPORT, 1, None))


def _checked(address: str) -> str:
    if not _ADDRESS.match(address):
        raise ValueError("an address that is no ASCII, or holds a blank, cannot be sent")
    return address


def _reason(text: str) -> str:
    plain = "".join(char if " " <= char <= "~" else "?" for char in text[:_REASON])
    return plain.strip() or "held by a rule"
