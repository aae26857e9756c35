"""Encoded words are read as mail readers read them, and what is written can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.words import decode, encode, is_plain, unlabelled


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        pytest.param("plain text", "plain text", id="none"),
        pytest.param("=?utf-8?Q?a=C3=A4_b?=", "aä b", id="q"),
        pytest.param("=?UTF-8?b?w6Q=?=", "ä", id="b"),
        pytest.param("=?utf-8*de?q?=C3=A4?=", "ä", id="language"),
        pytest.param("=?utf-8?q?a?= =?utf-8?q?b?=", "ab", id="blank-between-words"),
        pytest.param("=?utf-8?q?a?= \t =?iso-8859-1?q?=E4?=", "aä", id="blank-between-charsets"),
        pytest.param("=?utf-8?q?a?= b =?utf-8?q?c?=", "a b c", id="text-between"),
        pytest.param("x =?utf-8?q?a?= y", "x a y", id="blanks-around"),
        pytest.param("(=?utf-8?q?a?=)x=?utf-8?q?b?=y", "(a)xby", id="no-blanks-around"),
        pytest.param("=?utf-8?q?a?==?utf-8?q?b?=", "ab", id="words-touching"),
        pytest.param("=?utf-8?b?w6TD?= =?utf-8?b?tg==?=", "äö", id="character-split"),
        pytest.param("=?utf-8?b?w6Q?=", "ä", id="padding-missing"),
        pytest.param("=?utf-8?b?w6!Q=?=", "ä", id="rubbish-in-base64"),
        pytest.param("=?utf-8?q?a b?=", "a b", id="blank-inside"),
        pytest.param("=?utf-8?q?a=3D=3F?=", "a=?", id="question-mark"),
        pytest.param("=?utf-8?q??=x", "x", id="empty"),
        pytest.param("=?gb2312?B?1tDOxA==?=", "中文", id="gb2312"),
        pytest.param("=?x-sjis?B?k/qWew==?=", "日本", id="x-sjis"),
        pytest.param("=?ks_c_5601-1987?B?x9GxuQ==?=", "한국", id="ks_c_5601"),
        pytest.param("=?win-1251?Q?=CF=F0?=", "Пр", id="win-1251"),
        pytest.param("=?klingon?q?=E4?=", "ä", id="unknown-charset-is-guessed"),
        pytest.param("=?utf-8?q?=FF?=", "\ufffd", id="bytes-outside-the-charset"),
        pytest.param("=?utf-7?q?+2AA-?=", "\ufffd", id="surrogate"),
        pytest.param("=?utf-8?q?a=0D=0ABcc:_x?=", "a Bcc: x", id="line-end-inside"),
        pytest.param("=?utf-8?q?open", "=?utf-8?q?open", id="not-closed"),
        pytest.param("=?utf-8?x?a?=", "=?utf-8?x?a?=", id="unknown-encoding"),
        pytest.param("=?utf-8?q?one =?utf-8?q?two?=", "=?utf-8?q?one two", id="not-closed-before-another"),
        pytest.param("=? =?= ?=", "=? =?= ?=", id="no-words"),
        pytest.param(f"=?{'x' * 100}?q?a?=", f"=?{'x' * 100}?q?a?=", id="name-too-long"),
    ],
)
def test_decode(text: str, decoded: str) -> None:
    """Words are decoded wherever they stand; what is no word stays as it is."""
    assert decode(text) == decoded


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"abc", "abc"), ("ä".encode(), "ä"), (b"\xe4", "ä"), (b"\x93a\x94", "“a”"), (b"\x81", "\ufffd")],
)
def test_unlabelled(value: bytes, text: str) -> None:
    """8-bit text nobody labelled is UTF-8 where that is valid, else Windows-1252."""
    assert unlabelled(value) == text


@given(st.text(alphabet="=?qQbB utf-8_*\n\rA4ä", max_size=80))
def test_decode_never_raises(text: str) -> None:
    """Any text decodes to one line without surrogates."""
    decoded = decode(text)
    decoded.encode()
    assert "=?" not in text or not {"\n", "\r"} & set(decoded)


@given(st.text(max_size=200))
def test_what_is_encoded_is_one_line_of_ascii(text: str) -> None:
    """No text can end a header field, and no word is longer than RFC 2047 allows."""
    encoded = encode(text)
    assert encoded.isascii()
    assert encoded.isprintable()
    if not is_plain(encoded):
        assert all(len(word) <= 75 for word in encoded.split(" "))


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=200))
def test_what_is_encoded_is_read_again(text: str) -> None:
    """Encoding loses nothing but control characters."""
    assert decode(encode(text)) == text


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("plain, text: 100%", "plain, text: 100%"),
        ("a\r\nBcc: x", "a Bcc: x"),
        ("Grüße aus Köln am Rhein", "=?utf-8?Q?Gr=C3=BC=C3=9Fe_aus_K=C3=B6ln_am_Rhein?="),
        ("日本", "=?utf-8?B?5pel5pys?="),
        ("=?utf-8?q?a?=", "=?utf-8?B?PT91dGYtOD9xP2E/PQ==?="),
        ("\ud800", "=?utf-8?B?77+9?="),
        ("", ""),
    ],
)
def test_encode(text: str, encoded: str) -> None:
    """Plain text stays as it is; text that looks like an encoded word is encoded, so that it reads as written."""
    assert encode(text) == encoded
