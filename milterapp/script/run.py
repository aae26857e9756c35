"""Running a script for one message: load it, find what answers, call it, and give its plan or what went wrong.

Must never: carry anything out, or give anything of a function that raised: then it has asked for nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from milterapp.mail import message
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import LimitHit, Limits
from milterapp.script import asking
from milterapp.script import load as loading
from milterapp.script.actions import Action, Defer, Discard, File, Forward, Keep, Reject
from milterapp.script.context import Collected, ScriptError, running
from milterapp.script.load import Script
from milterapp.script.mail import Mail
from milterapp.script.memory import Asked, Memory
from milterapp.script.plan import DEFAULT, Failure, Plan, PlanError, PlanLimits, check, encode
from milterapp.script.routes import ERROR, START, Application, is_state
from milterapp.script.untrusted import WAYS_OUT

__all__ = ["Job", "run", "serve", "to_bytes", "to_parts", "work"]

_HALF = 7500  # characters of each of two traces


@dataclass(frozen=True, slots=True)
class Job:
    """One message for one script. source: the script as it was read; file: what its author knows it by.

    checked: this very source has been loaded before without problems, so they are not looked for again. states: all
    those of the sender, by captures, so that none is asked for; None where they are not given. now: seconds since
    1970, 0 for the time when it runs; folder: where its templates are, "" for the working directory. site: it is the
    site's, run in-line.
    """

    source: bytes
    file: str
    raw: bytes
    envelope: Envelope
    limits: Limits = field(default_factory=Limits)
    plan_limits: PlanLimits = DEFAULT
    checked: bool = False
    states: Mapping[tuple[str, ...], str] | None = None
    now: float = 0.0
    folder: str = ""
    site: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """A function to call. state: the one it is, "" for none; per: what the state is kept by."""

    function: Callable[..., Any]
    captures: dict[str, str]
    state: str = ""
    per: tuple[str, ...] = ()


def to_bytes(job: Job) -> bytes:
    """Return a job as a script process that stays is given it."""
    return b"".join(to_parts(job))


def to_parts(job: Job) -> tuple[bytes, ...]:
    """Return the parts of what to_bytes makes of a job: one line of JSON, the script, the message."""
    values = [
        [getattr(one, name) for name in type(one).__slots__] for one in (job.envelope, job.limits, job.plan_limits)
    ]  # fmt: skip  # by their order: both ends are this very code
    states = None if job.states is None else [[list(per), state] for per, state in job.states.items()]
    said = [job.file, len(job.source), job.checked, job.site, states, job.now, *values]
    return json.dumps(said, ensure_ascii=True).encode("ascii") + b"\n", job.source, job.raw


def serve(data: bytes, ask: Callable[[bytes], bytes]) -> bytes:
    """Do what `work` does, with a job that to_bytes wrote. The script is loaded anew for each."""
    line, _, rest = data.partition(b"\n")
    file, length, checked, site, states, now, envelope, limits, plan_limits = json.loads(line)
    envelope = [tuple(one) if isinstance(one, list) else one for one in envelope]
    job = Job(
        rest[:length], file, rest[length:], Envelope(*envelope), Limits(*limits), PlanLimits(*plan_limits), checked,
        None if states is None else {tuple(per): state for per, state in states}, now, site=site,
    )  # fmt: skip
    return encode(run(job, Asked(ask, job.states)))


def work(job: Job) -> Callable[[Callable[[bytes], bytes]], bytes]:
    """Return what a script process does with a job: its result as bytes, its memory asked for from the parent."""
    return lambda ask: encode(run(job, Asked(ask, job.states)))


def run(job: Job, memory: Memory) -> Plan | Failure:
    """Return the plan of a script for a message, or how it failed. The script runs here, in this process."""
    script, problems = loading.load(job.source, job.file, checked=job.checked, site=job.site)
    if script is None:
        trace = "".join(f"{one}\n" for one in problems)
        return Failure("Problem", str(problems[0]), trace, str(problems[0].place))
    try:
        return _run(script, job, memory)
    except LimitHit as limit:
        return Failure("LimitHit", str(limit))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a script may raise anything, and its author is told
        failure = _failure_of(error, job)
    return _in_error(script, job, memory, failure) or failure


def _failure_of(error: BaseException, job: Job) -> Failure:
    trace = loading.trace_of(error, job.file, WAYS_OUT)
    place = f"{job.file}:{loading.line_of(error, job.file)}"
    return Failure(type(error).__name__, " ".join(str(error).split()), trace, place)


def _in_error(script: Script, job: Job, memory: Memory, failure: Failure) -> Plan | Failure | None:
    """Return what ERROR makes of a message with which the function of another state failed; None where none answers."""
    if script.application is None or asking.token_of(_address(job.envelope)) is not None:
        return None
    try:
        failed = _find(script.application, job.envelope, memory)
    except ScriptError:
        failed = None
    found = [one for one in script.application.candidates(_address(job.envelope)) if one[0].__name__ == ERROR]
    if failed is None or failed.state in ("", ERROR) or not found:
        return None
    function, captures, per = found[0]
    try:
        plan = _called(_Call(function, captures, ERROR, per), job, _collected(script, job, memory))
    except LimitHit as limit:
        return Failure("LimitHit", str(limit))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        again = _failure_of(error, job)
        trace = f"{failure.trace[:_HALF]}\nAnd {ERROR}, which was to answer then:\n\n{again.trace[:_HALF]}"
        return replace(failure, trace=trace, place=f"{failure.place}, and {again.kind} at {again.place}")
    stays = any(isinstance(one, Defer) for one in plan.actions)  # the message comes again, and meets the same function
    return replace(plan, state=plan.state or ("" if stays else ERROR), failed=failure)


def _collected(script: Script, job: Job, memory: Memory) -> Collected:
    now = job.now or time.time()
    return Collected(memory, job.plan_limits, now=now, folder=job.folder, functions=script.functions, site=job.site)


def _run(script: Script, job: Job, memory: Memory) -> Plan:
    collected = _collected(script, job, memory)
    if not job.site and (token := asking.token_of(_address(job.envelope))) is not None:
        with running(collected):
            return _checked(_confirmed(token, _mail(job, collected), job, collected), job)
    if script.main is not None:
        with running(collected):
            if script.main(_mail(job, collected)) is not None:
                raise ScriptError("main returned something; only a route's function returns the next state")
            return _checked(Plan(_actions(collected), about=collected.about), job)
    assert script.application is not None  # noqa: S101 - a Script has one of them
    call = _find(script.application, job.envelope, memory)
    return Plan(routed=False) if call is None else _called(call, job, collected)


def _mail(job: Job, collected: Collected) -> Mail:
    return Mail(message.Mail(job.raw, job.limits), job.envelope, collected)


def _called(call: _Call, job: Job, collected: Collected) -> Plan:
    """Return the plan of a route's function."""
    collected.per = call.per
    with running(collected):
        result = call.function(_mail(job, collected), **call.captures)
        return _checked(Plan(_actions(collected), _next(call, result), call.per, about=collected.about), job)


