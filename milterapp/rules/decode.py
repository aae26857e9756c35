"""Nodes to dataclasses: the fields are the schema, their types say what each text becomes.

Must never: stop at the first problem, or take a value it has not checked; what is wrong is noted and left out.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from milterapp.rules.nodes import Items, Node, Text, kind_of, quoted
from milterapp.rules.nodes import Mapping as MappingNode
from milterapp.rules.problem import Place, Problem, near_miss
from milterapp.rules.units import parse_bool, parse_count, parse_duration, parse_size

__all__ = ["Decoder", "decode", "schema"]

T = TypeVar("T")
Hook = Callable[[Node, "Decoder"], Any]


class Missing:
    """What a value that could not be decoded leaves behind."""


MISSING = Missing()


def decode(node: Node, kind: type[T], problems: list[Problem], hooks: Mapping[Any, Hook] | None = None) -> T | None:
    """Decode a node to a dataclass, noting every problem.

    Field types may be str, int (units of size are taken), float (units of time are taken), bool, an Optional or a
    Literal of those, tuple[T, ...], dict[str, T], another dataclass, or a type with a hook. A field named `is_` is the
    key `is`. A field with a default may be left out. Returns None where the node is no value of that kind; a value
    that lacks a wrong part is returned all the same, so look at the problems.
    """
    value = Decoder(problems, hooks or {}).decode(node, kind)
    return value if isinstance(value, kind) else None


@cache
def schema(kind: type[Any]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Return a dataclass's keys in order, each with its field and resolved type; init=False fields are no keys."""
    hints = typing.get_type_hints(kind)
    return {field.name.rstrip("_"): (field, hints[field.name]) for field in dataclasses.fields(kind) if field.init}


class Decoder:
    """One decoding run: where problems are collected, and how the types that rules bring along are read."""

    def __init__(self, problems: list[Problem], hooks: Mapping[Any, Hook]) -> None:
        self.problems = problems
        self.hooks = hooks

    def fail(self, place: Place, text: str) -> Missing:
        """Note a problem; return the mark of a value that is missing."""
        self.problems.append(Problem(place, text))
        return MISSING

    def warn(self, place: Place, text: str) -> None:
        """Note a warning."""
        self.problems.append(Problem(place, text, warning=True))

    def decode(self, node: Node, kind: Any) -> Any:
        """Return the node as a value of that type, or MISSING with a problem noted."""
        if kind in self.hooks:
            return self.hooks[kind](node, self)
        if kind in SCALARS:
            return self.scalar(node, kind)
        if dataclasses.is_dataclass(kind):
            return self.record(node, typing.cast("type[Any]", kind))
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self.decode(node, next(arg for arg in args if arg is not type(None)))
        if origin is typing.Literal:
            return self.word(node, args)
        if origin is tuple:
            return self.items(node, args[0])
        if origin is dict:
            return self.table(node, args[1])
        raise TypeError(f"no way to decode {kind!r}")

    def text(self, node: Node) -> str | Missing:
        """Return a text, or note what stands there instead."""
        if isinstance(node, Text):
            return node.value
        if isinstance(node, Items) and node.flow and len(node.items) == 1 and isinstance(node.items[0], Text):
            return self.fail(
                node.place, f"a list, expected a text; quote it, thus: {quoted(f'[{node.items[0].value}]')}"
            )
        return self.fail(node.place, f"found {kind_of(node)}, expected a text")

    def scalar(self, node: Node, kind: type[Any]) -> Any:
        """Return a text read as one of SCALARS."""
        value = self.text(node)
        if isinstance(value, Missing):
            return MISSING
        try:
            return SCALARS[kind](value)
        except ValueError as error:
            return self.fail(node.place, str(error))

    def word(self, node: Node, words: tuple[str, ...]) -> Any:
        """Return a text that is one of the words."""
        value = self.text(node)
        if isinstance(value, Missing) or value in words:
            return value
        expected = ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
        return self.fail(node.place, f"found {value!r}, expected {expected}{near_miss(value, words)}")

    def items(self, node: Node, kind: Any) -> Any:
        """Return a list's items, or the one value alone, as a tuple."""
        nodes = node.items if isinstance(node, Items) else (node,)
        values = [self.decode(item, kind) for item in nodes]
        return tuple(value for value in values if value is not MISSING)

    def mapping(self, node: Node, expected: str) -> MappingNode | None:
        """Return the node where it is a mapping; note what stands there instead."""
        if isinstance(node, MappingNode):
            return node
        self.fail(node.place, f"found {kind_of(node)}, expected {expected}")
        return None

    def table(self, node: Node, kind: Any) -> Any:
        """Return a mapping whose keys are free."""
        mapping = self.mapping(node, "a mapping of names to values")
        if mapping is None:
            return MISSING
        values = {key.value: self.decode(value, kind) for key, value in mapping.pairs}
        return {key: value for key, value in values.items() if value is not MISSING}

    def record(self, node: Node, kind: type[Any]) -> Any:
        """Return a dataclass made from a mapping with its fields as keys."""
        fields = schema(typing.cast("Any", kind))
        mapping = self.mapping(node, f"a mapping of {', '.join(fields)}")
        if mapping is None:
            return MISSING
        values: dict[str, Any] = {}
        whole = True
        for key, value in mapping.pairs:
            if key.value not in fields:
                self.fail(
                    key.place, f"unknown key {key.value!r}{near_miss(key.value, fields)}; known: {', '.join(fields)}"
                )
                continue
            field, hint = fields[key.value]
            got = self.decode(value, hint)
            if got is MISSING:
                whole = whole and not _required(field)
            else:
                values[field.name] = got
        for key_name, (field, _) in fields.items():
            if _required(field) and mapping.get(key_name) is None:
                self.fail(node.place, f"the key {key_name!r} is missing")
                whole = False
        return kind(**values) if whole else MISSING


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _int(text: str) -> int:
    return parse_count(text) if text.isdigit() else parse_size(text)


SCALARS: dict[Any, Callable[[str], Any]] = {str: str, int: _int, float: parse_duration, bool: parse_bool}
