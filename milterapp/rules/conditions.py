"""Conditions: what a rule may ask, one small class each. Fields are the keys, the docstring is the manual's paragraph.

Must never: do I/O, or read a fact of a later stage than the one it declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from milterapp.mail.envelope import Stage, split_detail
from milterapp.rules.facts import Facts
from milterapp.rules.operators import Test

__all__ = ["AddressField", "Condition", "Direct", "Field", "Read", "Sought"]

# (part of an occurrence) -> (kind of matcher, how to read its values)
Read = Mapping[str, tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Condition:
    """What every condition has. word: its key in a rule; stage: from when on it is known.

    site, personal: where it may stand. one_recipient: it tells one envelope recipient from another.
    """

    word: ClassVar[str]
    stage: ClassVar[Stage]
    site: ClassVar[bool] = True
    personal: ClassVar[bool] = True
    one_recipient: ClassVar[bool] = False

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Direct(Condition):
    """A condition that answers by itself, without a value to search."""

    def holds(self, facts: Facts) -> bool | None:
        """Return whether it holds, None where a later stage will tell; raises LimitHit."""
        raise NotImplementedError

    def saw(self, facts: Facts) -> str:
        """Return what it looked at, as a trace shows it."""
        raise NotImplementedError


Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Sought(Condition):
    """A condition on the occurrences of a field. Conditions with the same field() share one reading and one matcher."""

    parts: ClassVar[Read] = {"": ("text", lambda value, _: (value,))}
    every: ClassVar[bool] = False
    late: ClassVar[bool] = False  # costs decoding the body: looked at only where nothing else has settled the rule
    begins: ClassVar[Stage | None] = None  # where before its stage some occurrences, but not all, may be there

    test: Test

    def field(self) -> Field:
        """Return what is read: the condition's word, and its argument where it has one."""
        return self.word, ""

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the occurrences; raises LimitHit."""
        raise NotImplementedError

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{' '.join(filter(None, self.field()))} {self.test.say()}"

    def show(self, occurrence: Any) -> str:
        """Return an occurrence as a trace shows it, not yet bounded or escaped."""
        return str(occurrence)


@dataclass(frozen=True, slots=True)
class AddressField(Sought):
    """A condition on addresses; occurrences are mail.Address values."""

    parts: ClassVar[Read] = {
        "": ("address", lambda one, _: (one.address,)),
        "address": ("text", lambda one, _: (one.address,)),
        "localpart": ("localpart", lambda one, _: (one.local,) if one.local else ()),
        "detail": ("text", lambda one, facts: _detail(one.local, facts.delimiter)),
        "domain": ("domain", lambda one, _: (one.domain,) if one.domain else ()),
        "name": ("text", lambda one, _: (one.display,) if one.display else ()),
    }

    def show(self, occurrence: Any) -> str:
        """Return an address as a trace shows it."""
        return f"{occurrence.display} <{occurrence.address}>" if occurrence.display else str(occurrence.address)


def _detail(local: str, delimiter: str) -> tuple[str, ...]:
    detail = split_detail(local, delimiter)[1] if delimiter else ""
    return (detail,) if detail else ()
