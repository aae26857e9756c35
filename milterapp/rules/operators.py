"""Operators: what a condition may ask of a value, one small class each; the docstring is its paragraph in the manual.

Must never: look at a value by itself where the matcher can answer; each operator enters what it asks for there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from milterapp.rules.lists import AddressList, TypedList
from milterapp.rules.matcher import Matcher
from milterapp.rules.patterns import from_glob, from_regex, group_names
from milterapp.rules.units import parse_number

__all__ = ["OPERATORS", "SUBTESTS", "WORDS", "Operator", "Test", "TestNumber"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator with its values, of which any one is enough. word: as a rule writes it."""

    word: ClassVar[str]
    pattern: ClassVar[bool] = False

    values: tuple[str, ...]
    case: bool = False

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        raise NotImplementedError

    def say(self) -> str:
        """Return the operator as a trace shows it."""
        shown = " or ".join(repr(value) for value in self.values[:3])
        return f"{self.word} {shown}{' …' if len(self.values) > 3 else ''}"


class Is(Operator):
    """The whole value is this text. It is what a plain value means. Under an address it ignores the detail of the
    message's address (`bob@example.org` is also bob+lists@example.org), under a domain a leading dot means the domain
    and all below it, under `client` it is an IP address or a network.
    """

    word = "is"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_same(value, number, case=self.case)


class Contains(Operator):
    """The text stands somewhere in the value."""

    word = "contains"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_part(value, number, case=self.case)


class Starts(Operator):
    """The value begins with the text."""

    word = "starts"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_start(value, number, case=self.case)


class Ends(Operator):
    """The value ends with the text."""

    word = "ends"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_end(value, number, case=self.case)


class Glob(Operator):
    """The whole value fits, where `*` stands for any text and `?` for one character; brackets are plain characters."""

    word = "glob"
    pattern = True

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_pattern(from_glob(value, case=self.case), number)


class Regex(Operator):
    r"""The regular expression is found in the value, wherever it does not say `^` or `$`, which match at the ends of
    lines. The syntax is RE2's: no look-around and no back-references, in return no message can make it slow. Write it
    in single quotes. `\d`, `\w`, `\s` and `\b` know ASCII only. A named group `(?P<year>\d+)` is the value
    `${match.year}` in actions, where the condition is not below `any` or `not`.
    """

    word = "regex"
    pattern = True

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for value in self.values:
            matcher.enter_pattern(from_regex(value, case=self.case), number)

    def groups(self) -> list[tuple[str, list[str]]]:
        """Return each pattern with the names of its groups."""
        return [(value, group_names(value)) for value in self.values]


@dataclass(frozen=True, slots=True)
class In(Operator):
    """The value is in the list of that name, or in any of several. The condition gives the list its type: addresses
    and domains, networks, domains, or texts; an entry with `*` or `?` is a glob, but for networks.
    """

    word = "in"

    lists: tuple[TypedList, ...] = field(default=(), compare=False)

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        for one in self.lists:
            matcher.enter_list(one, number)

    def entry(self, form: str) -> str | None:
        """Return the entry of one of the lists that is this address, None where none is."""
        found = (one.entry(form) for one in self.lists if isinstance(one, AddressList))
        return next((entry for entry in found if entry is not None), None)


@dataclass(frozen=True, slots=True)
class Over(Operator):
    """The value is a number greater than this one. Sizes take units: `10 MB` is 10 000 000, `10 MiB` 10 485 760 bytes.
    A text that is no number is neither over nor under one.
    """

    word = "over"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        bound = min(parse_number(value) for value in self.values)
        matcher.enter_check(lambda text: (found := _number(text)) is not None and found > bound, number)


@dataclass(frozen=True, slots=True)
class Under(Operator):
    """The value is a number less than this one."""

    word = "under"

    def enter(self, matcher: Matcher, number: int) -> None:
        """Enter the test under its number."""
        bound = max(parse_number(value) for value in self.values)
        matcher.enter_check(lambda text: (found := _number(text)) is not None and found < bound, number)


def _number(text: str) -> float | None:
    try:
        return parse_number(text.strip())
    except ValueError:
        return None


OPERATORS: dict[str, type[Operator]] = {
    one.word: one for one in (Is, Contains, Starts, Ends, Glob, Regex, In, Over, Under)
}

# What else may stand below a condition: asked of the occurrences together, or of a part of an address.
WORDS: dict[str, str] = {
    "exists": "`yes`: there is such a value, whatever it is; `no`: there is none.",
    "count": "How many such values there are: a number, or `over` and `under` one.",
    "case": "`yes`: upper and lower case are different; everything beside it in the same braces compares so.",
}
SUBTESTS: dict[str, str] = {
    "address": "The address as a text, its detail included.",
    "localpart": "What stands before the `@`; `is` takes it with the detail or without.",
    "detail": "What follows the recipient delimiter in the local part (`lists` in bob+lists@example.org).",
    "domain": "What follows the `@`: `example.org` is that domain alone, `.example.org` it and all below.",
    "name": "The display name, decoded.",
}


@dataclass(frozen=True, slots=True)
class TestNumber:
    """A test of a number: every bound that is given must hold."""

    is_: tuple[int, ...] = ()
    over: int | None = None
    under: int | None = None

    def holds(self, number: int) -> bool:
        """Return whether the number passes."""
        return (
            (not self.is_ or number in self.is_)
            and (self.over is None or number > self.over)
            and (self.under is None or number < self.under)
        )

    def holds_from(self, least: int) -> bool | None:
        """Return whether every number from `least` up passes (True), none does (False), or some (None)."""
        if (self.under is not None and least >= self.under) or (self.is_ and least > max(self.is_)):
            return False
        if self.under is None and not self.is_ and (self.over is None or least > self.over):
            return True
        return None

    def say(self) -> str:
        """Return the test as a trace shows it."""
        words = [f"is {' or '.join(map(str, self.is_))}"] if self.is_ else []
        words += [f"over {self.over}"] if self.over is not None else []
        words += [f"under {self.under}"] if self.under is not None else []
        return " and ".join(words)


@dataclass(frozen=True, slots=True)
class Test:
    """Everything that is asked of one field: all of it holds for the same occurrence, and one such is enough.

    parts: (part of an occurrence, operators), the part "" being the occurrence itself. exists, count: of all together.
    """

    parts: tuple[tuple[str, tuple[Operator, ...]], ...] = ()
    exists: bool | None = None
    count: TestNumber | None = None

    def say(self) -> str:
        """Return the test as a trace shows it."""
        words = [
            f"{part} {operator.say()}".strip() + (" (case)" if operator.case else "")
            for part, operators in self.parts
            for operator in operators
        ]
        words += [f"{part} exists" for part, operators in self.parts if not operators]
        if self.exists is not None:
            words.append("exists" if self.exists else "does not exist")
        if self.count is not None:
            words.append(f"count {self.count.say()}")
        return " and ".join(words)
