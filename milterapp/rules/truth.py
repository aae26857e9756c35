"""True, false or unknown, and what stands behind it: the marks of earlier rules, and facts to ask somebody else for.

Must never: ask for anything itself; a Need is a value, and the edge answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from milterapp.rules.decision import Scripted

__all__ = ["Answers", "Failed", "Marks", "Need", "Truth", "Unknown", "Value", "Wanted"]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Neither true nor false. later: a later stage will tell; otherwise it could not be told, and why."""

    reason: str
    later: bool = True


Truth = bool | Unknown


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a Need that nobody could give: "could not tell", and why."""

    reason: str


# rate: how many, this message included; duplicate: whether it was seen before; command: the exit status; script: what
# it said.
Value = int | bool | Scripted | Failed


@dataclass(frozen=True, slots=True)
class Need:
    """One fact that deciding lacks; the edge answers it, and remembers its answer for a retry of the same message.

    kind: `rate` (record this message under `key`, answer how many there were in `within` seconds, this one included),
    `duplicate` (record `key`, a Message-ID, answer whether it was there already, within `within` seconds), `command`
    (run the program `key[0]` with the arguments `key[1:]`, answer its exit status) or `script` (run the script
    `key[0]`, answer what it says).
    rule: the rule that asks; what it records is its own. "" for a script, which runs once for a message.
    """

    kind: str
    rule: str
    key: tuple[str, ...]
    within: float = 0.0


Answers = Mapping[Need, Value]


class Wanted(Exception):  # noqa: N818 - no error of anybody: deciding goes on with the answer
    """Deciding stops here until `need` is answered."""

    def __init__(self, need: Need) -> None:
        super().__init__(need)
        self.need = need


@dataclass(frozen=True, slots=True)
class Marks:
    """What rules have marked a message with by now. unknown: a rule that may mark it is left open."""

    score: float = 0.0
    tags: frozenset[str] = frozenset()
    unknown: Unknown | None = None
