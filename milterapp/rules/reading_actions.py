"""Reading what a rule does: `then`, to actions with their arguments.

Must never: let a message choose whom mail is sent to, or a text end up where its encoder does not stand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from milterapp.mail.values import AddressText, Mailbox
from milterapp.rules.action import Action
from milterapp.rules.actions import ACTIONS
from milterapp.rules.actions_deliveries import (
    Address,
    FileInto,
    FilterThrough,
    Flags,
    Folder,
    ForwardTo,
    PipeTo,
    ReplyWith,
    RunScript,
    ScriptName,
    VacationReply,
)
from milterapp.rules.actions_edits import (
    DropAttachments,
    SetHeader,
)
from milterapp.rules.actions_verdicts import KeepIt, Points
from milterapp.rules.conditions_marks import ProgramName, TagName
from milterapp.rules.conditions_message import Attachment
from milterapp.rules.decision import Verdict
from milterapp.rules.decode import MISSING, Decoder, Missing, schema
from milterapp.rules.finishing import FINISH
from milterapp.rules.nodes import Items, Mapping, Node, Text, kind_of
from milterapp.rules.placeholders import Template
from milterapp.rules.problem import Place, near_miss
from milterapp.rules.reading import RuleDecoder, read_test
from milterapp.rules.reading_conditions import read_which
from milterapp.rules.targets import Target
from milterapp.rules.units import parse_number
from milterapp.rules.which import TEXT, WhichAttachments, WhichFields, picker

__all__ = ["HOOKS", "read_actions"]

MAX_POINTS = 1_000_000
_NOT_BESIDE_A_SCRIPT = (FileInto, ForwardTo, ReplyWith, VacationReply, PipeTo)


def read_actions(node: Node, decoder: RuleDecoder) -> tuple[tuple[Action, Place], ...] | None:
    """Read `then`: one action or a list of them, each with its place. None where a problem was noted."""
    nodes = node.items if isinstance(node, Items) else (node,)
    found = [(_action(one, decoder), one.place) for one in nodes]
    placed = tuple((one, place) for one, place in found if one is not None)
    if len(placed) < len(found):
        return None
    good = tuple(one for one, _ in placed)
    scripts = [one for one in good if isinstance(one, RunScript)]
    delivering = [one for one in good if isinstance(one, _NOT_BESIDE_A_SCRIPT) or one.verdict is not None]
    delivering += scripts[1:]
    if scripts and delivering:
        decoder.fail(node.place, f"`script` and `{delivering[0].word}` in one rule: the script says what becomes of it")
        return None
    verdicts = [one for one in good if one.verdict is not None]
    if len(verdicts) > 1:
        words = " and ".join(f"`{one.word}`" for one in verdicts)
        decoder.fail(node.place, f"{words} in one rule, expected one verdict")
        return None
    moved = [one for one in good if one.verdict is None and one.ends() and one.word != "stop"]
    if moved and verdicts and verdicts[0].verdict is not Verdict.NONE:
        decoder.fail(
            node.place,
            f"`{verdicts[0].word}` and `{moved[0].word}` in one rule; with `copy: true` the delivery is a copy",
        )
        return None
    for one, place in placed:
        if isinstance(one, ReplyWith | VacationReply) and verdicts and verdicts[0].verdict is Verdict.REJECT:
            decoder.fail(place, f"`{one.word}` and `reject` in one rule: the refusal is answer enough (RFC 5429)")
            return None
        if isinstance(one, PipeTo | FilterThrough):
            written = [text.parts[0] for text in one.arguments if text.parts and isinstance(text.parts[0], str)]
            if not decoder.no_options(place, one.program, written):
                return None
        if isinstance(one, Flags) and not any(isinstance(other, FileInto) for other in good):
            kept = any(isinstance(other, KeepIt) for other in good)
            if not kept:
                decoder.fail(place, "`flag` in a rule without `file` or `keep`: nothing else can carry it")
                return None
            if not decoder.allowed.flags_kept:
                decoder.fail(
                    place, "`flag` beside `keep`: what this site keeps carries no flags; `file: INBOX` puts it there"
                )
                return None
    return tuple(sorted(placed, key=lambda one: not isinstance(one[0], Flags)))


def _action(node: Node, decoder: RuleDecoder) -> Action | None:
    if isinstance(node, Items):
        decoder.fail(node.place, "a list inside the list of actions, expected an action")
        return None
    if isinstance(node, Mapping) and len(node.pairs) != 1:
        words = " and ".join(f"`{key.value}`" for key, _ in node.pairs[:3])
        decoder.fail(node.place, f"{words} in one action, expected a list of actions: begin each with `- `")
        return None
    key, value = (node, None) if isinstance(node, Text) else node.pairs[0]
    made = ACTIONS.get(key.value)
    if made is None:
        decoder.fail(key.place, f"unknown action {key.value!r}{near_miss(key.value, ACTIONS)}")
        return None
    if not (made.site if decoder.site else made.personal):
        place = "a site rule" if decoder.site else "a personal rule"
        decoder.fail(key.place, f"the action {key.value!r} cannot stand in {place}")
        return None
    if not decoder.may(key.place, "action", key.value):
        return None
    before = len(decoder.problems)
    action = _arguments(made, key, value, decoder)
    if isinstance(action, Missing) or len(decoder.problems) > before:
        return None
    for kind, finish in FINISH.items():
        if isinstance(action, kind):
            try:
                return finish(action)
            except ValueError as error:
                decoder.fail(value.place if value is not None else key.place, str(error))
                return None
    return action


def _arguments(made: type[Action], key: Text, value: Node | None, decoder: RuleDecoder) -> Action | Missing:
    fields = schema(made)  # type: ignore[arg-type] # a class is hashable, whatever its metaclass
    if value is None:
        if made.main and not all(_optional(field) for field, _ in fields.values()):
            return decoder.fail(key.place, f"`{made.word}` needs its {made.main}: `{made.word}: …`")
        return made()
    if not made.main:
        return decoder.fail(value.place, f"`{made.word}` takes no argument, found {kind_of(value)}")
    hint = fields[made.main][1]
    whole = isinstance(value, Mapping) and not issubclass(made, SetHeader)
    if issubclass(made, DropAttachments) and isinstance(value, Mapping):
        whole = value.get("which") is not None or value.get("note") is not None
    if whole:
        found: Action | Missing = decoder.record(value, made)
        return found
    main = decoder.decode(value, hint)
    return MISSING if isinstance(main, Missing) else made(**{made.main: main})


def _optional(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _template(node: Node, decoder: Decoder) -> Template | Missing:
    assert isinstance(decoder, RuleDecoder)  # noqa: S101 - the hooks below belong to it
    return decoder.template(node)


def _folder(node: Node, decoder: Decoder) -> Folder | Missing:
    text = _template(node, decoder)
    if isinstance(text, Missing):
        return text
    levels: list[list[Any]] = [[]]
    for part in text.parts:
        if not isinstance(part, str):
            levels[-1].append(part)
            continue
        first, *others = part.split("/")
        levels[-1].append(first)
        levels += [[one] for one in others]
    made = [Template(tuple(part for part in level if part != "")) for level in levels]
    try:
        # A level that holds a value is harmless whatever it is; the rest must be as Mailbox takes it.
        Mailbox.parse("/".join("x" if level.values else level.literal or "" for level in made))
    except ValueError as error:
        return decoder.fail(node.place, str(error))
    return Folder(tuple(made))


def _target(node: Node, decoder: Decoder) -> Target | Missing:
    text = _template(node, decoder)
    if isinstance(text, Missing):
        return text
    if text.literal is None:
        value = text.values[0]
        if len(text.parts) != 1 or value.argument not in ("", "address") or value.word in ("match", "header", "now"):
            return decoder.fail(
                node.place,
                "an address that the message chose; expected one of your own, or such as ${from.address} whole, where"
                " the rule asks with `in` for a list that holds it",
            )
        return Target(text)
    try:
        if text.literal != "<>":
            AddressText.parse(text.literal)
    except ValueError as error:
        return decoder.fail(node.place, str(error))
    return Target(text)


def _which_fields(node: Node, decoder: Decoder) -> WhichFields | Missing:
    assert isinstance(decoder, RuleDecoder)  # noqa: S101 - the hooks below belong to it
    test = read_test(node, decoder, "text")
    if isinstance(test, Missing):
        return MISSING
    if test.exists is not None or test.count is not None:
        return decoder.fail(node.place, "`exists` and `count` are of all fields, expected a test of one")
    return WhichFields(test, picker(test, TEXT))


def _which_attachments(node: Node, decoder: Decoder) -> WhichAttachments | Missing:
    assert isinstance(decoder, RuleDecoder)  # noqa: S101 - the hooks below belong to it
    condition = read_which(node, decoder)
    return MISSING if condition is None else WhichAttachments(condition, picker(condition.test, Attachment.parts))


def _points(node: Node, decoder: Decoder) -> float | Missing:
    text = decoder.text(node)
    if isinstance(text, Missing):
        return MISSING
    try:
        points = parse_number(text)
    except ValueError as error:
        return decoder.fail(node.place, str(error))
    return points if abs(points) <= MAX_POINTS else decoder.fail(node.place, f"more than {MAX_POINTS} points")


def _tag_name(node: Node, decoder: Decoder) -> str | Missing:
    text = decoder.text(node)
    if isinstance(text, Missing):
        return MISSING
    if not text.isascii() or not text.replace(".", "a").replace("-", "a").replace("_", "a").isalnum() or len(text) > 50:
        return decoder.fail(node.place, f"found {text!r}, expected a word of letters, digits, '.', '-' and '_'")
    return text.lower()


def _program(node: Node, decoder: Decoder) -> str | Missing:
    assert isinstance(decoder, RuleDecoder)  # noqa: S101 - the hooks below belong to it
    return decoder.program(node)


def _script(node: Node, decoder: Decoder) -> str | Missing:
    assert isinstance(decoder, RuleDecoder)  # noqa: S101 - the hooks below belong to it
    return decoder.script(node)


def _own_address(node: Node, decoder: Decoder) -> str | Missing:
    text = decoder.text(node)
    try:
        return text if isinstance(text, Missing) else AddressText.parse(text)
    except ValueError as error:
        return decoder.fail(node.place, str(error))


HOOKS: dict[Any, Callable[..., Any]] = {
    Template: _template,
    Folder: _folder,
    Target: _target,
    WhichFields: _which_fields,
    WhichAttachments: _which_attachments,
    Points: _points,
    TagName: _tag_name,
    ProgramName: _program,
    Address: _own_address,
    ScriptName: _script,
}
