"""Which fields or attachments an action means: the tests that conditions have, asked of each by itself.

Must never: be asked where a condition would do; conditions are answered for all rules in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from milterapp.rules.conditions import Read
from milterapp.rules.conditions_message import Attachment
from milterapp.rules.facts import Facts
from milterapp.rules.matcher import MATCHERS, Matcher
from milterapp.rules.operators import Test

__all__ = ["TEXT", "WhichAttachments", "WhichFields", "picker"]

Picker = Callable[[Any, Facts], bool]


def picker(test: Test, parts: Read) -> Picker:
    """Return what tells whether one occurrence passes a test; it raises LimitHit."""
    made: list[tuple[Any, Matcher, frozenset[int]]] = []
    for part, operators in test.parts:
        kind, values = parts[part]
        matcher = MATCHERS[kind]()
        for number, operator in enumerate(operators):
            operator.enter(matcher, number)
        matcher.seal()
        made.append((values, matcher, frozenset(range(len(operators)))))

    def passes(occurrence: Any, facts: Facts) -> bool:
        return all(
            any(numbers <= matcher.match(value, facts.delimiter) for value in values(occurrence, facts))
            for values, matcher, numbers in made
        )

    return passes


TEXT: Read = {"": ("text", lambda value, _: (value,))}


@dataclass(frozen=True, slots=True)
class WhichFields:
    """Those of a name's fields that pass a test."""

    test: Test
    passes: Picker = field(compare=False)

    def picked(self, name: str, facts: Facts) -> tuple[int, ...]:
        """Return which of that name pass, from 1. Raises LimitHit."""
        return _numbers(self.passes(value, facts) for value in facts.message.values(name))


@dataclass(frozen=True, slots=True)
class WhichAttachments:
    """Those attachments that pass a test; without one, all of them."""

    condition: Attachment | None = None
    passes: Picker | None = field(default=None, compare=False)

    def picked(self, facts: Facts) -> tuple[int, ...]:
        """Return the numbers of their parts in the message. Raises LimitHit."""
        found = facts.message.attachments if self.condition is None else self.condition.read(facts)
        return tuple(dict.fromkeys(one.part.number for one in found if self.passes is None or self.passes(one, facts)))


def _numbers(passed: Iterable[bool]) -> tuple[int, ...]:
    return tuple(number for number, one in enumerate(passed, 1) if one)
