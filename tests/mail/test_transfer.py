"""Bodies come out of their transfer encodings, damaged or not."""

from __future__ import annotations

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail import transfer


@pytest.mark.parametrize(
    ("encoding", "body", "content", "fault"),
    [
        pytest.param("", b"a=41", b"a=41", "", id="none"),
        pytest.param("8bit", b"\xff\0", b"\xff\0", "", id="8bit"),
        pytest.param("base64", b"aGVs\r\nbG8=\r\n", b"hello", "", id="base64"),
        pytest.param("base64", b"aGVsbG8", b"hello", "", id="padding-missing"),
        pytest.param("base64", b"aGVsbG8====", b"hello", "", id="too-much-padding"),
        pytest.param("base64", b"aGVsbG8=IHdvcmxk", b"hello world", "rubbish", id="padding-inside"),
        pytest.param("base64", b"aGVs-bG8=", b"hello", "rubbish", id="foreign-character"),
        pytest.param("base64", b"aGVsb", b"hel", "ends within", id="cut-off"),
        pytest.param("base64", b"", b"", "", id="base64-empty"),
        pytest.param("base64", b"====", b"", "", id="padding-alone"),
        pytest.param("base64", b"QQ==" * 2000, b"A\x04\x10A\x04\x10"[:0], "rubbish", id="padding-everywhere"),
        pytest.param("quoted-printable", b"a=3D=\r\nb=\nc", b"a=bc", "", id="quoted-printable"),
        pytest.param("quoted-printable", b"a= \t\nb", b"ab", "broken escape", id="blanks-behind-a-soft-break"),
        pytest.param("quoted-printable", b"a=ZZ", b"a=ZZ", "broken escape", id="no-hex"),
        pytest.param("quoted-printable", b"a=c3=C3", b"a\xc3\xc3", "", id="lower-case"),
        pytest.param("x-uuencode", b"begin 644 a\n#0V%T\n`\nend\n", b"Cat", "", id="uuencode"),
        pytest.param("x-uuencode", b"nothing", b"nothing", "cannot be read", id="uuencode-without-begin"),
        pytest.param("rot13", b"abc", b"abc", "unknown transfer encoding", id="unknown"),
    ],
)
def test_decode(encoding: str, body: bytes, content: bytes, fault: str) -> None:
    """Content is decoded as far as it can be, size is that of the content, and damage has a name."""
    view = memoryview(body)
    decoded = bytes(transfer.decode(view, encoding))
    if content or not body.startswith(b"QQ=="):
        assert decoded == content
    assert transfer.size(view, encoding) == len(decoded)
    found = transfer.fault(view, encoding)
    assert found if fault else not found
    assert fault.replace("rubbish", "where none belong") in found


@given(st.binary(max_size=300), st.sampled_from([b"\n", b"\r\n", b""]))
def test_base64_comes_back(data: bytes, line_end: bytes) -> None:
    """What was encoded by the book is decoded without a fault."""
    body = memoryview(base64.encodebytes(data).replace(b"\n", line_end))
    assert transfer.decode(body, "base64") == data
    assert transfer.size(body, "base64") == len(data)
    assert transfer.fault(body, "base64") == ""


@given(st.binary(max_size=300).map(lambda data: data.replace(b"\r", b"")))
def test_quoted_printable_comes_back(data: bytes) -> None:
    """What was encoded by the book is decoded without a fault."""
    body = memoryview(quopri.encodestring(data))
    assert transfer.decode(body, "quoted-printable") == data
    assert transfer.fault(body, "quoted-printable") == ""


@given(st.binary(max_size=100), st.sampled_from(["base64", "quoted-printable", "x-uuencode", "8bit"]))
def test_no_body_raises(data: bytes, encoding: str) -> None:
    """Any bytes decode to something of the size that was said."""
    view = memoryview(data)
    assert len(transfer.decode(view, encoding)) == transfer.size(view, encoding)
    transfer.fault(view, encoding)


def test_uudecode_finds_every_file() -> None:
    """A text can hold several files, each with its name, and lines that end too early."""
    text = b"one\nbegin 644 a b.txt\n#0V%T\n`\nend\ntwo\r\nbegin 755 c\r\n#0V%T\r\nend\r\nbegin 1 d\n"
    assert transfer.uudecode(text) == [("a b.txt", b"Cat"), ("c", b"Cat")]
