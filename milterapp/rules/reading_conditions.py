"""Reading what a rule asks: `if`, with its joints and conditions, to a clause.

Must never: make an empty clause of something that was written; what is wrong is noted and the rule is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_type_hints

from milterapp.mail.values import HeaderText
from milterapp.rules.clauses import JOINTS, AllOf, AnyOf, Clause, Leaf, NotOf
from milterapp.rules.conditions import Condition, Direct, Sought
from milterapp.rules.conditions_auth import METHODS, Auth
from milterapp.rules.conditions_marks import (
    MARKS_CONDITIONS,
    Command,
    Duplicate,
    ProgramName,
    Rate,
    RateOfRecipient,
    Score,
    Tag,
    TagName,
)
from milterapp.rules.conditions_message import (
    MESSAGE_CONDITIONS,
    Attachment,
    Header,
    Kind,
    Malformed,
    Parts,
    RawHeader,
    Size,
)
from milterapp.rules.conditions_session import SESSION_CONDITIONS, Flag, Recipients
from milterapp.rules.conditions_time import DAYS, Now, parse_moment, parse_times, parse_zone
from milterapp.rules.decode import MISSING, Missing
from milterapp.rules.nodes import Items, Mapping, Node, Text, kind_of
from milterapp.rules.operators import In, Test
from milterapp.rules.problem import near_miss
from milterapp.rules.reading import TEMPORARY, RuleDecoder, read_malformed, read_number, read_test, too_much
from milterapp.rules.units import parse_number

__all__ = ["CONDITIONS", "read_clause", "read_which"]

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]

CONDITIONS: dict[str, type[Condition]] = {
    one.word: one for one in (*SESSION_CONDITIONS, *MESSAGE_CONDITIONS, Auth, Now, *MARKS_CONDITIONS)
}

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
    if not decoder.may(key.place, "condition", word):
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
    asked = cast("type[Sought]", condition)
    decoder.long_texts = asked.late
    test = read_test(value, decoder, asked.parts[""][0])
    decoder.long_texts = False
    return _leaf(condition, key, test)


def _leaf(condition: type[Condition], key: Text, test: Test | Missing) -> Made:
    return MISSING if isinstance(test, Missing) else [Leaf(cast("type[Sought]", condition)(test), key.place)]


def _score(_: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    pairs = value.pairs if isinstance(value, Mapping) else ((Text("is", value.place), value),)
    found: dict[str, float] = {}
    for word, below in pairs:
        if word.value not in ("is", "over", "under"):
            hint = near_miss(word.value, ("is", "over", "under"))
            decoder.fail(word.place, f"unknown operator {word.value!r}{hint}; expected is, over or under")
            continue
        text = decoder.text(below)
        try:
            if not isinstance(text, Missing):
                found["is_" if word.value == "is" else word.value] = parse_number(text)
        except ValueError as error:
            decoder.fail(below.place, str(error))
    return [Leaf(Score(**found), key.place)] if len(found) == len(pairs) else MISSING


def _tag(_: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    if not isinstance(value, Mapping):
        words = decoder.decode(value, tuple[TagName, ...])
        wanted = len(value.items) if isinstance(value, Items) else 1
        return [Leaf(Tag(words), key.place)] if len(words) == wanted else MISSING
    named = value.get("in")
    if named is None or len(value.pairs) != 1:
        return decoder.fail(value.place, "expected a tag, several, or {in: NAME}")
    test = read_test(value, decoder, "text")
    if isinstance(test, Missing):
        return MISSING
    lists = tuple(
        one for _, found in test.parts for operator in found if isinstance(operator, In) for one in operator.lists
    )
    return [Leaf(Tag((), lists), key.place)]


def _record(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    before = len(decoder.problems)
    found = decoder.record(value, condition)
    return MISSING if isinstance(found, Missing) or len(decoder.problems) > before else [Leaf(found, key.place)]


def _rate(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    made = _record(condition, key, value, decoder)
    if isinstance(made, Missing):
        return MISSING
    rate = made[0].condition
    assert isinstance(rate, Rate)  # noqa: S101 - made just now
    if not rate.by:
        return decoder.fail(value.place, "nothing to count by")
    if rate.within <= 0:
        return decoder.fail(value.place, "a rate within no time, expected one such as `within: 1 hour`")
    if not decoder.site and "login" in rate.by:
        return decoder.fail(value.place, "the login is not known in a personal rule")
    if any(one.startswith("recipient") for one in rate.by):
        rate = RateOfRecipient(rate.by, rate.over, rate.within)
    return [Leaf(rate, key.place)]


def _duplicate(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    if isinstance(value, Text):
        found = decoder.scalar(value, bool)
        if isinstance(found, Missing):
            return MISSING
        if not found:
            return decoder.fail(value.place, "`duplicate: no`, expected `not: {duplicate: yes}`")
        return [Leaf(Duplicate(), key.place)]
    made = _record(condition, key, value, decoder)
    if not isinstance(made, Missing) and made[0].condition.within <= 0:  # type: ignore[union-attr] # it is a Duplicate
        return decoder.fail(value.place, "within no time, expected one such as `within: 7 days`")
    return made


def _command(condition: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    if isinstance(value, Mapping):
        made = _record(condition, key, value, decoder)
        if isinstance(made, Missing):
            return made
        asked = cast("Command", made[0].condition)
        if not 0 <= asked.status <= 255 or asked.status == TEMPORARY:
            return decoder.fail(
                value.place, f"status {asked.status}, expected 0 to 255, and not {TEMPORARY}: try again"
            )
        if fault := too_much(asked.arguments):
            return decoder.fail(value.place, fault)
        return made if decoder.no_options(value.place, asked.run, asked.arguments) else MISSING
    name = decoder.program(value)
    return MISSING if isinstance(name, Missing) else [Leaf(Command(ProgramName(name)), key.place)]


NOW = ("weekday", "time", "between", "zone")


def _now(_: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    if not isinstance(value, Mapping):
        return decoder.fail(value.place, f"found {kind_of(value)}, expected a mapping of {', '.join(NOW)}")
    found: dict[str, tuple[str, ...]] = {}
    good = True
    for word, below in value.pairs:
        if word.value not in NOW:
            decoder.fail(word.place, f"unknown key {word.value!r}{near_miss(word.value, NOW)}; known: {', '.join(NOW)}")
        elif word.value == "weekday":
            found[word.value] = decoder.decode(below, tuple[Weekday, ...])
        else:
            found[word.value] = decoder.items(below, str)
        good = good and bool(found.get(word.value))
    try:
        if len(found.get("between", "ab")) != 2 or len(found.get("zone", "a")) != 1:
            raise ValueError("expected two days or moments in `between`, and one `zone`")
        ends = found.get("between")
        between = (parse_moment(ends[0], last=False), parse_moment(ends[1], last=True)) if ends else None
        if between and between[0] >= between[1]:
            raise ValueError(f"between {between[0]} and {between[1]} there is no time")
        zone = parse_zone(found["zone"][0]) if "zone" in found else None
        weekdays = tuple(sorted(map(DAYS.index, found.get("weekday", ()))))
        times = tuple(map(parse_times, found.get("time", ())))
    except ValueError as error:
        return decoder.fail(value.place, str(error)) if good else MISSING
    if good and not (weekdays or times or between):
        return decoder.fail(value.place, "nothing is asked here, expected weekday, time or between")
    return [Leaf(Now(weekdays, times, between, zone), key.place)] if good else MISSING


def _auth(_: type[Condition], key: Text, value: Node, decoder: RuleDecoder) -> Made:
    if not decoder.allowed.authserv_ids:
        return decoder.fail(
            key.place, "no server's Authentication-Results are believed here; the setting `authserv_ids` names them"
        )
    if not isinstance(value, Mapping):
        return decoder.fail(value.place, f"found {kind_of(value)}, expected a method and its result: {{dmarc: pass}}")
    made: list[Leaf] = []
    for name, below in value.pairs:
        if name.value not in METHODS:
            hint = near_miss(name.value, METHODS)
            decoder.fail(name.place, f"unknown method {name.value!r}{hint}; known: {', '.join(METHODS)}")
            continue
        test = read_test(below, decoder, "text", {"domain": "domain"})
        if not isinstance(test, Missing):
            made.append(Leaf(Auth(test, name.value, decoder.allowed.authserv_ids), name.place))
    return made if len(made) == len(value.pairs) else MISSING


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


def read_which(value: Node, decoder: RuleDecoder) -> Attachment | None:
    """Read the tests of the condition `attachment` for an action that means those attachments. None for a problem."""
    made = _attachment(Attachment, Text("attachment", value.place), value, decoder)
    if isinstance(made, Missing):
        return None
    condition = cast("Attachment", made[0].condition)
    if condition.test.exists is not None or condition.test.count is not None:
        decoder.fail(value.place, "`exists` and `count` are of all attachments, expected tests of one")
        return None
    return condition


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
    Parts: _number,
    Kind: _kind,
    Malformed: _malformed,
    Header: _header,
    RawHeader: _header,
    Attachment: _attachment,
    Now: _now,
    Auth: _auth,
    Score: _score,
    Tag: _tag,
    Rate: _rate,
    Duplicate: _duplicate,
    Command: _command,
}


def _reader(condition: type[Condition]) -> Reader:
    if condition in READERS:
        return READERS[condition]
    return _flag if issubclass(condition, Direct) else _sought
