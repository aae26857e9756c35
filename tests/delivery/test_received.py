"""What names a message by its topmost Received field."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import received, sealed


def named(message: bytes) -> str:
    """Return the name of a message."""
    descriptor = sealed.seal([message])
    try:
        return received.queue_id(descriptor)
    finally:
        os.close(descriptor)


POSTFIX = (
    b"Received: from c.example (c.example [192.0.2.1])\n\tby mx.example.org (Postfix) with ESMTP id 4XyZ12abC\n\tfor"
)


@pytest.mark.parametrize(
    ("head", "want"),
    [
        pytest.param(POSTFIX + b' <"a id b"@x>; Mon, 1 Jan\n', "4XyZ12abC", id="Postfix"),
        pytest.param(b"Received: by mx (Postfix, from userid 0)\n\tid DAD7B67B; Mon\n", "DAD7B67B", id="pickup"),
        pytest.param(b"Return-Path: <a@x>\nDelivered-To: b\n" + POSTFIX + b" b; x\n", "4XyZ12abC", id="below others"),
        pytest.param(b"Received: from x by y with esmtp (Exim 4.96)\n\tid 1rXyZa-00012B-1d; Mon\n", "1rXyZa-00012B-1d",
                     id="Exim"),
        pytest.param(b"RECEIVED : by x id ABCD;\r\n\r\n", "ABCD", id="CRLF and capitals"),
        pytest.param(b"Received: by x id FIRST1; x\nReceived: by y id SECOND; x\n", "FIRST1", id="the topmost"),
    ],
)  # fmt: skip
def test_the_id_of_the_mta(head: bytes, want: str) -> None:
    """The id that the topmost field names is the name."""
    assert named(head + b"Subject: x\n\nReceived: by z id BODY99; x\n") == want


@pytest.mark.parametrize(
    "head",
    [
        b"Received: (qmail 12 invoked by uid 0); 1 Jan\n",
        b"Received: by x; id ABCDE\n",
        b"Received: x id a/b;\n",
        b"Received:\n",
    ],
    ids=["qmail", "in the date", "no word", "empty"],
)
def test_a_field_without_an_id(head: bytes) -> None:
    """Then the field itself makes the name: the same for a retry, another for another message."""
    assert named(head + b"\nx\n") == named(head + b"\nx\n")
    assert named(head + b"\nx\n").startswith("R")
    assert named(head + b"\nx\n") != named(head.replace(b":", b": y", 1) + b"\nx\n")


@pytest.mark.parametrize(
    "message",
    [b"", b"Subject: x\n\nReceived: by z id BODY99; x\n", b"x\r\n\r\nReceived: by z id BODY99; x\n", b"\n" * 70000],
)
def test_no_field(message: bytes) -> None:
    """Without one every message is one of its own, and the body is not looked at."""
    assert named(message) != named(message)
    assert named(message).startswith("N")


@given(st.binary(max_size=300))
def test_any_bytes(message: bytes) -> None:
    """Whatever a message holds, the name is a short word."""
    assert 1 < len(named(b"Received:" + message)) <= 64
    assert named(message).isascii()
