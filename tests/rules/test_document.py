"""Tests of milterapp.rules.document: YAML with every slip a problem."""

from __future__ import annotations

import gc
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.rules.document import MAX_DEPTH, MAX_SIZE, parse
from milterapp.rules.nodes import Items, Mapping, Node, Text, quoted

# name: (source, the problem)
SLIPS = {
    "empty value": ("a:\n", "1:3: 'a' has no value, expected one; leave the key out instead"),
    "commented out": ("a:\n  # b: c\n", "1:3: 'a' has no value, expected one; leave the key out instead"),
    "empty quotes": ("a: ''", "1:4: an empty text (''), expected a value; leave the key out instead"),
    "empty list": ("a: []", "1:4: an empty list, expected a value; leave the key out instead"),
    "empty mapping": ("a: {}", "1:4: an empty mapping, expected a value; leave the key out instead"),
    "empty item": ("- a\n-\n", "2:2: nothing after `-`, expected a value"),
    "cut short": (
        "a: Re #1 offer",
        (
            "1:4: the value 'Re' ends where ` #` begins a comment; to keep all of it, quote it, thus: 'Re #1 offer';"
            " for a comment put two blanks before the `#`"
        ),
    ),
    "alias": ("a: *b", "1:4: the alias *b, expected a value; quote it, thus: '*b'"),
    "anchor": ("a: &b c", "1:4: an anchor (&…), expected a value; quote it, thus: '&b c'"),
    "tag": ("a: !b c", "1:4: a tag (!…), expected a value; quote it, thus: '!b c'"),
    "standard tag": ("a: !!str c", "1:4: a tag (!…), expected a value; quote it, thus: '!!str c'"),
    "duplicate key": ("a: b\na: c", "2:1: the key 'a' a second time, first on line 1"),
    "comma in braces": (
        "a: {reject: 5.7.1 Sorry, no}",
        "1:28: 'no' has no value: in braces a comma ends a plain value; quote it, thus: '5.7.1 Sorry, no'",
    ),
    "braces around a word": ("a: {b}", "1:6: 'b' in braces has no value; quote it, thus: '{b}'"),
    "at sign": ("a: @b", "1:4: a value that begins with '@'; quote it, thus: '@b'"),
    "tab": ("a:\n\tb: c", "2:1: a tab, expected blanks: YAML is indented with blanks"),
    "two colons": ("a: b: c", "1:5: a second ': ' in one line; quote the value that holds it, thus: 'a: b'"),
    "unclosed quote": ("a: 'b", "1:6: a quote that is not closed"),
    "unknown escape": (r'a: "\d"', "1:5: a backslash in double quotes; use single quotes"),
    "key that is a list": ("? [a]\n: b", "1:3: a list or mapping as a key, expected a word; quote it"),
    "two documents": ("a: b\n---\nc: d", "2:1: a second document, expected one; remove the line `---`"),
    "directive": ("%YAML 1.1\n---\na: b", "1:1: a line that begins with '%', expected `key: value`"),
    "NUL": ("a: b\0c", "1:5: the character U+0000, expected printable text"),
    "not UTF-8": (b"a: b\nc: \xff", "2:4: byte 0xff, expected UTF-8 text"),
    "deep brackets": ("[" * 500, f"1:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"),
    "deep items": ("- " * 100_000, f"1:{MAX_DEPTH * 2 + 1}: nested deeper than {MAX_DEPTH} levels"),
    "deep braces": ("{a: " * 100_000, f"1:{MAX_DEPTH * 4 + 1}: nested deeper than {MAX_DEPTH} levels"),
    "too large": (b" " * (MAX_SIZE + 1), f"1:1: {MAX_SIZE + 1} bytes, expected at most {MAX_SIZE}"),
}


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_a_bottomless_nest_is_one_problem(opening: str) -> None:
    """However deep a file nests, and whatever libyaml itself bounds, it is told that this is too deep, and no more."""
    _, problems = parse(opening.encode() * 100_000, "f")
    assert [problem.text for problem in problems] == [f"nested deeper than {MAX_DEPTH} levels"]


