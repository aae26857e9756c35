"""The mail that a script is given: every question answered when asked, every text Untrusted, every action a value.

Must never: hand out a message's text as a str, or do what a script asks for (it is collected).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from milterapp.mail import message
from milterapp.mail.attachments import Attachment as Attached
from milterapp.mail.envelope import Envelope
from milterapp.script import actions
from milterapp.script.bounce import Bounce, bounce_of
from milterapp.script.context import Collected
from milterapp.script.untrusted import Text, Untrusted, reveal
from milterapp.script.values import Address, HeaderText, Mailbox, Rendered, body_text, header_name, plain

__all__ = ["Attachment", "Mail", "Person", "inside"]

_STATUS = re.compile(r"([45]\.[0-9]{1,3}\.[0-9]{1,3})[ \t]+(?=\S)")
_MOST_REFUSAL = 400

To = str | Address


@dataclass(frozen=True, slots=True)
class Person:
    """One address of a header field, all Untrusted. name: as displayed; address: local@domain."""

    name: Untrusted
    address: Untrusted
    local: Untrusted
    domain: Untrusted


class Attachment:
    """One attachment: its names in every reading, its type, its size in bytes, and its text where it is one."""

    __slots__ = ("_attached",)

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    @property
    def name(self) -> Untrusted:
        """The first name, empty without one."""
        return Untrusted(self._attached.names[0] if self._attached.names else "")

    @property
    def names(self) -> tuple[Untrusted, ...]:
        """Every name that a reader could take."""
        return tuple(map(Untrusted, self._attached.names))

    @property
    def type(self) -> Untrusted:
        """The media type, in lower case."""
        return Untrusted(self._attached.type)

    @property
    def size(self) -> int:
        """Bytes of the decoded content."""
        return self._attached.size

    @property
    def text(self) -> Untrusted:
        """The content as UTF-8 text, what is none replaced."""
        return Untrusted(self._attached.content.decode("utf-8", "replace"))


class Mail:
    """One message and its envelope. Reading it may raise LimitHit: "could not tell", and the site says what then."""

    def __init__(
        self, mail: message.Mail, envelope: Envelope, collected: Collected, *, confirmed: bool = False
    ) -> None:
        self._mail = mail
        self._envelope = envelope
        self._collected = collected
        self._confirmed = confirmed  # a message of before, whose sender has answered

    def __repr__(self) -> str:
        return f"Mail({self._mail.size} bytes)"

    # The envelope

    @property
    def sender(self) -> Untrusted:
        """The envelope sender, empty for the null sender."""
        return Untrusted(self._envelope.sender)

    @property
    def recipient(self) -> Untrusted:
        """The recipient as the sender gave it, before aliases."""
        return Untrusted(self._envelope.original_recipient or next(iter(self._envelope.recipients), ""))

    @property
    def proven(self) -> Address | None:
        """The sender's address where its answer to `confirm` came from there; None elsewhere."""
        return Address(self._envelope.sender) if self._confirmed else None

    @property
    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.fromtimestamp(self._collected.now, UTC)

    # The header

    def headers(self, name: str) -> tuple[Untrusted, ...]:
        """Return every value of a field, decoded, in order."""
        return tuple(map(Untrusted, self._mail.values(plain(name, "a header field's name"))))

    def header(self, name: str) -> Untrusted:
        """Return the first value of a field, decoded; empty without one."""
        return next(iter(self.headers(name)), Untrusted(""))

    def addresses(self, *names: str) -> tuple[Person, ...]:
        """Return the addresses of these fields."""
        found = self._mail.addresses(*(plain(one, "a header field's name") for one in names))
        return tuple(
            Person(Untrusted(one.display), Untrusted(one.address), Untrusted(one.local), Untrusted(one.domain))
            for one in found
        )

    @property
    def from_(self) -> tuple[Person, ...]:
        """The addresses of From."""
        return self.addresses("From")

    @property
    def to(self) -> tuple[Person, ...]:
        """The addresses of To."""
        return self.addresses("To")

    @property
    def cc(self) -> tuple[Person, ...]:
        """The addresses of Cc."""
        return self.addresses("Cc")

    @property
    def reply_to(self) -> tuple[Person, ...]:
        """The addresses of Reply-To."""
        return self.addresses("Reply-To")

    @property
    def subject(self) -> Untrusted:
        """The subject, decoded; empty without one."""
        return Untrusted(self._mail.subject or "")

    @property
    def list_id(self) -> Untrusted:
        """The first List-Id without its brackets; empty without one."""
        return Untrusted(next(iter(self._mail.list_ids), ""))

    @property
    def message_id(self) -> Untrusted:
        """The Message-ID; empty without one."""
        return Untrusted(self._mail.message_id or "")

    @property
    def in_reply_to(self) -> tuple[Untrusted, ...]:
        """The Message-IDs of References and In-Reply-To, each once."""
        return tuple(map(Untrusted, self._mail.references))

    @property
    def kinds(self) -> frozenset[str]:
        """Which of list, bulk, bounce, auto-reply, encrypted and signed the header says the message is."""
        return self._mail.kinds

    @property
    def malformed(self) -> bool:
        """Whether readers could take the message differently."""
        return bool(self._mail.malformed)

    # The body

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return self._mail.size

    @property
    def text(self) -> Untrusted:
        """The text parts, HTML as its text."""
        return Untrusted(self._mail.text)

    @property
    def html(self) -> Untrusted:
        """The source of the HTML parts."""
        return Untrusted(self._mail.html)

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What is attached."""
        return tuple(map(Attachment, self._mail.attachments))

    @property
    def bounce(self) -> Bounce | None:
        """What a delivery report says of its first failed recipient; None for other mail."""
        return bounce_of(self._mail)

    # Actions

    def keep(self) -> None:
        """Deliver as ever."""
        self._collected.add(actions.Keep())

    def file(self, folder: str | Mailbox, *, copy: bool = False) -> None:
        """File into a folder, as text of the script's own or as a Mailbox."""
        made = folder if isinstance(folder, Mailbox) else Mailbox(plain(folder, "a folder"))
        self._collected.add(actions.File(made.levels, copy))

    def forward(self, to: To, *, copy: bool = False, sender: To | None = None) -> None:
        """Send the message on to one address. sender: an address of one's own that it bounces to."""
        self._collected.add(actions.Forward(_address(to), copy, _sender(sender)))

    def reply(self, *, text: Text | Rendered, subject: Text | HeaderText = "", sender: To | None = None) -> None:
        """Answer the envelope sender; what may be answered at all is not the script's to say.

        sender: an address of one's own to answer as.
        """
        own = self._envelope.original_recipient if self._confirmed and sender is None else _sender(sender)
        self._collected.add(actions.Reply(body_text(text), _one_line(subject), own))

    def send(
        self, *, to: To | Iterable[To], subject: Text | HeaderText, text: Text | Rendered, sender: To | None = None
    ) -> None:
        """Send a message of the script's own, one to each address. sender: an address of one's own to write as."""
        several = [to] if isinstance(to, (str, Address, Untrusted)) else list(to)
        self._collected.add(
            actions.Send(tuple(map(_address, several)), _one_line(subject), body_text(text), _sender(sender))
        )

    def reject(self, text: Text) -> None:
        """Refuse the message; the text may begin with a status, `5.7.1 No such page`."""
        self._collected.add(actions.Reject(*_refusal(text, "5.7.1")))

    def defer(self, text: Text) -> None:
        """Have the message come again later; nothing else is done."""
        self._collected.add(actions.Defer(*_refusal(text, "4.7.1")))

    def discard(self) -> None:
        """Throw the message away."""
        self._collected.add(actions.Discard())

    def add_header(self, name: str, value: Text | HeaderText) -> None:
        """Append a header field."""
        self._edit("add_header", name, value)

    def set_header(self, name: str, value: Text | HeaderText) -> None:
        """Give a header field this value, once."""
        self._edit("set_header", name, value)

    def remove_header(self, name: str) -> None:
        """Remove every field of that name."""
        self._edit("remove_header", name, "")

    def prefix_subject(self, prefix: Text | HeaderText) -> None:
        """Put a text before the subject, once."""
        self._edit("prefix_subject", "Subject", prefix)

    def _edit(self, how: str, name: str, value: Text | HeaderText) -> None:
        self._collected.add(actions.Header(how, header_name(name), _one_line(value)))


def inside(mail: Mail) -> tuple[bytes, Envelope]:
    """Return the message and its envelope as they are: for ours that keep them, and give scripts none of it."""
    return mail._mail.raw, mail._envelope  # noqa: SLF001 - the one door beside the methods


def _address(to: To) -> str:
    return to.address if isinstance(to, Address) else Address(to).address


def _sender(address: To | None) -> str:
    return "" if address is None else _address(address)


def _one_line(text: Text | HeaderText) -> str:
    return (text if isinstance(text, HeaderText) else HeaderText(text)).text


def _refusal(text: Text, status: str) -> tuple[str, str]:
    """Return status and text; only the script's own text brings a status, all of it is one line of ASCII."""
    line = HeaderText(text).text
    found = _STATUS.match(line) if isinstance(text, str) else None
    if found:
        status, line = found[1], line[found.end() :]
    line = reveal(line).encode("ascii", "replace").decode()[:_MOST_REFUSAL]
    return status, line or "refused"
