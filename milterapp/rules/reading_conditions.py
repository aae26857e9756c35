"""Reading what a rule asks: `if`, with its joints and conditions, to a clause.

Must never: make an empty clause of something that was written; what is wrong is noted and the rule is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_type_hints

from milterapp.mail.values import HeaderText
from milterapp.rules.clauses import JOINTS, AllOf, AnyOf, Clause, Leaf, NotOf
from milterapp.rules.conditions import Condition, Direct, Sought
from milterapp.rules.conditions_message import MESSAGE_CONDITIONS, Attachment, Header, Kind, Malformed, RawHeader, Size
from milterapp.rules.conditions_session import SESSION_CONDITIONS, Flag, Recipients
from milterapp.rules.decode import MISSING, Missing
from milterapp.rules.nodes import Items, Mapping, Node, Text, kind_of
from milterapp.rules.operators import Test
from milterapp.rules.problem import near_miss
from milterapp.rules.reading import RuleDecoder, read_malformed, read_number, read_test

__all__ = ["CONDITIONS", "read_clause"]

CONDITIONS: dict[str, type[Condition]] = {one.word: one for one in (*SESSION_CONDITIONS, *MESSAGE_CONDITIONS)}

Made = list[Leaf] | Missing


def read_clause(node: Node, decoder: RuleDecoder) -> Clause | None:
    """Read `if`, or one entry of a list of conditions: all that it names must hold. None where problems were noted."""
    if isinstance(node, Items):
        return _joined(node, decoder, AllOf)
    if isinstance(node, Text):
        decoder.fail(node.place, f"found {kind_of(node)}, expected a condition such as `subject: …`")
        return None
    parts = [_entry(key, value, decoder) for key, value in node.pairs]
    good = tuple(part for part in parts if part is not None)
    if len(good) < len(parts) or not good:
        return None
    return good[0] if len(good) == 1 else AllOf(good, node.place)


def _joined(node: Items, decoder: RuleDecoder, joint: type[AllOf] | type[AnyOf]) -> Clause | None:
    parts = [read_clause(item, decoder) for item in node.items]
    good = tuple(part for part in parts if part is not None)
    return joint(good, node.place) if good and len(good) == len(parts) else None


def _entry(key: Text, value: Node, decoder: RuleDecoder) -> Clause | None:
    word = key.value
    if word == "not":
        return _negated(value, decoder)
    if word in ("all", "any"):
        if isinstance(value, Items):
            return _joined(value, decoder, AllOf if word == "all" else AnyOf)
        decoder.fail(value.place, f"found {kind_of(value)}, expected a list: begin each condition with `- `")
        return None
    condition = CONDITIONS.get(word)
    if condition is None:
        decoder.fail(key.place, f"unknown condition {word!r}{near_miss(word, (*CONDITIONS, *JOINTS))}")
        return None
    if not (condition.site if decoder.site else condition.personal):
        place = "a site rule" if decoder.site else "a personal rule"
        decoder.fail(key.place, f"the condition {word!r} is not known in {place}")
        return None
    made = _reader(condition)(condition, key, value, decoder)
    if isinstance(made, Missing) or not made:
        return None
    return made[0] if len(made) == 1 else AllOf(tuple(made), key.place)


def _negated(value: Node, decoder: RuleDecoder) -> Clause | None:
    if not isinstance(value, Mapping) or len(value.pairs) != 1:
        decoder.fail(value.place, "`not` takes exactly one condition; for neither of several: `not: {any: [...]}`")
        return None
    part = read_clause(value, decoder)
    return None if part is None else NotOf(part, value.place)


def _flag(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    found = decoder.scalar(value, bool)
    return MISSING if isinstance(found, Missing) else [Leaf(cast("type[Flag]", condition)(found), key.place)]


def _number(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    test = read_number(value, decoder, size=condition is Size)
    return MISSING if isinstance(test, Missing) else [Leaf(condition(test), key.place)]  # type: ignore[call-arg, arg-type]


def _kind(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    hint = get_type_hints(condition)["words"]
    before = len(decoder.problems)
    words = decoder.decode(value, hint)
    return MISSING if len(decoder.problems) > before else [Leaf(Kind(words), key.place)]


def _malformed(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    return _leaf(condition, key, read_malformed(value, decoder))


def _sought(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    kind = cast("type[Sought]", condition).parts[""][0]
    return _leaf(condition, key, read_test(value, decoder, kind))


def _leaf(condition: type[Condition], key: Text, test: Test | Missing) -> Made:
    return MISSING if isinstance(test, Missing) else [Leaf(cast("type[Sought]", condition)(test), key.place)]


def _header(condition: type[Condition], _: Text, value: Node, decoder: RuleDecoder) -> Made:
    if not isinstance(value, Mapping):
        return decoder.fail(value.place, f"found {kind_of(value)}, expected a name and a test: {{X-Spam-Flag: yes}}")
    made: list[Leaf] = []
    for name, below in value.pairs:
        test = read_test(below, decoder, "text")
        try:
            HeaderText.name(name.value)
        except ValueError as error:
            decoder.fail(name.place, str(error))
            continue
        if not isinstance(test, Missing):
            # The name's case does not count; one spelling makes equal conditions equal.
            made.append(Leaf(cast("type[Header]", condition)(test, name.value.title()), name.place))
    return made if len(made) == len(value.pairs) else MISSING


def _attachment(_: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    parts = {part: kind for part, (kind, _) in Attachment.parts.items()}
    if not isinstance(value, Mapping):
        known = ", ".join((*parts, "size", "exists", "count"))
        return decoder.fail(value.place, f"found {kind_of(value)}, expected a mapping of {known}")
    rest = tuple((word, below) for word, below in value.pairs if word.value != "size")
    sized = value.get("size")
    size = None if sized is None else read_number(sized, decoder, size=True)
    if isinstance(size, Missing):
        return MISSING
    if any(word.value == "extension" and _dotted(below, decoder) for word, below in rest):
        return MISSING
    if not rest:
        return [Leaf(Attachment(Test(), size), key.place)]
    test = read_test(Mapping(rest, value.place, value.flow), decoder, "", parts)
    return MISSING if isinstance(test, Missing) else [Leaf(Attachment(test, size), key.place)]


def _dotted(node: Node, decoder: RuleDecoder) -> bool:
    texts = [one for one in (node.items if isinstance(node, Items) else (node,)) if isinstance(one, Text)]
    wrong = [one for one in texts if one.value.startswith(".")]
    for one in wrong:
        decoder.fail(one.place, f"found {one.value!r}, expected it without the dot, did you mean {one.value[1:]!r}?")
    return bool(wrong)


Reader = Callable[[type[Condition], Text, Node, RuleDecoder], Made]

READERS: dict[type[Condition], Reader] = {
    Recipients: _number,
    Size: _number,
    Kind: _kind,
    Malformed: _malformed,
    Header: _header,
    RawHeader: _header,
    Attachment: _attachment,
}


def _reader(condition: type[Condition]) -> Reader:
    if condition in READERS:
        return READERS[condition]
    return _flag if issubclass(condition, Direct) else _sought
