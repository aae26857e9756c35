"""Which messages in Postfix's queue still name a transport of ours as their content filter.

Must never: change a queue file, or read more of one than its head. A queue file begins with its envelope; the content
filter is among the first records (cleanup(8), rec_type.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["named"]

_FOLDERS = ("incoming", "active", "deferred", "hold")
_HEAD = 64 * 1024


def named(queue: str, transport: str) -> list[str]:
    """Return the queue ids of the messages whose envelope names `transport:`. Raises PermissionError."""
    wanted = f"{transport}:".encode()
    found = set()
    for folder in _FOLDERS * 2:  # what moves to a folder that was looked at already is seen the second time
        for path in _files(os.path.join(queue, folder)):
            try:
                with open(path, "rb") as file:
                    head = file.read(_HEAD)
            except FileNotFoundError:  # it was delivered meanwhile
                continue
            if wanted in head:
                found.add(os.path.basename(path))
    return sorted(found)


def _files(folder: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):  # hashed, hash_queue_names
            yield from _files(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path
