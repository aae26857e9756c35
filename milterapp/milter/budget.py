"""Time: how long a step may take, and telling the mail server that the end of a message takes longer.

Must never: write to a connection whose message has its answer, or while it gets it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from milterapp import log
from milterapp.milter.plan import Step

__all__ = ["Budget", "Ticker"]

_ANSWERED = frozenset({"connect", "helo", "mail", "rcpt", "data", "eoh"})


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds that a step may take, and the end of a message; Postfix waits 30 and 300 for them."""

    step: float = 5.0
    end: float = 20.0
    scripts: float = 10.0  # of that, what all scripts of a message may take together

    def exceeded(self, step: Step, spent: float) -> str:
        """Return what took too long, "" where nothing did."""
        most = self.end if step == "eom" else self.step if step in _ANSWERED else spent
        return f"took {spent:.1f} s, more than {most:g} s" if spent > most else ""


class Ticker:
    """One thread that says, every `interval` seconds, that the ends of messages which take long are worked on."""

    def __init__(self, interval: float = 5.0) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._busy: dict[int, tuple[Any, float]] = {}

    def start(self) -> None:
        """Begin, in the worker."""
        threading.Thread(target=self._run, daemon=True).start()

    @contextmanager
    def watching(self, ctx: Any) -> Iterator[None]:
        """Watch over one callback, as long as it does not answer."""
        key = id(ctx)
        with self._lock:
            self._busy[key] = (ctx, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._busy[key]

    def _run(self) -> None:
        while True:
            time.sleep(self._interval)
            self.tick()

    def tick(self) -> None:
        """Say it for each that has been at it for an interval."""
        now = time.monotonic()
        with self._lock:
            for ctx, since in self._busy.values():
                if now - since >= self._interval:
                    try:
                        ctx.progress()
                    except Exception:  # noqa: BLE001 - whatever it is, the callback itself is about to meet it
                        log.get("milter").warning("progress not taken")
