"""Patterns, all by RE2 in time linear in the text: checking one, and matching many in one pass.

Must never: hand a pattern or a text to Python's `re`, or take a set that ran out of memory for one without a match.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2

__all__ = ["MAX_PATTERN", "PatternSet", "check", "compiled", "escape", "from_glob", "from_regex", "group_names"]

MAX_PATTERN = 1024
PATTERN_MEMORY = 1024 * 1024
SET_MEMORY = 32 * 1024 * 1024
SET_SIZE = 2500
# A pattern of more instructions than this (a counted repetition, mostly) has so many states that it would slow a whole
# set down; by itself RE2 gives up on states in time.
SET_PROGRAM = 100

# What RE2 leaves out on purpose, as the person who wrote the pattern knows it.
UNSUPPORTED = {
    "invalid perl operator: (?=": "a look-ahead, which linear-time matching does not have",
    "invalid perl operator: (?!": "a look-ahead, which linear-time matching does not have",
    "invalid perl operator: (?<": "a look-behind, which linear-time matching does not have",
    "invalid escape sequence": "a backslash before a character it means nothing to (back-references are not there)",
    "missing )": "a parenthesis that is not closed",
    "unexpected )": "a parenthesis that was not opened",
    "missing ]": "a bracket that is not closed",
    "no argument for repetition operator": "a repetition of nothing",
    "invalid repetition size": "a repetition of more than 1000, alone or multiplied",
    "pattern too large": "a pattern that needs more than a MiB",
}


def _options(memory: int) -> Any:
    options = re2.Options()
    options.max_mem = memory
    options.log_errors = False
    return options


def check(pattern: str) -> None:
    """Raise ValueError, saying what is wrong, unless RE2 takes the pattern within our limits."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters, expected at most {MAX_PATTERN}")
    try:
        compiled(pattern)
        compiled(from_regex(pattern, case=False))
    except re2.error as error:
        said = error.args[0] if error.args else ""
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        reason = next((reason for sign, reason in UNSUPPORTED.items() if said.startswith(sign)), said)
        raise ValueError(f"the pattern {pattern!r} has {reason}") from None


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """Return one compiled pattern, for captures; raises re2.error."""
    return re2.compile(pattern, _options(PATTERN_MEMORY))


def group_names(pattern: str) -> list[str]:
    """Return the names of a pattern's groups."""
    return list(compiled(pattern).groupindex) if "(?P<" in pattern or "(?<" in pattern else []


def escape(literal: str) -> str:
    """Return the pattern that matches a text literally."""
    return str(re2.escape(literal))


def from_regex(pattern: str, *, case: bool) -> str:
    """Return a rule's regex as RE2 is given it: `^` and `$` match at line ends, case only counts where asked for."""
    return f"(?{'m' if case else 'im'}:{pattern})"


def from_glob(glob: str, *, case: bool) -> str:
    """Return the pattern of a glob: `*` any text, `?` one character, the whole value must fit, all else is literal."""
    body = "".join({"*": ".*", "?": "."}.get(char) or escape(char) for char in glob)
    return rf"\A(?{'s' if case else 'is'}:{body})\z"


class PatternSet:
    """Many patterns over one text in one pass, in chunks that fit RE2's memory.

    Each chunk ends with a pattern that always matches: RE2 answers "out of memory" as "no match", and its absence
    tells the two apart; such a chunk's patterns are then tried one by one. A chunk without a set is tried so always.
    """

    __slots__ = ("_chunks",)

    def __init__(self, patterns: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self._chunks: list[tuple[Any, list[tuple[str, tuple[int, ...]]]]] = []
        every: list[tuple[str, tuple[int, ...]]] = []
        alone: list[tuple[str, tuple[int, ...]]] = []
        for one in patterns:
            heavy = "{" in one[0] and compiled(one[0]).programsize > SET_PROGRAM
            (alone if heavy else every).append(one)
        if alone:
            self._chunks.append((None, alone))
        for at in range(0, len(every), SET_SIZE):
            self._add(every[at : at + SET_SIZE])

    def _add(self, chunk: list[tuple[str, tuple[int, ...]]]) -> None:
        try:
            made = re2.Set.SearchSet(_options(SET_MEMORY))
            for pattern, _ in chunk:
                made.Add(pattern)
            made.Add("")
            made.Compile()
        except re2.error:
            if len(chunk) == 1:
                self._chunks.append((None, chunk))
                return
            half = len(chunk) // 2
            self._add(chunk[:half])
            self._add(chunk[half:])
            return
        self._chunks.append((made, chunk))

    def match(self, text: str, into: set[int]) -> None:
        """Add the numbers of the patterns found in the text; it must hold no surrogates."""
        encoded = text.encode()
        for made, chunk in self._chunks:
            hits = made.Match(encoded) if made is not None else None
            if hits is None or len(chunk) not in hits:
                for pattern, numbers in chunk:
                    if compiled(pattern).search(text):
                        into.update(numbers)
            elif len(hits) > 1:
                for hit in hits:
                    if hit < len(chunk):
                        into.update(chunk[hit][1])
