"""What an attachment changed, kept beside main.cf so that it can be taken out again, to the byte.

Must never: be believed where the files say otherwise; a file that was changed since is not overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from milterapp.postfix.plan import Before
from milterapp.postfix.postconf import PostfixError

__all__ = ["FILES", "RECORD", "Original", "Record", "digest", "load", "remove", "replace_file", "save"]

RECORD = "milterapp.undo"
FILES = ("main.cf", "master.cf")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Original:
    """A file's bytes before we came (None: not known any more) and the SHA-256 of what we left."""

    before: bytes | None
    after: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """ours: the settings of main.cf that we made; files: FILES, as they were."""

    ours: Mapping[str, Before] = field(default_factory=dict)
    files: Mapping[str, Original] = field(default_factory=dict)

    def restorable(self, name: str, now: bytes) -> bytes | None:
        """Return the bytes a file had, where it still is what we left; else None."""
        original = self.files.get(name)
        return original.before if original is not None and original.after == digest(now) else None


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def load(directory: str) -> Record | None:
    """Return the record, None where there is none. Raises PostfixError where it cannot be read."""
    path = os.path.join(directory, RECORD)
    try:
        with open(path, encoding="ascii") as file:
            found = json.load(file)
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']}, expected {_VERSION}")
        return Record(
            ours={name: Before(one["previous"], one["ours"]) for name, one in found["main"].items()},
            files={
                name: Original(None if one["before"] is None else one["before"].encode("latin-1"), one["after"])
                for name, one in found["files"].items()
            },
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PostfixError(f"{path}: the record of what setup changed cannot be read: {error}") from error


def save(directory: str, record: Record) -> None:
    """Write the record, durably; mode 0600, since main.cf may hold what not everybody should see. Raises OSError."""
    text = json.dumps(
        {
            "version": _VERSION,
            "main": {name: one.to_json() for name, one in record.ours.items()},
            "files": {
                name: {"before": None if one.before is None else one.before.decode("latin-1"), "after": one.after}
                for name, one in record.files.items()
            },
        },
        indent=1,
    )
    replace_file(os.path.join(directory, RECORD), text.encode("ascii") + b"\n", mode=0o600)


def remove(directory: str, *names: str) -> None:
    """Remove files of ours; one that is not there is removed already. Raises OSError."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))


def replace_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Give a file new content, all or nothing, durably; a file that exists keeps its owner and mode. Raises OSError."""
    owner: tuple[int, int] | None = None
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        mode, owner = found.st_mode & 0o7777, (found.st_uid, found.st_gid)
    new = f"{path}.milterapp-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(new, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
