"""Forgetting what is too old to be asked about again: in the journal, in what rules and scripts remember, on disk.

Must never: keep a message waiting (it comes after an answer, in pieces, a second of them at most), make anything where
nothing is remembered, or be a reason for an agent to fail.

An agent lives for minutes and this is due once a day, so when it was done last is the time of a file beside the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from milterapp.delivery import filtered
from milterapp.delivery.rulefile import Unavailable, open_home
from milterapp.state.conversations import Conversations
from milterapp.state.database import Database, StateError, exists
from milterapp.state.journal import Journal
from milterapp.state.rates import Rates

__all__ = ["SWEPT", "Sweeper"]

SWEPT = "swept"
_EVERY = 86400.0  # seconds
_PIECE = 500  # rows of each table in one transaction
_PATIENCE = 0.2  # seconds for another process's transaction
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OFTEN = 10_000  # instructions of SQLite's between two looks at the clock

Piece = tuple[Database, Callable[[], int]]


class Sweeper:
    """The sweeps of one user's memory. state: its folder below the home; files: the names of journal, rates and what
    scripts remember; keep: seconds for which a record stays. longest: seconds of one sweep, and of a statement more;
    the rest is for the next message to begin.
    """

    def __init__(
        self, home: str, state: str, files: tuple[str, str, str], keep: int, longest: float = 1.0
    ) -> None:  # fmt: skip
        self._home, self._state, self._keep, self._longest = home, state, keep, longest
        self._folder = os.path.join(home, state)
        self._files = [os.path.join(self._folder, name) for name in files]
        self._last: float | None = None  # when it was done; None: not looked at yet

    def begin(self, now: float) -> None:
        """Know that what is remembered begins now. now: seconds since 1970."""
        self._last = now

    def sweep(self, now: float, wanted: Callable[[], bool]) -> None:
        """Forget what is old, where that is due. now: as in begin(); wanted: whether the next message is there."""
        if self._last is None:
            self._last = self._marked()
        if 0 <= now - self._last < _EVERY:
            return
        if self._forget(now, time.monotonic() + self._longest, wanted):
            self._last = now
            self._mark(now)

    def _forget(self, now: float, until: float, wanted: Callable[[], bool]) -> bool:
        """Tell whether all is done that can be. What cannot be read or written now has time until tomorrow."""
        for database, forget in self._pieces(now):
            try:
                with database.reading() as connection:
                    connection.set_progress_handler(lambda: time.monotonic() > until + self._longest, _OFTEN)
                while forget():
                    if time.monotonic() > until or wanted():
                        return False
            except StateError:
                pass
            finally:
                database.close()
        with suppress(Unavailable, OSError), open_home(self._home, os.geteuid()) as home:
            if home is not None:
                filtered.expire(home, self._state, self._keep)
        return True

    def _pieces(self, now: float) -> Iterator[Piece]:
        """Yield each database that is there, opened, with what forgets a piece of it and says how many rows that was.

        No commit waits for the disk: what comes back after a crash is forgotten another day.
        """
        before, (journal, rates, scripts) = int(now) - self._keep, self._files
        makers: tuple[tuple[str, Callable[[str], Piece]], ...] = (
            (journal, lambda path: _journal(path, before)),
            (rates, lambda path: _rates(path, before)),
            (scripts, lambda path: _scripts(path, before, int(now))),
        )
        for path, make in makers:
            with suppress(StateError):
                if exists(path):
                    yield make(path)

    def _marked(self) -> float:
        try:
            return os.stat(os.path.join(self._folder, SWEPT), follow_symlinks=False).st_mtime
        except OSError:
            return 0.0

    def _mark(self, now: float) -> None:
        with suppress(OSError):
            mark = os.open(os.path.join(self._folder, SWEPT), _CREATE, 0o600)
            try:
                os.utime(mark, (now, now))
            finally:
                os.close(mark)


def _journal(path: str, before: int) -> Piece:
    one = Journal(path, durable=False, patience=_PATIENCE)
    return one.database, lambda: one.expire(before, _PIECE)


def _rates(path: str, before: int) -> Piece:
    one = Rates(path, durable=False, patience=_PATIENCE)
    return one.database, lambda: one.expire(before, _PIECE)


def _scripts(path: str, before: int, now: int) -> Piece:
    one = Conversations(path, durable=False, patience=_PATIENCE)
    return one.database, lambda: one.expire(before, now, _PIECE)
