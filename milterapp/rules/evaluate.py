"""Evaluating: is a condition true, false, or unknown, for one set of facts; each looked at once at most.

Must never: take "could not tell" for "no match", or read a fact before its stage.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from milterapp.mail.envelope import Stage
from milterapp.mail.limits import LimitHit
from milterapp.rules.conditions import Direct, Sought
from milterapp.rules.conditions_marks import Asked, Marked, ScriptSays
from milterapp.rules.decision import Scripted
from milterapp.rules.facts import Facts
from milterapp.rules.folding import address_forms, plain
from milterapp.rules.index import ALL, ANY, LEAF, NOT, FieldIndex, Index, LeafIndex, PresentIndex, Source, Tree
from milterapp.rules.patterns import compiled
from milterapp.rules.placeholders import Value, read_value
from milterapp.rules.truth import Answers, Failed, Marks, Truth, Unknown, Wanted

__all__ = ["Evaluation", "Truth", "Unknown"]


NEEDS = {stage: Unknown(f"not yet known: needs {stage.word}") for stage in Stage}

# An occurrence, and for each part that is asked the numbers of the tests that each of its values passes.
Seen = tuple[Any, dict[str, list[set[int]]]]


class Evaluation:
    """What the rules of one index are for one set of facts.

    before: an evaluation of the same session at an earlier stage, whose readings of fields are taken over.
    answers: what the edge has answered by now; None: take what the facts assume, and ask nobody.
    """

    def __init__(
        self, index: Index, facts: Facts, before: Evaluation | None = None, answers: Answers | None = None
    ) -> None:
        self.index = index
        self.facts = facts
        self.answers = answers
        self.asking = False
        # For each rule on marks, those that were there where it stands; and the rule that is looked at.
        self.marked: dict[int, Marks] = {}
        self._at = 0
        self._fields: dict[int, tuple[Seen, ...] | Unknown] = {}
        self._leaves: dict[int, Truth] = {}
        self._values: dict[tuple[int, Value], str | None] = {}
        if before is not None and before.index is index:
            for number, seen in before._fields.items():
                if index.fields[number].condition.word != "recipient" and not isinstance(seen, Unknown):
                    self._fields[number] = seen

    # Which rules to look at

    def candidates(self, counting_only: Sequence[bool]) -> Iterator[int]:
        """Yield, in order, every rule that is not surely false.

        counting_only: one flag, read anew for each rule; once it is set, rules whose guard is not yet known and that
        neither end the rules nor mark the message are left out, since they change nothing any more.
        """
        heap: list[tuple[int, int, Any]] = list(self.index.sources)
        last = -1
        rules = self.index.rules
        while heap:
            at, order, source = heap[0]
            if isinstance(source, Source):
                opened = iter(self._open(source))
            else:
                if at != last:
                    last = at
                    yield at
                opened = source
            following = next(opened, None)
            while following is not None and counting_only[0] and not rules[following].counts:
                following = next(opened, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following, order, opened))

    def _open(self, source: Source) -> Sequence[int]:
        if source.stage > self.facts.stage:
            return source.rules
        if source.leaf is not None:
            return source.rules if self.leaf(source.leaf) is not False else ()
        if not source.fields:
            return source.rules
        found: set[int] = set()
        if source.by_name:
            try:
                names = self.facts.message.names
            except LimitHit:
                return source.rules
            fields = [source.fields[name] for name in names if name in source.fields]
        else:
            fields = [source.fields[""]]
        for one in fields:
            seen = self.seen(one)
            if isinstance(seen, Unknown):
                return source.rules
            guards = one.guards
            for _, parts in seen:
                for values in parts.values():
                    for hits in values:
                        for hit in hits:
                            if hit in guards:
                                found.update(guards[hit])
            if seen and one.present:
                found.update(one.present)
        return sorted(found)

    # What is true

    def seen(self, one: FieldIndex) -> tuple[Seen, ...] | Unknown:
        """Return the occurrences of a field with what each passes."""
        known = self._fields.get(one.number)
        if known is None:
            known = self._fields[one.number] = self._look(one)
        return known

    def _look(self, one: FieldIndex) -> tuple[Seen, ...] | Unknown:
        facts = self.facts
        if one.condition.stage > facts.stage:
            return NEEDS[one.condition.stage]
        try:
            return self._occurrences(one, facts)
        except LimitHit as limit:
            return Unknown(f"could not tell: {limit}", later=False)

    def _occurrences(self, one: FieldIndex, facts: Facts) -> tuple[Seen, ...]:
        delimiter = facts.delimiter
        return tuple(
            (
                occurrence,
                {
                    part: [matcher.match(value, delimiter) for value in values(occurrence, facts)]
                    for part, values, matcher in one.parts
                },
            )
            for occurrence in one.condition.read(facts)
        )

    def leaf(self, number: int) -> Truth:
        """Return whether a condition holds."""
        known = self._leaves.get(number)
        if known is None:
            condition = self.index.leaves[number].condition
            if isinstance(condition, Marked):
                return condition.standing(self.marks)
            if isinstance(condition, Asked):
                return self._answered(condition)
            known = self._leaves[number] = self._holds(self.index.leaves[number])
        return known

    @property
    def marks(self) -> Marks:
        """What the rules before the one that is looked at marked the message with."""
        return self.marked.get(self._at) or Marks(self.facts.score, self.facts.tags)

    def _answered(self, condition: Asked) -> Truth:
        """Return whether a condition on an answer holds. Raises Wanted, where it may ask, for one that is not there."""
        if condition.stage > self.facts.stage:
            return NEEDS[condition.stage]
        try:
            need = condition.need(self.facts, self.index.rules[self._at].name)
        except LimitHit as limit:
            return Unknown(f"could not tell: {limit}", later=False)
        if need is None:
            return False
        assumed = dict(self.facts.assumed)
        if self.answers is None or condition.kind in assumed:
            answer = assumed.get(condition.kind, condition.assumed)
        elif need in self.answers:
            answer = self.answers[need]
        elif self.asking:
            raise Wanted(need)
        else:
            return Unknown("not asked", later=False)
        if isinstance(answer, Failed):
            return Unknown(f"could not tell: {answer.reason}", later=False)
        return condition.met(answer)

    def scripted(self, file: str) -> Scripted:
        """Return what a script said, whose rule holds."""
        answer = (self.answers or {}).get(ScriptSays(file).need(self.facts, ""))
        return answer if isinstance(answer, Scripted) else ScriptSays.assumed

    def _holds(self, leaf: LeafIndex) -> Truth:
        if leaf.field is None:
            condition = leaf.condition
            if condition.stage > self.facts.stage:
                return NEEDS[condition.stage]
            try:
                found = condition.holds(self.facts) if isinstance(condition, Direct) else None
            except LimitHit as limit:
                return Unknown(f"could not tell: {limit}", later=False)
            return NEEDS[Stage.HEADERS] if found is None else found
        seen = self.seen(leaf.field)
        if isinstance(seen, Unknown):
            return True if self._begun(leaf, leaf.field) else seen
        if leaf.exists is not None and leaf.exists is not bool(seen):
            return False
        if not leaf.needs and leaf.count is None:
            return bool(seen) if leaf.exists is None else True
        passed = sum(passes(leaf, one) for one in seen)
        if leaf.count is not None:
            return leaf.count.holds(passed)
        return passed > 0 and (not leaf.every or passed == len(seen))

    def _begun(self, leaf: LeafIndex, one: FieldIndex) -> bool:
        """Return whether what is there early is enough, whatever else a later stage may bring, a limit included."""
        begins = one.condition.begins
        if begins is None or begins > self.facts.stage or not leaf.growing:
            return False
        try:
            return any(passes(leaf, seen) for seen in self._occurrences(one, replace(self.facts, stage=begins)))
        except LimitHit:
            return False

    def truth(self, tree: Tree) -> Truth:
        """Return whether a tree holds: Kleene's three values, and of two unknowns the one a later stage resolves."""
        kind, inside = tree
        if kind == LEAF:
            return self.leaf(inside)
        if kind == NOT:
            found = self.truth(inside)
            return found if isinstance(found, Unknown) else not found
        if kind in (ALL, ANY):
            settles = kind == ANY
            unknown: Unknown | None = None
            for part in inside:
                if unknown is not None and id(part) in self.index.asking:
                    continue  # nobody is asked before the rest is known
                found = self.truth(part)
                if found is settles:
                    return settles
                if isinstance(found, Unknown) and (unknown is None or not unknown.later):
                    unknown = found
            return not settles if unknown is None else unknown
        return self.present(inside)

    def rule(self, at: int) -> Truth:
        """Return whether a rule holds. Raises Wanted where `asking` is set."""
        self._at = at
        return self.truth(self.index.trees[at])

    # Values

    def present(self, need: PresentIndex) -> Truth:
        """Return whether every value is there."""
        if need.stage > self.facts.stage:
            return NEEDS[need.stage]
        try:
            for value in need.values:
                if self._read(need, value) is None:
                    return False
            for action in need.clause.actions:
                action.prepare(self.facts)
        except LimitHit as limit:
            return Unknown(f"could not tell: {limit}", later=False)
        return True

    def absent(self, need: PresentIndex) -> list[Value]:
        """Return the values that are not there."""
        return [value for value in need.values if self._read(need, value) is None]

    def value(self, rule: int, value: Value) -> str:
        """Return a value that is there."""
        return self._values[rule, value] or ""

    def _read(self, need: PresentIndex, value: Value) -> str | None:
        key = (need.rule, value)
        if key not in self._values:
            found = self._capture(need, value.argument) if value.word == "match" else read_value(value, self.facts)
            if found and value in need.clause.targets:
                form = address_forms(found, self.facts.delimiter)[0]
                entries = (one.entry(form) for one in need.lists)
                # Never what the message wrote: it compares as the entry does, but may be somebody else's address.
                found = next((entry for entry in entries if entry is not None), None)
            self._values[key] = found or None
        return self._values[key]

    def _capture(self, need: PresentIndex, group: str) -> str | None:
        number, part, pattern = need.captures[group]
        leaf = self.index.leaves[number]
        if leaf.field is None or not isinstance(leaf.condition, Sought):
            return None
        seen = self.seen(leaf.field)
        if isinstance(seen, Unknown):
            return None
        for one in seen:
            if passes(leaf, one):
                for value in leaf.condition.parts[part][1](one[0], self.facts):
                    match = compiled(pattern).search(plain(str(value)))
                    if match is not None:
                        return str(match.group(group) or "")
        return None


def passes(leaf: LeafIndex, one: Seen) -> bool:
    """Return whether an occurrence passes all tests of a condition: for each part one value passes all of that part."""
    parts = one[1]
    return all(any(tests <= hits for hits in parts[part]) for part, tests in leaf.needs)
