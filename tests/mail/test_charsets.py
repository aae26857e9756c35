"""Every charset that mail names is read, and nothing else of Python's codecs can be reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail import charsets


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        ("utf-8", "ä€".encode(), "ä€"),
        ("UTF8", b"\xef\xbb\xbfa", "a"),
        ("iso-8859-1", b"\x93a\x94", "“a”"),
        ("latin1", b"\xe4", "ä"),
        ("ISO_8859-15", b"\xa4", "€"),
        ("us-ascii", "ä".encode(), "ä"),
        ("us-ascii", b"\xe4", "ä"),
        ("", b"\xe4", "ä"),
        ("windows-1251", b"\xcf\xf0", "Пр"),
        ("win-1251", b"\xcf\xf0", "Пр"),
        ("cp-1251", b"\xcf\xf0", "Пр"),
        ("x-cp1251", b"\xcf\xf0", "Пр"),
        ("KOI8-R", b"\xf0\xd2", "Пр"),
        ("gb2312", b"\xd6\xd0", "中"),
        ("GBK", b"\xd6\xd0", "中"),
        ("x-gbk", b"\xd6\xd0", "中"),
        ("big5", b"\xa4\xa4", "中"),
        ("Shift_JIS", b"\x93\xfa", "日"),
        ("x-sjis", b"\x93\xfa", "日"),
        ("iso-2022-jp", b"\x1b$BF|\x1b(B", "日"),
        ("euc-kr", b"\xc7\xd1", "한"),
        ("ks_c_5601-1987", b"\xc7\xd1", "한"),
        ("utf-7", b"+AOQ-", "ä"),
        ("utf-16", b"\xff\xfea\0", "a"),
        ("macintosh", b"\x8a", "ä"),
        ("x-mac-roman", b"\x8a", "ä"),
        ("tis-620", b"\xa1", "ก"),
        ("ibm850", b"\x84", "ä"),
        ('"utf-8"', "ä".encode(), "ä"),
        (" 'utf-8' ", "ä".encode(), "ä"),
    ],
)
def test_decode(charset: str, data: bytes, text: str) -> None:
    """Names as mail writes them, and the supersets that senders really used."""
    assert charsets.decode(data, charset) == (text, "")
    assert charsets.decode(memoryview(data), charset) == (text, "")


@pytest.mark.parametrize(
    ("charset", "data", "text", "fault"),
    [
        ("utf-8", b"a\xff", "a\ufffd", "bytes that are no utf-8"),
        ("cp1252", b"a\x81", "a\ufffd", "bytes that are no cp1252"),
        ("gb2312", b"\xff", "\ufffd", "bytes that are no gb18030"),
        ("utf-7", b"+2AA-", "\ufffd", ""),
        ("klingon", b"\xe4", "ä", "an unknown charset 'klingon'"),
        ("x" * 1000, b"a", "a", f"an unknown charset '{'x' * 40}'"),
        ("\u2028", b"a", "a", "an unknown charset '\\u2028'"),
    ],
)
def test_damage_is_named(charset: str, data: bytes, text: str, fault: str) -> None:
    """What a charset does not hold becomes U+FFFD, never a surrogate, and is named."""
    assert charsets.decode(data, charset) == (text, fault)


@pytest.mark.parametrize("name", ["idna", "punycode", "unicode_escape", "rot13", "zlib", "undefined", "hex", "mbcs"])
def test_what_is_no_charset_is_none(name: str) -> None:
    """Python's other codecs, slow or worse, are out of reach."""
    assert charsets.known(name) is None


@given(st.sampled_from(sorted({charset for charset in charsets._TABLE.values() if charset})), st.binary(max_size=60))
def test_any_bytes_in_any_charset(charset: str, data: bytes) -> None:
    """Whatever the bytes, the text has no surrogates and takes no more memory than was counted."""
    text, _ = charsets.decode(data, charset)
    text.encode()
    width = 1 if not text or max(text) < "\x80" else 2 if max(text) < "\U00010000" else 4
    if "\ufffd" not in text:
        assert len(text) * (1 if text and max(text) <= "\xff" else width) <= charsets.cost(data, charset)
