"""Conditions on the message: its header and its body.

Must never: decode by itself; Mail reads, decodes and bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from milterapp.mail.attachments import extensions
from milterapp.mail.envelope import Stage
from milterapp.mail.limits import LimitHit
from milterapp.rules.conditions import AddressField, Direct, Read, Sought
from milterapp.rules.facts import Facts
from milterapp.rules.long_text import RawText
from milterapp.rules.operators import TestNumber

__all__ = ["MESSAGE_CONDITIONS"]


@dataclass(frozen=True, slots=True)
class Header(Sought):
    """Header fields by name: `header: {X-Spam-Flag: yes}`. Every field of that name counts, unfolded and decoded; one
    that passes is enough. Several names below one `header` must all hold.
    """

    word = "header"
    stage = Stage.HEADERS

    name: str = ""

    def field(self) -> tuple[str, str]:
        """Return the word and the field's name, in lower case."""
        return self.word, self.name.lower()

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the values of every field of that name."""
        return facts.message.values(self.name)

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {self.name} {self.test.say()}"


class RawHeader(Header):
    """As `header`, but unfolded only: encoded words stay as the message has them."""

    word = "raw_header"

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the undecoded values of every field of that name."""
        return facts.message.raw_values(self.name)


class From(AddressField):
    """The addresses in From. Anybody can write anything there."""

    word = "from"
    stage = Stage.HEADERS
    names: ClassVar[tuple[str, ...]] = ("From",)

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the addresses of the fields that count."""
        return facts.message.addresses(*self.names)


class To(From):
    """The addresses in To."""

    word = "to"
    names = ("To",)


class Cc(From):
    """The addresses in Cc."""

    word = "cc"
    names = ("Cc",)


class ReplyTo(From):
    """The addresses in Reply-To."""

    word = "reply_to"
    names = ("Reply-To",)


class AddressedTo(From):
    """Whom the message says it is for: the addresses in To, Cc and Bcc, and in those of them with Resent- before."""

    word = "addressed_to"
    names = ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc")


class Subject(Sought):
    """The subject, decoded."""

    word = "subject"
    stage = Stage.HEADERS

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the subject, if there is one; where readers would differ, each of them."""
        return facts.message.values("Subject")


class ListId(Sought):
    """What stands in the angle brackets of List-Id: `python-dev.python.org`. With a leading dot it is the domain and
    all below it.
    """

    word = "list_id"
    stage = Stage.HEADERS
    parts: ClassVar[Read] = {"": ("domain", lambda value, _: (value,))}

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the lists."""
        return facts.message.list_ids


class MessageId(Sought):
    """The Message-ID, without its angle brackets."""

    word = "message_id"
    stage = Stage.HEADERS

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return it, if there is one."""
        found = facts.message.message_id
        return () if found is None else (_bare(found.strip()),)


class References(Sought):
    """The Message-IDs in References and In-Reply-To, each without its angle brackets."""

    word = "references"
    stage = Stage.HEADERS

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return them."""
        return tuple(map(_bare, facts.message.references))


def _bare(message_id: str) -> str:
    return message_id.removeprefix("<").removesuffix(">")


Kinds = Literal["list", "bulk", "bounce", "auto-reply", "encrypted", "signed"]


@dataclass(frozen=True, slots=True)
class Kind(Direct):
    """What sort of message it is, one or several of: `list` (a mailing list sent it on), `bulk`, `bounce` (a delivery
    report, or what looks like one), `auto-reply`, `encrypted`, `signed` (S/MIME, PGP/MIME). The sender decides what
    the message looks like.
    """

    word = "kind"
    stage = Stage.HEADERS

    words: tuple[Kinds, ...]

    def holds(self, facts: Facts) -> bool | None:
        """Return whether it is one of them."""
        return not facts.message.kinds.isdisjoint(self.words)

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} is {' or '.join(self.words)}"

    def saw(self, facts: Facts) -> str:
        """Return what it is."""
        return ", ".join(sorted(facts.message.kinds)) or "none of them"


class Malformed(Sought):
    """`yes`: the message is damaged, or written so that readers would differ on what it says. Or a test of the
    reasons, each a few plain words.
    """

    word = "malformed"
    stage = Stage.BODY
    begins = Stage.HEADERS

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the reasons; while the body is not known, those of the header."""
        return facts.message.malformed if facts.stage >= Stage.BODY else facts.message.header_faults


