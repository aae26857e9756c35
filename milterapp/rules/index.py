"""The index: rules arranged so that a message's cost grows with what matches, not with how many rules there are.

Each rule is found through one guard, a condition that must hold for the rule to hold. The guards on one field are
asked in one pass, and only the rules whose guard holds are looked at.

Must never: leave a rule out that could hold; what has no guard is always looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milterapp.mail.envelope import Stage
from milterapp.rules.clauses import (
    AllOf,
    AnyOf,
    Clause,
    Leaf,
    NotOf,
    Present,
    captured,
    leaves,
    ordered,
    own_lists,
    stage_of,
)
from milterapp.rules.conditions import Direct, Sought
from milterapp.rules.conditions_marks import Asked, Marked, Tag
from milterapp.rules.matcher import MATCHERS, Matcher
from milterapp.rules.operators import In, TestNumber
from milterapp.rules.patterns import from_regex
from milterapp.rules.placeholders import Value

if TYPE_CHECKING:
    from milterapp.rules.policy import Rule

__all__ = ["ALL", "ANY", "LEAF", "NOT", "PRESENT", "FieldIndex", "Index", "LeafIndex", "PresentIndex", "Source", "Tree"]

ALL, ANY, NOT, LEAF, PRESENT = range(5)

# (ALL | ANY, trees), (NOT, tree), (LEAF, number), (PRESENT, PresentIndex)
Tree = tuple[int, Any]

# The words whose fields are many, one for each header name: a message is asked for the names it has.
BY_NAME = ("header", "raw_header")


@dataclass(slots=True, eq=False)
class FieldIndex:
    """All that is asked of one field. matchers: for each part of an occurrence; guards: test number to rules; present:
    the rules to look at where the field is there at all."""

    number: int
    condition: Sought
    matchers: dict[str, Matcher] = field(default_factory=dict)
    tests: dict[tuple[Any, ...], int] = field(default_factory=dict)
    guards: dict[int, list[int]] = field(default_factory=dict)
    present: list[int] = field(default_factory=list)
    parts: list[tuple[str, Any, Matcher]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class LeafIndex:
    """One condition. needs: for each part, the numbers of the tests that one and the same value must pass."""

    condition: Sought | Direct
    field: FieldIndex | None = None
    needs: tuple[tuple[str, frozenset[int]], ...] = ()
    exists: bool | None = None
    count: TestNumber | None = None
    every: bool = False

    @property
    def positive(self) -> bool:
        """Whether it cannot hold without an occurrence."""
        return self.field is not None and self.exists is not False and (self.count is None or not self.count.holds(0))

    @property
    def growing(self) -> bool:
        """Whether it holds from the first occurrence that passes on, whatever others there are."""
        return self.exists is not False and self.count is None and not self.every


@dataclass(frozen=True, slots=True, eq=False)
class PresentIndex:
    """The values a rule needs. captures: group name to (leaf, part, pattern); lists: what may name a target."""

    rule: int
    clause: Present
    stage: Stage
    captures: dict[str, tuple[int, str, str]]
    lists: tuple[In, ...]
    values: tuple[Value, ...]


@dataclass(slots=True, eq=False)
class Source:
    """Where rules to look at come from. fields: asked by name where by_name, or the one; leaf: or this one condition.

    rules: all that may come from here, in order; ending: those of them that end the rules.
    """

    stage: Stage
    fields: dict[str, FieldIndex] = field(default_factory=dict)
    by_name: bool = False
    leaf: int | None = None
    rules: tuple[int, ...] = ()
    ending: tuple[int, ...] = ()
    found: list[int] = field(default_factory=list)


class Index:
    """The compiled rules of a policy."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.leaves: list[LeafIndex] = []
        self.fields: list[FieldIndex] = []
        self._leaf_numbers: dict[Any, int] = {}
        self._field_numbers: dict[Any, FieldIndex] = {}
        self._tests = 0
        self.asking: set[int] = set()  # ids of the trees in which the edge is asked for something
        # The rules that ask what earlier rules marked the message with.
        self.marked = frozenset(
            at for at, rule in enumerate(rules) if any(isinstance(one.condition, Marked) for one in leaves(rule.clause))
        )
        self.trees: list[Tree] = [self._tree(rule.clause, at, rule) for at, rule in enumerate(rules)]
        for one in self.fields:
            for matcher in one.matchers.values():
                matcher.seal()
            one.parts = [(part, one.condition.parts[part][1], matcher) for part, matcher in one.matchers.items()]
        self.sources = self._sources()

    def _tree(self, clause: Clause, at: int, rule: Rule) -> Tree:
        made = self._made(clause, at, rule)
        if any(isinstance(leaf.condition, Asked) for leaf in leaves(clause)):
            self.asking.add(id(made))
        return made

    def _made(self, clause: Clause, at: int, rule: Rule) -> Tree:
        if isinstance(clause, Leaf):
            return LEAF, self._leaf(clause.condition)
        if isinstance(clause, NotOf):
            return NOT, self._tree(clause.part, at, rule)
        if isinstance(clause, AnyOf):
            return ANY, tuple(self._tree(part, at, rule) for part in ordered(clause.parts))
        if isinstance(clause, AllOf):
            return ALL, tuple(self._tree(part, at, rule) for part in ordered(clause.parts))
        captures = {
            group: (self._leaf(leaf.condition), part, from_regex(pattern, case=regex.case))
            for leaf, part, regex in captured(rule.clause)
            for pattern, groups in regex.groups()
            for group in groups
        }
        return PRESENT, PresentIndex(at, clause, stage_of(clause), captures, own_lists(rule.clause), clause.values)

    def _leaf(self, condition: Sought | Direct) -> int:
        # Two conditions that ask the same are one; lists compare by what they are, so `in` is told apart by them.
        key = (type(condition), condition, *_lists_of(condition))
        number = self._leaf_numbers.get(key)
        if number is None:
            number = self._leaf_numbers[key] = len(self.leaves)
            self.leaves.append(self._sought(condition) if isinstance(condition, Sought) else LeafIndex(condition))
        return number

    def _sought(self, condition: Sought) -> LeafIndex:
        place = (type(condition), condition.field())
        here = self._field_numbers.get(place)
        if here is None:
            here = self._field_numbers[place] = FieldIndex(len(self.fields), condition)
            self.fields.append(here)
        needs = []
        for part, operators in condition.test.parts:
            kind, _ = condition.parts[part]
            if part not in here.matchers:
                here.matchers[part] = MATCHERS[kind]()
            numbers = set()
            for operator in operators:
                key = (part, operator, *map(id, operator.lists)) if isinstance(operator, In) else (part, operator)
                number = here.tests.get(key)
                if number is None:
                    number = here.tests[key] = self._tests
                    self._tests += 1
                    operator.enter(here.matchers[part], number)
                numbers.add(number)
            needs.append((part, frozenset(numbers)))
        test = condition.test
        return LeafIndex(condition, here, tuple(needs), test.exists, test.count, condition.every)

    def _guards(self, tree: Tree) -> list[int] | None:
        """Return leaves of which one must hold where the tree holds, None where there are none."""
        kind, inside = tree
        if kind == LEAF:
            leaf = self.leaves[inside]
            if isinstance(leaf.condition, Marked | Asked):
                return None  # not the same for every rule
            return [inside] if leaf.field is None or leaf.positive else None
        if kind == ANY:
            found = [self._guards(part) for part in inside]
            return None if None in found else [leaf for guards in found for leaf in guards or ()]
        if kind == ALL:
            choices = [guards for part in inside if (guards := self._guards(part)) is not None]
            return min(choices, key=self._cost, default=None)
        return None

    def _cost(self, guards: list[int]) -> tuple[bool, bool, int, int]:
        found = [self.leaves[number] for number in guards]
        return (
            any(leaf.field is not None and leaf.field.condition.late for leaf in found),
            any(leaf.field is None or not leaf.needs for leaf in found),
            max(leaf.condition.stage for leaf in found),
            len(found),
        )

    def _sources(self) -> tuple[tuple[int, int, Source], ...]:
        sources: dict[Any, Source] = {}
        always = sources[None] = Source(Stage.CONNECT)
        guards = [self._guards(tree) for tree in self.trees]
        direct: dict[int, int] = {}
        for found in guards:
            for number in found or ():
                direct[number] = direct.get(number, 0) + 1
        for at, found in enumerate(guards):
            # A guard that is asked for one rule alone saves nothing: the rule is looked at itself.
            if found is None or any(self.leaves[one].field is None and direct[one] == 1 for one in found):
                always.found.append(at)
                continue
            for number in found:
                self._guard(sources, at, number)
        for source in sources.values():
            source.rules = tuple(dict.fromkeys(source.found))
            source.ending = tuple(at for at in source.rules if self.rules[at].ends)
            source.found = []
        used = [source for source in sources.values() if source.rules]
        return tuple(sorted((source.rules[0], at, source) for at, source in enumerate(used)))

    def _guard(self, sources: dict[Any, Source], at: int, number: int) -> None:
        leaf = self.leaves[number]
        if leaf.field is None:
            source = sources.setdefault(("leaf", number), Source(leaf.condition.stage, leaf=number))
            source.found.append(at)
            return
        word, argument = leaf.field.condition.field()
        by_name = word in BY_NAME
        key = word if by_name else leaf.field.number
        source = sources.setdefault(key, Source(leaf.condition.stage, by_name=by_name))
        source.fields[argument if by_name else ""] = leaf.field
        source.found.append(at)
        needs = [test for _, tests in leaf.needs for test in tests]
        if needs:
            leaf.field.guards.setdefault(min(needs), []).append(at)
        else:
            leaf.field.present.append(at)


def _lists_of(condition: Sought | Direct) -> tuple[int, ...]:
    if isinstance(condition, Tag):
        return tuple(map(id, condition.lists))
    if not isinstance(condition, Sought):
        return ()
    return tuple(
        id(one)
        for _, operators in condition.test.parts
        for operator in operators
        if isinstance(operator, In)
        for one in operator.lists
    )
