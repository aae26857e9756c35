"""Clauses: how conditions are joined into what a rule asks, each with its place in the file.

Must never: be evaluated here; `evaluate` does that, three-valued.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from milterapp.mail.envelope import Stage
from milterapp.rules.action import Action
from milterapp.rules.conditions import Direct, Sought
from milterapp.rules.conditions_marks import Asked
from milterapp.rules.operators import In, Regex
from milterapp.rules.placeholders import VALUES, Value
from milterapp.rules.problem import Place

__all__ = [
    "JOINTS",
    "AllOf",
    "AnyOf",
    "Clause",
    "Leaf",
    "NotOf",
    "Present",
    "captured",
    "leaves",
    "own_lists",
    "stage_of",
]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One condition."""

    condition: Sought | Direct
    place: Place


@dataclass(frozen=True, slots=True)
class Present:
    """What the rule's actions need is there: values, and what they look at, from a stage on.

    targets: the values to send to, which a list of the rule holds. actions: those that look at the message.
    """

    values: tuple[Value, ...]
    targets: frozenset[Value]
    place: Place
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of the conditions hold. A mapping of several conditions and a list of them mean the same."""

    word: ClassVar[str] = "all"

    parts: tuple[Clause, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of the conditions holds."""

    word: ClassVar[str] = "any"

    parts: tuple[Clause, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class NotOf:
    """The condition does not hold. It takes exactly one; for "neither" write `not: {any: [...]}`. What could not be
    told is not told under `not` either.
    """

    word: ClassVar[str] = "not"

    part: Clause
    place: Place


Clause = Leaf | Present | AllOf | AnyOf | NotOf

JOINTS: dict[str, type[AllOf | AnyOf | NotOf]] = {"all": AllOf, "any": AnyOf, "not": NotOf}


def leaves(clause: Clause) -> Iterator[Leaf]:
    """Yield every condition in a clause."""
    if isinstance(clause, Leaf):
        yield clause
    elif isinstance(clause, NotOf):
        yield from leaves(clause.part)
    elif isinstance(clause, AllOf | AnyOf):
        for part in clause.parts:
            yield from leaves(part)


def sure(clause: Clause) -> Iterator[Leaf]:
    """Yield the conditions that hold whenever the clause does: those below no `any` and no `not`."""
    if isinstance(clause, Leaf):
        yield clause
    elif isinstance(clause, AllOf):
        for part in clause.parts:
            yield from sure(part)


def captured(clause: Clause) -> Iterator[tuple[Leaf, str, Regex]]:
    """Yield (condition, part of it, regex) for each regex whose named groups the rule's actions may use."""
    for leaf in sure(clause):
        if isinstance(leaf.condition, Sought):
            for part, operators in leaf.condition.test.parts:
                for operator in operators:
                    if isinstance(operator, Regex):
                        yield leaf, part, operator


def own_lists(clause: Clause) -> tuple[In, ...]:
    """Return what the rule asks with `in`, wherever that must hold."""
    return tuple(
        operator
        for leaf in sure(clause)
        if isinstance(leaf.condition, Sought)
        for _, operators in leaf.condition.test.parts
        for operator in operators
        if isinstance(operator, In)
    )


def ordered(parts: tuple[Clause, ...]) -> tuple[Clause, ...]:
    """Return parts in the order in which they are asked: what costs decoding, and last what the edge is asked for."""
    return tuple(sorted(parts, key=_cost))


def _cost(clause: Clause) -> int:
    if isinstance(clause, Present):
        return 2
    found = [leaf.condition for leaf in leaves(clause)]
    if any(isinstance(one, Asked) for one in found):
        return 3
    return any(isinstance(one, Sought) and one.late for one in found)


def stage_of(clause: Clause) -> Stage:
    """Return the stage from which on all of a clause is known."""
    if isinstance(clause, Leaf):
        return clause.condition.stage
    if isinstance(clause, Present):
        stages = [VALUES[value.word].stage for value in clause.values] + [one.stage() for one in clause.actions]
        return max(stages, default=Stage.CONNECT)
    if isinstance(clause, NotOf):
        return stage_of(clause.part)
    return max(map(stage_of, clause.parts), default=Stage.CONNECT)
