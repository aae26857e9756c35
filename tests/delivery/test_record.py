"""A Decision survives the journal: written and read again it is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery.record import RecordError, from_text, is_left, to_text
from milterapp.mail.edits import (
    AddHeader,
    Banner,
    DropAttachments,
    Footer,
    PrefixSubject,
    PrependHeader,
    RemoveHeader,
    ReplaceBody,
    SetHeader,
)
from milterapp.mail.envelope import Stage
from milterapp.rules.decision import (
    AddRecipient,
    Decision,
    Explanation,
    Filter,
    RemoveRecipient,
    Reply,
    SetSender,
    Transport,
    Verdict,
)
from milterapp.rules.deliveries import File, Forward, Keep, Pipe, SendReply, Vacation
from milterapp.rules.problem import Place, Problem

TEXTS = st.text(st.characters(), max_size=20)  # surrogates too
WORDS = st.lists(TEXTS, max_size=3).map(tuple)
NUMBERS = st.lists(st.integers(), max_size=3).map(tuple)
DELIVERIES = st.one_of(
    st.builds(Keep, st.booleans()),
    st.builds(File, st.lists(TEXTS).map(tuple), st.booleans(), WORDS),
    st.builds(Forward, TEXTS, st.booleans()),
    st.builds(SendReply, TEXTS, TEXTS, TEXTS, TEXTS),
    st.builds(Vacation, TEXTS, TEXTS, st.integers(), TEXTS, WORDS, TEXTS, TEXTS, TEXTS),
    st.builds(Pipe, TEXTS, WORDS, st.booleans()),
)
EDITS = st.one_of(
    st.builds(AddHeader, TEXTS, TEXTS),
    st.builds(SetHeader, TEXTS, TEXTS),
    st.builds(PrependHeader, TEXTS, TEXTS),
    st.builds(RemoveHeader, TEXTS, st.none() | NUMBERS),
    st.builds(PrefixSubject, TEXTS),
    st.builds(Banner, TEXTS, TEXTS, TEXTS, st.booleans()),
    st.builds(Footer, TEXTS, TEXTS, TEXTS, st.booleans()),
    st.builds(DropAttachments, NUMBERS, TEXTS),
    st.builds(ReplaceBody, TEXTS),
)
ENVELOPE = st.one_of(*(st.builds(one, TEXTS) for one in (SetSender, AddRecipient, RemoveRecipient, Transport)))
DECISIONS = st.builds(
    Decision,
    verdict=st.sampled_from(Verdict),
    reply=st.none() | st.builds(Reply, st.integers(), TEXTS, TEXTS),
    stage=st.none() | st.sampled_from(Stage),
    settled=st.booleans(),
    edits=st.lists(EDITS, max_size=5).map(tuple),
    deliveries=st.lists(DELIVERIES, max_size=5).map(tuple),
    problems=st.lists(st.builds(Problem, st.builds(Place, TEXTS), TEXTS), max_size=2).map(tuple),
    could_not_tell=TEXTS,
    matched=WORDS,
    filters=st.lists(st.builds(Filter, TEXTS, WORDS), max_size=2).map(tuple),
    envelope=st.lists(ENVELOPE, max_size=3).map(tuple),
    score=st.floats(allow_nan=False, allow_infinity=False),
    tags=WORDS,
    log=WORDS,
)


@given(DECISIONS, st.booleans())
def test_a_record_is_the_decision(decision: Decision, left: bool) -> None:
    """Whatever was decided, the record gives it back, and who keeps the message; it is plain ASCII."""
    text = to_text(decision, left=left)
    assert text.isascii()
    assert (from_text(text), is_left(text)) == (decision, left)


def test_the_trace_stays_out() -> None:
    """The lines of the trace have no effect, so the record does without them."""
    decision = Decision(rules=(Explanation("a", True, "because", Place("f")),), matched=("a",))
    assert from_text(to_text(decision)) == Decision(matched=("a",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"": "Keep", "implicit": false}',
        '{"": "Popen", "args": ["id"]}',
        '{"": "Decision", "colour": "red"}',
        '{"": "Decision", "verdict": {"": "Verdict", "word": "MAYBE"}}',
        '{"": "Decision"',
        '{"": ["Decision"]}',
        "[" * 100_000,
    ],
)
def test_anything_else_is_no_record(text: str) -> None:
    """A text that this version cannot read as a decision is an error, never a guess."""
    with pytest.raises(RecordError):
        from_text(text)


def test_only_what_is_known_is_recorded() -> None:
    """A value of a kind that could not be read back is not written."""
    with pytest.raises(RecordError, match="object"):
        to_text(Decision(deliveries=(object(),)))  # type: ignore[arg-type]
