"""The names of what stands in an archive, without unpacking more of it than its directory.

Must never: write anything, take a size from the archive for true, or raise on what it holds (only LimitHit).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from milterapp.mail import charsets, sevenzip
from milterapp.mail.limits import LimitHit

__all__ = ["Listing", "Spent", "listing"]

_MOST_MEMBERS = 10_000
_MOST_UNPACKED = 32 << 20
_MOST_NAME = 1024
_MEMORY = 32 << 20
_MOST_INNER = 8 << 20  # bytes of an archive that stands in one
_CHUNK = 1 << 16
_END = struct.Struct("<4s4H2LH")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DAMAGE = (zlib.error, OSError, lzma.LZMAError, EOFError)
_ENCRYPTED, _UTF8 = 0x1, 0x800
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_NESTED = (".zip", ".jar", ".7z", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")


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
    """Return what stands in an archive: zip, 7z, tar, and gzip, bzip2 or xz, of a tar too. Empty for anything else.

    name: the archive's own, from which that of a lone compressed file follows. What stands in an archive in it is
    listed as `inner.zip/name`, but for members of a 7z; no deeper. Raises LimitHit.
    """
    return _listing(content, name, _Within(spent))


def _listing(content: bytes, name: str, within: _Within) -> Listing:
    if content.startswith(_ZIP):
        return _zip(content, within)
    if content.startswith(sevenzip.MAGIC):
        return _seven_zip(content, within.spent)
    if content[257:262] == b"ustar":
        return _tar(iter((content,)), within)
    for form in _COMPRESSED:
        if content.startswith(form.magic):
            return _compressed(content, name, form, within)
    return Listing()


@dataclass(slots=True)
class _Within:
    """The reading of one archive. names, faults: of the archives that were found in it; inner: whether it is one."""

    spent: Spent
    inner: bool = False
    names: dict[str, None] = field(default_factory=dict)
    faults: dict[str, None] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Return whether a member may be an archive to be read."""
        return not self.inner and name.lower().endswith(_NESTED)

    def read(self, name: str, content: bytes) -> None:
        """List a member. Raises LimitHit."""
        found = _listing(content, name, _Within(self.spent, inner=True))
        self.names.update(dict.fromkeys(f"{name}/{one}" for one in found.names))
        self.faults.update(dict.fromkeys(found.faults))

    def listing(self, names: Iterable[str], faults: Iterable[str]) -> Listing:
        """Return what was found, the archive's own first."""
        return Listing(tuple(dict.fromkeys([*names, *self.names])), tuple(dict.fromkeys([*faults, *self.faults])))


def _seven_zip(content: bytes, spent: Spent) -> Listing:
    try:
        names, encrypted = sevenzip.directory(content)
    except sevenzip.Damaged:
        return Listing((), ("a damaged archive",))
    except sevenzip.Encrypted:
        return Listing((), ("an encrypted archive",))
    for _ in names:
        spent.member()
    clean = (name[:_MOST_NAME].encode("utf-16", "surrogatepass").decode("utf-16", "replace") for name in names)
    return Listing(tuple(dict.fromkeys(clean)), ("an encrypted archive",) if encrypted else ())


def _zip(content: bytes, within: _Within) -> Listing:
    spent = within.spent
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
        text = _decoded(name, flags)
        found[text] = None
        if flags & _ENCRYPTED:
            faults["an encrypted archive"] = None
        if shift is None:
            shift = max(0, content.find(b"PK\3\4")) - local
        if within.wants(text) and not flags & _ENCRYPTED:
            within.read(text, _member(content, local + shift, record[4], record[8], spent))
        other = _local_name(content, local + shift)
        if other is not None and other != name:
            found[_decoded(other, flags)] = None
            faults["an archive with two names for one member"] = None
        at += _MEMBER.size + length + extra + comment
    if end < 0 or (at != end and not (at >= 0 and content.startswith(b"PK\6\6", at))):
        faults["a damaged archive"] = None
        for name in _local_names(content, spent):
            found[_decoded(name, _UTF8)] = None
    return within.listing(found, faults)


def _member(content: bytes, at: int, method: int, size: int, spent: Spent) -> bytes:
    """Return what a stored or deflated member holds, as far as it can be read and is not too large for us."""
    if not 0 <= at <= len(content) - _LOCAL.size or not content.startswith(b"PK\3\4", at):
        return b""
    fields = _LOCAL.unpack_from(content, at)
    start = at + _LOCAL.size + fields[9] + fields[10]
    packed = content[start : start + min(size, _MOST_INNER)]
    if method == 0:
        spent.unpack(len(packed))
        return packed
    if method != 8:
        return b""
    try:
        out = zlib.decompressobj(wbits=-15).decompress(packed, _MOST_INNER)
    except zlib.error:
        return b""
    spent.unpack(len(out))
    return out


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


def _compressed(content: bytes, name: str, form: _Form, within: _Within) -> Listing:
    spent = within.spent
    spent.unpack(0)
    head = b""
    faults: tuple[str, ...] = ()
    try:
        head = form.opened().decompress(content[:_CHUNK], _CHUNK)
    except _DAMAGE:
        faults = ("a damaged archive",)
    spent.unpack(len(head) * form.cost)
    if head[257:262] == b"ustar":
        return _tar(_unpacked(content, form, spent), within)
    inner = _gzip_name(content)
    if name.lower().endswith(form.suffixes):
        inner = (*inner, name.rpartition(".")[0])
    names = [one for one in inner if one]
    if not within.inner and head.startswith((*_ZIP, sevenzip.MAGIC)):
        whole = b""
        for piece in _unpacked(content, form, spent):
            whole += piece
            if len(whole) > _MOST_INNER:
                break
        within.read(names[0] if names else "archive", whole)
    return within.listing(names, faults)


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


def _tar(pieces: Iterator[bytes], within: _Within) -> Listing:
    spent = within.spent
    found: dict[str, None] = {}
    buffer = b""
    skip = 0
    long_name: bytes | None = None
    waiting = ""  # the name of a member that is an archive, until all of it is there
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
                return within.listing(found, ("a damaged archive",))
            padded = (size + 511) // 512 * 512
            kind = block[156:157]
            if kind in (b"L", b"x") and padded <= _CHUNK:
                if at + 512 + padded > len(buffer):
                    break
                data = buffer[at + 512 : at + 512 + size]
                long_name = data.rstrip(b"\0") if kind == b"L" else _pax_path(data)
            elif kind not in (b"g", b"K"):
                if not waiting:
                    spent.member()
                    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
                    short = (prefix + b"/" if prefix else b"") + block[:100].partition(b"\0")[0]
                    waiting = charsets.guess((long_name or short)[:_MOST_NAME])
                    found[waiting] = None
                    long_name = None
                if within.wants(waiting) and padded <= _MOST_INNER:
                    if at + 512 + padded > len(buffer):
                        break
                    within.read(waiting, bytes(buffer[at + 512 : at + 512 + size]))
                waiting = ""
            at += 512 + padded
        skip = max(0, at - len(buffer))
        buffer = buffer[at:]
    return within.listing(found, ("a damaged archive",) if buffer.strip(b"\0") else ())


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
