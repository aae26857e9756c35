"""What programs made of a message, kept on disk until everything is delivered: a retry delivers the same.

Must never: follow a link below the home, or give half of what was written for the whole.

A filter runs after the decision is prepared and before its first delivery. What it wrote is in a file named by the
journal's key before anybody uses it (rename(2) makes it whole or absent), and goes when all is done. Where somebody
took the file away meanwhile, the filter runs again: no mail is lost by it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Filtered", "expire"]

_FOLDER = "filtered"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Filtered:
    """The file of one message. home: a descriptor; state: the agent's folder below it, made; word: of the key."""

    home: int
    state: str
    word: str

    def find(self) -> bytes | None:
        """Return what was written, None where nothing was. Raises OSError."""
        folder = _folder(self.home, self.state, make=False)
        if folder is None:
            return None
        try:
            descriptor = os.open(self.word, _READ, dir_fd=folder)
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > _LONGEST:
                raise OSError(errno.EINVAL, f"{self.state}/{_FOLDER}/{self.word} is not what an agent wrote")
            parts = []
            while chunk := os.read(descriptor, 1 << 20):
                parts.append(chunk)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write(self, message: bytes) -> None:
        """Write it, durably. Raises OSError."""
        folder = _folder(self.home, self.state, make=True)
        assert folder is not None  # noqa: S101 - it was made
        temporary = f"{self.word}.{os.getpid()}"
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
            try:
                rest = memoryview(message)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, self.word, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Take it away, where it is; what cannot be taken away is a matter of expire()."""
        with suppress(OSError):
            folder = _folder(self.home, self.state, make=False)
            if folder is not None:
                try:
                    os.unlink(self.word, dir_fd=folder)
                finally:
                    os.close(folder)


def expire(home: int, state: str, seconds: float) -> None:
    """Take away what is older than so many seconds. Raises OSError."""
    folder = _folder(home, state, make=False)
    if folder is None:
        return
    try:
        before = time.time() - seconds
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    with suppress(OSError):
                        os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)


def _folder(home: int, state: str, *, make: bool) -> int | None:
    """Return a descriptor of the folder, made where it is missing, or None. Raises OSError."""
    try:
        above = os.open(state, _OPEN, dir_fd=home)
    except FileNotFoundError:
        if make:
            raise
        return None
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(_FOLDER, 0o700, dir_fd=above)
                os.fsync(above)
        return os.open(_FOLDER, _OPEN, dir_fd=above)
    except FileNotFoundError:
        return None
    finally:
        os.close(above)
