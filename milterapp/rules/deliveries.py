"""What becomes of a message that is kept, passed on or answered: one value a delivery, as a Decision holds them.

Must never: do anything, or know of rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import split_address

__all__ = ["Delivery", "File", "Forward", "Keep", "Pipe", "Send", "SendReply", "Vacation", "joined", "place_of"]


@dataclass(frozen=True, slots=True)
class Keep:
    """Deliver as Postfix always did; `implicit` where no rule asked for it. flags: as File, in the Maildir alone."""

    implicit: bool = False
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        found: dict[str, Any] = {"action": "keep", "implicit": self.implicit}
        return found | {"flags": list(self.flags)} if self.flags else found


@dataclass(frozen=True, slots=True)
class File:
    """File into a folder: its levels from the top, each one harmless path component (mail.values.Mailbox).

    flags: IMAP's words for it, any of seen, flagged, answered. create: False to keep the message where there is no such
    folder.
    """

    folder: tuple[str, ...]
    copy: bool = False
    flags: tuple[str, ...] = ()
    create: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        found: dict[str, Any] = {"action": "file", "folder": "/".join(self.folder), "copy": self.copy}
        found |= {} if self.create else {"create": False}
        return found | {"flags": list(self.flags)} if self.flags else found


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the message on to one address. script: the one that does, "" for a rule; sender: whom it bounces to, ""
    as it came.
    """

    to: str
    copy: bool = False
    script: str = ""
    sender: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "forward", "to": self.to, "copy": self.copy}


@dataclass(frozen=True, slots=True)
class SendReply:
    """Answer the envelope sender with a text; never ends the rules, never keeps the message from being kept.

    refused: why the guards of invariant 2 would not let it out, "" where they would. script: the script that answers,
    "" for a rule: a script may answer a correspondent more than once, within a rate. sender: its own address to answer
    as, "" for the one that was written to.
    """

    text: str
    subject: str = ""
    rule: str = ""
    refused: str = ""
    script: str = ""
    sender: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "reply", "text": self.text, "subject": self.subject, "refused": self.refused or None}


@dataclass(frozen=True, slots=True)
class Vacation:
    """Tell the envelope sender that the recipient is away (RFC 5230), at most once in `days` for a sender and handle.

    from_: address to answer as, "" for the recipient's; addresses: other ones of the recipient. refused: as SendReply.
    """

    text: str
    subject: str = ""
    days: int = 7
    from_: str = ""
    addresses: tuple[str, ...] = ()
    handle: str = ""
    rule: str = ""
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {
            "action": "vacation",
            "text": self.text,
            "subject": self.subject,
            "days": self.days,
            "from": self.from_ or None,
            "addresses": list(self.addresses),
            "handle": self.handle,
            "refused": self.refused or None,
        }


@dataclass(frozen=True, slots=True)
class Pipe:
    """Give the message to a program of the site's, by its name there, with these arguments; never through a shell."""

    program: str
    arguments: tuple[str, ...] = ()
    copy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "pipe", "program": self.program, "arguments": list(self.arguments), "copy": self.copy}


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message of a script's own to one address; the message that came is kept all the same. sender: as above."""

    to: str
    subject: str
    text: str
    script: str = ""
    sender: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "send", "to": self.to, "subject": self.subject, "text": self.text}


Delivery = Keep | File | Forward | SendReply | Vacation | Pipe | Send


def place_of(delivery: Delivery) -> Delivery:
    """Return what two deliveries have in common that would bring the message to one place twice.

    Folders are those of the Maildir: a dot within a level is no other than `_` there, and `INBOX` is its top. Of an
    address the domain is one in any case, the local part is its host's matter (RFC 5321 section 2.4). What a script
    sends on is apart: it has a sender and bounds of its own.
    """
    if isinstance(delivery, File):
        levels = tuple(level.replace(".", "_") for level in delivery.folder)
        return File(levels[1:] if "".join(levels[:1]).upper() == "INBOX" else levels)
    if isinstance(delivery, Forward):
        local, domain = split_address(delivery.to)
        return replace(delivery, to=f"{local}@{ascii_domain(domain)}", copy=False)
    return replace(delivery, copy=False) if isinstance(delivery, Pipe) else delivery


def joined(first: Delivery, second: Delivery) -> Delivery:
    """Return two deliveries to one place as one, which has what either asks for; a copy is what both are."""
    if isinstance(first, File) and isinstance(second, File):
        flags = tuple(sorted({*first.flags, *second.flags}))
        create = first.create or second.create
        return replace(first, copy=first.copy and second.copy, flags=flags, create=create)
    if isinstance(first, Forward | Pipe) and isinstance(second, Forward | Pipe):
        return replace(first, copy=first.copy and second.copy)
    return first
