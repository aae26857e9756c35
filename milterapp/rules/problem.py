"""A problem is a finding with its place in a file the site or a person wrote.

Must never: carry a fault of ours or of the world; those are exceptions, these are values, reported all at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Place", "Problem", "near_miss"]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands: file name as the user gave it, line and column counted from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What was found and what was expected; a warning does not keep the file from being used."""

    place: Place
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {'warning: ' if self.warning else ''}{self.text}"


def near_miss(found: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known word nearest to the one found, or ""."""
    hits = difflib.get_close_matches(found, list(known), 1, 0.6)
    return f", did you mean {hits[0]!r}?" if hits else ""
