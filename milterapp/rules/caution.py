"""Warnings about rules that are valid and yet may not do what was meant.

Must never: keep a file from being used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from milterapp.rules.actions_deliveries import ForwardTo
from milterapp.rules.clauses import Clause, Leaf, NotOf, leaves, sure
from milterapp.rules.conditions import Sought
from milterapp.rules.conditions_auth import Auth
from milterapp.rules.conditions_message import From, Kind
from milterapp.rules.conditions_session import Authenticated, Client, ClientName, Local, Login
from milterapp.rules.decision import Verdict
from milterapp.rules.policy import Rule
from milterapp.rules.problem import Problem

__all__ = ["cautions"]

AGAINST = (Verdict.REJECT, Verdict.DEFER, Verdict.DISCARD, Verdict.HOLD)
# What a sender cannot write by itself: beside one of these a From is not trusted alone.
PROOFS = (Auth, Authenticated, Client, ClientName, Local, Login)
TRUSTING = ("accept", "keep", "stop")


def cautions(rules: Sequence[Rule], *, site: bool) -> Iterator[Problem]:
    """Yield a warning for each edit that breaks a signature, trust in a bare From, and refusal a sender can evade."""
    sends_on = site or any(isinstance(action, ForwardTo) for rule in rules for action in rule.actions)
    last_against = max((at for at, rule in enumerate(rules) if rule.verdict in AGAINST), default=-1)
    for at, rule in enumerate(rules):
        if sends_on:
            yield from _signatures(rule)
        if at < last_against or rule.verdict is Verdict.ACCEPT:
            yield from _trust(rule)
        if rule.verdict in AGAINST:
            yield from _evasion(rule.clause)


def _signatures(rule: Rule) -> Iterator[Problem]:
    if any(
        (isinstance(one, Authenticated | Local) and one.value) or isinstance(one, Login) for one in _sure(rule.clause)
    ):
        return  # mail that begins here is signed after us
    for action, place in zip(rule.actions, rule.places, strict=False):
        if action.breaks_signature():
            text = f"`{action.word}` breaks the DKIM signature of a message that has one; whoever it goes to sees that"
            yield Problem(place, text, warning=True)


def _trust(rule: Rule) -> Iterator[Problem]:
    trusting = next((action.word for action in rule.actions if action.word in TRUSTING), None)
    asked = _sure(rule.clause)
    if trusting is None or any(isinstance(one, PROOFS) for one in asked):
        return
    for leaf in sure(rule.clause):
        condition = leaf.condition
        if isinstance(condition, From) and condition.word == "from" and condition.test.parts:
            text = f"anybody can write that From, and `{trusting}` spares the message what follows; ask `auth` as well"
            yield Problem(leaf.place, text, warning=True)


def _evasion(clause: Clause) -> Iterator[Problem]:
    """Warn of `not: {kind: …}` above which nothing else but the sender's own words decides."""
    for part in getattr(clause, "parts", (clause,)):
        if isinstance(part, NotOf):
            for leaf in leaves(part):
                if isinstance(leaf.condition, Kind):
                    text = (
                        f"a sender evades this with a header: whoever writes the message decides whether it is"
                        f" {' or '.join(leaf.condition.words)}"
                    )
                    yield Problem(leaf.place, text, warning=True)
        elif not isinstance(part, Leaf) and hasattr(part, "parts"):
            yield from _evasion(part)


def _sure(clause: Clause) -> list[object]:
    """Return the conditions that hold wherever the clause does, but for those that hold where there is nothing."""
    found: list[object] = []
    for leaf in sure(clause):
        condition = leaf.condition
        if isinstance(condition, Sought) and condition.test.exists is False:
            continue
        if isinstance(condition, Authenticated | Local) and not condition.value:
            continue
        found.append(condition)
    return found
