"""Reading the tests beside the rules: a message, its envelope and what to expect.

Must never: run one; `beside` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from milterapp.rules.decode import Decoder, Missing
from milterapp.rules.expectation import LEFT, PARTS_OF, WORDS, Expectation
from milterapp.rules.nodes import Items, Mapping, Node, Text
from milterapp.rules.policy import Case
from milterapp.rules.problem import Place, near_miss

__all__ = ["read_cases"]

Found = tuple[Expectation, ...]

NAMES = ("rule", "no_rule")
HEADERS = ("add_header", "prepend_header", "set_header")
TEXTS = (
    "remove_header",
    "prefix_subject",
    "set_sender",
    "add_recipient",
    "remove_recipient",
    "transport",
    "filter",
)
KEYS = (*WORDS, *HEADERS, *TEXTS, *PARTS_OF, *LEFT, "edit", *NAMES)


def read_cases(node: Node, decoder: Decoder, rules: Sequence[str]) -> tuple[tuple[Place, Case], ...]:
    """Read `tests`. rules: the names of the rules, for `rule` and `no_rule`."""
    nodes = node.items if isinstance(node, Items) else (node,)
    hooks = {Found: lambda value, inner: _expectations(value, inner, rules), datetime: _time}
    inner = Decoder(decoder.problems, hooks)
    cases = []
    names: dict[str, Place] = {}
    for item in nodes:
        case = inner.decode(item, Case)
        if not isinstance(case, Case):
            continue
        if case.name in names:
            decoder.fail(item.place, f"the test {case.name!r} a second time, first on line {names[case.name].line}")
        names[case.name] = item.place
        cases.append((item.place, case))
    return tuple(cases)


def _time(node: Node, decoder: Decoder) -> datetime | Missing:
    text = decoder.text(node)
    if isinstance(text, Missing):
        return text
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return decoder.fail(node.place, f"found {text!r}, expected a time such as 2024-02-29T12:00:00+01:00")
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _expectations(node: Node, decoder: Decoder, rules: Sequence[str]) -> Found:
    if isinstance(node, Items):
        return tuple(one for item in node.items for one in _expectations(item, decoder, rules))
    if isinstance(node, Text):
        try:
            return (Expectation.parse(node.value),)
        except ValueError as error:
            decoder.fail(node.place, str(error))
            return ()
    return tuple(one for key, value in node.pairs for one in _expectation(key, value, decoder, rules))


def _expectation(key: Text, value: Node, decoder: Decoder, rules: Sequence[str]) -> Found:
    word = key.value
    if word not in KEYS:
        decoder.fail(key.place, f"unknown expectation {word!r}{near_miss(word, KEYS)}; known: {', '.join(KEYS)}")
        return ()
    if word in HEADERS and isinstance(value, Mapping):
        headers: dict[str, Any] = decoder.table(value, str)
        return tuple(Expectation("edit", f"{word} {name}: {text}") for name, text in headers.items())
    found = decoder.items(value, str)
    if word in NAMES:
        for name in found:
            if name not in rules:
                decoder.fail(value.place, f"no rule {name!r}{near_miss(name, rules)}")
    if word in TEXTS:
        return tuple(Expectation("edit", f"{word} {text}") for text in found)
    return tuple(Expectation(word, text) for text in found)
