"""The parts of a message (RFC 2046), found by their boundaries over the bytes; nothing is decoded or copied here.

Must never: recurse, raise on what a message holds (only LimitHit), or hide a part that some reader would find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from milterapp.mail import charsets, parameters, transfer
from milterapp.mail.archives import Spent
from milterapp.mail.fields import Field, Header, scan
from milterapp.mail.lazy import Lazy
from milterapp.mail.limits import LimitHit, Limits

__all__ = ["Part", "split"]

_FIRST_DASHES = re.compile(rb"(?m)^--([^\s-][^\r\n]*+)")
_MOST_NEAR_MISSES = 100_000  # lines that begin like a boundary and are none
_MOST_SEARCHED = 300_000_000  # bytes searched for boundaries, all levels together
_COST = {"quoted-printable": 4}  # what is slower to decode than others counts as more bytes


@dataclass(slots=True)
class Budget:
    """What reading one message has spent of its limits."""

    limits: Limits
    parts: int = 0
    fields: int = 0
    searched: int = 0
    near_misses: int = 0
    decoded: int = 0
    archives: Spent = field(default_factory=Spent)

    def spend(self, name: str, amount: int, most: int, words: str) -> None:
        """Spend so much of one limit. Raises LimitHit where that is too much."""
        spent = getattr(self, name) + amount
        if spent > most:
            raise LimitHit(f"more than {most} {words}")
        setattr(self, name, spent)


@dataclass(repr=False, eq=False)
class Part:
    """One part of a message, itself the first. Offsets into `source`; depth 0 is the message.

    header: its fields; the body is source[header.body:end].
    """

    source: bytes
    header: Header
    end: int
    depth: int
    budget: Budget
    default_type: str = "text/plain"
    faults: list[str] = field(default_factory=list)
    text_fault: str | None = None  # what was wrong with the charset, None while the text has not been read
    start: int = 0  # where its header begins
    number: int = 0  # its place among all parts of the message

    def __repr__(self) -> str:
        return f"Part({self.type!r}, {len(self.body)} bytes, depth={self.depth})"

    def fields(self, name: str) -> list[Field]:
        """Return the fields of that name (lower case) in their order."""
        return [one for one in self.header.fields if one.name.lower() == name]

    @property
    def body(self) -> memoryview:
        """The body as it came, not decoded, not copied."""
        return memoryview(self.source)[self.header.body : self.end]

    @Lazy
    def content_types(self) -> tuple[parameters.Value, ...]:
        """Every Content-Type, in order; readers disagree which of several counts."""
        return tuple(parameters.parse(one.raw_text) for one in self.fields("content-type"))

    @Lazy
    def type(self) -> str:
        """Media type in lower case, `text/plain` where none is given or it cannot be read."""
        if not self.content_types:
            return self.default_type
        word = self.content_types[0].word
        kind, slash, subtype = word.partition("/")
        return word if slash and kind and subtype else "text/plain"

    @Lazy
    def dispositions(self) -> tuple[parameters.Value, ...]:
        """Every Content-Disposition, in order."""
        return tuple(parameters.parse(one.raw_text) for one in self.fields("content-disposition"))

    @Lazy
    def names(self) -> tuple[str, ...]:
        """File names of the part, every reading of `filename` and `name`, decoded."""
        found = [name for value in self.dispositions for name in value.readings.get("filename", ())]
        found += [name for value in self.content_types for name in value.readings.get("name", ())]
        return tuple(dict.fromkeys(name for name in found if name))

    @Lazy
    def encoding(self) -> str:
        """Content-Transfer-Encoding, one word in lower case."""
        found = self.fields("content-transfer-encoding")
        words = found[0].raw_text.lower().replace(";", " ").split() if found else []
        return words[0].strip("\"'") if words else ""

    @property
    def is_multipart(self) -> bool:
        """Whether other parts stand in it instead of content."""
        return self.type.startswith("multipart/")

    @property
    def is_text(self) -> bool:
        """Whether it is text to be read in place."""
        return self.type.startswith("text/") and not self.is_attachment

    @property
    def is_attachment(self) -> bool:
        """Whether it is no text meant to be read in place: it has a name, says so, or is of another type."""
        if self.is_multipart:
            return False
        return bool(
            any(value.word == "attachment" for value in self.dispositions)
            or self.names
            or not self.type.startswith(("text/", "message/"))
        )

    @property
    def content(self) -> transfer.Buffer:
        """The body decoded from its transfer encoding; not kept. Raises LimitHit."""
        self._bound(len(self.body) * _COST.get(self.encoding, 1))
        return transfer.decode(self.body, self.encoding)

    @Lazy
    def size(self) -> int:
        """Bytes of the decoded content. Raises LimitHit."""
        self._bound(len(self.body) * _COST.get(self.encoding, 1))
        return transfer.size(self.body, self.encoding)

    @property
    def text(self) -> str:
        """The content as text in its charset, line ends as LF; not kept. Raises LimitHit."""
        self._bound(len(self.body), "text_bytes")
        content = self.content
        charset = self.content_types[0].first("charset") if self.content_types else ""
        copies = 1 + isinstance(content, bytes) + (self.source.find(b"\r\n", self.header.body, self.end) >= 0)
        self._bound(charsets.cost(content, charset) * copies)
        text, self.text_fault = charsets.decode(content, charset)
        return text.replace("\r\n", "\n") if "\r" in text else text

    def _bound(self, amount: int, name: str = "decoded_bytes") -> None:
        most: int = getattr(self.budget.limits, name)
        if amount > most:
            raise LimitHit(f"more than {most} bytes {'of text' if name == 'text_bytes' else 'to decode'}")

    def content_faults(self) -> Iterator[str]:
        """Give what is wrong with its fields, its transfer encoding and, in text, the charset. Raises LimitHit."""
        for value in self.content_types + self.dispositions:
            yield from value.faults
        if self.is_multipart:
            return
        self._bound(len(self.body) * _COST.get(self.encoding, 1))
        fault = transfer.fault(self.body, self.encoding)
        if fault:
            yield fault
        if self.is_text:
            if self.text_fault is None:
                _ = self.text
            if self.text_fault:
                yield self.text_fault


def split(source: bytes, header: Header, limits: Limits) -> tuple[Part, ...]:
    """Return the message and all its parts, containers before what they hold, in their order. Raises LimitHit."""
    budget = Budget(limits)
    waiting = [Part(source, header, len(source), 0, budget)]
    found: list[Part] = []
    while waiting:
        part = waiting.pop()
        budget.spend("parts", 1, limits.mime_parts, "MIME parts")
        part.number = len(found)
        found.append(part)
        children = _children(part)
        if children and part.depth >= limits.mime_depth:
            raise LimitHit(f"MIME parts nested more than {limits.mime_depth} deep")
        waiting.extend(reversed(children))
    return tuple(found)


def _children(part: Part) -> list[Part]:
    if len({value.word for value in part.content_types}) > 1:
        part.faults.append("two content types")
    if part.type in ("message/rfc822", "message/global"):
        return [_nested(part)]
    if not any(value.word.startswith("multipart/") for value in part.content_types):
        return []
    boundaries = _boundaries(part)
    children: list[Part] = []
    for boundary in boundaries:
        children += _between(part, boundary)
    if not children:  # readers show such a thing as text
        nothing = Header((), part.header.body, part.header.body, ())
        children.append(Part(part.source, nothing, part.end, part.depth + 1, part.budget, start=part.header.body))
    return children


def _boundaries(part: Part) -> list[bytes]:
    given = [one.rstrip() for value in part.content_types for one in value.readings.get("boundary", ())]
    boundaries = [one.encode("utf-8", "replace") for one in dict.fromkeys(given) if one]
    if len(boundaries) > 1:
        part.faults.append("two boundaries")
    if boundaries:
        return boundaries
    part.faults.append("a multipart without a boundary")
    guess = _FIRST_DASHES.search(part.source, part.header.body, part.end)
    return [guess[1].rstrip()] if guess else []


def _nested(part: Part) -> Part:
    """Return the message inside a message/rfc822, decoded first where somebody encoded it (RFC 2046 forbids that)."""
    source, start, end = part.source, part.header.body, part.end
    if part.encoding in ("base64", "quoted-printable"):
        part.faults.append("an encoded message/rfc822")
        source = bytes(part.content)
        part.budget.spend("decoded", len(source), part.budget.limits.decoded_bytes // 2, "bytes of attached messages")
        start, end = 0, len(source)
    return _part(part, source, start, end, "text/plain")


def _part(parent: Part, source: bytes, start: int, end: int, default_type: str) -> Part:
    limits, budget = parent.budget.limits, parent.budget
    header = scan(source, limits, start, end)
    budget.spend("fields", len(header.fields), 10 * limits.header_fields, "header fields in MIME parts")
    return Part(source, header, end, parent.depth + 1, budget, default_type, start=start)


def _between(part: Part, boundary: bytes) -> list[Part]:
    """Return the parts between the lines `--boundary` of a body, whether or not the last one is closed."""
    source, end = part.source, part.end
    default_type = "message/rfc822" if part.type == "multipart/digest" else "text/plain"
    children: list[Part] = []
    opened = -1  # where the part under way begins, -1 for none
    closed = False
    limits = part.budget.limits
    for before, after, closing in _delimiters(part, boundary):
        if opened >= 0:
            children.append(_part(part, source, opened, max(before, opened), default_type))
            if len(children) > limits.mime_parts:
                raise LimitHit(f"more than {limits.mime_parts} MIME parts")
        if closed and not closing:
            part.faults.append("parts after the last boundary")
        closed = closing
        opened = -1 if closing else after
    if opened >= 0:
        part.faults.append("a multipart that is not closed")
        children.append(_part(part, source, opened, end, default_type))
    elif not children:
        part.faults.append("a multipart without its boundary lines")
    return children


def _delimiters(part: Part, boundary: bytes) -> Iterator[tuple[int, int, bool]]:
    """Give (end of what comes before, start of what comes after, whether it closes) of each boundary line."""
    source, start, end, budget = part.source, part.header.body, part.end, part.budget
    budget.spend("searched", end - start, _MOST_SEARCHED, "bytes to search for boundaries")
    needle = b"\n--" + boundary
    at = start - 1
    first = start == 0 and source.startswith(needle[1:])
    while True:
        found = -1 if first else source.find(needle, max(at, 0), end)
        if found < 0 and not first:
            return
        first = False
        line_end = source.find(b"\n", found + len(needle), end)
        stop = end if line_end < 0 else line_end
        rest = source[found + len(needle) : min(stop, found + len(needle) + 200)].rstrip()
        at = stop
        if rest not in (b"", b"--"):
            budget.spend("near_misses", 1, _MOST_NEAR_MISSES, "lines that are almost boundaries")
            if at >= end:
                return
            continue
        before = found - 1 if found > start and source[found - 1] == 0x0D else found
        yield before, min(stop + 1, end), rest == b"--"
        if at >= end:
            return
