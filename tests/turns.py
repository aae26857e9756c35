"""Several runs of the same tests at once, file by file: whichever is free takes the next file that none has taken.

packaging/everything starts them, each in a world of its own. All have one folder open, and a file is taken by making
an entry of its name there: so each runs once, whichever is the slower, and nobody keeps a list of how long they take.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterable, Iterator

import pytest

__all__ = ["FIRST", "FOLDER", "run", "turns"]

FOLDER = "MILTERAPP_TURNS"  # the descriptor of the folder; without it a run has all files to itself
FIRST = "MILTERAPP_TURNS_FIRST"  # the files whose path begins so this run takes before all others


def turns(files: Iterable[str], folder: int, first: str = "") -> Iterator[str]:
    """Yield the files, by path, that were not taken yet, and take each as it is asked for."""
    for file in sorted(files, key=lambda one: not one.startswith(first)):
        try:
            os.close(os.open(file.replace("/", "+"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=folder))
        except FileExistsError:
            continue
        yield file


def run(session: pytest.Session) -> bool:
    """Run the tests whose turn it is, as pytest runs all."""
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    files: dict[str, list[pytest.Item]] = {}
    for one in session.items:
        files.setdefault(str(one.path.relative_to(session.config.rootpath)), []).append(one)
    given = int(os.environ.pop(FOLDER))
    folder = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 200)  # out of the way of tests that count descriptors
    os.close(given)
    ours = (item for file in turns(files, folder, os.environ.pop(FIRST, "")) for item in files[file])
    # Each with the one after it, also over the end of a file: pytest keeps the fixtures that both use.
    for item, following in itertools.pairwise(itertools.chain[pytest.Item | None](ours, [None])):
        assert item is not None
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    return True
