"""What milter and agent would make of a message: the same engine, the same answers to what could not be told.

Must never: carry anything out, or decide in another way than the edges do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import datetime

from milterapp.commands.scripts import NONE, Sources
from milterapp.delivery import refusals, replies
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.carry_out import SECOND_VACATION
from milterapp.delivery.programs import Programs
from milterapp.delivery.scripts import RefusedError
from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.message import Mail
from milterapp.milter.reply import FAULT
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.deliveries import Delivery, Keep, SendReply, Vacation
from milterapp.rules.facts import Facts
from milterapp.rules.policy import Policy
from milterapp.rules.problem import Problem
from milterapp.rules.stages import drive
from milterapp.rules.truth import Need, Value
from milterapp.settings import Settings

__all__ = ["as_postfix_has_it", "broken", "personal", "site"]

# What nobody is asked for in a dry run, and what is taken for the answer.
_ASSUMED: tuple[tuple[str, Value], ...] = (("rate", 0), ("duplicate", False), ("command", 0))


def as_postfix_has_it(raw: bytes, *, site: bool) -> bytes:
    """Return the message with the line ends it would arrive with: CRLF at the milter, LF at the agent."""
    lines = raw.replace(b"\r\n", b"\n")
    return lines.replace(b"\n", b"\r\n") if site else lines


def site(
    policy: Policy, raw: bytes, envelope: Envelope, settings: Settings, now: datetime, scripts: Sources = NONE
) -> Decision:
    """Return what the site's rules come to, stage by stage, as the milter asks them.

    now: aware. scripts: those that they name.
    """
    mail = Mail(raw, settings.limits)
    decision = drive(
        policy,
        mail,
        envelope,
        now=now,
        delimiter=settings.delivery.recipient_delimiter,
        assumed=_ASSUMED,
        answer=lambda need, by_then: scripts.answer_in_line(need.key[0], by_then, raw, settings),
    )
    if not decision.could_not_tell:
        return decision
    if (decision.on_error or settings.milter.on_error) == "accept":
        return replace(decision, verdict=Verdict.ACCEPT, edits=(), reply=None)
    return replace(decision, verdict=Verdict.DEFER, edits=(), reply=FAULT)


def personal(
    policy: Policy,
    raw: bytes,
    envelope: Envelope,
    settings: Settings,
    now: datetime,
    scripts: Sources = NONE,
    programs: Programs | None = None,
) -> Decision:
    """Return what one recipient's rules come to, as the agent asks them.

    now: aware. scripts: those that they name. programs: what runs a `command`; None: its answer is assumed.
    """
    mail = Mail(raw, settings.limits)
    delimiter = settings.delivery.recipient_delimiter
    facts = Facts(
        stage=Stage.BODY,
        envelope=envelope,
        recipient=envelope.recipients[0],
        mail=mail,
        now=now,
        delimiter=delimiter,
        assumed=tuple(one for one in _ASSUMED if programs is None or one[0] != "command"),
    )
    agent = AgentSettings.from_site(dataclasses.asdict(settings))
    answers: dict[Need, Value] = {}
    try:
        while isinstance(decision := decide(policy, facts, answers), Need):
            if decision.kind == "command" and programs is not None:
                answers[decision] = programs.command(decision.key, raw, envelope, delimiter)
            else:
                answers[decision] = scripts.answer(decision.key[0], envelope, raw, agent)
    except RefusedError as below:
        return Decision(stage=Stage.BODY, deliveries=(Keep(implicit=True),), could_not_tell=str(below))
    if decision.could_not_tell:
        return _unusable(decision, settings)
    decision = refusals.answered(decision, mail, envelope, settings.delivery.reject, settings.authserv_ids)
    deliveries: list[Delivery] = []
    away = False
    for one in decision.deliveries:
        if isinstance(one, SendReply | Vacation):
            own = one.addresses if isinstance(one, Vacation) else ()
            refused = replies.refusal(mail, envelope, own, delimiter=delimiter)
            if isinstance(one, Vacation):
                refused, away = SECOND_VACATION if away else refused, True
            deliveries.append(replace(one, refused=one.refused or refused))
        else:
            deliveries.append(one)
    return replace(decision, deliveries=tuple(deliveries))


def broken(problems: tuple[Problem, ...], settings: Settings, *, site: bool) -> Decision:
    """Return what becomes of mail while its rules have problems; the site's keep the milter from starting."""
    decision = Decision(problems=problems, could_not_tell="the rules have problems")
    if site:
        return replace(decision, verdict=Verdict.DEFER)
    return _unusable(decision, settings)


def _unusable(decision: Decision, settings: Settings) -> Decision:
    if (decision.on_error or settings.delivery.broken_rules) == "keep":
        return replace(decision, verdict=Verdict.NONE, edits=(), deliveries=(Keep(implicit=True),))
    return replace(decision, verdict=Verdict.DEFER, edits=(), deliveries=())
