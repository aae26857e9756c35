"""The header scanner finds the fields that Postfix finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.fields import scan, unfold
from milterapp.mail.limits import LimitHit, Limits
from tests.mail.read import mail, raw

LIMITS = Limits()


@pytest.mark.parametrize(
    ("name", "fields", "body"),
    [
        ("bare-cr-in-header", ["From", "Subject", "To"], b"body\n"),
        ("nul-in-header", ["From", "Subject"], b"body\n"),
        ("no-header-end", ["From", "Subject"], b""),
        ("no-line-end", ["From", "Subject"], b""),
        ("empty", [], b""),
        ("only-a-body", [], b"hello\n"),
        ("blank-before-colon", ["From", "Subject"], b"body\n"),
        ("mbox-from-line", ["From", "Subject"], b"body\n"),
        ("quoted-mbox-from-line", ["Subject"], b"body\n"),
        ("mixed-line-ends", ["From", "Subject", "To"], b"body\r\nmore\n"),
        ("folded-before-first-field", ["From", "Subject"], b"body\n"),
        ("line-without-colon", ["From"], b"this is no field\nSubject: one\n\nbody\n"),
        ("eight-bit-field-name", ["From"], b"Subj\xe9ct: one\n\nbody\n"),
    ],
)
def test_fields_and_body(name: str, fields: list[str], body: bytes) -> None:
    """A line that is no field ends the header; a CR without LF does not end a line."""
    one = mail(name)
    assert [field.name for field in one.header] == fields
    assert one.body == body


@pytest.mark.parametrize(
    ("name", "field", "text"),
    [
        ("bare-cr-in-header", "subject", "one From: b@example.org"),
        ("nul-in-header", "subject", "o\0ne"),
        ("blank-before-colon", "subject", "one"),
        ("mixed-line-ends", "subject", "one two\tthree"),
        ("eight-bit-utf8-header", "subject", "Grüße"),
        ("eight-bit-latin-header", "subject", "Grüße"),
        ("japanese-subject", "subject", "日本語"),
        ("character-over-two-words", "subject", "äö"),
    ],
)
def test_text(name: str, field: str, text: str) -> None:
    """A value is one line of decoded text, whatever its bytes."""
    assert mail(name).values(field) == (text,)


def test_a_field_is_to_be_had_as_it_came() -> None:
    """raw is the whole field with folding and line ends, value what stands behind the colon."""
    field = mail("mixed-line-ends").fields("subject")[0]
    assert field.raw == b"Subject: one\n two\r\n\tthree\n"
    assert field.value == b" one\n two\r\n\tthree"
    assert repr(field).startswith("Field(b'Subject")


def test_spans_are_where_the_fields_stand() -> None:
    """A span cuts the field out of the message."""
    data = raw("ordinary")
    for field in mail("ordinary").header:
        assert data[slice(*field.span)] == field.raw


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b" a\r\n b", b"a b"),
        (b"a\n\tb\n c ", b"a\tb c"),
        (b"", b""),
        (b" \r\n ", b""),
        (b"a\rb\r", b"a b"),
    ],
)
def test_unfold(value: bytes, line: bytes) -> None:
    """Folding goes, the blanks that it stood before stay, those around the value go."""
    assert unfold(value) == line


def test_exactly_the_limit_is_not_over_it() -> None:
    """A header of as many fields and bytes as are allowed is read, one more of either is not."""
    data = b"a: b\nc: d\n\nbody"
    assert len(scan(data, Limits(header_fields=2, header_bytes=10)).fields) == 2
    with pytest.raises(LimitHit, match="more than 1 header fields"):
        scan(data, Limits(header_fields=1))
    with pytest.raises(LimitHit, match="a header of more than 9 bytes"):
        scan(data, Limits(header_bytes=9))


def test_a_body_far_longer_than_the_limit_is_no_header() -> None:
    """The bound on the header does not count a body, with or without line ends."""
    limits = Limits(header_bytes=100)
    assert len(scan(b"a: b\n\n" + b"x" * 1000, limits).fields) == 1
    assert len(scan(b"a: b\nno field " + b"x\n" * 1000, limits).fields) == 1


_NAME = st.from_regex(r"\A[!-9;-~]{1,12}\Z").map(str.encode)
_VALUE = st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=3).map(b"\n ".join)


@given(st.lists(st.tuples(_NAME, _VALUE), max_size=8), st.binary(max_size=20), st.sampled_from([b"\n", b"\r\n"]))
def test_what_was_put_in_comes_out(pairs: list[tuple[bytes, bytes]], body: bytes, line_end: bytes) -> None:
    """Fields of any names and values are found again, byte for byte, and so is the body."""
    data = b"".join(name + b":" + value + line_end for name, value in pairs) + line_end + body
    found = scan(data, LIMITS)
    assert [field.name.encode() for field in found.fields] == [name for name, _ in pairs]
    assert [field.value.rstrip(b"\r") for field in found.fields] == [value.rstrip(b"\r") for _, value in pairs]
    assert data[found.body :] == body
