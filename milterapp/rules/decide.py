"""Deciding: rules and facts in, a Decision out. Pure: no I/O, no clock, the same answer for the same facts.

Must never: give a verdict that an undecided earlier rule could still change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import overload

from milterapp.mail.envelope import Stage
from milterapp.rules.action import Given, Outcome
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.deliveries import Keep
from milterapp.rules.evaluate import Evaluation
from milterapp.rules.explain import trace_of
from milterapp.rules.facts import Facts
from milterapp.rules.policy import Policy, Rule
from milterapp.rules.truth import Answers, Marks, Need, Unknown, Wanted

__all__ = ["decide", "decide_from"]

# What makes everything that earlier rules could have added (edits, copies) pointless in a site's policy.
FINAL = (Verdict.REJECT, Verdict.DEFER, Verdict.DISCARD)


@overload
def decide(policy: Policy, facts: Facts) -> Decision: ...


@overload
def decide(policy: Policy, facts: Facts, answers: Answers) -> Decision | Need: ...


def decide(policy: Policy, facts: Facts, answers: Answers | None = None) -> Decision | Need:
    """Decide for one message, or one recipient of it, with what is known by now.

    Rules run in their order. A rule that is not yet known, or could not be told, leaves open what follows it, but for a
    refusal that it could not change. `settled` is False where a later stage may still say something; `could_not_tell`
    is set where nothing will. A personal policy is decided at Stage.BODY; its decision has the implicit keep.
    answers: what the edge has found out by now. A fact that is not among them is a Need, returned: answer it, and
    decide again with it. Without answers nobody is asked, and what the facts assume is taken.
    """
    try:
        return decide_from(policy, Evaluation(policy.index, facts, answers=answers))
    except Wanted as wanted:
        return wanted.need


def decide_from(policy: Policy, evaluation: Evaluation) -> Decision:
    """Decide with an evaluation that may have readings of an earlier stage. Raises Wanted for what it must ask."""
    evaluation.asking = evaluation.answers is not None
    try:
        return _decide(policy, evaluation)
    finally:
        evaluation.asking = False  # whoever reads the trace asks nobody


def _decide(policy: Policy, evaluation: Evaluation) -> Decision:
    facts = evaluation.facts
    outcome = Outcome(score=facts.score, tags=facts.tags)
    matched: list[int] = []
    open_, open_ending = _Open(), _Open()
    skip = [False]
    last: int | None = None
    watching = False
    unmarked: Unknown | None = None
    for at in evaluation.candidates(skip):
        rule = policy.rules[at]
        if open_ and not rule.counts:
            continue
        if at in evaluation.index.marked:
            evaluation.marked[at] = Marks(outcome.score, outcome.tags, unmarked)
        truth = evaluation.rule(at)
        if truth is False:
            continue
        if isinstance(truth, Unknown):
            if rule.observe:
                watching = watching or truth.later
                continue
            open_.add(at, truth)
            skip[0] = True
            if rule.marks:
                unmarked = truth if unmarked is None or not unmarked.later else unmarked
            if rule.ends:
                open_ending.add(at, truth)
                last = at
                break
            continue
        matched.append(at)
        if rule.observe:
            continue
        _apply(rule, at, evaluation, outcome)
        if outcome.ended:
            last = at
            break
    evaluation.asking = False  # what is not reached, nobody is asked about
    if watching and not open_ and outcome.verdict not in FINAL:
        # A rule that only observes changes nothing, but its line in the log needs what it reads.
        return Decision(settled=False, rules=trace_of(evaluation, last), matched=_names(policy, matched))
    return _decision(policy, evaluation, outcome, matched, (open_, open_ending), last)


def _names(policy: Policy, matched: list[int]) -> tuple[str, ...]:
    return tuple(policy.rules[at].name for at in matched)


class _Open:
    """The rules left open so far: whether there are any, whether a later stage will tell, and why not."""

    def __init__(self) -> None:
        self.first: tuple[int, Unknown] | None = None
        self.later = False

    def add(self, at: int, why: Unknown) -> None:
        """Note one."""
        self.first = self.first or (at, why)
        self.later = self.later or why.later

    def __bool__(self) -> bool:
        return self.first is not None


def _apply(rule: Rule, at: int, evaluation: Evaluation, outcome: Outcome) -> None:
    given = Given(rule.name, lambda value: evaluation.value(at, value), evaluation.facts, evaluation.scripted)
    outcome.flags = ()
    for action in rule.actions:
        action.apply(outcome, given)


def _decision(
    policy: Policy,
    evaluation: Evaluation,
    outcome: Outcome,
    matched: list[int],
    left_open: tuple[_Open, _Open],
    last: int | None,
) -> Decision:
    open_, open_ending = left_open
    trace = trace_of(evaluation, last)
    names = _names(policy, matched)
    if open_ and not (outcome.ended and outcome.verdict in FINAL and policy.site and not open_ending):
        at, why = open_ending.first or open_.first or (0, Unknown(""))
        later = open_ending.later if open_ending else open_.later or _later(policy, evaluation)
        if later:
            return Decision(settled=False, rules=trace, matched=names)
        return Decision(
            rules=trace,
            matched=names,
            could_not_tell=f"rule {policy.rules[at].name!r}: {why.reason}",
            on_error=policy.rules[at].on_error,
        )
    deliveries = tuple(outcome.deliveries)
    if not policy.site and outcome.verdict is Verdict.NONE and not any(_whole(one) for one in deliveries):
        deliveries = (*deliveries, Keep(implicit=True))
    # What a person's rules refuse may have to be kept all the same (delivery.refusals), and then as they edit it.
    kept_perhaps = outcome.verdict is Verdict.REJECT and not policy.site
    dropped = outcome.verdict in FINAL and not deliveries and not kept_perhaps
    return Decision(
        verdict=outcome.verdict,
        reply=outcome.reply,
        stage=None if outcome.verdict is Verdict.NONE else evaluation.facts.stage,
        rules=trace,
        edits=() if dropped else tuple(outcome.edits),
        filters=() if dropped else tuple(outcome.filters),
        envelope=() if dropped else tuple(outcome.envelope),
        score=round(outcome.score, 6),
        tags=tuple(sorted(outcome.tags)),
        log=tuple(outcome.log),
        message=outcome.message,
        scripts=() if outcome.verdict is Verdict.DEFER else tuple(outcome.scripts),
        deliveries=deliveries,
        hold_reason=outcome.hold_reason,
        matched=names,
    )


def _whole(delivery: object) -> bool:
    """Return whether a delivery makes the implicit keep needless."""
    return isinstance(delivery, Keep) or getattr(delivery, "copy", True) is False


def _later(policy: Policy, evaluation: Evaluation) -> bool:
    """Return whether a rule that ends the rules may still be told at a later stage."""
    if evaluation.facts.stage == Stage.BODY:
        return False
    found: Iterator[int] = (at for at, rule in enumerate(policy.rules) if rule.ends and not rule.observe)
    return any(isinstance(truth := evaluation.rule(at), Unknown) and truth.later for at in found)
