"""The milter protocol as bytes: packets in and packets out, of version 2 to 6.

Must never: trust a length, a count or a terminator; decide anything; read or write by itself.

A packet is the length of what follows (four bytes, the highest first), one byte that says what it is, and its data.
Sources: Sendmail's include/libmilter/mfdef.h (names, numbers), Postfix's src/milter/milter8.c (what it sends when).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "ACCEPT", "ACTIONS", "CONTINUE", "DISCARD", "LEADING_BLANK", "MACRO_LISTS", "NEEDLESS", "ONE_WAY", "PROGRESS",
    "SKIP", "SKIPS", "STEPS", "Client", "Incoming", "Offer", "ProtocolError", "agreement", "client_of", "edit",
    "macros_of", "offer_of", "packet", "refusal", "strings",
]  # fmt: skip

_HEAD = struct.Struct("!I")
_OPTIONS = struct.Struct("!III")
_MOST = 256 * 1024  # bytes of a packet; Postfix and Sendmail send 64 KiB unless more is agreed on
_OLDEST, _NEWEST = 2, 6

# What the mail server says, and the step of a conversation that it begins.
STEPS: Mapping[int, str] = {
    ord("A"): "abort",
    ord("B"): "body",
    ord("C"): "connect",
    ord("D"): "macros",
    ord("E"): "eom",
    ord("H"): "helo",
    ord("K"): "next",  # this connection is over, another begins on the same socket
    ord("L"): "header",
    ord("M"): "mail",
    ord("N"): "eoh",
    ord("O"): "negotiate",
    ord("Q"): "close",
    ord("R"): "rcpt",
    ord("T"): "data",
    ord("U"): "unknown",
}

# By step: "do not send it", "I shall not reply to it", and the number of its list of macros.
NEEDLESS: Mapping[str, int] = {
    "connect": 0x1, "helo": 0x2, "mail": 0x4, "rcpt": 0x8, "body": 0x10, "header": 0x20, "eoh": 0x40,
    "unknown": 0x100, "data": 0x200,
}  # fmt: skip
ONE_WAY: Mapping[str, int] = {
    "header": 0x80, "connect": 0x1000, "helo": 0x2000, "mail": 0x4000, "rcpt": 0x8000, "data": 0x10000,
    "unknown": 0x20000, "eoh": 0x40000, "body": 0x80000,
}  # fmt: skip
SKIPS = 0x400  # SKIP is understood
LEADING_BLANK = 0x100000  # header values come and go with the blank after the colon
MACRO_LISTS: Mapping[str, int] = {"connect": 0, "helo": 1, "mail": 2, "rcpt": 3, "data": 4, "eom": 5, "eoh": 6}

_SETS_MACROS = 0x100
# Add, change and insert header fields; body; sender; recipients; quarantine.
ACTIONS = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40 | _SETS_MACROS


class ProtocolError(Exception):
    """The other end does not speak the protocol; its connection is to be closed."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a mail server can do: version, actions and steps are its numbers. lists: it takes lists of macros."""

    version: int
    actions: int
    steps: int

    @property
    def lists(self) -> bool:
        """Tell whether it can be asked for macros."""
        return bool(self.actions & _SETS_MACROS)


@dataclass(frozen=True, slots=True)
class Client:
    """Who connected to the mail server. address: IP address, "" where it is of no network; name: as it was sent."""

    name: bytes
    address: str = ""
    port: int = 0


def packet(code: bytes, data: bytes = b"") -> bytes:
    """Return a packet."""
    return _HEAD.pack(len(data) + 1) + code + data


CONTINUE, ACCEPT, DISCARD, SKIP, PROGRESS = (packet(code) for code in (b"c", b"a", b"d", b"s", b"p"))


class Incoming:
    """What has come of packets, and is not whole yet."""

    __slots__ = ("_held", "_pieces", "_wanted")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held, self._wanted = 0, _HEAD.size

    def take(self, piece: bytes) -> list[tuple[int, bytes]]:
        """Return the packets that are whole with this piece, as (code, data). Raises ProtocolError."""
        self._held += len(piece)
        if self._held < self._wanted:
            self._pieces.append(piece)
            return []
        if self._pieces:
            self._pieces.append(piece)
            piece = b"".join(self._pieces)
            self._pieces = []
        found, at, self._wanted = _split(piece)
        self._held = len(piece) - at
        if self._held:
            self._pieces.append(piece[at:])
        return found


def _split(buffer: bytes) -> tuple[list[tuple[int, bytes]], int, int]:
    """Return whole packets, where the rest begins, and how many bytes that must become before there is another."""
    found: list[tuple[int, bytes]] = []
    at, end, length_at = 0, len(buffer), _HEAD.unpack_from
    last = end - _HEAD.size
    while at <= last:
        (length,) = length_at(buffer, at)
        following = at + 4 + length
        if not 0 < length <= _MOST:
            raise ProtocolError(f"a packet of {length} bytes")
        if following > end:
            return found, at, following - at
        found.append((buffer[at + 4], buffer[at + 5 : following]))
        at = following
    return found, at, _HEAD.size


