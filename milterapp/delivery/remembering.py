"""What a running script asks for, answered: its sender's state, what it stored, kept questions, the site's lists.

Must never: write; what a script changes is in its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from milterapp.delivery.said import question_of
from milterapp.rules.membership import Membership
from milterapp.script.memory import Question
from milterapp.state.conversations import Conversations

__all__ = ["Remembering"]

_MOST_KEYS = 100_000


class Remembering:
    """The memory of one script and sender. kept: None where there is none yet; now: gives seconds since 1970."""

    def __init__(
        self, kept: Conversations | None, script: str, sender: str, lists: Membership, now: Callable[[], float]
    ) -> None:
        self._kept, self._script, self._sender, self._lists, self._now = kept, script, sender, lists, now

    def state(self, per: tuple[str, ...]) -> str:
        """Return the sender's state."""
        return "" if self._kept is None else self._kept.state(self._script, self._sender, per)

    def value(self, key: str) -> str | None:
        """Return a stored value."""
        return None if self._kept is None else self._kept.value(self._script, key)

    def keys(self, prefix: str) -> Sequence[tuple[str, bool]]:
        """Return the keys that begin so."""
        return () if self._kept is None else self._kept.keys(self._script, prefix, _MOST_KEYS)

    def question(self, digest: str) -> Question | None:
        """Return the message that a question is about."""
        found = None if self._kept is None else self._kept.question(self._script, digest, int(self._now()))
        return None if found is None else question_of(found)

    def lists(self) -> Sequence[str]:
        """Return the names of the site's lists."""
        return tuple(self._lists.lists)

    def listed(self, name: str, value: str) -> tuple[bool, str | None]:
        """Look a value up in one of them."""
        return self._lists.holds(name, value), self._lists.entry(name, value)
