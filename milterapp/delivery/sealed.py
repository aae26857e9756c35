"""A message on its way between our processes: a sealed memfd, which nobody can change or cut short while it is read.

Must never: take a descriptor that is not sealed for a message, or hold more of it in memory than the reader asked for.
Source: memfd_create(2), fcntl(2) "File sealing".
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator

__all__ = ["SEALS", "SealError", "append", "begin", "chunks", "fix", "measure", "read", "seal"]

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK = 256 * 1024


class SealError(Exception):
    """A descriptor that is no sealed message, or is larger than allowed."""


def seal(parts: Iterable[bytes]) -> int:
    """Return a new sealed memfd that holds the parts; the caller closes it. Raises OSError (ENOSPC, ENOMEM)."""
    descriptor = begin()
    try:
        for part in parts:
            append(descriptor, part)
        fix(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def begin() -> int:
    """Return a new memfd, empty, which fix() will seal; the caller closes it. Raises OSError."""
    return os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def append(descriptor: int, part: bytes) -> None:
    """Write more of a message. Raises OSError (ENOSPC, ENOMEM)."""
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def fix(descriptor: int) -> None:
    """Seal a memfd that holds everything. Raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def measure(descriptor: int, most: int) -> int:
    """Return the size in bytes. Raises SealError where the descriptor is not sealed, or holds more than `most`."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise SealError("the message is no memfd") from error
    if seals & SEALS != SEALS:
        raise SealError("the message is not sealed")
    size = os.fstat(descriptor).st_size
    if size > most:
        raise SealError(f"the message has {size} bytes, more than {most}")
    return size


def chunks(descriptor: int, end: int | None = None) -> Iterator[bytes]:
    """Yield what the memfd holds, up to byte `end`; its file offset, which others share, is left alone."""
    at = 0
    while end is None or at < end:
        chunk = os.pread(descriptor, _CHUNK if end is None else min(_CHUNK, end - at), at)
        if not chunk:
            return
        yield chunk
        at += len(chunk)


def read(descriptor: int, end: int | None = None) -> bytes:
    """Return what the memfd holds, up to byte `end`. Whoever has measured it, and says so, saves a call."""
    return b"".join(chunks(descriptor, end))