@pytest.mark.parametrize(("source", "wanted"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_a_problem_with_its_place(source: str | bytes, wanted: str) -> None:
    """What YAML would let pass, or refuse in its own words, is a problem that says what to write."""
    _, problems = parse(source.encode() if isinstance(source, str) else source, "f")
    assert f"f:{wanted}" in [str(problem) for problem in problems]


RIGHT = {
    "two blanks make a comment": ("a: b  # c", "b"),
    "a comment of its own": ("# x\na: b\n # c\n", "b"),
    "a hash inside": ("a: b#c", "b#c"),
    "quoted hash": ("a: 'b #c'", "b #c"),
    "quoted brackets": ("a: '[SPAM]'", "[SPAM]"),
    "block": ("a: |\n  b #c\n  d\n", "b #c\nd\n"),
    "a time stays text": ("a: 22:30", "22:30"),
    "on stays text": ("a: on", "on"),
    "null stays text": ("a: null", "null"),
    "a number stays text": ("a: 010", "010"),
    "byte order mark": ("\ufeffa: b", "b"),
    "CRLF": ("a: b\r\n", "b"),
}


@pytest.mark.parametrize(("source", "wanted"), RIGHT.values(), ids=RIGHT)
def test_what_is_no_slip_is_read_as_text(source: str, wanted: str) -> None:
    """Every scalar is the text it looks like."""
    root, problems = parse(source.encode(), "f")
    assert problems == []
    assert isinstance(root, Mapping)
    value = root.get("a")
    assert isinstance(value, Text)
    assert value.value == wanted


def test_problems_come_all_at_once() -> None:
    """One slip does not hide the next."""
    _, problems = parse(b"a: ''\nb: *c\nd: e #f\nd: g\n", "f")
    assert [problem.place.line for problem in problems] == [1, 2, 3, 4]


def test_nothing_but_comments_is_nothing() -> None:
    """An empty document has no root, and no problem of its own."""
    assert parse(b"", "f") == (None, [])
    assert parse(b"# a\n\n", "f") == (None, [])


def test_an_empty_text_may_be_allowed() -> None:
    """Settings may say "no delimiter"; a plain value that is missing is a slip all the same."""
    assert parse(b"a: ''\nb: []", "f", allow_empty=True)[1] == []
    assert len(parse(b"a:\n", "f", allow_empty=True)[1]) == 1


def test_an_alias_bomb_is_not_expanded() -> None:
    """Aliases are refused where they stand: nine levels of nine cost nothing."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    gc.collect()  # else all that the process holds may be gone through below
    begun = time.process_time()
    root, problems = parse(bomb.encode(), "f")
    assert time.process_time() - begun < 0.5
    assert problems
    assert root is None or isinstance(root, Mapping)


def test_places_count_from_one_in_characters() -> None:
    """A place is the line and the character an editor shows, whatever stands before."""
    root, _ = parse("é: [ü, ö]\n".encode(), "f")
    assert isinstance(root, Mapping)
    items = root.get("é")
    assert isinstance(items, Items)
    assert [str(item.place) for item in items.items] == ["f:1:5", "f:1:8"]


ALPHABET = st.sampled_from(list("ab:-#[]{},&*!|>'\"%@`? \n\t\\0\u0085é\ufeff"))


def walk(node: Node | None, depth: int = 0) -> None:
    """Look at every node."""
    assert depth <= MAX_DEPTH
    if isinstance(node, Items):
        for item in node.items:
            walk(item, depth + 1)
    elif isinstance(node, Mapping):
        assert len({key.value for key, _ in node.pairs}) == len(node.pairs)
        for _, value in node.pairs:
            walk(value, depth + 1)


@settings(max_examples=300, deadline=None)
@given(st.text(ALPHABET, max_size=60).map(str.encode) | st.binary(max_size=60))
def test_no_file_raises(source: bytes) -> None:
    """Whatever a file holds, it is nodes and problems; where there are none of either it is empty."""
    root, problems = parse(source, "f")
    walk(root)
    assert all(problem.place.line >= 1 and problem.place.column >= 1 for problem in problems)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=40))
def test_a_quoted_text_comes_back(text: str) -> None:
    """What a problem says to write in quotes is read as the text that was meant."""
    if any(char in "\u0085\u2028\u2029\ufeff\ufffe" for char in text):
        return
    root, problems = parse(f"a: {quoted(text)}".encode(), "f")
    assert problems == []
    assert isinstance(root, Mapping)
    value = root.get("a")
    assert isinstance(value, Text)
    assert value.value == text
