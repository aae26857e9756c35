"""The scripts of the site's rules: their sources, read and checked with the rules, and what runs them for a message.

Must never: run one here, or read one that somebody but root and the milter's account could have written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from milterapp.mail.envelope import Envelope
from milterapp.milter.site_files import check, contents
from milterapp.rules.problem import Place, Problem
from milterapp.rules.truth import Value

__all__ = ["Examine", "Scripts", "examined", "read_script"]

_MOST = 1 << 20  # bytes of a script
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Examine = Callable[[str, bytes], Sequence[tuple[int, int, str]]]
# Line, column and text of what is wrong with a script, by its path and source; OSError where nobody could look at it.


class Scripts(Protocol):
    """What runs scripts for us."""

    def answer(self, script: str, source: bytes, envelope: Envelope, raw: bytes, seconds: float) -> Value:
        """Return what a script says of a message within so many seconds, Failed where it cannot be told. For threads.

        script: as the rules name it.
        """

    def examine(self, file: str, source: bytes, seconds: float) -> Sequence[tuple[int, int, str]]:
        """Do what Examine does, within so many seconds."""


def examined(folder: str, scripts: dict[str, bytes], examine: Examine) -> tuple[Problem, ...]:
    """Return what is wrong with the scripts of rules in this folder. Raises OSError where nobody could look at them."""
    found = []
    for script, source in scripts.items():
        path = os.path.join(folder, script)
        found += [Problem(Place(path, line, column), text) for line, column, text in examine(path, source)]
    return tuple(found)


def read_script(folder: str, script: str) -> bytes:
    """Return a script by its path from the rules' folder. Raises OSError, also for one that others could have written,
    and for a link.
    """
    with _open_below(folder, script) as descriptor:
        return contents(descriptor, script, _MOST, single=True)


@contextmanager
def _open_below(folder: str, path: str) -> Iterator[int]:
    """Give a descriptor of a file, each folder on the way checked, no link followed below the first."""
    *names, last = path.split("/")
    here = os.open(folder or ".", _FOLDER)
    try:
        check(os.fstat(here), folder or ".")
        for name in names:
            there = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = there
            check(os.fstat(here), f"the folder {name}")
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    try:
        yield file
    finally:
        os.close(file)
