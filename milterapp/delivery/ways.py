"""The way from `/` to a folder that the site names: which part of it is there, without following a link.

Must never: import anything but the standard library, make anything, or need more than the right to pass.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["levels_of", "opened", "passed"]

_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def levels_of(path: str) -> list[str]:
    """Return the names that a path consists of."""
    return [level for level in path.split("/") if level not in ("", ".")]


def passed(levels: Sequence[str]) -> tuple[int, int]:
    """Return a descriptor (O_PATH) of the last folder there is on the way, and how many levels lead to it.

    Raises OSError where a level is no folder, or a link to one.
    """
    here = os.open("/", _PASS)
    try:
        for at, level in enumerate(levels):
            try:
                there = os.open(level, _PASS, dir_fd=here)
            except FileNotFoundError:
                return here, at
            os.close(here)
            here = there
    except BaseException:
        os.close(here)
        raise
    return here, len(levels)


def opened(levels: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Return a descriptor of the last folder there is on the way, to read it, and the levels that are missing below.

    Folders above it are passed, not read: an agent behind its fence may not. Raises OSError.
    """
    way, there = passed(levels)
    try:
        return os.open(".", _READ, dir_fd=way), levels[there:]
    finally:
        os.close(way)
