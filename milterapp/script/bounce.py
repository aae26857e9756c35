"""Delivery reports (RFC 3464): which recipient a message did not reach, and whether it is worth trying again.

Must never: take a text that only looks like a report for one, or a delayed message for a failed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from milterapp.mail.message import Mail
from milterapp.script.untrusted import Untrusted

__all__ = ["Bounce", "bounce_of"]

_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:[ \t]*(.*)")
_STATUS = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")
_SOFT = frozenset({"5.2.2"})  # a full mailbox may be emptied
_MOST = 64 * 1024  # characters of a report


@dataclass(frozen=True, slots=True)
class Bounce:
    """A report about one recipient. status: RFC 3463, "" where it has none; hard: the address will not work later."""

    recipient: Untrusted
    status: str
    hard: bool
    text: Untrusted


def bounce_of(mail: Mail) -> Bounce | None:
    """Return the first failure that a message reports, else the first delay; None for what is no report."""
    found = [(fields, made) for fields in _groups(mail) if (made := _bounce(fields)) is not None]
    failed = [made for fields, made in found if fields["action"].lower() == "failed"]
    return next(iter(failed or [made for _, made in found]), None)


def _groups(mail: Mail) -> Iterator[dict[str, str]]:
    """Yield the fields of each recipient of each report."""
    for part in mail.parts:
        if part.type not in ("message/delivery-status", "message/global-delivery-status"):
            continue
        text = bytes(part.content)[:_MOST].decode("utf-8", "replace").replace("\r\n", "\n")
        for group in re.split(r"\n[ \t]*\n", text):
            fields: dict[str, str] = {}
            for line in re.sub(r"\n[ \t]+", " ", group).split("\n"):
                if match := _FIELD.fullmatch(line):
                    fields.setdefault(match[1].lower(), match[2].strip())
            yield fields


def _bounce(fields: dict[str, str]) -> Bounce | None:
    recipient = fields.get("final-recipient") or fields.get("original-recipient")
    action = fields.get("action", "").lower()
    if not recipient or action not in ("failed", "delayed"):
        return None
    status = _STATUS.match(fields.get("status", ""))
    code = status[1] if status else ""
    kind, semicolon, address = recipient.partition(";")
    hard = action == "failed" and code[:1] == "5" and code not in _SOFT
    return Bounce(
        Untrusted((address if semicolon else kind).strip()),
        code if action == "failed" or not code else f"4{code[1:]}",
        hard,
        Untrusted(fields.get("diagnostic-code", "").partition(";")[2].strip()),
    )
