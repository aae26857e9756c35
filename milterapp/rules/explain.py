"""Explaining: for each rule the condition that settled it, the value it saw and where it stands.

Must never: show a value unbounded or unescaped, or cost anything before somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from milterapp.mail.limits import LimitHit
from milterapp.rules.clauses import AllOf, AnyOf, Clause, Leaf, NotOf, Present, ordered
from milterapp.rules.conditions import Direct
from milterapp.rules.conditions_marks import Asked, Marked, ScriptSays
from milterapp.rules.decision import Decision, Explanation
from milterapp.rules.evaluate import Evaluation, Truth, Unknown, passes
from milterapp.rules.expectation import describe
from milterapp.rules.index import LEAF, Tree
from milterapp.rules.problem import Place

__all__ = ["Trace", "explain", "shown", "trace_of"]

MAX_SHOWN = 80
MAX_VALUES = 3


class Trace(Sequence[Explanation]):
    """A line for each rule, made when it is first read. make: gives them; length: how many rules there are."""

    def __init__(self, make: Callable[[], tuple[Explanation, ...]], length: int) -> None:
        self._make = make
        self._length = length
        self._lines: tuple[Explanation, ...] | None = None

    def _made(self) -> tuple[Explanation, ...]:
        if self._lines is None:
            self._lines = self._make()
        return self._lines

    @overload
    def __getitem__(self, at: int) -> Explanation: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Explanation]: ...

    def __getitem__(self, at: int | slice) -> Explanation | Sequence[Explanation]:
        return self._made()[at]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self._made())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._made())

    def __repr__(self) -> str:
        return f"Trace{self._made()!r}"


def trace_of(evaluation: Evaluation, last: int | None) -> Trace:
    """Return the trace of an evaluation. last: the rule that ended the rules, None where none did."""
    rules = evaluation.index.rules
    return Trace(lambda: tuple(_line(evaluation, at, last) for at in range(len(rules))), len(rules))


def _line(evaluation: Evaluation, at: int, last: int | None) -> Explanation:
    rule = evaluation.index.rules[at]
    if last is not None and at > last:
        ended = evaluation.index.rules[last].name
        return Explanation(rule.name, None, f"not reached: {ended!r} came first", rule.place, rule.observe)
    truth = evaluation.rule(at)
    reason, place = _reason(evaluation, rule.clause, evaluation.index.trees[at], truth)
    matched = None if isinstance(truth, Unknown) else truth
    return Explanation(rule.name, matched, reason or "no condition", place or rule.place, rule.observe)


def shown(value: str) -> str:
    """Return a value as a trace shows it: quoted, escaped, bounded."""
    return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}…"


def _reason(evaluation: Evaluation, clause: Clause, tree: Tree, truth: Truth) -> tuple[str, Place | None]:
    """Return why a clause is what it is, and where the condition that settled it stands."""
    if isinstance(clause, Leaf):
        why = truth.reason if isinstance(truth, Unknown) else _saw(evaluation, clause, tree, matched=truth)
        return f"{clause.condition.say()}: {why}", clause.place
    if isinstance(clause, Present):
        if isinstance(truth, Unknown):
            return f"the values of its actions: {truth.reason}", clause.place
        absent = [] if truth else evaluation.absent(tree[1])
        return (f"no value for {', '.join(map(str, absent))}" if absent else ""), clause.place
    if isinstance(clause, NotOf):
        inner: Truth = truth if isinstance(truth, Unknown) else not truth
        reason, place = _reason(evaluation, clause.part, tree[1], inner)
        return f"not ({reason})", place
    wanted = isinstance(clause, AnyOf)
    parts = [(part, below, evaluation.truth(below)) for part, below in zip(ordered(clause.parts), tree[1], strict=True)]
    if isinstance(truth, Unknown):
        settled = [one for one in parts if isinstance(one[2], Unknown)][:1]
    elif truth is wanted:
        settled = [one for one in parts if one[2] is wanted][:1]
    else:
        settled = parts[:MAX_VALUES] if isinstance(clause, AllOf | AnyOf) else parts
    found = [_reason(evaluation, *one) for one in settled]
    said = "; ".join(reason for reason, _ in found if reason)
    return said, found[0][1] if found else None


def _saw(evaluation: Evaluation, leaf: Leaf, tree: Tree, *, matched: bool) -> str:
    if isinstance(leaf.condition, Marked):
        return leaf.condition.shows(evaluation.marks)
    if isinstance(leaf.condition, Asked):
        assumed = dict(evaluation.facts.assumed)
        if isinstance(leaf.condition, ScriptSays):
            none = "it was not run" if evaluation.answers is None else "no route of it answers there"
            return "it was run" if matched else none
        if evaluation.answers is None or leaf.condition.kind in assumed:
            return f"nobody was asked, assumed {assumed.get(leaf.condition.kind, leaf.condition.assumed)}"
        return "as answered"
    if isinstance(leaf.condition, Direct):
        try:
            return leaf.condition.saw(evaluation.facts)
        except LimitHit as limit:
            return str(limit)
    assert tree[0] == LEAF  # noqa: S101 - trees mirror clauses
    entry = evaluation.index.leaves[tree[1]]
    assert entry.field is not None  # noqa: S101 - a sought condition has one
    seen = evaluation.seen(entry.field)
    if isinstance(seen, Unknown):
        return f"saw it by {evaluation.facts.stage.word}" if matched else seen.reason
    if not seen:
        return "there is none"
    if entry.needs:
        seen = tuple(one for one in seen if passes(entry, one) is matched) or seen
    values = [shown(leaf.condition.show(occurrence)) for occurrence, _ in seen[:MAX_VALUES]]
    more = f" and {len(seen) - MAX_VALUES} more" if len(seen) > MAX_VALUES else ""
    return ("saw " if matched else "only ") + ", ".join(values) + more


MARKS = {True: "matched", False: "did not match", None: "undecided"}


def explain(decision: Decision) -> str:
    """Return a decision for people to read: each rule and why, then verdict, edits and deliveries."""
    lines = []
    for one in decision.rules:
        note = " (observes only)" if one.observe else ""
        lines += [f"{one.name}: {MARKS[one.matched]}{note}", f"    {one.reason} [{one.place}]"]
    if lines:
        lines.append("")
    if decision.could_not_tell:
        lines.append(f"could not tell: {decision.could_not_tell}")
    verdict = f"verdict: {decision.verdict.value}"
    if decision.reply is not None:
        verdict += f" ({decision.reply})"
    if decision.hold_reason:
        verdict += f" ({decision.hold_reason})"
    if decision.stage is not None:
        verdict += f" at {decision.stage.word}"
    lines.append(verdict if decision.settled else "verdict: none so far")
    for recipient in decision.recipients:
        answer = f" ({recipient.reply})" if recipient.reply else ""
        at = f" at {recipient.stage.word}" if recipient.stage is not None else ""
        lines.append(f"recipient {recipient.address}: {recipient.verdict.value}{answer}{at}")
    lines += [f"edit: {describe(edit.to_json())}" for edit in decision.changes]
    for delivery in decision.deliveries:
        told = delivery.to_json()
        words = str(told.pop("action"))
        words += "".join(f" {value}" for key, value in told.items() if key in ("folder", "to", "program") and value)
        words += "".join(f" {value}" for value in told.get("arguments", ()))
        words += f" ({', '.join(told['flags'])})" if told.get("flags") else ""
        words += f" (once in {told['days']} days)" if "days" in told else ""
        words += " (copy)" if told.get("copy") else ""
        words += " (no rule asked for it)" if told.get("implicit") else ""
        words += f" {shown(told['text'])}" if "text" in told else ""
        words += f" (refused: {told['refused']})" if told.get("refused") else ""
        lines.append(f"delivery: {words}")
    lines += ["message: another than this, which a script has kept"] if decision.message else []
    for run in decision.scripts:
        lines += [f"script {run.script}: next state {run.state}"] if run.state else []
        lines += [f"script {run.script}: store {shown(key)} {value or 'forgotten'}" for key, value in run.stores]
        lines += [f"script {run.script}: output {name}" for name in run.outputs]
    lines += [f"score: {decision.score:g}"] if decision.score else []
    lines += [f"tags: {', '.join(decision.tags)}"] if decision.tags else []
    lines += [f"log: {line}" for line in decision.log]
    return "\n".join(lines) + "\n"
