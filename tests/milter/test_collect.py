"""Tests of milterapp.milter.collect."""

from __future__ import annotations

import pytest

from milterapp.mail.limits import LimitHit, Limits
from milterapp.milter.collect import Collector

SMALL = Limits(header_fields=3, header_bytes=100, message_bytes=200)


def test_message_is_what_came() -> None:
    """Header and body are put together as they stood in the message, whichever way the blank after the colon came."""
    collector = Collector(Limits())
    collector.fields([(b"Subject", b" folded\n\tsubject")])
    collector.fields([(b"From", b"a@example.net")])
    collector.body(b"one\r\n")
    collector.body(b"two\r\n")
    assert collector.header().subject == "folded\tsubject"
    assert collector.message().raw == b"Subject: folded\r\n\tsubject\r\nFrom: a@example.net\r\n\r\none\r\ntwo\r\n"


@pytest.mark.parametrize("values", [[b" a", b" b"], [b"a", b" b\n\tc"], [b"a\rb", b"\0"], []])
def test_message_with_the_header_that_was_read(values: list[bytes]) -> None:
    """With its header read before, a message is the same to the last byte, field and fault."""
    collectors = [Collector(Limits()), Collector(Limits())]
    for one in collectors:
        for value in values:
            one.fields([(b"X", value)])
        one.body(b"--b\r\n\r\nbody\r\n")
    header = collectors[0].header()
    assert len(header.values("x")) == len(values)
    again, anew = collectors[0].message(header), collectors[1].message()
    assert (again.raw, again.body, again.values("x")) == (anew.raw, anew.body, anew.values("x"))
    assert [one.span for one in again.header] == [one.span for one in anew.header]
    assert [one.raw for one in again.header] == [one.raw for one in anew.header]
    assert (again.complete, again.malformed) == (anew.complete, anew.malformed)


@pytest.mark.parametrize(
    ("fields", "chunks", "words"),
    [
        pytest.param([b"x"] * 4, [], "more than 3 header fields", id="fields"),
        pytest.param([b"x" * 60] * 2, [], "a header of more than 100 bytes", id="header bytes"),
        pytest.param([b"x"], [b"y" * 99] * 3, "a message of more than 200 bytes", id="message bytes"),
        pytest.param([b"x" * 60] * 2, [b"y" * 999], "a header of more than 100 bytes", id="the first hit is kept"),
    ],
)
def test_limits(fields: list[bytes], chunks: list[bytes], words: str) -> None:
    """A limit that was hit is said when the message is asked for, and nothing more is held from then on."""
    collector = Collector(SMALL)
    for value in fields:
        collector.fields([(b"X", value)])
    for chunk in chunks:
        collector.body(chunk)
    assert collector.hit == words
    for ask in (collector.header, collector.message):
        with pytest.raises(LimitHit, match=words):
            ask()


def test_at_the_limit() -> None:
    """A message that just fits is taken."""
    collector = Collector(SMALL)
    for _ in range(3):
        collector.fields([(b"X", b"y")])
    collector.body(b"z" * (200 - collector.size))
    assert not collector.hit
    assert collector.message().body == b"z" * 185
