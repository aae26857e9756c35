"""A long text, taken in pieces, reads as it would whole."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.rules import long_text
from milterapp.rules.decide import decide
from milterapp.rules.folding import fold, plain
from milterapp.rules.long_text import RawText, encoded
from tests.rules.helpers import facts_of, policy_of, rule_of

# What composes, folds to several characters, has several bytes, or ends a line.
PIECES = st.lists(
    st.sampled_from(["a", "E", "\u0301", "\u0323", "é", "ß", "ﬁ", "\r\n", "\r", "\n", "가", "\u1100", "\u1161", "🙂"])
)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "LONG", 4)


@settings(max_examples=500)
@given(PIECES.map("".join), st.sampled_from([fold, plain]))
def test_a_text_in_pieces(text: str, form: Callable[[str], str]) -> None:
    """Folded and composed in pieces it is what it is folded and composed whole."""
    assert bytes(encoded(text, form)) == form(text).encode()


@settings(max_examples=500)
@given(PIECES.map("".join).map(str.encode) | st.binary(), st.sampled_from([fold, plain]))
def test_bytes_in_pieces(raw: bytes, form: Callable[[str], str]) -> None:
    """So are bytes, whatever is cut apart by the pieces: a line end, a character, what is no UTF-8."""
    assert bytes(encoded(RawText(raw), form)) == form(str(RawText(raw))).encode()


@pytest.mark.parametrize(
    ("condition", "holds"),
    {
        "folded": ("raw: {contains: NEEDLE}", True),
        "case": ("raw: {contains: NEEDLE, case: true}", False),
        "regex": (r"raw: {regex: 'n[e]+dle\b'}", True),
        "end": ("raw: {ends: needle}", False),
        "body": ("body: {contains: Needle}", True),
        "start": ("body: {starts: xxx}", True),
        "absent": ("body: {contains: needles}", False),
    }.values(),
)
def test_rules_on_a_long_text(condition: str, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator finds in two megabytes what it finds in a line."""
    monkeypatch.setattr(long_text, "LONG", 1 << 20)
    decision = decide(policy_of(rule_of(condition)), facts_of(b"Subject: a\n\n" + b"x" * 2_000_000 + b" needle\n"))
    assert decision.rules[0].matched is holds
