"""A message as rules see it: every question answered from the bytes when it is first asked, and kept.

Must never: raise on what a message holds (only LimitHit, on a bound of ours), change it, or read the body for a
question about the header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from milterapp.mail import address, attachments, kinds, links, mime, text, words
from milterapp.mail.address import Address
from milterapp.mail.attachments import Attachment
from milterapp.mail.fields import Field, Header, given, join, scan, unfold, values_of
from milterapp.mail.lazy import Lazy
from milterapp.mail.limits import DEFAULT, LimitHit, Limits
from milterapp.mail.mime import Part

__all__ = ["Address", "Attachment", "Field", "Mail", "Part"]

_LIST_ID = re.compile(r"<([^<>]*+)>")
_MESSAGE_ID = re.compile(r"<[^<>\s]++>")
_ONCE = (  # RFC 5322 section 3.6: at most one of each; where there are two, readers disagree
    "date",
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "subject",
    "message-id",
    "content-type",
    "content-transfer-encoding",
    "mime-version",
)


class Mail:
    """One message. raw: as it came, with CRLF, LF or both; limits: the bounds on reading it.

    Every property may raise LimitHit ("could not tell"); none raises anything else.
    complete: False where only the header is known (the milter's header stage); then there is no body to ask about,
    and `body`, `text`, `parts` and the like are those of an empty one.
    """

    def __init__(self, raw: bytes, limits: Limits = DEFAULT) -> None:
        self.__dict__["raw"] = raw
        self.limits = limits
        self.complete = True
        self._given: Sequence[tuple[bytes, bytes]] | None = None

    @classmethod
    def from_fields(
        cls,
        fields: Sequence[tuple[bytes, bytes]],
        limits: Limits = DEFAULT,
        body: bytes | None = None,
    ) -> Mail:
        """Return a message from (name, value) pairs as a milter gets them, with the body where it is known by now.

        Values may begin with the blank after the colon or without it, and be folded with LF or CRLF.
        """
        mail = cls(b"" if body is None else join(fields, body), limits)
        if body is None:
            del mail.__dict__["raw"]  # made when it is asked for: rules on a few fields do without
            mail.complete = False
        mail._given = tuple(fields)
        return mail

    def with_body(self, body: bytes) -> Mail:
        """Return the message whose header this is, with its body. What was read of the header is not read again.

        Only for what `from_fields` made without a body. Raises LimitHit where the header hits a limit.
        """
        whole = Mail(self.raw + body, self.limits)
        whole._given = self._given
        whole.__dict__["_by_name"] = self._by_name  # where Lazy keeps what it knows
        for known in ("_scanned", "_raw_values", "_values"):
            if known in self.__dict__:
                whole.__dict__[known] = self.__dict__[known]
        return whole

    def __repr__(self) -> str:
        return f"Mail({len(self.raw)} bytes)"

    @Lazy
    def raw(self) -> bytes:
        """The message as it came."""
        return join(self._given or (), b"")

    # The header

    @Lazy
    def _scanned(self) -> Header:
        if self._given is not None:
            return given(self.raw, self._given, self.limits)
        return scan(self.raw, self.limits)

    @property
    def header(self) -> tuple[Field, ...]:
        """The fields in their order."""
        return self._scanned.fields

    @Lazy
    def _by_name(self) -> Mapping[str, Sequence[bytes] | Sequence[Field]]:
        """The values by name in lower case; where they were given, their places in the message are not looked for."""
        if self._given is not None:
            return values_of(self._given, self.limits)
        found: dict[str, list[Field]] = {}
        for field in self._scanned.fields:
            found.setdefault(field.name.lower(), []).append(field)
        return found

    @property
    def names(self) -> Collection[str]:
        """The names of the fields, in lower case, each once."""
        return self._by_name.keys()

    def fields(self, name: str) -> tuple[Field, ...]:
        """Return every field of that name, in order; names compare without regard to case."""
        name = name.lower()
        if name not in self._by_name:
            return ()
        return tuple(field for field in self._scanned.fields if field.name.lower() == name)

    def values(self, name: str) -> tuple[str, ...]:
        """Return every value of that name, decoded."""
        name = name.lower()
        known = self._values.get(name)
        if known is None:
            known = self._values[name] = tuple([words.decode(one) for one in self.raw_values(name)])
        return known

    def raw_values(self, name: str) -> tuple[str, ...]:
        """Return every value of that name, unfolded and not decoded."""
        name = name.lower()
        known = self._raw_values.get(name)
        if known is None:
            found = self._by_name.get(name, ())
            known = tuple([words.unlabelled(unfold(one if isinstance(one, bytes) else one.value)) for one in found])
            self._raw_values[name] = known
        return known

    @Lazy
    def _values(self) -> dict[str, tuple[str, ...]]:
        return {}

    @Lazy
    def _raw_values(self) -> dict[str, tuple[str, ...]]:
        return {}

    def addresses(self, *names: str) -> tuple[Address, ...]:
        """Return the addresses of every field of those names: groups flattened, names decoded."""
        if len(names) == 1:
            return self._addresses(names[0].lower())
        return tuple(one for name in names for one in self._addresses(name.lower()))

    def _addresses(self, name: str) -> tuple[Address, ...]:
        known = self._read_addresses.get(name)
        if known is None:
            first = len(self._reader.found)
            for value in self.raw_values(name):
                self._reader.read(value)
            known = self._read_addresses[name] = tuple(self._reader.found[first:])
        return known

    @Lazy
    def _reader(self) -> address.Reader:
        return address.Reader(self.limits.addresses)

    @Lazy
    def _read_addresses(self) -> dict[str, tuple[Address, ...]]:
        return {}

    @Lazy
    def subject(self) -> str | None:
        """The first Subject, decoded; None without one."""
        return next(iter(self.values("subject")), None)

    @Lazy
    def list_ids(self) -> tuple[str, ...]:
        """Every List-Id (RFC 2919) without its brackets and description."""
        found = []
        for value in self.raw_values("list-id"):
            brackets = _LIST_ID.findall(value)
            found += [one.strip() for one in brackets] if brackets else [value.strip()]
        return tuple(dict.fromkeys(one for one in found if one))

    @Lazy
    def message_id(self) -> str | None:
        """The first Message-ID with its brackets, as it came where it has none; None without one."""
        text = next(iter(self.raw_values("message-id")), "")
        if not text:
            return None
        match = _MESSAGE_ID.search(text)
        return match[0] if match else text

    @Lazy
    def references(self) -> tuple[str, ...]:
        """The Message-IDs of References and In-Reply-To, with their brackets, each once."""
        values = self.raw_values("references") + self.raw_values("in-reply-to")
        return tuple(dict.fromkeys(one for value in values for one in _MESSAGE_ID.findall(value)))

    @Lazy
    def kinds(self) -> frozenset[str]:
        """Which of kinds.KINDS the header says the message is."""
        return kinds.kinds_of(self)

    @Lazy
    def header_faults(self) -> tuple[str, ...]:
        """What is malformed about the header, as reasons."""
        found = list(self._scanned.faults)
        found += [f"two {name} fields" for name in _ONCE if len(self._by_name.get(name, ())) > 1]
        return tuple(found)

    # The body

    @property
    def size(self) -> int:
        """Bytes of the message as it came."""
        return len(self.raw)

    @property
    def body(self) -> bytes:
        """What follows the header, as it came."""
        return self.raw[self._scanned.body :]

    @property
    def body_start(self) -> int:
        """Where the body begins in `raw`, its length where there is none."""
        return self._scanned.body

    @Lazy
    def parts(self) -> tuple[Part, ...]:
        """The message and all parts in it, containers before what they hold."""
        if len(self.raw) > self.limits.message_bytes:
            raise LimitHit(f"a message of more than {self.limits.message_bytes} bytes")
        return mime.split(self.raw, self._scanned, self.limits)

    @Lazy
    def text(self) -> str:
        """The decoded text parts, HTML as its text, joined by line ends; attachments are not among them."""
        return text.text_of(self.parts)

    @Lazy
    def html(self) -> str:
        """The decoded source of the HTML parts, joined by line ends."""
        return text.html_of(self.parts)

    @Lazy
    def attachments(self) -> tuple[Attachment, ...]:
        """What is attached, at any depth."""
        return attachments.attachments_of(self.parts)

    @Lazy
    def urls(self) -> tuple[str, ...]:
        """The addresses that its text and its HTML link to, each once."""
        return links.found_in(self.text, self.html)

    @Lazy
    def url_hosts(self) -> tuple[str, ...]:
        """The hosts of its links, lower case, each once."""
        return tuple(dict.fromkeys(one for one in map(links.host, self.urls) if one))

    @Lazy
    def malformed(self) -> tuple[str, ...]:
        """Why readers could take the message differently, as reasons, () where it is well-formed.

        The header's alone while the body is not known.
        """
        if not self.complete:
            return self.header_faults
        found = list(self.header_faults)
        for part in self.parts:
            if part.depth:
                found += part.header.faults if part.header.fields else ()
            found += part.faults
            found += part.content_faults()
        for attachment in self.attachments:
            found += attachment.faults
        return tuple(dict.fromkeys(found))
