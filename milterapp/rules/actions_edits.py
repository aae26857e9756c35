"""Actions that change the message or its envelope.

Must never: change anything; what they add to the outcome is carried out at the edges, to the byte.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal

from milterapp.mail import edits
from milterapp.mail.envelope import Stage
from milterapp.rules.action import Action, Given, Outcome
from milterapp.rules.decision import AddRecipient, RemoveRecipient, SetSender, Transport
from milterapp.rules.facts import Facts
from milterapp.rules.placeholders import Template, one_line
from milterapp.rules.targets import Target
from milterapp.rules.which import WhichAttachments, WhichFields

__all__ = [
    "AddHeader", "AddRecipientTo", "Banner", "DropAttachments", "Footer", "PrefixSubject", "PrependHeader",
    "RemoveHeader", "RemoveRecipientFrom", "ReplaceBody", "SetHeader", "SetSenderTo", "TransportBy",
]  # fmt: skip

# RFC 6376 section 5.4.1, and what the large signers sign besides.
SIGNED = frozenset((
    "from", "reply-to", "subject", "date", "to", "cc", "in-reply-to", "references", "message-id", "mime-version",
    "content-type", "content-transfer-encoding", "sender", "list-id", "list-help", "list-unsubscribe", "list-subscribe",
    "list-post", "list-owner", "list-archive", "resent-date", "resent-from", "resent-to", "resent-cc", "resent-sender",
    "resent-message-id", "content-id", "content-description",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class SetHeader(Action):
    """Give each named header field its value, in place of all fields of that name there are:
    `set_header: {X-Checked: yes}`.
    """

    word = "set_header"
    main = "headers"
    for_all = True

    headers: dict[str, Template] = field(hash=False)

    def templates(self) -> tuple[Template, ...]:
        """Return the values."""
        return tuple(self.headers.values())

    def edit(self, name: str, value: str) -> edits.Edit:
        """Return the edit for one field."""
        return edits.SetHeader(name, value)

    def breaks_signature(self) -> bool:
        """Return whether one of the fields is usually signed."""
        return not SIGNED.isdisjoint(name.lower() for name in self.headers)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add one edit a field."""
        outcome.edits += [
            self.edit(name, one_line(text.fill(given.fill, one_line))) for name, text in self.headers.items()
        ]


class AddHeader(SetHeader):
    """Add a header field for each name, beside those there are: `add_header: {X-Spam-Flag: yes}`."""

    word = "add_header"

    def edit(self, name: str, value: str) -> edits.Edit:
        """Return the edit for one field."""
        return edits.AddHeader(name, value)

    def breaks_signature(self) -> bool:
        """Return False: fields beside those that are signed are not covered, but for a second one of a kind."""
        return False


class PrependHeader(AddHeader):
    """Add a header field above all others for each name: `prepend_header: {X-Filtered-By: mx1.example.org}`."""

    word = "prepend_header"

    def edit(self, name: str, value: str) -> edits.Edit:
        """Return the edit for one field."""
        return edits.PrependHeader(name, value)


@dataclass(frozen=True, slots=True)
class RemoveHeader(Action):
    """Remove every header field of that name, or of each of several. With `value`, a test as below `header`, only those
    that pass it: `remove_header: {name: X-Note, value: {contains: internal}}`.
    """

    word = "remove_header"
    main = "name"
    for_all = True

    name: tuple[str, ...]
    value: WhichFields | None = None

    def stage(self) -> Stage:
        """Return the header's where a value is asked for."""
        return Stage.CONNECT if self.value is None else Stage.HEADERS

    def prepare(self, facts: Facts) -> None:
        """Read the fields."""
        if self.value is not None:
            for name in self.name:
                self.value.picked(name, facts)

    def breaks_signature(self) -> bool:
        """Return whether one of the fields is usually signed."""
        return not SIGNED.isdisjoint(name.lower() for name in self.name)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add one edit a name, none where no field passes."""
        for name in self.name:
            found = None if self.value is None else self.value.picked(name, given.facts)
            if found is None or found:
                outcome.edits.append(edits.RemoveHeader(name, found))


@dataclass(frozen=True, slots=True)
class PrefixSubject(Action):
    """Put a text before the subject, once: a subject that has it already is left alone. Quote a prefix in brackets:
    `prefix_subject: '[EXTERNAL]'`.
    """

    word = "prefix_subject"
    main = "prefix"
    for_all = True

    prefix: Template

    def breaks_signature(self) -> bool:
        """Return True: the subject is signed."""
        return True

    def templates(self) -> tuple[Template, ...]:
        """Return the prefix."""
        return (self.prefix,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the edit."""
        outcome.edits.append(edits.PrefixSubject(one_line(self.prefix.fill(given.fill, one_line))))


