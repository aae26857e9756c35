"""The last look at an action that was read: what its arguments must be together, and bounds that no type states.

Must never: note a problem itself; each raises ValueError with what was expected, and the reader knows the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from milterapp.mail.values import AddressText, HeaderText
from milterapp.rules.action import Action
from milterapp.rules.actions_deliveries import FilterThrough, ForwardTo, PipeTo, VacationReply
from milterapp.rules.actions_edits import (
    AddRecipientTo,
    PrefixSubject,
    RemoveHeader,
    SetHeader,
    SetSenderTo,
    TransportBy,
)
from milterapp.rules.actions_verdicts import REPLIES, Hold, Refusal
from milterapp.rules.placeholders import Template
from milterapp.rules.reading import too_much

__all__ = ["FINISH", "MAX_TEXT"]

MAX_TEXT = 400
MAX_LINES = 20  # of a reply
MAX_VALUE = 900


def _one_line(text: Template | None, what: str, *, reply: bool = False) -> Template | None:
    """Return the text without the line end that a block gives it; raise ValueError where it is not one line.

    reply: several lines will do, but they must be ASCII.
    """
    if text is None:
        return None
    parts = list(text.parts)
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip("\n")
    for part in parts:
        if isinstance(part, str):
            if not (part.replace("\n", "") if reply else part).isprintable():
                expected = "lines of text" if reply else "one line of text"
                raise ValueError(
                    f"{what} {'' if reply else 'of several lines or '}with control characters, expected {expected}"
                )
            if reply and not part.isascii():
                char = next(char for char in part if not char.isascii())
                raise ValueError(f"{what} with {char!r}, expected ASCII: SMTP replies hold nothing else")
            if len(part) > MAX_VALUE:
                raise ValueError(f"{what} of {len(part)} characters, expected at most {MAX_VALUE}")
    return Template(tuple(part for part in parts if part != ""))


def _refusal(action: Refusal) -> Refusal:
    assert action.verdict is not None  # noqa: S101 - Reject and Defer have one
    default = REPLIES[action.verdict]
    text, code, status = _one_line(action.text, "a reply", reply=True), action.code, action.status
    if text is not None and text.parts and isinstance(text.parts[0], str):
        rest = text.parts[0]
        first, _, after = rest.partition(" ")
        if code is None and len(first) == 3 and first.isdigit():
            code, rest = int(first), after
            first, _, after = rest.partition(" ")
        if status is None and _is_status(first):
            status, rest = first, after
        text = Template(
            tuple(part for part in (rest.strip(" ") if len(text.parts) == 1 else rest, *text.parts[1:]) if part)
        )
    family = default.code // 100
    if code is not None and not family * 100 <= code <= family * 100 + 59:
        raise ValueError(f"code {code} for `{action.word}`, expected {family}xx such as {default.code}")
    if status is not None and not (_is_status(status) and status.startswith(f"{family}.")):
        raise ValueError(f"status {status} for `{action.word}`, expected {family}.x.x such as {default.status}")
    if code is not None and status is None:
        status = default.status
    whole = "" if text is None else "".join(map(str, text.parts))
    if max(map(len, whole.split("\n"))) > MAX_TEXT:
        raise ValueError(f"a reply of more than {MAX_TEXT} characters in a line")
    if whole.count("\n") >= MAX_LINES:
        raise ValueError(f"a reply of more than {MAX_LINES} lines")
    return replace(action, text=text if text and text.parts else None, code=code, status=status)


def _is_status(word: str) -> bool:
    return re.fullmatch(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}", word) is not None


def _headers(action: SetHeader) -> SetHeader:
    for name in action.headers:
        HeaderText.name(name)
    made = {name: _one_line(text, f"a value of {name}") or text for name, text in action.headers.items()}
    return replace(action, headers=made)


def _names(action: RemoveHeader) -> RemoveHeader:
    for name in action.name:
        HeaderText.name(name)
    return action


def _sender(action: SetSenderTo) -> SetSenderTo:
    if action.sender.address.literal not in (None, "<>"):
        AddressText.parse(action.sender.address.literal or "")
    return action


def _recipients(action: AddRecipientTo) -> AddRecipientTo:
    for one in action.to:
        if one.address.literal == "<>":
            raise ValueError("'<>' is no address, name@example.org is one")
    return action


def _transport(action: TransportBy) -> TransportBy:
    name, colon, hop = action.to.partition(":")
    plain = name.isascii() and name.replace("-", "a").replace("_", "a").isalnum()
    if not colon or not plain or len(action.to) > 255 or any(not "!" <= char <= "~" for char in hop):
        raise ValueError(
            f"found {action.to!r}, expected a transport and a next hop such as 'smtp:[relay.example.org]:25'"
        )
    return action


def _vacation(action: VacationReply) -> VacationReply:
    if not 1 <= action.days <= 365:
        raise ValueError(f"{action.days} days, expected 1 to 365")
    if len(action.addresses) > 20 or len(action.handle) > 200 or not action.handle.isprintable():
        raise ValueError("at most 20 addresses, and a handle of at most 200 characters")
    return action


def _many(action: PipeTo | FilterThrough) -> PipeTo | FilterThrough:
    if fault := too_much("".join(part for part in one.parts if isinstance(part, str)) for one in action.arguments):
        raise ValueError(fault)
    return action


def _to(action: ForwardTo) -> ForwardTo:
    _recipients(AddRecipientTo(action.to))
    return action


def _prefix(action: PrefixSubject) -> PrefixSubject:
    return replace(action, prefix=_one_line(action.prefix, "a prefix") or action.prefix)


def _hold(action: Hold) -> Hold:
    return replace(action, reason=_one_line(action.reason, "a reason"))


FINISH: dict[type[Action], Callable[[Any], Action]] = {
    Refusal: _refusal,
    SetHeader: _headers,
    RemoveHeader: _names,
    PrefixSubject: _prefix,
    Hold: _hold,
    SetSenderTo: _sender,
    AddRecipientTo: _recipients,
    ForwardTo: _to,
    TransportBy: _transport,
    VacationReply: _vacation,
    PipeTo: _many,
    FilterThrough: _many,
}
