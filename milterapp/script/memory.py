"""What a script remembers, as it reads it while it runs: states and stored values, asked for one at a time.

Must never: write; what a script changes is in its plan. The answering side believes no question.

A script process has no database: it asks its parent over a pipe (`Asked`), which answers from the real one (`answer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from milterapp.script.plan import PlanError

__all__ = ["Asked", "Memory", "Remembered", "answer"]

_MOST_KEYS = 100_000
_MOST_KEY = 500


class Memory(Protocol):
    """The memory of one script and, for states, one sender."""

    def state(self, per: tuple[str, ...]) -> str:
        """Return the sender's state for these captures, "" where there is none."""

    def value(self, key: str) -> str | None:
        """Return what is stored under a key, as stored.to_text wrote it; None for nothing."""

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Return the keys that begin so, in order, each with whether it came from a message."""


class Remembered:
    """A memory in tables: for tests, and where there is none yet."""

    def __init__(
        self,
        states: Mapping[tuple[str, ...], str] | None = None,
        values: Mapping[str, tuple[bool, str]] | None = None,
    ) -> None:
        self.states = dict(states or {})
        self.values = dict(values or {})

    def state(self, per: tuple[str, ...]) -> str:
        """Return the state."""
        return self.states.get(per, "")

    def value(self, key: str) -> str | None:
        """Return what is stored."""
        found = self.values.get(key)
        return None if found is None else found[1]

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Return the keys."""
        return [(key, self.values[key][0]) for key in sorted(self.values) if key.startswith(prefix)]


class Asked:
    """A memory on the other side of a pipe. ask: sends a question and returns its answer."""

    def __init__(self, ask: Callable[[bytes], bytes]) -> None:
        self._ask = ask

    def _question(self, what: str, about: object) -> Any:
        return json.loads(self._ask(json.dumps([what, about], ensure_ascii=True).encode("ascii")))

    def state(self, per: tuple[str, ...]) -> str:
        """Ask for the state."""
        return str(self._question("state", per))

    def value(self, key: str) -> str | None:
        """Ask for a value."""
        found = self._question("value", key)
        return None if found is None else str(found)

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Ask for the keys."""
        return [(str(key), bool(marked)) for key, marked in self._question("keys", prefix)]


def answer(memory: Memory, question: bytes) -> bytes:
    """Return the answer to a script process's question. Raises PlanError for what is none."""
    try:
        found = json.loads(question.decode("ascii"))
    except (ValueError, RecursionError):
        raise PlanError("a question that is no JSON") from None
    if not isinstance(found, list) or len(found) != 2:
        raise PlanError("a question of an unknown kind")
    what, about = found
    given: object
    if what == "state" and isinstance(about, list) and len(about) <= 10 and all(map(_is_key, about)):
        given = memory.state(tuple(about))
    elif what == "value" and _is_key(about):
        given = memory.value(about)
    elif what == "keys" and _is_key(about):
        given = list(memory.keys(about))[:_MOST_KEYS]
    else:
        raise PlanError("a question of an unknown kind")
    return json.dumps(given, ensure_ascii=True).encode("ascii")


def _is_key(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_KEY and not any("\ud800" <= one <= "\udfff" for one in value)
