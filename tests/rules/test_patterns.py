"""Tests of milterapp.rules.patterns: one pass finds what one by one would."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.mail.limits import LimitHit
from milterapp.rules import patterns
from milterapp.rules.looseness import loose
from milterapp.rules.patterns import PatternSet, check, compiled, escape, from_glob, from_regex, group_names


def found(texts: list[str], text: str) -> set[int]:
    """Return which of the patterns a set finds."""
    hits: set[int] = set()
    PatternSet((pattern, (at,)) for at, pattern in enumerate(texts)).match(text.encode(), hits)
    return hits


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("aAbB.é*", min_size=1, max_size=3), min_size=1, max_size=6), st.text("aAbB.é*\n", max_size=12))
def test_a_set_finds_what_each_literal_does(literals: list[str], text: str) -> None:
    """A set of literals finds those that stand in the text."""
    assert found([escape(one) for one in literals], text) == {at for at, one in enumerate(literals) if one in text}


@settings(max_examples=200, deadline=None)
@given(st.text("aAb?*.[\n", min_size=1, max_size=6), st.text("aAb.[\n", max_size=8), st.booleans())
def test_a_glob_fits_the_whole_value(glob: str, text: str, case: bool) -> None:
    """`*` is any text, `?` one character, all else itself."""
    pattern = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in glob)
    wanted = re.fullmatch(pattern, text, re.DOTALL | (0 if case else re.IGNORECASE)) is not None
    assert (found([from_glob(glob, case=case)], text) == {0}) is wanted


def test_lines_begin_and_end() -> None:
    """`^` and `$` of a rule's regex are the ends of a line."""
    assert found([from_regex("^b$", case=False), from_regex(r"\Ab", case=False)], "a\nB\nc") == {0}


def test_many_patterns_are_one_set_or_several() -> None:
    """More patterns than fit one set are found all the same."""
    many = [escape(f"word{at}z") for at in range(patterns.SET_SIZE * 2 + 10)]
    assert found(many, "xx word3z word5009z word9999z") == {3, 5009}


def test_a_set_out_of_memory_is_not_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set too large for its memory is split, down to single patterns."""
    monkeypatch.setattr(patterns, "SET_MEMORY", 20_000)
    texts = [rf"a.*b{at}.*c[^x]{at}d" for at in range(40)]
    text = "a b7 c7d b11 c11d"
    assert found(texts, text) == {at for at, one in enumerate(texts) if compiled(one).search(text)}


def test_a_match_out_of_memory_is_not_no_match() -> None:
    """RE2 that has no memory left to match says "no match"; the pattern that always matches tells the difference."""

    class Exhausted:
        def Match(self, text: bytes) -> None:  # noqa: N802 - RE2's own name
            return None

    made = PatternSet([("b+", (1,)), ("x", (2,))])
    made._chunks = [(Exhausted(), [("b+", (1,)), ("x", (2,))])]
    hits: set[int] = set()
    made.match(b"abbb", hits)
    assert hits == {1}


def test_a_heavy_pattern_stands_alone() -> None:
    """A counted repetition of many states slows no set down, and is found all the same."""
    texts = [from_regex("[a-c].{199}x", case=False), escape("needle")]
    assert found(texts, "a" + "y" * 199 + "x needle") == {0, 1}
    assert found(texts, "a" + "y" * 198 + "x needle") == {1}


WRONG = {
    "look-ahead": "a(?!b)",
    "look-behind": "(?<=a)b",
    "back-reference": r"(a)\1",
    "unclosed": "(a",
    "closed too early": "a)|(b",
    "bracket": "[a",
    "nothing to repeat": "*a",
    "too long": "a" * 1025,
    "too large": "(a{1000}){1000}",
    "large": r"\pL{1000}" * 10,
}


@pytest.mark.parametrize("pattern", WRONG.values(), ids=WRONG)
def test_a_pattern_that_is_refused(pattern: str) -> None:
    """What RE2 does not take within our limits is refused with a sentence."""
    with pytest.raises(ValueError, match="pattern"):
        check(pattern)


def test_group_names() -> None:
    """The named groups of a pattern are known, in both spellings."""
    assert sorted(group_names(r"(?P<a>x)(y)(?P<b_2>z)")) == ["a", "b_2"]
    assert group_names("(x)") == []


PIECES = [
    "word",
    "ab",
    "é",
    "É",
    "ß",
    ".",
    "\\d",
    "[a-d]",
    "(a|bé)",
    "x*",
    "(?:ab?){2,3}",
    "\\b",
    "^",
    "$",
    "a{2}",
    "\\pL",
]
WORDS = st.sampled_from(["word", "AB", "aab", "é", "É", "SS", "ß", "7", " ", "\n", "x", "bÉ", "K", "\u212a"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join), min_size=1, max_size=5),
    st.lists(WORDS, max_size=12).map("".join),
    st.booleans(),
)
def test_a_long_text_is_matched_as_a_short_one(regexes: list[str], text: str, case: bool) -> None:
    """The pass over a long text finds what the sets and what each pattern alone would."""
    made = [from_regex(one, case=case) for one in regexes]
    filler = "~" * patterns.SHORT
    long = f"{text}\n{filler}\n{text}"
    assert found(made, long) == {at for at, one in enumerate(made) if compiled(one).search(long)}
    assert found(made, text) == {at for at, one in enumerate(made) if compiled(one).search(text)}


LOOSE = {
    "invoice": 0,
    "in.oi.e": 2,
    "a{30}": 30,
    "a{1}": 0,
    ".*": 1,
    ".{20}": 20,
    ".{2,20}": 20,
    ".{5,}": 5,
    "[^]a-z]+x": 1,
    "[[:alpha:]\\]]{3}": 3,
    "(ab?){0,50}": 100,
    "((a{2}b){3}c){4}": 40,
    "viagra|cialis|pills": 1,
    r"\bword\d{4}\b": 4,
    r"\p{Greek}\pN\x{41}\x41\.": 2,
    r"(?P<year>\d{4})(?i:x)(?s).": 5,
    r"\Qa.*{9}\E.": 1,
    "a{x}": 0,
    "a{²}": 0,
    "a{": 0,
    "^$": 0,
}


@pytest.mark.parametrize(("pattern", "places"), LOOSE.items(), ids=LOOSE)
def test_how_loose_a_pattern_is(pattern: str, places: int) -> None:
    """A place that is no fixed character counts, in a counted repetition every place does."""
    check(pattern)
    assert loose(pattern) == places


def test_a_long_text_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns that take too long for a text are "could not tell", never "no match"."""
    monkeypatch.setattr(patterns, "MOST_SECONDS", 0.0)
    with pytest.raises(LimitHit, match="patterns that took more than"):
        found([r"\d+", r"[x-z]\W"], "a" * 10_000)
