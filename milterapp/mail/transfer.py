"""Content-Transfer-Encodings (RFC 2045 section 6) and uuencode, decoded with what damage they have.

Must never: raise on what a body holds (only LimitHit), or copy a body that needs no decoding.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from itertools import islice

from milterapp.mail import charsets
from milterapp.mail.limits import LimitHit

__all__ = ["Buffer", "decode", "encode", "fault", "quoted_printable", "size", "uudecode", "without_uuencode"]

Buffer = bytes | memoryview

_CHUNK = 1 << 16
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_ALPHABET + b"="))
_BLANK = b" \t\r\n\v\f"
_PADDING = re.compile(rb"[=\s]*+")
_SOFT_BREAK_WITH_BLANKS = re.compile(rb"=[ \t]++(?=\r?\n)")
_BAD_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2}|\r?\n|\Z)")
_UU_BEGIN = re.compile(rb"^begin [0-7]{3,4} ([^\r\n]*+)\r?\n", re.MULTILINE)
_UU_END = re.compile(rb"(?:[` ]?[ \t]*\r?\n)?end[ \t]*(?:\r?\n|\Z)")
_LINE = re.compile(rb"([^\r\n]*+)\r?(?:\n|\Z)")
_MOST_SEGMENTS = 1000
_MOST_UU_LINES = 100_000
_UUENCODE = ("x-uuencode", "uuencode", "x-uue", "uue")
_NOT_ENCODED = ("", "7bit", "8bit", "binary", "7-bit", "8-bit")


def decode(data: memoryview, encoding: str) -> Buffer:
    """Return the content of a body in that encoding (lower case): the body itself where it has none."""
    if encoding == "base64":
        return _base64(data)
    if encoding == "quoted-printable":
        broken = _SOFT_BREAK_WITH_BLANKS.search(data)
        return binascii.a2b_qp(_SOFT_BREAK_WITH_BLANKS.sub(b"=", data, _MOST_SEGMENTS * 100) if broken else data)
    if encoding in _UUENCODE:
        found = uudecode(data)
        return found[0][1] if found else data
    return data


def encode(content: bytes, encoding: str, line_end: bytes) -> bytes | None:
    """Return a content in that encoding (lower case), None for one that is not written here."""
    if encoding in _NOT_ENCODED:
        return content
    if encoding == "quoted-printable":
        return quoted_printable(content, line_end)
    if encoding != "base64":
        return None
    lines = binascii.b2a_base64(content, newline=False)
    return line_end.join(lines[at : at + 76] for at in range(0, len(lines), 76)) + (line_end if lines else b"")


def quoted_printable(content: bytes, line_end: bytes) -> bytes:
    """Return a text as quoted-printable (RFC 2045 section 6.7), its line ends as `line_end`."""
    lines = (line.removesuffix(b"\r") for line in content.split(b"\n"))
    encoded = (binascii.b2a_qp(line, istext=False) if line else b"" for line in lines)
    if line_end == b"\n":
        return b"\n".join(encoded)
    return line_end.join(line.replace(b"\n", line_end) if b"\n" in line else line for line in encoded)


def size(data: memoryview, encoding: str) -> int:
    """Return how many bytes the content has, decoding only where it must."""
    if encoding == "base64":
        digits, damage = _count_base64(data)
        if not damage:
            return digits * 3 // 4
        return sum(len(piece) // 4 * 3 + (0, 0, 1, 2)[len(piece) % 4] for piece in _pieces(data))
    return len(decode(data, encoding))


def fault(data: memoryview, encoding: str) -> str:
    """Return what is wrong with a body in that encoding, "" for nothing."""
    if encoding in _NOT_ENCODED:
        return ""
    if encoding == "base64":
        return _count_base64(data)[1]
    if encoding == "quoted-printable":
        return "quoted-printable with a broken escape" if _BAD_ESCAPE.search(data) else ""
    if encoding in _UUENCODE:
        return "" if uudecode(data) else "uuencode that cannot be read"
    return f"an unknown transfer encoding {encoding[:40]!a}"


def _count_base64(data: memoryview) -> tuple[int, str]:
    """Return (digits, fault): what is no digit must be blanks, and padding at the end."""
    digits = 0
    found = ""
    for at in range(0, len(data), _CHUNK):
        chunk = bytes(data[at : at + _CHUNK])
        rest = chunk.translate(None, _ALPHABET)
        digits += len(chunk) - len(rest)
        rest = rest.translate(None, _BLANK)
        if rest:
            first = chunk.find(b"=")
            if rest.strip(b"=") or _PADDING.fullmatch(data, at + first) is None:
                found = "base64 with characters or padding where none belong"
            break
    if not found and digits % 4 == 1:
        found = "base64 that ends within a byte"
    return digits, found


def _base64(data: memoryview) -> bytes:
    if not _count_base64(data)[1]:
        try:
            return binascii.a2b_base64(data)
        except binascii.Error:  # the padding is missing; more of it than is needed does no harm
            return binascii.a2b_base64(bytes(data) + b"==")
    return b"".join(map(_digits, _pieces(data)))


def _pieces(data: memoryview) -> Iterator[memoryview]:
    """Yield the digits of damaged base64, up to each padding.

    Some readers stop at the padding and some go on behind it: go on, so that nothing hides there.
    """
    segments = sum(bytes(data[at : at + _CHUNK]).count(b"=") for at in range(0, len(data), _CHUNK))
    dropped = _NOT_BASE64 + (b"=" if segments > _MOST_SEGMENTS else b"")
    clean = bytearray()
    for at in range(0, len(data), _CHUNK):
        clean += bytes(data[at : at + _CHUNK]).translate(None, dropped)
    at = 0
    while at < len(clean):
        stop = clean.find(b"=", at)
        stop = len(clean) if stop < 0 else stop
        yield memoryview(clean)[at:stop]
        at = stop + 1


def _digits(piece: memoryview) -> bytes:
    """Return the bytes of digits alone, as many as there are whole ones."""
    whole = len(piece) // 4 * 4
    rest = bytes(piece[whole:]) if len(piece) % 4 > 1 else b""
    tail = binascii.a2b_base64(rest + b"=" * (4 - len(rest))) if rest else b""
    return binascii.a2b_base64(piece[:whole]) + tail


def uudecode(data: Buffer) -> list[tuple[str, bytes]]:
    """Return (name, content) of each uuencoded file in a text; a line that cannot be read ends its file.

    Raises LimitHit for too many lines of it.
    """
    return [(name, content) for name, content, _, _ in _uu_files(data)]


def without_uuencode(data: Buffer, note: bytes) -> bytes:
    """Return a text with each uuencoded file in it replaced. Raises LimitHit as uudecode does."""
    out: list[Buffer] = []
    at = 0
    for _, _, start, end in _uu_files(data):
        out += [data[at:start], note]
        at = end
    return b"".join([*out, data[at:]])


def _uu_files(data: Buffer) -> list[tuple[str, bytes, int, int]]:
    found: list[tuple[str, bytes, int, int]] = []
    lines = at = 0
    for begin in islice(_UU_BEGIN.finditer(data), _MOST_SEGMENTS):
        if begin.start() < at:
            continue
        out = []
        at = begin.end()
        while (match := _LINE.match(data, at)) and (line := match[1]):
            lines += 1
            if lines > _MOST_UU_LINES:
                raise LimitHit(f"more than {_MOST_UU_LINES} lines of uuencode")
            length = (line[0] - 32) & 63
            if not length or line == b"end" or not 32 < line[0] <= 96 or not (decoded := _uu_line(line, length)):
                break
            out.append(decoded)
            at = match.end()
        if out:
            end = _UU_END.match(data, at)
            found.append((charsets.guess(begin[1].strip()), b"".join(out), begin.start(), end.end() if end else at))
    return found


def _uu_line(line: bytes, length: int) -> bytes:
    """Return the bytes of one line, as many as it says; b"" where it cannot be read."""
    try:
        return binascii.a2b_uu(line[: 1 + (length + 2) // 3 * 4])
    except binascii.Error:
        return b""