def strings(data: bytes, least: int = 0) -> list[bytes]:
    """Return strings that each end in NUL. Raises ProtocolError where the last does not, or there are fewer."""
    if data and data[-1]:
        raise ProtocolError("a string without an end")
    found = data.split(b"\0")[:-1] if data else []
    if len(found) < least:
        raise ProtocolError(f"{len(found)} strings in place of {least}")
    return found


def offer_of(data: bytes) -> Offer:
    """Return what a mail server offers. Raises ProtocolError."""
    if len(data) < _OPTIONS.size:
        raise ProtocolError("an offer cut short")
    offer = Offer(*_OPTIONS.unpack_from(data))
    if offer.version < _OLDEST:
        raise ProtocolError(f"version {offer.version} of the protocol")
    return offer


def agreement(offer: Offer, steps: int, macros: Mapping[str, str]) -> bytes:
    """Return the answer to an offer. steps: of NEEDLESS, ONE_WAY and the like; macros: their names, by step."""
    data = _OPTIONS.pack(min(offer.version, _NEWEST), offer.actions & ACTIONS, steps & offer.steps)
    if offer.lists:
        for step, names in macros.items():
            data += _HEAD.pack(MACRO_LISTS[step]) + names.encode("ascii") + b"\0"
    return packet(b"O", data)


def macros_of(data: bytes) -> tuple[str, dict[bytes, bytes]]:
    """Return the step that macros belong to, "" for none we know, and their values by name, without its braces."""
    if not data:
        return "", {}
    words = strings(data[1:])
    if len(words) % 2:
        raise ProtocolError("a macro without a value")
    names = [_bare(name) for name in words[::2]] if b"{" in data else words[::2]
    return STEPS.get(data[0], ""), dict(zip(names, words[1::2], strict=True))


def _bare(name: bytes) -> bytes:
    return name[1:-1] if name[:1] == b"{" and name[-1:] == b"}" else name


def client_of(data: bytes) -> Client:
    """Return who connected: name, NUL, family (4, 6, L or U), port, address, NUL. Raises ProtocolError."""
    name, _, rest = data.partition(b"\0")
    family = rest[:1]
    if family not in (b"4", b"6"):
        if family not in (b"L", b"U"):
            raise ProtocolError("a client of no known family")
        return Client(name)
    if len(rest) < 4:
        raise ProtocolError("a client cut short")
    kind = socket.AF_INET if family == b"4" else socket.AF_INET6
    text = rest[3:].partition(b"\0")[0].removeprefix(b"IPv6:").partition(b"%")[0]
    try:
        address = socket.inet_ntop(kind, socket.inet_pton(kind, text.decode("ascii")))
    except (OSError, ValueError) as error:
        raise ProtocolError(f"an address that is none: {text[:50]!a}") from error
    return Client(name, address, int.from_bytes(rest[1:3], "big"))


def refusal(code: str, status: str, lines: Iterable[str]) -> bytes:
    """Return the packet that has a client hear these lines, `%` doubled in each (RFC 5321 section 4.2)."""
    said = list(lines)
    marks = ["-"] * (len(said) - 1) + [" "]
    text = "\r\n".join(f"{code}{mark}{status} {line}" for mark, line in zip(marks, said, strict=True))
    return packet(b"y", text.encode("ascii") + b"\0")


def edit(method: str, arguments: tuple[object, ...]) -> bytes:
    """Return the packet of one edit, by the names of libmilter's calls: see _EDITS. Raises ValueError, KeyError."""
    return _EDITS[method](*arguments)


def _text(*parts: str) -> bytes:
    found = [part.encode("ascii") for part in parts]
    if any(b"\0" in part for part in found):
        raise ValueError("a NUL cannot be sent")
    return b"".join(part + b"\0" for part in found)


def _add_header(name: str, value: str, place: int | None = None) -> bytes:
    """Return what adds a field: at the end, or before the field of that place, 0 for the first."""
    if place is None:
        return packet(b"h", _text(name, value))
    return packet(b"i", _HEAD.pack(place) + _text(name, value))


def _change_header(name: str, occurrence: int, value: str | None) -> bytes:
    """Return what changes a field of that name, counted from 1; without a value it goes."""
    return packet(b"m", _HEAD.pack(occurrence) + _text(name, value or ""))


_EDITS: Mapping[str, Callable[..., bytes]] = {
    "addheader": _add_header,
    "chgheader": _change_header,
    "replacebody": lambda body: packet(b"b", body),
    "chgfrom": lambda sender: packet(b"e", _text(sender)),
    "addrcpt": lambda recipient: packet(b"+", _text(recipient)),
    "delrcpt": lambda recipient: packet(b"-", _text(recipient)),
    "quarantine": lambda reason: packet(b"q", _text(reason)),
}
