"""What a worker counts of its messages, and how the counts get to the supervisor, which adds them up.

Must never: hold up a message because nobody takes the counts, or count under a name that a message chose.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from milterapp.milter.event import Happening

__all__ = ["BUCKETS", "Counters", "Counts", "Key", "read"]

Key = tuple[str, ...]  # the metric, then its labels
Counts = Counter[Key]

# Seconds that a message took, in all its steps together.
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0)
_INTERVAL = 1.0  # seconds between two reports
_AT_ONCE = 100  # counts in one datagram
_DATAGRAM = 64 * 1024  # bytes


class Counters:
    """A worker's counts since its last report. Several threads count."""

    def __init__(self, report: socket.socket) -> None:
        """Count. report: a datagram socket that does not block, to the supervisor."""
        self._report = report
        self._lock = threading.Lock()
        self._counts: Counts = Counter()

    def start(self) -> None:
        """Begin to report, in the worker."""
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, happening: Happening, seconds: float, observers: Container[str]) -> None:
        """Count one event of a message."""
        decision = happening.decision
        verdict = happening.answer if happening.fault else decision.verdict.value
        stage = decision.stage.word if decision.stage is not None and not happening.fault else ""
        with self._lock:
            counts = self._counts
            counts["messages", verdict, stage] += 1
            if happening.fault:
                counts["faults", happening.fault.partition(":")[0]] += 1
            for name in decision.matched:
                counts["would_have" if name in observers else "rules", name] += 1
            bucket = next((f"{most:g}" for most in BUCKETS if seconds <= most), "+Inf")
            counts["seconds", bucket] += 1
            counts["microseconds",] += round(seconds * 1e6)

    def flush(self) -> None:
        """Report what there is; what is not taken is reported later."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        items = list(counts.items())
        for at in range(0, len(items), _AT_ONCE):
            some = items[at : at + _AT_ONCE]
            try:
                self._report.send(json.dumps([[*key, number] for key, number in some]).encode())
            except OSError:  # full, or the supervisor is gone
                with self._lock:
                    self._counts.update(dict(items[at:]))
                return

    def _run(self) -> None:
        quiet = threading.Event()
        while not quiet.wait(_INTERVAL):
            self.flush()


def read(report: socket.socket) -> Iterator[Mapping[Key, int]]:
    """Give what the workers have reported by now. report: the supervisor's end, which does not block."""
    while True:
        try:
            data = report.recv(_DATAGRAM)
        except BlockingIOError:
            return
        yield {tuple(map(str, key)): int(number) for *key, number in json.loads(data)}
