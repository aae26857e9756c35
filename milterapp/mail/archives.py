"""The names of what stands in an archive, without unpacking more of it than its directory.

Must never: write anything, take a size from the archive for true, or raise on what it holds (only LimitHit).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from milterapp.mail import charsets
from milterapp.mail.limits import LimitHit

__all__ = ["Listing", "Spent", "listing"]

_MOST_MEMBERS = 10_000
_MOST_UNPACKED = 32 << 20
_MOST_NAME = 1024
_MEMORY = 32 << 20
_CHUNK = 1 << 16
_END = struct.Struct("<4s4H2LH")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DAMAGE = (zlib.error, OSError, lzma.LZMAError, EOFError)
_ENCRYPTED, _UTF8 = 0x1, 0x800


@dataclass(frozen=True, slots=True)
class Listing:
    """names: of the members, in order, every reading; faults: why they may not be all, or not be readable."""

    names: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


class _Opens(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes:
        """Return at most so many bytes more."""


@dataclass(slots=True)
class Spent:
    """What reading the archives of one message has cost so far."""

    members: int = 0
    unpacked: int = 0

    def member(self) -> None:
        """Count one member. Raises LimitHit."""
        self.members += 1
        if self.members > _MOST_MEMBERS:
            raise LimitHit(f"more than {_MOST_MEMBERS} members of archives")

    def unpack(self, amount: int) -> None:
        """Count unpacked bytes. Raises LimitHit."""
        self.unpacked += amount
        if self.unpacked > _MOST_UNPACKED:
            raise LimitHit(f"more than {_MOST_UNPACKED} bytes to unpack")


def listing(content: bytes, name: str, spent: Spent) -> Listing:
    """Return what stands in an archive: zip, tar, and gzip, bzip2 or xz, of a tar too. Empty for anything else.

    name: the archive's own, from which that of a lone compressed file follows. Raises LimitHit.
    """
    if content.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return _zip(content, spent)
    if content[257:262] == b"ustar":
        return _tar(iter((content,)), spent)
    for form in _COMPRESSED:
        if content.startswith(form.magic):
            return _compressed(content, name, form, spent)
    return Listing()


def _zip(content: bytes, spent: Spent) -> Listing:
    found: dict[str, None] = {}
    faults: dict[str, None] = {}
    end = content.rfind(b"PK\5\6", max(0, len(content) - 65_557))
    at = -1
    if 0 <= end <= len(content) - _END.size:
        *_, size, offset, _ = _END.unpack_from(content, end)
        # What stands before the archive shifts it; zip64 says 0xffffffff, and its own two records come before the end.
        at = end - size if content.startswith(b"PK\1\2", max(0, end - size)) else offset
        if not content.startswith(b"PK\1\2", at) and size:
            at = content.find(b"PK\1\2")
    shift = None
    while 0 <= at <= len(content) - _MEMBER.size and content.startswith(b"PK\1\2", at):
        spent.member()
        record = _MEMBER.unpack_from(content, at)
        flags, length, extra, comment, local = record[3], record[10], record[11], record[12], record[16]
        name = content[at + _MEMBER.size : at + _MEMBER.size + length]
        found[_decoded(name, flags)] = None
        if flags & _ENCRYPTED:
            faults["an encrypted archive"] = None
        if shift is None:
            shift = max(0, content.find(b"PK\3\4")) - local
        other = _local_name(content, local + shift)
        if other is not None and other != name:
            found[_decoded(other, flags)] = None
            faults["an archive with two names for one member"] = None
        at += _MEMBER.size + length + extra + comment
    if end < 0 or (at != end and not (at >= 0 and content.startswith(b"PK\6\6", at))):
        faults["a damaged archive"] = None
        for name in _local_names(content, spent):
            found[_decoded(name, _UTF8)] = None
    return Listing(tuple(found), tuple(faults))


def _local_name(content: bytes, at: int) -> bytes | None:
    if not 0 <= at <= len(content) - _LOCAL.size or not content.startswith(b"PK\3\4", at):
        return None
    length = _LOCAL.unpack_from(content, at)[9]
    return content[at + _LOCAL.size : at + _LOCAL.size + length]


def _local_names(content: bytes, spent: Spent) -> Iterator[bytes]:
    at = -1
    while (at := content.find(b"PK\3\4", at + 1)) >= 0:
        spent.member()
        name = _local_name(content, at)
        if name is not None:
            yield name


def _decoded(name: bytes, flags: int) -> str:
    name = name[:_MOST_NAME]
    if flags & _UTF8 or name.isascii():
        return charsets.guess(name)
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return charsets.decode(name, "cp437")[0]


def _compressed(content: bytes, name: str, form: _Form, spent: Spent) -> Listing:
    spent.unpack(0)
    head = b""
    faults: tuple[str, ...] = ()
    try:
        head = form.opened().decompress(content[:_CHUNK], _CHUNK)
    except _DAMAGE:
        faults = ("a damaged archive",)
    spent.unpack(len(head) * form.cost)
    if head[257:262] == b"ustar":
        return _tar(_unpacked(content, form, spent), spent)
    inner = _gzip_name(content)
    if name.lower().endswith(form.suffixes):
        inner = (*inner, name.rpartition(".")[0])
    return Listing(tuple(dict.fromkeys(one for one in inner if one)), faults)


def _gzip_name(content: bytes) -> tuple[str, ...]:
    """Return the name in a gzip header (RFC 1952 section 2.3), where no extra field stands before it."""
    if content[:3] != b"\x1f\x8b\x08" or len(content) < 11 or content[3] & 0x0C != 0x08:
        return ()
    return (charsets.guess(content[10 : 10 + _MOST_NAME].partition(b"\0")[0]),)


def _unpacked(content: bytes, form: _Form, spent: Spent) -> Iterator[bytes]:
    """Give the content of a compressed file in pieces, as far as it can be read. Raises LimitHit."""
    opened = form.opened()
    for at in range(0, len(content), _CHUNK):
        piece = content[at : at + _CHUNK]
        while not getattr(opened, "eof", False):
            try:
                out = opened.decompress(piece, _CHUNK * 4)
            except _DAMAGE:
                return
            spent.unpack(len(out) * form.cost)
            yield out
            piece = getattr(opened, "unconsumed_tail", b"")  # zlib hands back what it has not read, the others keep it
            if not piece and getattr(opened, "needs_input", True) and len(out) < _CHUNK * 4:
                break


def _tar(pieces: Iterator[bytes], spent: Spent) -> Listing:
    found: dict[str, None] = {}
    buffer = b""
    skip = 0
    long_name: bytes | None = None
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        buffer += piece[skip:] if skip else piece
        skip = 0
        at = 0
        while at + 512 <= len(buffer):
            block = buffer[at : at + 512]
            if block[:1] == b"\0":
                at += 512
                continue
            size = _tar_size(block[124:136])
            if block[257:262] != b"ustar" or size is None:
                return Listing(tuple(found), ("a damaged archive",))
            padded = (size + 511) // 512 * 512
            kind = block[156:157]
            if kind in (b"L", b"x") and padded <= _CHUNK:
                if at + 512 + padded > len(buffer):
                    break
                data = buffer[at + 512 : at + 512 + size]
                long_name = data.rstrip(b"\0") if kind == b"L" else _pax_path(data)
            elif kind not in (b"g", b"K"):
                spent.member()
                prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
                short = (prefix + b"/" if prefix else b"") + block[:100].partition(b"\0")[0]
                found[charsets.guess((long_name or short)[:_MOST_NAME])] = None
                long_name = None
            at += 512 + padded
        skip = max(0, at - len(buffer))
        buffer = buffer[at:]
    return Listing(tuple(found), ("a damaged archive",) if buffer.strip(b"\0") else ())


def _tar_size(field: bytes) -> int | None:
    """Return the size that a tar header says, None where it says none."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[4:], "big")
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else 0 if not digits else None


def _pax_path(data: bytes) -> bytes | None:
    for line in data.split(b"\n"):
        keyword, equals, value = line.partition(b" ")[2].partition(b"=")
        if equals and keyword == b"path":
            return value
    return None


@dataclass(frozen=True, slots=True)
class _Form:
    """A way to compress one file. cost: time of a byte against gzip's; suffixes: what falls off the name."""

    magic: bytes
    suffixes: tuple[str, ...]
    opened: Callable[[], _Opens]
    cost: int


_COMPRESSED = (
    _Form(b"\x1f\x8b", (".gz", ".z"), lambda: zlib.decompressobj(wbits=31), 1),
    _Form(b"BZh", (".bz2",), bz2.BZ2Decompressor, 8),
    _Form(b"\xfd7zXZ\0", (".xz",), lambda: lzma.LZMADecompressor(memlimit=_MEMORY), 4),
)
