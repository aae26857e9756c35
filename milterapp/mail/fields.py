"""The header as bytes: one bounded pass that finds the fields and where the body begins, as Postfix finds them.

Must never: raise on what a header holds (only LimitHit on our bounds), or take more than linear time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from milterapp.mail import words
from milterapp.mail.limits import LimitHit, Limits

__all__ = ["Field", "Header", "given", "join", "scan", "unfold", "values_of"]

# A field is a line whose name is printable ASCII before the first blank or colon, with the lines folded onto it.
# Possessive: a line that is no field is left at its first odd byte, and nothing is looked at twice. (A possessive group
# may hold only what fails at its first characters: before Python 3.11.5 a later failure keeps what was matched so far.)
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)(?:\n|\Z)")
_FROM_LINES = re.compile(rb"(?:>*+From [ \t]*+(?!:)[^\n]*+(?:\n|\Z))*")
_FOLDED_LINES = re.compile(rb"(?:[ \t][^\n]*+\n)*")
_BLANKS = (b" ", b"\t")
_SHORT = 64  # bytes of a name that is worth keeping
_BARE_CR = re.compile(rb"\r(?!\n|\Z)")


class Field:
    """One header field. name: as it came; offsets into the message it stands in, so that nothing is copied early."""

    __slots__ = ("_end", "_source", "_start", "_text", "_value", "_value_end", "name")

    def __init__(self, source: bytes, start: int, name: str, value: int, value_end: int, end: int) -> None:
        self.name = name
        self._source = source
        self._start, self._value, self._value_end, self._end = start, value, value_end, end
        self._text: str | None = None

    @property
    def raw(self) -> bytes:
        """The whole field as it came, folding and line ends included."""
        return self._source[self._start : self._end]

    @property
    def value(self) -> bytes:
        """What stands after the colon as it came, folding included, without the last line end."""
        return self._source[self._value : self._value_end].removesuffix(b"\r")

    @property
    def span(self) -> tuple[int, int]:
        """Where the field begins and ends in the message."""
        return self._start, self._end

    @property
    def text(self) -> str:
        """The value on one line, blanks around it dropped, RFC 2047 words decoded; no surrogates, no line ends."""
        if self._text is None:
            self._text = words.decode(self.raw_text)
        return self._text

    @property
    def raw_text(self) -> str:
        """The value on one line, blanks around it dropped, not decoded: UTF-8 where it is that, else Windows-1252."""
        return words.unlabelled(unfold(self._source[self._value : self._value_end]))

    def __repr__(self) -> str:
        return f"Field({self.raw[:80]!r})"


def unfold(value: bytes) -> bytes:
    """Return a value on one line (RFC 5322 section 2.2.3), without the blanks around it; a bare CR becomes a blank."""
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    value = value.strip(b" \t\r")
    return value.replace(b"\r", b" ") if b"\r" in value else value


@dataclass(frozen=True, slots=True)
class Header:
    """fields: in their order; body: where the body begins (len of the source where there is none); faults: reasons.

    end: where the last field ends, and the empty line begins, if there is one.
    """

    fields: tuple[Field, ...]
    end: int
    body: int
    faults: tuple[str, ...]


def scan(source: bytes, limits: Limits, start: int = 0, end: int | None = None) -> Header:
    """Return the header of the message, or of the part, that stands in source[start:end].

    A line that is no field ends the header, as in Postfix: the body begins with it. Raises LimitHit.
    """
    end = len(source) if end is None else end
    stop = min(end, start + limits.header_bytes + 1)
    at, faults = _before(source, start, stop)
    first = at
    fields: list[Field] = []
    match = _FIELD.match
    while found := match(source, at, stop):
        if len(fields) == limits.header_fields:
            raise LimitHit(f"more than {limits.header_fields} header fields")
        value, value_end = found.span(2)
        line_end = found.end()
        fields.append(Field(source, at, found[1].decode("ascii"), value, value_end, line_end))
        at = line_end
    if at - start > limits.header_bytes or (stop < end and source.find(b"\n", at, stop) < 0):
        raise LimitHit(f"a header of more than {limits.header_bytes} bytes")
    faults += _faults(source, first, at)
    last = at
    if source.startswith(b"\n", at, end):
        at += 1
    elif source.startswith(b"\r\n", at, end):
        at += 2
    elif at >= end:
        faults.append("no empty line after the header")
    else:
        faults.append("a line in the header that is no field")
    return Header(tuple(fields), last, at, tuple(faults))


def join(pairs: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return the message of fields given as (name, value) and a body, with the line ends that the values have."""
    line_end = b"\r\n" if any(b"\r\n" in value for _, value in pairs) else b"\n"
    parts = [b"%b%b%b%b" % (name, b":" if value[:1] in _BLANKS else b": ", value, line_end) for name, value in pairs]
    return b"".join([*parts, line_end, body])


def values_of(pairs: Sequence[tuple[bytes, bytes]], limits: Limits) -> dict[str, list[bytes]]:
    """Return the values of fields given as (name, value), by name in lower case. Raises LimitHit as `given` does."""
    found: dict[str, list[bytes]] = {}
    size = 0
    for name, value in pairs:
        size += len(name) + len(value) + 4  # at most
        lower = _lower(name) if len(name) < _SHORT else _decoded(name).lower()
        if lower in found:
            found[lower].append(value)
        else:
            found[lower] = [value]
    if len(pairs) > limits.header_fields or size > limits.header_bytes:
        given(join(pairs, b""), pairs, limits)  # which counts to the byte
    return found


def _decoded(name: bytes) -> str:
    return name.decode("latin-1").rstrip(" \t")


_name = lru_cache(1024)(_decoded)  # most names are the same in one message as in the next


@lru_cache(1024)
def _lower(name: bytes) -> str:
    return _decoded(name).lower()


def given(source: bytes, pairs: Sequence[tuple[bytes, bytes]], limits: Limits) -> Header:
    """Return the header of a message that `join` made, without looking for its fields again. Raises LimitHit.

    So the n-th field of a name stays that, whatever stands in it.
    """
    if len(pairs) > limits.header_fields:
        raise LimitHit(f"more than {limits.header_fields} header fields")
    found = []
    at = 0
    line_end = 2 if any(b"\r\n" in value for _, value in pairs) else 1
    for name, value in pairs:
        start = at + len(name) + 1
        stop = start + len(value) + (value[:1] not in _BLANKS)
        end = stop + line_end
        found.append(Field(source, at, _name(name) if len(name) < _SHORT else _decoded(name), start, stop, end))
        at = end
    if at > limits.header_bytes:
        raise LimitHit(f"a header of more than {limits.header_bytes} bytes")
    return Header(tuple(found), at, at + line_end, tuple(_faults(source, 0, at)))


def _before(source: bytes, start: int, stop: int) -> tuple[int, list[str]]:
    """Return where the first field may begin, behind mbox `From ` lines and folded lines that continue nothing."""
    if source.startswith((b"From ", b">"), start):
        lines = _FROM_LINES.match(source, start, stop)
        return (lines.end() if lines else start), []
    if source.startswith((b" ", b"\t"), start):
        folded = _FOLDED_LINES.match(source, start, stop)
        if folded and _FIELD.match(source, folded.end(), stop):
            return folded.end(), ["a folded line before the first field"]
    return start, []


def _faults(source: bytes, start: int, end: int) -> list[str]:
    faults = []
    if source.find(b"\0", start, end) >= 0:
        faults.append("a NUL in the header")
    if source.find(b"\r", start, end) >= 0 and _BARE_CR.search(source, start, end):
        faults.append("a bare CR in the header")
    return faults