class Body(Sought):
    """The decoded text of the message's text parts, one after the other."""

    word = "body"
    stage = Stage.BODY
    late = True

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the text."""
        return (facts.message.text,) if facts.message.text else ()

    def show(self, occurrence: Any) -> str:
        """Return how long it is: a text would fill the trace."""
        return f"{len(occurrence)} characters of text"


class Html(Sought):
    """The decoded source of the message's HTML parts, one after the other."""

    word = "html"
    stage = Stage.BODY
    late = True

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the source."""
        return (facts.message.html,) if facts.message.html else ()

    def show(self, occurrence: Any) -> str:
        """Return how long it is."""
        return f"{len(occurrence)} characters of HTML"


class Raw(Sought):
    """The whole message as it came, header and body, nothing decoded; lines end in LF. What is not UTF-8 reads as the
    replacement character.
    """

    word = "raw"
    stage = Stage.BODY
    late = True

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the message; raises LimitHit where it is more than may be decoded."""
        mail = facts.message
        if mail.size > mail.limits.decoded_bytes:
            raise LimitHit(f"a message of more than {mail.limits.decoded_bytes} bytes")
        return (RawText(mail.raw),)

    def show(self, occurrence: Any) -> str:
        """Return how long it is."""
        return f"{len(occurrence)} bytes"


class Url(Sought):
    """The hosts that links lead to, in the text and in the HTML: `url: .example.org` is that domain and all below it.
    An address in a link to a picture counts too.
    """

    word = "url"
    stage = Stage.BODY
    late = True
    parts: ClassVar[Read] = {"": ("domain", lambda value, _: (value,))}

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the hosts."""
        return facts.message.url_hosts


def _all_names(one: Any) -> tuple[str, ...]:
    """Return an attachment's names and those of what is in it, a path as it stands and its last part."""
    paths = one.member_names
    last = (path.replace("\\", "/").rstrip("/").rpartition("/")[2] for path in paths)
    return tuple(dict.fromkeys((*one.names, *paths, *last)))


@dataclass(frozen=True, slots=True)
class Attachment(Sought):
    """An attachment, by its `name`, its `type` (such as `application/pdf`), its decoded `size` and the `extension` of
    its name (without the dot); what stands below one `attachment` holds for the same one. Where a message gives an
    attachment two names, either counts, and for an archive so does the name of every file in it. `attachment: {exists:
    yes}` is any, `count` how many.
    """

    word = "attachment"
    stage = Stage.BODY
    late = True
    parts: ClassVar[Read] = {
        "name": ("text", lambda one, _: _all_names(one)),
        "type": ("text", lambda one, _: (one.type,)),
        "extension": ("text", lambda one, _: extensions(_all_names(one))),
    }

    size: TestNumber | None = None

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the attachments large or small enough."""
        if self.size is None:
            return facts.message.attachments
        return tuple(one for one in facts.message.attachments if self.size.holds(one.size))

    def field(self) -> tuple[str, str]:
        """Return the word, and the bounds of size, which are read for themselves."""
        return self.word, self.size.say() if self.size else ""

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        size = f"size {self.size.say()}" if self.size else ""
        return f"{self.word} {' and '.join(filter(None, (size, self.test.say())))}"

    def show(self, occurrence: Any) -> str:
        """Return an attachment as a trace shows it."""
        return f"{(occurrence.names or ('',))[0]} ({occurrence.type}, {occurrence.size} bytes)"


@dataclass(frozen=True, slots=True)
class Size(Direct):
    """The size of the whole message in bytes: `size: {over: 10 MB}`."""

    word = "size"
    stage = Stage.BODY
    unit: ClassVar[str] = "bytes"

    test: TestNumber

    def number(self, facts: Facts) -> int:
        """Return the number that is tested; raises LimitHit."""
        return facts.message.size

    def holds(self, facts: Facts) -> bool | None:
        """Return whether the number passes."""
        return self.test.holds(self.number(facts))

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {self.test.say()}"

    def saw(self, facts: Facts) -> str:
        """Return the number."""
        return f"{self.number(facts)} {self.unit}"


class Parts(Size):
    """How many parts the message has: itself, and every MIME part in it at any depth. A plain letter has one."""

    word = "parts"
    unit = "parts"

    def number(self, facts: Facts) -> int:
        """Return how many there are."""
        return len(facts.message.parts)


MESSAGE_CONDITIONS = (
    Header,
    RawHeader,
    From,
    To,
    Cc,
    ReplyTo,
    AddressedTo,
    Subject,
    ListId,
    MessageId,
    References,
    Kind,
    Malformed,
    Body,
    Html,
    Raw,
    Url,
    Attachment,
    Size,
    Parts,
)
