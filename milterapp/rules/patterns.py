"""Patterns, all by RE2 in time linear in the text: checking one, and matching many in one pass.

Must never: hand a pattern or a text to Python's `re`, or take a set that ran out of memory for one without a match.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from time import thread_time
from typing import Any

import re2

from milterapp.mail.limits import LimitHit

__all__ = ["MAX_PATTERN", "PatternSet", "check", "compiled", "escape", "from_glob", "from_regex", "group_names"]

MAX_PATTERN = 1024
PATTERN_MEMORY = 1024 * 1024
SET_MEMORY = 32 * 1024 * 1024
SET_SIZE = 2500
# A pattern of more instructions than this (a counted repetition, mostly) has so many states that it would slow a whole
# set down; by itself RE2 gives up on states in time.
SET_PROGRAM = 100

MAX_LOOSE = 40  # of a pattern for the body, see looseness.py: 1 MB costs it a third of a second at worst
SHORT = 2048  # bytes of a text that sets are asked about, whatever is in them
MOST_SECONDS = 0.15  # of CPU for one long text of up to 1 MB, and for each further one
NEVER = r"\x00milterapp\x00"

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
    """Many patterns over one text. literal: they are all plain texts.

    A short text is matched by sets, in one pass for each chunk that fits RE2's memory. Each chunk ends with a pattern
    that always matches: RE2 answers "out of memory" as "no match", and its absence tells the two apart; such a chunk's
    patterns are then tried one by one. A chunk without a set is tried so always.
    A long text could have a set of patterns that are no plain texts build a state for every byte. There one pass looks
    for the texts that the patterns cannot do without, and those whose texts are there are tried one by one, within
    a time. Raises LimitHit where that is not enough.
    """

    __slots__ = ("_chunks", "_filter", "_literal", "_patterns")

    def __init__(self, patterns: Iterable[tuple[str, tuple[int, ...]]], *, literal: bool = False) -> None:
        self._literal = literal
        self._patterns = list(patterns)
        self._filter: Any = None
        self._chunks: list[tuple[Any, list[tuple[str, tuple[int, ...]]]]] = []
        every: list[tuple[str, tuple[int, ...]]] = []
        alone: list[tuple[str, tuple[int, ...]]] = []
        for one in self._patterns:
            heavy = not literal and "{" in one[0] and compiled(one[0]).programsize > SET_PROGRAM
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

    def match(self, encoded: bytes | bytearray, into: set[int]) -> None:
        """Add the numbers of the patterns found in a text in UTF-8. Raises LimitHit."""
        if len(encoded) > SHORT and not self._literal:
            self._match_long(encoded, into)
            return
        for made, chunk in self._chunks:
            hits = made.Match(encoded) if made is not None else None
            if hits is None or len(chunk) not in hits:
                for pattern, numbers in chunk:
                    if compiled(pattern).search(encoded):
                        into.update(numbers)
            elif len(hits) > 1:
                for hit in hits:
                    if hit < len(chunk):
                        into.update(chunk[hit][1])

    def _match_long(self, encoded: bytes | bytearray, into: set[int]) -> None:
        known = self._filter
        if known is None:
            known = re2.Filter()
            options = _options(PATTERN_MEMORY)
            for pattern, _ in self._patterns:
                known.Add(pattern, options)
            known.Add(NEVER, options)  # without any text to look for a filter cannot be asked
            known.Compile()
            self._filter = known
        most = MOST_SECONDS * max(1.0, len(encoded) / 1_000_000)
        begun = thread_time()
        for hit in known.Match(encoded, True) or ():  # noqa: FBT003 - "potential": what may match by its texts
            if hit == len(self._patterns):
                continue
            if thread_time() - begun > most:
                raise LimitHit(f"patterns that took more than {most:.2f} seconds for {len(encoded)} bytes")
            if known.re(hit).search(encoded):
                into.update(self._patterns[hit][1])
