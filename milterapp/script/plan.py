"""What a script wants done, as values; and those as JSON lines with an end marker, which the script process sends.

Must never: believe a script process. Whatever it sends becomes a Plan within the limits, a Failure, or a PlanError.

The first line says what follows, one line is one action, the last says how many there were. A plan that was cut short
anywhere, even before its last line end, is none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from milterapp.script.actions import (
    KINDS,
    Action,
    Ask,
    Defer,
    Discard,
    File,
    Forward,
    Keep,
    Output,
    Reject,
    Reply,
    Send,
    Store,
)

__all__ = ["DEFAULT", "Failure", "Plan", "PlanError", "PlanLimits", "check", "decode", "encode", "texts_of"]


class PlanError(Exception):
    """What a script wants cannot be done, or what came from its process is no plan; str() says why."""


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """The most that one run of a script may want. recipients: of forwards and sends together; folders: different ones;
    text, total: characters.
    """

    actions: int = 500
    recipients: int = 20
    folders: int = 20
    text: int = 256 * 1024
    total: int = 6 * 1024 * 1024
    outputs: int = 100
    stores: int = 1000


DEFAULT = PlanLimits()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a script wants done, in its order.

    state: the next state's name, "" to leave it; per: the captures that it is kept by, beside the sender.
    routed: False where no route of an application matches, so that it has nothing to say about this message.
    about: the digest of a question whose kept message the edits and deliveries are of, "" for the one that came.
    failed: how the function failed in whose place ERROR has answered, None where none did.
    """

    actions: tuple[Action, ...] = ()
    state: str = ""
    per: tuple[str, ...] = ()
    routed: bool = True
    about: str = ""
    failed: Failure | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A script that raised, or that a limit stopped. kind: the exception's class; trace: for its author, bounded.

    place: where in the script, by file and line, "" for nowhere. Unlike text and trace it has no word of a message's.
    """

    kind: str
    text: str
    trace: str = field(default="", repr=False)
    place: str = ""


_SIZES: Mapping[str, int] = {"kind": 100, "text": 4000, "trace": 16_000, "place": 700}
_HEADS: Mapping[str, tuple[str, ...]] = {"plan": ("state", "per", "routed", "about"), "failure": tuple(_SIZES)}
_VERSION = 1


def encode(found: Plan | Failure) -> bytes:
    """Return a plan or a failure as it is sent."""
    if isinstance(found, Failure):
        return _lines({"failure": _VERSION, **_cut(found)}, [])
    head = {"plan": _VERSION, "state": found.state, "per": found.per, "routed": found.routed, "about": found.about}
    head |= {} if found.failed is None else {"failed": _cut(found.failed)}
    actions = [{"action": one.word, **dataclasses.asdict(one)} for one in found.actions]
    return _lines(head, actions)


def _cut(found: Failure) -> dict[str, str]:
    return {name: getattr(found, name)[:most] for name, most in _SIZES.items()}


def _lines(head: Mapping[str, Any], actions: Sequence[Mapping[str, Any]]) -> bytes:
    lines = [json.dumps(one, ensure_ascii=True, separators=(",", ":")) for one in (head, *actions)]
    return "".join(f"{line}\n" for line in (*lines, f'{{"end":{len(actions)}}}')).encode("ascii")


def decode(data: bytes, limits: PlanLimits = DEFAULT) -> Plan | Failure:
    """Return what a script process sent. Raises PlanError for anything that is not a whole plan within the limits."""
    if len(data) > 8 * limits.total:
        raise PlanError(f"a plan of {len(data)} bytes")
    if not data.endswith(b"\n"):
        raise PlanError("the plan is cut short")
    lines = data[:-1].split(b"\n")
    if len(lines) > limits.actions + 2:
        raise PlanError(f"more than {limits.actions} actions")
    head, *middle, last = [_object(line) for line in lines] if len(lines) > 1 else ({}, {})
    if set(last) != {"end"} or last["end"] is True or last["end"] != len(middle):
        raise PlanError("the plan is cut short")
    kind = next((one for one in _HEADS if head.get(one) == _VERSION and head[one] is not True), None)
    failed = head.pop("failed", None) if kind == "plan" else None
    if kind is None or set(head) != {kind, *_HEADS[kind]}:
        raise PlanError("not a plan of this version")
    if kind == "failure":
        if middle:
            raise PlanError("a failure with actions")
        return _failure({name: head[name] for name in _SIZES})
    if not isinstance(head["routed"], bool):
        raise PlanError("routed: expected true or false")
    actions = tuple(_action(one) for one in middle)
    state, per, about = _text(head["state"], "state"), _texts(head["per"], "per"), _text(head["about"], "about")
    plan = Plan(actions, state, per, head["routed"], about, None if failed is None else _failure(failed))
    check(plan, limits)
    return plan


def _failure(found: object) -> Failure:
    if not isinstance(found, dict) or set(found) != set(_SIZES):
        raise PlanError("a failure with more than its texts, or less")
    texts = {name: _text(found[name], name) for name in _SIZES}
    if any(len(texts[name]) > most for name, most in _SIZES.items()):
        raise PlanError("a failure with longer texts than any")
    return Failure(**texts)


def _object(line: bytes) -> dict[str, Any]:
    """Return one line's JSON object, every text in it one that can be encoded."""
    try:
        found = json.loads(line.decode("ascii"), object_pairs_hook=_pairs, parse_constant=_refuse, parse_float=_refuse)
        line.decode("ascii")
    except (ValueError, RecursionError) as error:
        raise PlanError(f"a line that is no JSON object: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise PlanError("a line that is no JSON object")
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word[:40]} is no value here")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{name}: expected a text, found {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise PlanError(f"{name}: a lone surrogate") from None
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PlanError(f"{name}: expected a list of texts, found {type(value).__name__}")
    return tuple(_text(one, name) for one in value)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise PlanError(f"{name}: expected true or false, found {type(value).__name__}")
    return value


