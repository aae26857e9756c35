"""What the milter asks the mail server for: the steps, replies and macros that the loaded rules need, and no more.

Must never: leave out a step that a rule reads, or a reply where a rule could answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from milterapp.mail.envelope import Stage
from milterapp.rules.policy import Policy

__all__ = ["MACROS", "Plan", "Step", "plan_for"]

Step = str  # connect, helo, mail, rcpt, data, header, eoh, body; as protocol.STEPS has them

# By step, the macros that are asked for. `i` is the queue id: at connect, of Postfix only cleanup(8) knows it, and then
# the message comes from sendmail(1) or the queue, where no recipient can be refused. Sendmail always knows it; `v`, the
# mail server's version, tells the two apart.
MACROS: dict[Step, str] = {
    "connect": "i v",
    "helo": "{tls_version}",
    "mail": "{auth_authen} {tls_version}",
    "rcpt": "i",
    "data": "i",
    "eoh": "i",
    "eom": "i",
}

# By step, the stages whose rules may have an answer there. What is known at connect is said at HELO: at connect Postfix
# would greet with "554 not accepting connections" in place of the rule's reply. A client need not say HELO.
_ANSWERS: dict[Step, frozenset[Stage]] = {
    "helo": frozenset({Stage.CONNECT, Stage.HELO}),
    "mail": frozenset({Stage.CONNECT, Stage.HELO, Stage.MAIL}),
    "rcpt": frozenset({Stage.RCPT}),
    # The first step that knows the queue id, and the last chance not to be sent the message.
    "data": frozenset({Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT}),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """steps: what is wanted; answers: the steps of these at which rules may have an answer, the others go unanswered.

    body: some rule reads the body. observers: by the name of each rule that only observes, what it would do.
    """

    steps: frozenset[Step]
    answers: frozenset[Step]
    body: bool
    observers: Mapping[str, str] = field(default_factory=dict)


def plan_for(policy: Policy) -> Plan:
    """Return what a policy needs.

    Client, HELO, sender and recipients are always wanted, for the log, and the header, for what it may not hold.
    """
    known = policy.stages | {rule.stage for rule in policy.rules}  # a rule without conditions is known at connect
    answers = {step for step, stages in _ANSWERS.items() if stages & known}
    answers.add("eoh")
    steps = {"connect", "helo", "mail", "rcpt", "header", *answers}
    if policy.reads_body:
        steps.add("body")
        answers.add("body")
    observers = {
        rule.name: ", ".join(dict.fromkeys(action.word for action in rule.actions))
        for rule in policy.rules
        if rule.observe
    }
    return Plan(frozenset(steps), frozenset(answers), policy.reads_body, observers)
