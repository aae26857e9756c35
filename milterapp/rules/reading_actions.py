"""Reading what a rule does: `then`, to actions with their arguments.

Must never: let a message choose whom mail is sent to, or a text end up where its encoder does not stand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from milterapp.mail.values import AddressText, HeaderText, Mailbox
from milterapp.rules.actions import (
    ACTIONS,
    REPLIES,
    Action,
    Folder,
    Hold,
    PrefixSubject,
    Refusal,
    RemoveHeader,
    SetHeader,
    Target,
)
from milterapp.rules.decision import Verdict
from milterapp.rules.decode import MISSING, Decoder, Missing, schema
from milterapp.rules.nodes import Items, Mapping, Node, Text, kind_of
from milterapp.rules.placeholders import Template
from milterapp.rules.problem import near_miss
from milterapp.rules.reading import RuleDecoder

__all__ = ["HOOKS", "read_actions"]

MAX_TEXT = 400
MAX_VALUE = 900


def read_actions(node: Node, decoder: RuleDecoder) -> tuple[Action, ...] | None:
    """Read `then`: one action or a list of them. None where a problem was noted."""
    nodes = node.items if isinstance(node, Items) else (node,)
    found = [_action(one, decoder) for one in nodes]
    good = tuple(one for one in found if one is not None)
    if len(good) < len(found):
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
    return good


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
    if isinstance(value, Mapping) and not issubclass(made, SetHeader):
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
        AddressText.parse(text.literal)
    except ValueError as error:
        return decoder.fail(node.place, str(error))
    return Target(text)


HOOKS: dict[Any, Callable[..., Any]] = {Template: _template, Folder: _folder, Target: _target}


def _one_line(text: Template | None, what: str, *, ascii_only: bool = False) -> Template | None:
    """Return the text without the line end that a block gives it; raise ValueError where it is not one line."""
    if text is None:
        return None
    parts = list(text.parts)
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip("\n")
    for part in parts:
        if isinstance(part, str):
            if not part.isprintable():
                raise ValueError(f"{what} of several lines or with control characters, expected one line of text")
            if ascii_only and not part.isascii():
                char = next(char for char in part if not char.isascii())
                raise ValueError(f"{what} with {char!r}, expected ASCII: SMTP replies hold nothing else")
            if len(part) > MAX_VALUE:
                raise ValueError(f"{what} of {len(part)} characters, expected at most {MAX_VALUE}")
    return Template(tuple(part for part in parts if part != ""))


def _refusal(action: Refusal) -> Refusal:
    assert action.verdict is not None  # noqa: S101 - Reject and Defer have one
    default = REPLIES[action.verdict]
    text, code, status = _one_line(action.text, "a reply", ascii_only=True), action.code, action.status
    if text is not None and text.parts and isinstance(text.parts[0], str):
        rest = text.parts[0]
        first, _, after = rest.partition(" ")
        if code is None and len(first) == 3 and first.isdigit():
            code, rest = int(first), after
            first, _, after = rest.partition(" ")
        if status is None and _is_status(first):
            status, rest = first, after
        text = Template(
            tuple(part for part in (rest.strip(" ") if len(text.parts) == 1 else rest, *text.parts[1:]) if part)
        )
    family = default.code // 100
    if code is not None and not family * 100 <= code <= family * 100 + 59:
        raise ValueError(f"code {code} for `{action.word}`, expected {family}xx such as {default.code}")
    if status is not None and not (_is_status(status) and status.startswith(f"{family}.")):
        raise ValueError(f"status {status} for `{action.word}`, expected {family}.x.x such as {default.status}")
    if code is not None and status is None:
        status = default.status
    if text is not None and len("".join(map(str, text.parts))) > MAX_TEXT:
        raise ValueError(f"a reply of more than {MAX_TEXT} characters")
    return replace(action, text=text if text and text.parts else None, code=code, status=status)


def _is_status(word: str) -> bool:
    parts = word.split(".")
    return len(parts) == 3 and all(part.isdigit() and len(part) <= 3 for part in parts) and len(parts[0]) == 1


def _headers(action: SetHeader) -> SetHeader:
    for name in action.headers:
        HeaderText.name(name)
    made = {name: _one_line(text, f"a value of {name}") or text for name, text in action.headers.items()}
    return replace(action, headers=made)


def _names(action: RemoveHeader) -> RemoveHeader:
    for name in action.names:
        HeaderText.name(name)
    return action


def _prefix(action: PrefixSubject) -> PrefixSubject:
    return replace(action, prefix=_one_line(action.prefix, "a prefix") or action.prefix)


def _hold(action: Hold) -> Hold:
    return replace(action, reason=_one_line(action.reason, "a reason"))


FINISH: dict[type[Action], Callable[[Any], Action]] = {
    Refusal: _refusal,
    SetHeader: _headers,
    RemoveHeader: _names,
    PrefixSubject: _prefix,
    Hold: _hold,
}
