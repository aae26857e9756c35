"""Opening the site's configuration file: where it is, whose it may be, how much of it is read.

Must never: import the YAML reader; the services open the file with privileges and parse it without.
"""

from __future__ import annotations

import argparse
import os
import stat

from milterapp.commands.failure import Failure, cannot_read

__all__ = ["DEFAULT", "argument", "bounded", "open_file"]

DEFAULT = "/etc/milterapp/milterapp.yaml"
_MOST = 1024 * 1024  # bytes


def argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names another file."""
    parser.add_argument("--config", metavar="FILE", help=f"the site's configuration, else {DEFAULT} where there is one")


def open_file(path: str | None) -> int | None:
    """Return a descriptor of the file, None where the default one is absent.

    Raises Failure 66 where it cannot be read, 78 where somebody else could have written it.
    """
    name = path or DEFAULT
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if path is None:
            return None
        raise cannot_read(name, error) from error
    except OSError as error:
        raise cannot_read(name, error) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Failure(os.EX_NOINPUT, f"{name}: is no plain file")
    if found.st_uid not in (0, os.geteuid()):
        raise Failure(os.EX_CONFIG, f"{name}: belongs to uid {found.st_uid}, expected: chown root")
    if found.st_mode & 0o022:
        # Whoever can write this file can lower the floor of the ids that the monitor may take.
        raise Failure(os.EX_CONFIG, f"{name}: can be written by others, expected: chmod go-w")
    return descriptor


def bounded(descriptor: int, name: str) -> bytes:
    """Return what the file holds and close it. Raises Failure 66 or 78."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            source = file.read(_MOST + 1)
    except OSError as error:
        raise cannot_read(name, error) from error
    if len(source) > _MOST:
        raise Failure(os.EX_CONFIG, f"{name}: is larger than {_MOST} bytes")
    return source