@dataclass(frozen=True, slots=True)
class Banner(Action):
    """Put a text above what the message says, in its text and in its HTML; in the HTML as `html` has it, else the text,
    escaped. `only: text` or `only: html` is for that alone. A signed or encrypted message is left as it is, unless
    `signed: yes`. A value is one line of the text.
    """

    word = "banner"
    main = "text"
    for_all = True

    text: Template
    html: Template | None = None
    only: Literal["text", "html", ""] = ""
    signed: bool = False

    def stage(self) -> Stage:
        """Return the body's."""
        return Stage.BODY

    def breaks_signature(self) -> bool:
        """Return True: the body is signed."""
        return True

    def templates(self) -> tuple[Template, ...]:
        """Return the texts."""
        return (self.text, self.html) if self.html else (self.text,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the edit."""
        marked = self.html.fill(given.fill, lambda value: html.escape(one_line(value))) if self.html else ""
        made = edits.Footer if isinstance(self, Footer) else edits.Banner
        outcome.edits.append(made(self.text.fill(given.fill, one_line), marked, self.only, self.signed))


class Footer(Banner):
    """Put a text below what the message says: as `banner`, but at the end."""

    word = "footer"


@dataclass(frozen=True, slots=True)
class DropAttachments(Action):
    """Take attachments out of the message: all of them, or those that pass the tests of the condition `attachment`:
    `drop_attachments: {extension: [exe, scr]}`. A text in the place of each says what it was; it begins with `note`:
    `drop_attachments: {which: {extension: exe}, note: Removed by example.org}`.
    """

    word = "drop_attachments"
    main = "which"
    for_all = True

    which: WhichAttachments | None = None
    note: Template | None = None

    def stage(self) -> Stage:
        """Return the body's."""
        return Stage.BODY

    def prepare(self, facts: Facts) -> None:
        """Read the attachments."""
        (self.which or WhichAttachments()).picked(facts)

    def breaks_signature(self) -> bool:
        """Return True: the body is signed."""
        return True

    def templates(self) -> tuple[Template, ...]:
        """Return the note."""
        return (self.note,) if self.note else ()

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the edit, where there is something to take out."""
        parts = (self.which or WhichAttachments()).picked(given.facts)
        if parts:
            note = one_line(self.note.fill(given.fill, one_line)) if self.note else ""
            outcome.edits.append(edits.DropAttachments(parts, note))


@dataclass(frozen=True, slots=True)
class ReplaceBody(Action):
    """Put a plain text in the place of the whole body, attachments and all. A value is one line of it."""

    word = "replace_body"
    main = "text"
    for_all = True

    text: Template

    def stage(self) -> Stage:
        """Return the body's."""
        return Stage.BODY

    def breaks_signature(self) -> bool:
        """Return True: the body is signed."""
        return True

    def templates(self) -> tuple[Template, ...]:
        """Return the text."""
        return (self.text,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the edit."""
        outcome.edits.append(edits.ReplaceBody(self.text.fill(given.fill, one_line)))


@dataclass(frozen=True, slots=True)
class SetSenderTo(Action):
    """Give the message another envelope sender: an address, or `<>` for none, so that nobody hears of a failure. For a
    value from the message what `forward` says holds.
    """

    word = "set_sender"
    main = "sender"
    personal = False
    for_all = True

    sender: Target

    def templates(self) -> tuple[Template, ...]:
        """Return the address."""
        return (self.sender.address,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the edit."""
        outcome.envelope.append(SetSender(self.sender.address.fill(given.fill, str)))


@dataclass(frozen=True, slots=True)
class AddRecipientTo(Action):
    """Deliver the message to one more address, or to each of several: `add_recipient: archive@example.org`. For a value
    from the message what `forward` says holds.
    """

    word = "add_recipient"
    main = "to"
    personal = False
    for_all = True

    to: tuple[Target, ...]

    def templates(self) -> tuple[Template, ...]:
        """Return the addresses."""
        return tuple(one.address for one in self.to)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add one edit an address."""
        outcome.envelope += [AddRecipient(one.address.fill(given.fill, str)) for one in self.to]


@dataclass(frozen=True, slots=True)
class RemoveRecipientFrom(AddRecipientTo):
    """Take an address, or each of several, off the recipients, where it is one of them. Nobody is told. With no
    recipient left the message is thrown away.
    """

    word = "remove_recipient"

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add one edit an address."""
        outcome.envelope += [RemoveRecipient(one.address.fill(given.fill, str)) for one in self.to]


@dataclass(frozen=True, slots=True)
class TransportBy(Action):
    """Let Postfix deliver the message by this transport and next hop, whoever the recipient is, as its FILTER does:
    `transport: 'smtp:[relay.example.org]:25'`.
    """

    word = "transport"
    main = "to"
    personal = False
    for_all = True

    to: str

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Add the edit."""
        outcome.envelope.append(Transport(self.to))
