"""Tests of milterapp.rules.decode and units: texts to typed values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from milterapp.rules.document import decode, parse
from milterapp.rules.problem import Problem
from milterapp.rules.units import parse_bool, parse_count, parse_duration, parse_number, parse_size


@dataclass(frozen=True)
class Inner:
    """A part of Outer."""

    word: Literal["accept", "defer"] = "defer"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """A schema."""

    path: str
    size: int = 1
    wait: float = 1.0
    on: bool = False
    is_: int | None = None
    inner: Inner = field(default_factory=Inner)
    table: dict[str, int] = field(default_factory=dict)


def read(text: str) -> tuple[Outer | None, list[str]]:
    """Return what a document decodes to, and its problems."""
    node, problems = parse(text.encode(), "f")
    assert node is not None
    found: list[Problem] = problems
    return decode(node, Outer, found), [str(problem) for problem in found]


def test_values_have_their_fields_types() -> None:
    """A text becomes what its field says, with units where it is a size or a time."""
    got, problems = read(
        "path: 010\nsize: 2 KiB\nwait: 2 days\non: on\nis: 3\ninner: {word: accept, names: [a, b]}\ntable: {x: 1}"
    )
    assert problems == []
    assert got == Outer("010", 2048, 172800.0, True, 3, Inner("accept", ("a", "b")), {"x": 1})


PROBLEMS = {
    "unknown": (
        "path: a\nsise: 2",
        "f:2:1: unknown key 'sise', did you mean 'size'?; known: path, size, wait, on, is, inner, table",
    ),
    "missing": ("size: 2", "f:1:1: the key 'path' is missing"),
    "not a word": (
        "path: a\ninner: {word: acept}",
        "f:2:15: found 'acept', expected accept or defer, did you mean 'accept'?",
    ),
    "not a number": ("path: a\nsize: x", "f:2:7: found 'x', expected a size such as 500 kB, 10 MB or 10 MiB"),
    "not a time": ("path: a\nwait: 2 moons", "f:2:7: found '2 moons', expected a time such as 30 s, 1 hour or 2 days"),
    "not a flag": ("path: a\non: 1", "f:2:5: found '1', expected yes or no"),
    "a list": ("path: [a]", "f:1:7: a list, expected a text; quote it, thus: '[a]'"),
    "a mapping": ("path: {a: b}", "f:1:7: found a mapping, expected a text"),
    "a text": ("path: a\ninner: x", "f:2:8: found 'x', expected a mapping of word, names"),
}


@pytest.mark.parametrize(("text", "wanted"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_wrong_value(text: str, wanted: str) -> None:
    """What is not of its field's type is one problem at its place."""
    assert read(text)[1] == [wanted]


def test_a_wrong_part_leaves_the_rest() -> None:
    """A field with a default that cannot be read has its default; one without leaves nothing."""
    assert read("path: a\nsize: x\non: yes")[0] == Outer("a", on=True)
    assert read("path: [a, b]\non: yes")[0] is None


UNITS: dict[str, tuple[Callable[[str], Any], str, object]] = {
    "bytes": (parse_size, "500", 500),
    "kB": (parse_size, "10 kB", 10_000),
    "MB": (parse_size, "10MB", 10_000_000),
    "MiB": (parse_size, "10 MiB", 10 * 2**20),
    "half": (parse_size, "0.5 GB", 500_000_000),
    "seconds": (parse_duration, "30", 30.0),
    "minutes": (parse_duration, "5 min", 300.0),
    "hour": (parse_duration, "1 hour", 3600.0),
    "weeks": (parse_duration, "2 weeks", 1209600.0),
    "count": (parse_count, "12", 12),
    "number": (parse_number, "-1.5", -1.5),
    "yes": (parse_bool, "Yes", True),
    "off": (parse_bool, "off", False),
}


@pytest.mark.parametrize(("parse_it", "text", "wanted"), UNITS.values(), ids=UNITS)
def test_a_unit(parse_it: Callable[[str], Any], text: str, wanted: object) -> None:
    """Sizes and times take units, powers of ten and of two apart."""
    assert parse_it(text) == wanted


NO_UNITS: dict[str, tuple[Callable[[str], Any], str]] = {
    "unit alone": (parse_size, "MB"),
    "unknown unit": (parse_size, "5 MX"),
    "negative size": (parse_size, "-5"),
    "two dots": (parse_size, "1.2.3"),
    "exponent": (parse_size, "1e999"),
    "other digits": (parse_size, "٣"),
    "long": (parse_size, "9" * 400),
    "a superscript": (parse_count, "²"),
    "month": (parse_duration, "1 month"),
    "infinite": (parse_number, "inf"),
    "a number of other digits": (parse_number, "٣"),
    "a number with an underscore": (parse_number, "1_0"),
    "not a number": (parse_number, "nan"),
    "maybe": (parse_bool, "maybe"),
}


@pytest.mark.parametrize(("parse_it", "text"), NO_UNITS.values(), ids=NO_UNITS)
def test_no_unit(parse_it: Callable[[str], Any], text: str) -> None:
    """What does not look like a number with a known unit is none."""
    with pytest.raises(ValueError, match="expected"):
        parse_it(text)
