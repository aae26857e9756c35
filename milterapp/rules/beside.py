"""The tests beside the rules: each message through the rules, and what came of it against what was expected.

Must never: pass a test whose message was not decided for.
"""

from __future__ import annotations

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.limits import DEFAULT, Limits
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision
from milterapp.rules.facts import Facts
from milterapp.rules.policy import Case, Policy
from milterapp.rules.problem import Problem
from milterapp.rules.stages import drive

__all__ = ["decide_case", "run_tests"]


def run_tests(policy: Policy, *, delimiter: str = "+", limits: Limits = DEFAULT) -> tuple[Problem, ...]:
    """Run every test of a policy; return a problem for each that fails, at the test's place."""
    problems = []
    for place, case in policy.tests:
        decision = decide_case(policy, case, delimiter=delimiter, limits=limits)
        for expected in case.expect:
            unmet = expected.unmet(decision)
            if unmet:
                problems.append(Problem(place, f"the test {case.name!r} expected {expected}, but {unmet}"))
    return tuple(problems)


def decide_case(policy: Policy, case: Case, *, delimiter: str = "+", limits: Limits = DEFAULT) -> Decision:
    """Return what the rules make of a test's message, as the milter or the agent would decide."""
    mail = Mail(case.message.encode(), limits)
    envelope = Envelope(
        client="" if case.local else case.client,
        client_name=case.client_name,
        local=case.local,
        helo="" if case.local else case.helo,
        sender="" if case.sender == "<>" else case.sender,
        login=case.login,
        tls=case.tls,
        recipients=case.recipient,
        original_recipient=case.original,
    )
    assumed = (("rate", case.rate), ("duplicate", case.duplicate), ("command", case.command))
    if policy.site:
        return drive(policy, mail, envelope, now=case.now, delimiter=delimiter, assumed=assumed)
    recipient = case.recipient[0] if case.recipient else ""
    tags = frozenset(one.lower() for one in case.tag)
    facts = Facts(Stage.BODY, envelope, recipient, mail, case.now, delimiter, case.score, tags, assumed)
    return decide(policy, facts)
