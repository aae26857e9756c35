"""Values with parameters (Content-Type, Content-Disposition): RFC 2045 section 5.1, RFC 2231, and worse.

Must never: choose where readers disagree; every reading of a parameter is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from milterapp.mail import charsets, words
from milterapp.mail.limits import LimitHit

__all__ = ["Value", "parse"]

_PARAMETER = re.compile(
    r';[ \t]*+(?P<name>[^\s=;"]++)[ \t]*+=[ \t]*+(?:"(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)"?|(?P<plain>[^;]*+))',
    re.DOTALL,
)
_QUOTED_PAIR = re.compile(r'\\(["\\])')
_COMMENT = re.compile(r"\([^()]*+\)")
_SECTION = re.compile(r"(?P<name>[^*]++)(?:\*(?P<number>[0-9]{1,4}))?(?P<encoded>\*)?")
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Value:
    """word: what stands before the first `;`, lower case. readings: for each parameter all it may be taken for."""

    word: str
    readings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def first(self, name: str) -> str:
        """Return the first reading of a parameter, "" without one."""
        return self.readings.get(name, ("",))[0]


def parse(text: str) -> Value:
    """Return the value of a field, unfolded and not decoded; names are in lower case. Raises LimitHit."""
    word, semicolon, _ = text.partition(";")
    word = "".join(_COMMENT.sub(" ", word).split()).lower() if "(" in word else word.strip().lower()
    if not semicolon:
        return Value(word)
    plain: dict[str, dict[str, None]] = {}
    sections: dict[str, dict[int, tuple[str, bool]]] = {}
    faults: list[str] = []
    for count, match in enumerate(_PARAMETER.finditer(text, text.index(";"))):
        if count == _MOST:
            raise LimitHit(f"more than {_MOST} parameters in one field")
        quoted = match["quoted"]
        value = match["plain"].strip() if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        name = match["name"].lower()
        parsed = _SECTION.fullmatch(name) if "*" in name else None
        if parsed is None or (parsed["number"] is None and not parsed["encoded"]):
            readings = plain.setdefault(name, {})
            readings[value] = None
            if len(readings) == 2:
                faults.append(f"two values of {name[:40]}")
            continue
        number = int(parsed["number"]) if parsed["number"] is not None else -1
        one = sections.setdefault(parsed["name"], {})
        if number in one and one[number][0] != value:
            faults.append(f"two values of {name[:40]}")
        one.setdefault(number, (value, parsed["encoded"] is not None))
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys([*sections, *plain]):
        extended = _extended(sections.get(name, {}))
        decoded = [words.decode(value) for value in plain.get(name, ())]
        if extended and any(one not in extended for one in decoded):
            faults.append(f"{name[:40]} and {name[:40]}* differ")
        found[name] = tuple(dict.fromkeys([*extended, *decoded]))
    return Value(word, found, tuple(dict.fromkeys(faults)))


def _extended(sections: dict[int, tuple[str, bool]]) -> list[str]:
    """Return the readings of `name*` and of `name*0`, `name*1*`, … put together (RFC 2231 sections 3 and 4)."""
    readings = []
    if -1 in sections:
        readings.append(_decoded([sections[-1]]))
    numbered = [sections[number] for number in sorted(sections) if number >= 0]
    if numbered:
        readings.append(_decoded(numbered))
    return readings


def _decoded(pieces: list[tuple[str, bool]]) -> str:
    charset = ""
    first, encoded = pieces[0]
    if encoded and first.count("'") >= 2:
        charset, _, first = first.split("'", 2)
        pieces = [(first, True), *pieces[1:]]
    if not any(encoded for _, encoded in pieces):
        return words.decode("".join(value for value, _ in pieces))
    data = b"".join(
        unquote_to_bytes(value) if encoded else value.encode("utf-8", "replace") for value, encoded in pieces
    )
    return charsets.decode(data, charset)[0]
