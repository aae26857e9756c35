"""What a script remembers, as it reads it while it runs: states and stored values, asked for one at a time.

Must never: write; what a script changes is in its plan. The answering side believes no question.

A script process has no database: it asks its parent over a pipe (`Asked`), which answers from the real one (`answer`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from milterapp.rules.membership import Membership
from milterapp.script.plan import PlanError

__all__ = ["Asked", "Memory", "Question", "Remembered", "answer"]

_MOST_KEYS = 100_000
_MOST_KEY = 500


@dataclass(frozen=True, slots=True)
class Question:
    """A message that is kept until a question about it is answered (actions.Ask).

    sender, original: of its envelope; captures: names and values in turn.
    """

    then: str
    captures: tuple[str, ...]
    sender: str
    original: str
    raw: bytes = field(repr=False)


class Memory(Protocol):
    """The memory of one script and, for states, one sender."""

    def state(self, per: tuple[str, ...]) -> str:
        """Return the sender's state for these captures, "" where there is none."""

    def value(self, key: str) -> str | None:
        """Return what is stored under a key, as stored.to_text wrote it; None for nothing."""

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Return the keys that begin so, in order, each with whether it came from a message."""

    def question(self, digest: str) -> Question | None:
        """Return the message that a question is about, None where there is none, or none any more."""

    def lists(self) -> Sequence[str]:
        """Return the names of the site's lists."""

    def listed(self, name: str, value: str) -> tuple[bool, str | None]:
        """Return whether a list of the site's holds a value, and its own entry that is that value, None for none."""


class Remembered:
    """A memory in tables: for tests, and where there is none yet."""

    def __init__(
        self,
        states: Mapping[tuple[str, ...], str] | None = None,
        values: Mapping[str, tuple[bool, str]] | None = None,
        questions: Mapping[str, Question] | None = None,
        lists: Membership | None = None,
    ) -> None:
        self.site = lists or Membership({})
        self.states = dict(states or {})
        self.values = dict(values or {})
        self.questions = dict(questions or {})

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

    def question(self, digest: str) -> Question | None:
        """Return the question."""
        return self.questions.get(digest)

    def lists(self) -> Sequence[str]:
        """Return the names."""
        return tuple(self.site.lists)

    def listed(self, name: str, value: str) -> tuple[bool, str | None]:
        """Look it up."""
        return self.site.holds(name, value), self.site.entry(name, value)


class Asked:
    """A memory on the other side of a pipe. ask: sends a question and returns its answer; states: all of the sender's,
    which then are not asked for.
    """

    def __init__(self, ask: Callable[[bytes], bytes], states: Mapping[tuple[str, ...], str] | None = None) -> None:
        self._ask = ask
        self._states = states

    def _question(self, what: str, about: object) -> Any:
        return json.loads(self._ask(json.dumps([what, about], ensure_ascii=True).encode("ascii")))

    def state(self, per: tuple[str, ...]) -> str:
        """Ask for the state, where it is not known."""
        if self._states is not None:
            return self._states.get(per, "")
        return str(self._question("state", per))

    def value(self, key: str) -> str | None:
        """Ask for a value."""
        found = self._question("value", key)
        return None if found is None else str(found)

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Ask for the keys."""
        return [(str(key), bool(marked)) for key, marked in self._question("keys", prefix)]

    def question(self, digest: str) -> Question | None:
        """Ask for a question."""
        found = self._question("question", digest)
        if found is None:
            return None
        then, captures, sender, original, raw = found
        return Question(str(then), tuple(map(str, captures)), str(sender), str(original), base64.b64decode(raw))

    def lists(self) -> Sequence[str]:
        """Ask for the names of lists."""
        return tuple(map(str, self._question("lists", "")))

    def listed(self, name: str, value: str) -> tuple[bool, str | None]:
        """Ask a list."""
        holds, entry = self._question("listed", [name, value])
        return bool(holds), None if entry is None else str(entry)


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
    elif what == "question" and _is_key(about):
        given = _told(memory.question(about))
    elif what == "lists" and about == "":
        given = list(memory.lists())
    elif what == "listed" and isinstance(about, list) and len(about) == 2 and all(_is_text(one) for one in about):
        if about[0] not in memory.lists():
            raise PlanError("a question about a list that is not there")
        given = memory.listed(*about)
    else:
        raise PlanError("a question of an unknown kind")
    return json.dumps(given, ensure_ascii=True).encode("ascii")


def _told(found: Question | None) -> object:
    if found is None:
        return None
    raw = base64.b64encode(found.raw).decode("ascii")
    return [found.then, list(found.captures), found.sender, found.original, raw]


def _is_key(value: object) -> bool:
    return _is_text(value) and len(str(value)) <= _MOST_KEY


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)
