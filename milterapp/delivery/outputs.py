"""Writing the files of a script's output folder, each whole or not at all, in the order in which they were asked for.

Must never: follow a link, leave the script's own folder, or forget a file that is not on disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from milterapp.delivery import ways
from milterapp.state.conversations import Conversations, Output

__all__ = ["folder_of", "write_all"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What stands in the way and will not go away by itself: a file where a folder should be, a link, a name too long.
_IN_THE_WAY = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EEXIST})


def folder_of(script: str) -> str:
    """Return the name of a script's own folder: its path without `.py`."""
    return script.removesuffix(".py")


def write_all(memory: Conversations, home: int, path: str) -> list[str]:
    """Write every file that waits, and forget it; return what could not be written and never will be, and why.

    home: a descriptor; path: the output folder from there, absolute where it begins with `/`. Raises OSError (a full
    disk) or StateError: then what was not written waits.
    """
    refused = []
    while waiting := memory.outputs():
        for one in waiting:
            try:
                _write(one, home, path)
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    raise
                refused.append(f"{folder_of(one.script)}/{one.path}: {error.strerror}")
        memory.written(waiting[-1].number)
    return refused


def _write(one: Output, home: int, path: str) -> None:
    *folders, name = one.path.split("/")
    levels = [level for level in (*path.split("/"), *folder_of(one.script).split("/"), *folders) if level]
    with _opened(home, path.startswith("/"), levels, make=one.text is not None) as folder:
        if folder is None:
            return  # nothing to remove
        if one.text is None:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            os.fsync(folder)
            return
        temporary = f".{one.number}.milterapp"
        with suppress(FileNotFoundError):  # of an attempt that did not finish
            os.unlink(temporary, dir_fd=folder)
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
        try:
            rest = memoryview(one.text.encode("utf-8", "replace"))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fchmod(descriptor, 0o644)  # pages are for others to read, where the folders above let them
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


@contextmanager
def _opened(home: int, absolute: bool, levels: list[str], *, make: bool) -> Iterator[int | None]:  # noqa: FBT001
    """Give a descriptor of a folder, made where it is missing; None where it is, and none is to be made."""
    if not {".", ".."}.isdisjoint(levels):
        raise OSError(errno.ENOTDIR, "no '.' or '..' in the output folder's path")
    here, missing = ways.opened(levels) if absolute else (os.dup(home), levels)
    try:
        for level in missing:
            try:
                there = os.open(level, _FOLDER, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    yield None
                    return
                with suppress(FileExistsError):
                    os.mkdir(level, 0o755, dir_fd=here)
                os.fsync(here)
                there = os.open(level, _FOLDER, dir_fd=here)
                os.fchmod(there, 0o755)
            os.close(here)
            here = there
        yield here
    finally:
        os.close(here)
