"""What the in-line rules found reaches delivery as it was, and nobody else can say it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from milterapp.mail.findings import FIELD, NOTHING, Findings, read, value_of
from milterapp.mail.message import Mail

TAGS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(str.lower), max_size=5)
SCORES = st.floats(-1e6, 1e6).map(lambda value: round(value, 6) + 0.0)


def mail(*values: str) -> Mail:
    """Return a message with these values of the field."""
    return Mail("".join(f"{FIELD}: {value}\n" for value in values).encode() + b"Subject: x\n\nx\n")


@given(SCORES, TAGS)
def test_what_was_found_is_read(score: float, tags: list[str]) -> None:
    """Any score and any tags come back, on one line of plain characters."""
    value = value_of("4XyZ12", score, tags)
    assert value.isascii()
    assert value.isprintable()
    wanted = Findings(score, tuple(tag.lower() for tag in tags)) if score or tags else NOTHING
    assert (read(mail(value), "4XyZ12") if value else NOTHING) == wanted


def test_too_many_tags_are_left_out() -> None:
    """The line stays one that mail may have; the first tags are on it."""
    value = value_of("4XyZ", 1.5, [f"tag-{at}" for at in range(1000)])
    assert len(value) <= 900
    assert read(mail(value), "4XyZ").tags[:3] == ("tag-0", "tag-1", "tag-2")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param(["id=OTHER; score=5; tags=spam"], id="another-queue-id"),
        pytest.param(["id=; score=5; tags=spam"], id="no-queue-id"),
        pytest.param(["id=4XyZ; score=5; tags=spam"] * 2, id="two-of-them"),
        pytest.param(["id=4XyZ; score=5; tags=spam", "id=OTHER; score=1; tags="], id="one-of-two"),
        pytest.param(["id=4XyZ; score=nan; tags=spam"], id="no-number"),
        pytest.param(["id=4XyZ; score=5; tags=spam; more"], id="more"),
        pytest.param(["(x) id=4XyZ; score=5; tags=spam"], id="a-comment"),
    ],
)
def test_what_is_not_believed(values: list[str]) -> None:
    """A field that is not the milter's of this very queue file says nothing."""
    assert read(mail(*values), "4XyZ") == NOTHING
    assert read(mail(*values), "") == NOTHING


def test_nothing_to_say() -> None:
    """Where rules found nothing, or there is no queue id to bind it to, there is no field."""
    assert value_of("4XyZ", 0.0, ()) == ""
    assert value_of("", 2.0, ("a",)) == ""
