"""Reading what the site wrote, on the open descriptor: rules, lists, scripts.

Must never: read a file that somebody but root and the milter's account could have written, or more than is asked for.
"""

from __future__ import annotations

import os
import stat

__all__ = ["check", "contents"]


def contents(descriptor: int, name: str, most: int, *, single: bool = False) -> bytes:
    """Return what a file holds. name: for errors; single: it may have no second name. Raises OSError."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{name} is no plain file")
    if single and found.st_nlink != 1:
        raise OSError(f"{name} has a second name (hard link), expected one")
    check(found, name)
    parts, size = [], 0
    while size <= most and (piece := os.read(descriptor, most + 1 - size)):
        parts.append(piece)
        size += len(piece)
    if size > most:
        raise OSError(f"{name} is larger than {most} bytes")
    return b"".join(parts)


def check(found: os.stat_result, name: str) -> None:
    """Raise OSError where others could have written it, with the remedy."""
    if found.st_uid not in (0, os.geteuid()):
        raise OSError(f"{name} belongs to uid {found.st_uid}, expected: chown root")
    if found.st_mode & 0o022:
        raise OSError(f"{name} can be written by others, expected: chmod go-w")
