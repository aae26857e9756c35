"""Timing and tables for the benchmarks: CPU time of this process, the candidates interleaved, the median of the rounds.

Must never: time with a wall clock (the machines are shared), or run one candidate to its end before the next begins.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["interleaved", "render"]


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 7, seconds: float = 0.1
) -> dict[str, float]:
    """Return CPU seconds a call for each candidate: the median over rounds, each round giving every one its turn.

    The number of calls in a turn is found beforehand, so that a turn lasts about that many seconds.
    """
    calls = {name: _calls(run, seconds) for name, run in candidates.items()}
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            count = calls[name]
            begin = time.process_time()
            for _ in range(count):
                run()
            taken[name].append((time.process_time() - begin) / count)
    return {name: statistics.median(values) for name, values in taken.items()}


def _calls(run: Callable[[], object], seconds: float) -> int:
    """Return how many calls fill so many seconds (the first call warms up and is not counted)."""
    run()
    begin = time.process_time()
    count = 0
    while time.process_time() - begin < seconds / 2:
        run()
        count += 1
    return max(1, count * 2)


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded so that it reads as text too."""
    widths = [max(len(str(row[at])) for row in [head, *rows]) for at in range(len(head))]
    lines = [
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
