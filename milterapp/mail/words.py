"""Encoded words in header fields (RFC 2047, language tags of RFC 2231), read in linear time and written.

Must never: raise on what a field holds, give a surrogate, or give a line end (a header field is one line of text).
"""

from __future__ import annotations

import binascii
import re

from milterapp.mail import charsets

__all__ = ["decode", "encode", "is_plain", "unlabelled"]

_LONGEST_NAME = 80  # charset and language of one word; longer ones are none
_LINE = 75  # RFC 2047 section 2: the most characters of one encoded word
_BREAKS = re.compile(r"[\r\n]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(r"[ -~]*")
_Q_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!*+-/")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]+")


def unlabelled(value: bytes) -> str:
    """Return 8-bit header text that no encoded word labels: UTF-8 (RFC 6532) where valid, else Windows-1252."""
    return value.decode("ascii") if value.isascii() else charsets.guess(value)


def decode(text: str) -> str:
    """Return a field's value with its encoded words decoded, wherever they stand; broken ones stay as they are.

    Blanks between two words are dropped, and a character split over two words of one charset is put together.
    """
    if "=?" not in text:
        return text
    out: list[str] = []
    pending: list[bytes] = []  # the bytes of neighbouring words of one charset
    charset = ""
    at = stop = 0  # stop: the `?=` last found; searched for again only once it lies behind
    while (begin := text.find("=?", at)) >= 0:
        head = text.find("?", begin + 2, begin + 2 + _LONGEST_NAME)
        if head < 0 or text[head + 2 : head + 3] != "?" or text[head + 1] not in "bBqQ":
            word = begin + 2
        else:
            word = head + 3
            if stop < word and (stop := text.find("?=", word)) < 0:
                break
            if text.find("=?", word, stop) >= 0:
                word = begin + 2
        if word == begin + 2:  # no word after all: text, up to and with its `=?`
            _flush(out, pending, charset)
            out.append(text[at:word])
            at = word
            continue
        between = text[at:begin]
        name = text[begin + 2 : head].partition("*")[0].lower()
        if between.strip(" \t") or not pending:
            _flush(out, pending, charset)
            out.append(between)
        elif name != charset:
            _flush(out, pending, charset)
        charset = name
        pending.append(_bytes(text[word:stop], text[head + 1]))
        at = stop + 2
    _flush(out, pending, charset)
    out.append(text[at:])
    joined = "".join(out)
    return _BREAKS.sub(" ", joined) if "\n" in joined or "\r" in joined else joined


def _flush(out: list[str], pending: list[bytes], charset: str) -> None:
    if pending:
        out.append(charsets.decode(b"".join(pending), charset)[0])
        pending.clear()


def _bytes(text: str, encoding: str) -> bytes:
    """Return the bytes of one word; what stands outside its alphabet is dropped (B) or stays (Q)."""
    if encoding in "bB":
        text = _NOT_BASE64.sub("", text)
        whole = len(text) - (1 if len(text) % 4 == 1 else 0)
        return binascii.a2b_base64(text[:whole] + "=" * (-whole % 4))
    return binascii.a2b_qp(text.encode("utf-8", "replace"), header=True)


def is_plain(text: str) -> bool:
    """Return whether text can stand in a header as it is: printable ASCII that no reader takes for encoded words."""
    return _PLAIN.fullmatch(text) is not None and "=?" not in text


def encode(text: str, column: int = 1) -> str:
    """Return text as a header value of one line: as it is where it can be, else as UTF-8 encoded words.

    Line ends and other control characters become blanks, a lone surrogate U+FFFD: no text ever ends the field.
    column: characters that stand before it on its line, so that it can be folded between any two words.
    """
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
    if is_plain(text):
        return text
    data = text.encode("utf-8")
    escaped = sum(byte not in _Q_SAFE and byte != 0x20 for byte in data)
    letter = "Q" if escaped * 3 <= len(data) else "B"  # what people can still read, unless it would be much longer
    room = _LINE - len("=?utf-8?B??=")
    used = max(0, column - 1)
    if letter == "B":
        room, used = room // 4 * 3, (used + 3) // 4 * 3
    out: list[str] = []
    word: list[str] = []
    for char in text:
        one = char.encode("utf-8")
        piece = _quoted(one) if letter == "Q" else char
        cost = len(piece) if letter == "Q" else len(one)
        if word and used + cost > room:
            out.append(_word(word, letter))
            word, used = [], 0
        word.append(piece)
        used += cost
    out.append(_word(word, letter))
    return " ".join(out)


def _quoted(data: bytes) -> str:
    return "".join("_" if byte == 0x20 else chr(byte) if byte in _Q_SAFE else f"={byte:02X}" for byte in data)


def _word(pieces: list[str], letter: str) -> str:
    text = "".join(pieces)
    if letter == "B":
        text = binascii.b2a_base64(text.encode("utf-8"), newline=False).decode("ascii")
    return f"=?utf-8?{letter}?{text}?="