def _checked(plan: Plan, job: Job) -> Plan:
    """Return the plan. Raises ScriptError where it is none."""
    try:
        check(plan, job.plan_limits)
    except PlanError as error:
        raise ScriptError(str(error)) from None
    return plan


def _actions(collected: Collected) -> tuple[Action, ...]:
    """Return what was asked for; a message that was taken until its sender answers is delivered nowhere else."""
    ends = Keep | File | Forward | Reject | Defer | Discard
    if collected.asked and not any(isinstance(one, ends) for one in collected.actions):
        collected.add(Discard())
    return tuple(collected.actions)


def _confirmed(token: str, mail: Mail, job: Job, collected: Collected) -> Plan:
    """Return the plan for an answer to a question of the script's, which calls what waits for it."""
    found = asking.redeem(token, mail, collected)
    if found is None:
        return Plan(routed=False)
    collected.asked = True  # the answer itself is nobody's to read
    if found.then is None:
        return Plan(_actions(collected))
    original = Mail(message.Mail(found.raw, job.limits), found.envelope, collected, confirmed=True)
    collected.per = found.per
    result = found.then(original, **found.given)
    state = _next(_Call(found.then, {}, START, found.per), result)
    if result is not None and not state:
        state = START
    return Plan(_actions(collected), state, found.per, about=collected.about)


def _address(envelope: Envelope) -> str:
    return (envelope.original_recipient or next(iter(envelope.recipients), "")).lower()


def _find(found: Application, envelope: Envelope, memory: Memory) -> _Call | None:
    """Return what answers: a stateless route first, then the sender's state; None where no route does."""
    address = _address(envelope)
    answers = found.find_stateless(address)
    if answers is not None:
        return _Call(*answers)
    if not envelope.sender:
        return None
    candidates = found.candidates(address)
    states = {per: memory.state(per) for per in {per for _, _, per in candidates}}
    if ERROR not in found.state_names():  # whoever is in an ERROR that the script has no more begins anew
        states = {per: "" if state == ERROR else state for per, state in states.items()}
    in_state = [one for one in candidates if one[0].__name__ == states[one[2]]]
    new = [one for one in candidates if one[0].__name__ == START and not states[one[2]]]
    for function, captures, per in (*in_state, *new):
        return _Call(function, captures, function.__name__, per)
    lost = next((state for state in states.values() if state and state not in found.state_names()), "")
    if lost:
        raise ScriptError(f"the sender is in the state {lost}, and no function of that name has a route")
    return None


def _next(call: _Call, result: object) -> str:
    """Return the next state's name, "" where it stays. Raises ScriptError for what is no state."""
    if result is None:
        return ""
    if not call.state:
        raise ScriptError(f"{call.function.__name__} is stateless, and returned something")
    if not is_state(result):
        raise ScriptError(f"{call.function.__name__} returned {result!a:.100}, expected a function with a @route")
    name = str(getattr(result, "__name__", ""))
    return "" if name == call.state else name
