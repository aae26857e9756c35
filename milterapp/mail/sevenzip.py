"""The names in a 7z archive, by py7zr, of which only the reading of the directory is used.

Must never: unpack a member, or let the library read a directory larger than our bounds, which are tighter than its own.
"""

from __future__ import annotations

import binascii
import io
import lzma
import struct
import zlib
from typing import Any

__all__ = ["MAGIC", "Damaged", "Encrypted", "directory"]

MAGIC = b"7z\xbc\xaf\x27\x1c"
_START = struct.Struct("<6s2BLQQL")
_MOST_HEADER = 1 << 20  # bytes of the directory, packed or not
_BOUNDS = {"MAX_NUMFILES": 10_000, "MAX_NUMFOLDERS": 10_000, "MAX_SUBSTREAMS": 20_000, "MAX_HEADER_SIZE": _MOST_HEADER}
_CHUNK_OF_PPMD, _AES = b"\x03\x04\x01", b"\x06\xf1\x07\x01"  # coders that take memory or time as the archive says


class Damaged(Exception):  # noqa: N818 - it is the archive's state
    """The directory cannot be read: damaged, too large, of a kind nobody writes, or there is no library for it."""


class Encrypted(Exception):  # noqa: N818 - the same
    """The directory itself is encrypted."""


def directory(content: bytes) -> tuple[tuple[str, ...], bool]:
    """Return (names in order, whether any member is encrypted). Raises Damaged, Encrypted."""
    if len(content) < _START.size:
        raise Damaged
    *_, offset, size, crc = _START.unpack_from(content)
    start = _START.size + offset
    header = content[start : start + size]
    if size > _MOST_HEADER or len(header) != size or binascii.crc32(header) != crc:
        raise Damaged
    if not size:
        return (), False
    if header[:1] == b"\x17":  # the directory is packed: only as 7-Zip packs it, or encrypted
        if _AES in header:
            raise Encrypted
        if _CHUNK_OF_PPMD in header:
            raise Damaged
    return _names(content, _library())


def _library() -> Any:
    """Return the module, its bounds set to ours. Raises Damaged where it is missing, or too old to have bounds."""
    try:
        import py7zr  # 90 ms and 9 MB, and few messages hold such an archive
        from py7zr import archiveinfo
    except ImportError:
        raise Damaged from None
    for name, most in _BOUNDS.items():
        if not hasattr(archiveinfo, name):
            raise Damaged
        setattr(archiveinfo, name, most)
    return py7zr


def _names(content: bytes, library: Any) -> tuple[tuple[str, ...], bool]:
    try:
        with library.SevenZipFile(io.BytesIO(content), "r") as archive:
            return tuple(archive.getnames()), bool(archive.needs_password())
    except library.PasswordRequired:
        raise Encrypted from None
    # Every way in which a directory that lies can end within the library's reader.
    except (
        library.exceptions.ArchiveError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        lzma.LZMAError,
        struct.error,
        zlib.error,
    ):
        raise Damaged from None
