"""How dear a pattern can be: the places in it where a text has a choice, counted repetitions counted out.

RE2 matches in time linear in the text, but the factor grows with the places that are open at once: of `a.{50}b` the
fifty dots, of `invoice` none. This is an estimate from above, made from the pattern as it is written.

Must never: be asked about a pattern that RE2 has not taken.
"""

from __future__ import annotations

__all__ = ["loose"]

CLASSES = "dDwWsSpPNXC"
NOTHING = "bBAzZ"


def loose(pattern: str) -> int:
    """Return the number of places that are not one fixed character; in a counted repetition, all places."""
    return _Scan(pattern).alternatives()[0]


Weight = tuple[int, int]  # loose places, all places


class _Scan:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _until(self, end: str) -> str:
        found = self._pattern.find(end, self._at)
        found = len(self._pattern) if found < 0 else found
        text, self._at = self._pattern[self._at : found], found + len(end)
        return text

    def alternatives(self) -> Weight:
        """Read up to the end of the group, or of the pattern."""
        choices = every = places = 0
        while (char := self._peek()) and char != ")":
            if char == "|":
                self._at += 1
                choices = 1
                continue
            one = self._repeated(self._atom())
            every, places = every + one[0], places + one[1]
        return every + choices, places

    def _atom(self) -> Weight:
        char = self._peek()
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            self._class()
            return 1, 1
        if char == "\\":
            return self._escape()
        if char in "^$":
            return 0, 0
        return (1, 1) if char == "." else (0, 1)

    def _group(self) -> Weight:
        if self._peek() == "?":
            self._at += 1
            if self._peek() in "P<":
                self._until(">")
            else:
                while self._peek() not in ("", ":", ")"):
                    self._at += 1
                if self._peek() == ":":
                    self._at += 1
        found = self.alternatives()
        self._at += 1
        return found

    def _class(self) -> None:
        if self._peek() == "^":
            self._at += 1
        first = True
        while (char := self._peek()) and (char != "]" or first):
            first = False
            self._at += 1
            if char == "\\":
                self._at += 1
            elif char == "[" and self._peek() == ":":
                self._until(":]")
        self._at += 1

    def _escape(self) -> Weight:
        char = self._peek()
        self._at += 1
        if char in "pPx" and self._peek() == "{":
            self._until("}")
        elif char == "x":
            self._at += 2
        elif char in "pP":
            self._at += 1
        elif char == "Q":
            return 0, len(self._until("\\E"))
        if char in CLASSES:
            return 1, 1
        return (0, 0) if char in NOTHING else (0, 1)

    def _repeated(self, one: Weight) -> Weight:
        """Return the weight with the repetitions that follow it."""
        while (char := self._peek()) and char in "*+?{":
            self._at += 1
            if char == "{":
                counts = self._pattern[self._at :].partition("}")[0].split(",")
                if not _is_number(counts[0]) or len(counts) > 2:
                    one = (one[0], one[1] + 1)
                    continue
                self._until("}")
                most = max(int(count) if _is_number(count) else 1 for count in counts)
                one = (one[1] * most, one[1] * most) if most > 1 else one
        return one


def _is_number(count: str) -> bool:
    """Return whether RE2 reads a repetition so: digits of other scripts stand for themselves."""
    return count.isascii() and count.isdigit()
