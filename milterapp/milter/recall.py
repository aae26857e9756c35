"""What rules ask of earlier messages, answered from the site's memory: rates and duplicates.

Must never: open the memory before a worker is forked, or take a memory that fails for one that holds nothing.
"""

from __future__ import annotations

import threading
import time

from milterapp.rules.truth import Failed, Need, Value
from milterapp.state import counting
from milterapp.state.counting import MEMORY
from milterapp.state.database import StateError

__all__ = ["Recall"]

_SWEEP = 600.0  # seconds between two sweeps of what counts no more
_SLOW = 0.5  # seconds; a memory that took that long to fail is left alone
_REST = 2.0  # for so many, in which every question fails at once: a step has few seconds, and many may wait


class Recall:
    """The memory that `milter.state` names (milterapp.yaml(5)), opened at the first question. Safe for threads."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._memory: counting.Counting | None = None
        self._asking = 0
        self._leaving = False
        self._swept = 0.0
        self._resting = 0.0  # until when, of the monotonic clock
        self._why = ""

    def answer(self, need: Need, message: str) -> Value:
        """Return the answer to a need, Failed where the memory cannot be asked. message: tells it from all others."""
        now, begun = time.time(), time.monotonic()
        if begun < self._resting:
            return Failed(self._why)
        try:
            memory, due = self._begin(now)
        except StateError as error:
            return self._failed(error, begun)
        found: Value = Failed("not answered")  # what it is to `finally` where a fault of ours ends this
        try:
            ask = memory.rate if need.kind == "rate" else memory.duplicate
            found = ask(need.rule, need.key, message, now=now, within=need.within)
            if due:
                memory.expire(now)
        except StateError as error:
            found = self._failed(error, begun)
        finally:
            self._end(anew=isinstance(found, Failed))
        return found

    def _failed(self, error: StateError, begun: float) -> Failed:
        failed = time.monotonic()
        if failed - begun > _SLOW:
            self._why, self._resting = str(error), failed + _REST
        return Failed(str(error))

    def leave(self) -> None:
        """Hold no connection from now on while nobody asks: a worker that leaves ends with its last mail server."""
        with self._lock:
            self._leaving = True
            self._let_go()

    def _begin(self, now: float) -> tuple[counting.Counting, bool]:
        """Return the memory, and whether it is time to sweep it. Raises StateError."""
        with self._lock:
            if self._memory is None:
                self._memory = counting.opened(self._where)
            self._asking += 1
            due = now - self._swept > _SWEEP
            if due:
                self._swept = now
            return self._memory, due

    def _end(self, *, anew: bool) -> None:
        """anew: open it again for the next question, as a file may have been moved away. Ours would only forget."""
        with self._lock:
            self._asking -= 1
            if (anew and self._where != MEMORY) or self._leaving:
                self._let_go()

    def _let_go(self) -> None:
        if self._memory is not None and not self._asking:
            self._memory.close()
            self._memory = None
