"""Deciding in stages against deciding at once: an early verdict is the one that everything together comes to.

The reference below is as plain as can be: every rule in its order, every condition two-valued, nothing indexed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.limits import DEFAULT
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.policy import Policy
from milterapp.rules.truth import Need
from tests.rules.helpers import facts_of, policy_of


@dataclass(frozen=True)
class World:
    """What a message and its session are like."""

    client: bool
    helo: bool
    sender: bool
    subject: bool
    tag: bool
    broken: bool
    body: bool
    limited: bool = False

    @property
    def raw(self) -> bytes:
        """The message."""
        lines = [b"From: a@example.org", b"Subject: %s" % (b"offer" if self.subject else b"hello")]
        lines += [b"X-Tag: one"] if self.tag else []
        lines += [b"Subject: two"] if self.broken else []
        return b"\n".join([*lines, b"", b"a limited time" if self.body else b"nothing to say", b""])

    @property
    def envelope(self) -> Envelope:
        """The session."""
        return Envelope(
            client="192.0.2.7" if self.client else "198.51.100.1",
            helo="here.example" if self.helo else "there.example",
            sender="bob@example.org" if self.sender else "",
            recipients=("alice@example.com",),
        )


# A condition, and what it is in a world, with what the rules above came to.
Left = tuple[float, frozenset[str]]
CONDITIONS: dict[str, Callable[[World, Left], bool]] = {
    "client: 192.0.2.7": lambda world, _: world.client,
    "helo: here.example": lambda world, _: world.helo,
    "sender: {exists: yes}": lambda world, _: world.sender,
    "subject: {contains: offer}": lambda world, _: world.subject,
    "header: {X-Tag: one}": lambda world, _: world.tag,
    "malformed: yes": lambda world, _: world.broken,
    "body: {contains: limited}": lambda world, _: world.body,
    "score: {over: 1}": lambda _, left: left[0] > 1,
    "tag: odd": lambda _, left: "odd" in left[1],
    "rate: {by: client, over: 0, within: 1 h}": lambda _world, _left: False,
}
ACTIONS = ["accept", "reject", "defer", "discard", "hold", "stop", "{score: 1}", "{score: -1}", "{tag: odd}"]
ACTIONS += ["{add_header: {X-A: b}}", "{add_header: {X-B: '${sender}'}}", "{banner: x}"]

Tree = Any
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(sorted(CONDITIONS)),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=4,
)
RULES = st.lists(st.tuples(st.none() | TREES, st.sampled_from(ACTIONS), st.booleans()), min_size=1, max_size=6)
WORLDS = st.builds(World, *[st.booleans()] * 7)


def written(tree: Tree) -> str:
    """Return a condition as a rule file has it."""
    if isinstance(tree, str):
        return "{" + tree + "}"
    joint, inside = tree
    if joint == "not":
        return f"{{not: {written(inside)}}}"
    return f"{{{joint}: [{', '.join(map(written, [*inside, inside[0]]))}]}}"


def true(tree: Tree, world: World, left: Left) -> bool:
    """Return what a condition is, the plain way."""
    if isinstance(tree, str):
        return CONDITIONS[tree](world, left)
    joint, inside = tree
    if joint == "not":
        return not true(inside, world, left)
    return (all if joint == "all" else any)(true(one, world, left) for one in inside)


def plainly(rules: list[tuple[Tree, str, bool]], world: World) -> tuple[str, int, Left, tuple[str, ...]]:
    """Return verdict, number of edits, marks and the rules that hold, one rule after the other."""
    edits, score, matched = 0, 0.0, []
    tags: frozenset[str] = frozenset()
    for at, (tree, action, observe) in enumerate(rules):
        if tree is not None and not true(tree, world, (score, tags)):
            continue
        if "sender" in action and not world.sender:
            continue
        matched.append(f"r{at}")
        if observe:
            continue
        word = action.strip("{").partition(":")[0]
        if word == "score":
            score += float(action.strip("{}").partition(": ")[2])
        elif word == "tag":
            tags |= {"odd"}
        elif word in ("add_header", "banner"):
            edits += 1
        elif word == "stop":
            return "none", edits, (score, tags), tuple(matched)
        else:
            dropped = word in ("reject", "defer", "discard")
            return word, 0 if dropped else edits, (score, tags), tuple(matched)
    return "none", edits, (score, tags), tuple(matched)


def policy_for(rules: list[tuple[Tree, str, bool]]) -> Policy:
    """Return the rules as a policy."""
    text = "rules:\n"
    for at, (tree, action, observe) in enumerate(rules):
        text += f"- name: r{at}\n  observe: {'yes' if observe else 'no'}\n"
        text += "" if tree is None else f"  if: {written(tree)}\n"
        text += f"  then: {action}\n"
    return policy_of(text, site=True)


@settings(max_examples=300, deadline=None)
@given(RULES, WORLDS)
def test_everything_at_once_is_the_plain_answer(rules: list[tuple[Tree, str, bool]], world: World) -> None:
    """With all facts known a decision is what going through the rules one by one gives."""
    found = decide(policy_for(rules), facts_of(world.raw, envelope=world.envelope))
    assert found.settled
    assert not found.could_not_tell
    got = found.verdict.value, len(found.edits), (found.score, frozenset(found.tags)), found.matched
    assert got == plainly(rules, world)
    trace = tuple(one.name for one in found.rules if one.matched)
    assert trace == found.matched


@settings(max_examples=300, deadline=None)
@given(RULES, WORLDS, st.booleans())
def test_an_early_verdict_is_the_last_one(rules: list[tuple[Tree, str, bool]], world: World, limited: bool) -> None:
    """What is settled at a stage is what all later stages say, a limit that is hit or not, and it stays settled."""
    policy = policy_for(rules)
    limits = replace(DEFAULT, decoded_bytes=3) if limited else DEFAULT
    found = [
        decide(policy, facts_of(world.raw, envelope=world.envelope, stage=stage, limits=limits)) for stage in Stage
    ]
    last = found[-1]
    assert last.settled
    for one, later in pairwise(found):
        if one.settled:
            assert later.settled
            assert meaning(one) == meaning(last)


def meaning(decision: Decision) -> tuple[Verdict, bool, tuple[Any, ...]]:
    """Return what of a decision has an effect; of a refusal only that."""
    return decision.verdict, bool(decision.could_not_tell), decision.edits


@settings(max_examples=150, deadline=None)
@given(RULES, WORLDS, st.integers(0, 2))
def test_answers_come_to_one_decision(rules: list[tuple[Tree, str, bool]], world: World, rate: int) -> None:
    """Whatever is asked for on the way, each fact is asked for once, and the trace asks for nothing."""
    policy = policy_for(rules)
    facts = facts_of(world.raw, envelope=world.envelope)
    answers: dict[Need, Any] = {}
    while isinstance(found := decide(policy, facts, answers), Need):
        assert found not in answers
        answers[found] = rate
    assert len(found.rules) == len(rules)
    assumed = decide(policy, replace(facts, assumed=(("rate", rate),)))
    assert (assumed.verdict, assumed.edits, assumed.matched) == (found.verdict, found.edits, found.matched)
