"""A script's plan as rules know it: verdict, edits, deliveries; and its changes as its memory takes them.

Must never: believe a plan; what comes here was decoded within limits and checked.
"""

from __future__ import annotations

import dataclasses
import json

from milterapp.mail.envelope import Envelope
from milterapp.rules import deliveries
from milterapp.rules.decision import Reply, Scripted, ScriptRun, Verdict
from milterapp.rules.deliveries import Delivery
from milterapp.script.actions import (
    Action,
    Answered,
    Ask,
    Defer,
    Discard,
    File,
    Forward,
    Header,
    Keep,
    Output,
    Reject,
    Send,
    Store,
)
from milterapp.script.actions import Reply as Answer
from milterapp.script.memory import Memory, Question
from milterapp.script.plan import Plan, PlanError, PlanLimits, decode, encode
from milterapp.script.routes import START
from milterapp.state.conversations import Change, Kept

__all__ = ["MOST_TEXT", "change_of", "check_kept", "question_of", "said"]

MOST_TEXT = 40 * 1024  # bytes of a letter: what one datagram holds beside the other fields
_CODES = {"4": 450, "5": 550}
_SHOWN = 200  # characters of a stored value, where it is shown
_REMEMBERED = (Store, Output, Ask, Answered)
_DAY = 86400
_LONGEST_KEPT = 1 << 20  # bytes of a message that is kept until a question is answered


def said(plan: Plan, script: str, sender: str, memory: Memory) -> Scripted:
    """Return what a script said. script: as the rule names it; sender: whose state it is. Raises PlanError."""
    about = memory.question(plan.about) if plan.about else None
    if plan.about and about is None:
        raise PlanError("about a message that is not kept any more")
    verdict, reply = Verdict.NONE, None
    wanted: list[Delivery] = []
    edits = []
    for one in plan.actions:
        if isinstance(one, Reject | Defer):
            verdict = Verdict.REJECT if isinstance(one, Reject) else Verdict.DEFER
            reply = Reply(_CODES[one.status[0]], one.status, one.text)
        elif isinstance(one, Discard):
            verdict = Verdict.DISCARD
        elif isinstance(one, Header):
            edits.append(one.edit)
        else:
            if isinstance(one, Answer | Send) and len(one.text.encode("utf-8", "replace")) > MOST_TEXT:
                raise PlanError(f"{one.word}: a text of more than {MOST_TEXT} bytes")
            wanted += _deliveries(one, script)
    return Scripted(
        plan.routed,
        verdict,
        reply,
        tuple(edits),
        tuple(wanted),
        _run(plan, script, sender if about is None else about.sender),
        "" if about is None else about.raw.decode("latin-1"),
    )


def _deliveries(one: Action, script: str) -> list[Delivery]:
    if isinstance(one, Keep):
        return [deliveries.Keep()]
    if isinstance(one, File):
        return [deliveries.File(one.folder, one.copy)]
    if isinstance(one, Forward):
        return [deliveries.Forward(one.to, one.copy, script, one.sender)]
    if isinstance(one, Answer):
        return [deliveries.SendReply(one.text, one.subject, script=script, sender=one.sender)]
    if isinstance(one, Send):
        return [deliveries.Send(to, one.subject, one.text, script, one.sender) for to in one.to]
    return []


def _run(plan: Plan, script: str, sender: str) -> ScriptRun | None:
    """Return what a plan changes beside mail, None for nothing. Raises PlanError."""
    kept = tuple(one for one in plan.actions if isinstance(one, _REMEMBERED))
    outputs = [one.path for one in kept if isinstance(one, Output)]
    for path in outputs:
        if any(other.startswith(path + "/") for other in outputs):
            raise PlanError(f"output: {path!r} as a file and as a folder")
    if not kept and not plan.state:
        return None
    stores = tuple((one.key, (one.value or "")[:_SHOWN]) for one in kept if isinstance(one, Store))
    memory = dataclasses.replace(plan, actions=kept, failed=None)
    return ScriptRun(script, sender, plan.state, stores, tuple(outputs), encode(memory).decode("ascii"))


def check_kept(plan: Plan, size: int) -> None:
    """Raise PlanError where a question is asked about a message of so many bytes that is too long to be kept."""
    if size > _LONGEST_KEPT and any(isinstance(one, Ask) for one in plan.actions):
        raise PlanError(f"ask: the message is longer than {_LONGEST_KEPT} bytes")


def change_of(run: ScriptRun, limits: PlanLimits, envelope: Envelope, raw: bytes, now: int) -> Change:
    """Return a run's changes as its memory takes them. raw: the message that a question would be about.

    now: seconds since 1970. Raises PlanError where it holds none.
    """
    plan = decode(run.plan.encode("ascii", "replace"), limits)
    if not isinstance(plan, Plan):
        raise PlanError("a record without a plan")
    return Change(
        script=run.script,
        sender=run.sender,
        per=plan.per,
        state=None if plan.state == START else plan.state,
        stores=tuple((one.key, one.marked, one.value) for one in plan.actions if isinstance(one, Store)),
        outputs=tuple((one.path, one.text) for one in plan.actions if isinstance(one, Output)),
        questions=tuple(_kept(one, envelope, raw, now) for one in plan.actions if isinstance(one, Ask)),
        answered=tuple(one.digest for one in plan.actions if isinstance(one, Answered)),
    )


def _kept(ask: Ask, envelope: Envelope, raw: bytes, now: int) -> Kept:
    answer = json.dumps([ask.then, *ask.captures], ensure_ascii=True)
    texts = (envelope.sender, envelope.original_recipient)
    sender, original = (one.encode("utf-8", "backslashreplace").decode() for one in texts)
    return Kept(ask.digest, now + int(ask.days) * _DAY, answer, sender, original, raw)


def question_of(kept: Kept) -> Question:
    """Return a kept message as a script asks for it."""
    then, *captures = json.loads(kept.answer)
    return Question(then, tuple(captures), kept.sender, kept.original, kept.message)