def _text_or_none(value: object, name: str) -> str | None:
    return None if value is None else _text(value, name)


# How the types of the actions' fields are read, by their annotation.
_TYPES: Mapping[str, Callable[[object, str], Any]] = {
    "str": _text,
    "bool": _flag,
    "tuple[str, ...]": _texts,
    "str | None": _text_or_none,
}


def _action(found: Mapping[str, Any]) -> Action:
    word = found.get("action")
    kind = KINDS.get(word) if isinstance(word, str) else None
    if kind is None:
        raise PlanError(f"an action of unknown kind: {str(word)[:40]!a}")
    wanted = {one.name: str(one.type) for one in dataclasses.fields(kind)}
    if set(found) - {"action"} != set(wanted):
        raise PlanError(f"{word}: expected {', '.join(wanted) or 'nothing'}")
    values = {name: _TYPES[how](found[name], f"{word}: {name}") for name, how in wanted.items()}
    try:
        return kind(**values)  # type: ignore[no-any-return]  # every kind is an Action
    except ValueError as error:
        raise PlanError(f"{word}: {error}") from None


def check(plan: Plan, limits: PlanLimits = DEFAULT) -> None:
    """Raise PlanError where a plan is over the limits, or wants what cannot be done together."""
    actions = plan.actions
    if len(actions) > limits.actions:
        raise PlanError(f"more than {limits.actions} actions")
    kinds = ((Output, limits.outputs, "outputs"), (Store, limits.stores, "stored values"), (Ask, 1, "questions"))
    for kind, most, words in kinds:
        if sum(isinstance(one, kind) for one in actions) > most:
            raise PlanError(f"more than {most} {words}")
    sizes = [len(text) for one in actions for text in texts_of(one)]
    if max(sizes, default=0) > limits.text or sum(sizes) > limits.total:
        raise PlanError(f"more text than {limits.text} characters at once or {limits.total} in all")
    recipients = sum(len(one.to) if isinstance(one, Send) else isinstance(one, Forward) for one in actions)
    if recipients > limits.recipients:
        raise PlanError(f"more than {limits.recipients} recipients")
    if len({one.folder for one in actions if isinstance(one, File)}) > limits.folders:
        raise PlanError(f"more than {limits.folders} folders")
    if len(plan.about) > 64 or len(plan.state) > 100 or len(plan.per) > 10 or any(len(one) > 320 for one in plan.per):
        raise PlanError("a state longer than any")
    _check_together(plan)


def texts_of(action: Action) -> list[str]:
    """Return every text that an action holds."""
    found: list[str] = []
    for one in dataclasses.fields(action):
        value = getattr(action, one.name)
        found += value if isinstance(value, tuple) else [value] if isinstance(value, str) else []
    return found


def _check_together(plan: Plan) -> None:
    """Hold the actions to what a rule's may be together: one verdict, and deliveries only where one is left to do."""
    words = [one.word for one in plan.actions if isinstance(one, (Reject, Defer, Discard))]
    if len(words) > 1:
        raise PlanError(f"{' and '.join(words)}: there is one verdict")
    if "defer" in words and (len(plan.actions) > 1 or plan.state):
        raise PlanError("defer: the message comes again, so nothing else can be done for it now")
    deliveries = [one for one in plan.actions if isinstance(one, (Keep, File, Forward))]
    if "reject" in words and (deliveries or any(isinstance(one, Reply) for one in plan.actions)):
        raise PlanError("reject: what is refused is not delivered or answered")
    if "discard" in words and any(isinstance(one, Keep) or not one.copy for one in deliveries):
        raise PlanError("discard: what is thrown away is delivered as a copy only (copy=True)")
    if not plan.routed and (plan.actions or plan.state):
        raise PlanError("what no route matches has no actions")
