"""Content-Transfer-Encodings (RFC 2045 section 6) and uuencode, decoded with what damage they have.

Must never: raise, or copy a body that needs no decoding.
"""

from __future__ import annotations

import binascii
import re

__all__ = ["decode", "uudecode"]

_BASE64_ONLY = re.compile(rb"[A-Za-z0-9+/\s]*+=*+\s*+")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
_BAD_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2}|\r?\n|\Z)")
_BLANKS_AT_END = re.compile(rb"[ \t]++(?=\r?\n|\Z)")
_UU_BEGIN = re.compile(rb"^begin [0-7]{3,4} ([^\r\n]*+)\r?\n", re.MULTILINE)
_MOST_SEGMENTS = 1000

Buffer = bytes | memoryview


def decode(data: memoryview, encoding: str) -> tuple[Buffer, str]:
    """Return (content, fault) of a body in that encoding, "" for no fault; the body itself where it is not encoded."""
    if encoding in ("", "7bit", "8bit", "binary"):
        return data, ""
    if encoding == "base64":
        return _base64(data)
    if encoding == "quoted-printable":
        return _quoted_printable(data)
    if encoding in ("x-uuencode", "uuencode", "x-uue"):
        found = uudecode(bytes(data))
        return (found[0][1], "") if found else (data, "uuencode that cannot be read")
    return data, f"an unknown transfer encoding {encoding[:40]!a}"


def _base64(data: memoryview) -> tuple[Buffer, str]:
    if _BASE64_ONLY.fullmatch(data):
        try:
            return binascii.a2b_base64(data), ""
        except binascii.Error:
            pass
    clean = bytes(data).translate(None, _NOT_BASE64)
    # Some readers stop at the padding and some go on behind it: go on, so that nothing hides there.
    pieces = [piece for piece in clean.split(b"=", _MOST_SEGMENTS) if piece]
    if len(pieces) > _MOST_SEGMENTS:
        pieces[-1] = pieces[-1].replace(b"=", b"")
    out = []
    for piece in pieces:
        whole = piece[: len(piece) - 1] if len(piece) % 4 == 1 else piece
        out.append(binascii.a2b_base64(whole + b"=" * (-len(whole) % 4)))
    return b"".join(out), "base64 with characters or padding where none belong"


def _quoted_printable(data: memoryview) -> tuple[Buffer, str]:
    content: Buffer = data
    if _BLANKS_AT_END.search(data):
        content = _BLANKS_AT_END.sub(b"", bytes(data))
    fault = "quoted-printable with a broken escape" if _BAD_ESCAPE.search(content) else ""
    return binascii.a2b_qp(content), fault


def uudecode(data: bytes) -> list[tuple[str, bytes]]:
    """Return (name, content) of each uuencoded file in a text; lines that cannot be read end the file."""
    found: list[tuple[str, bytes]] = []
    at = 0
    while (begin := _UU_BEGIN.search(data, at)) is not None and len(found) < _MOST_SEGMENTS:
        at = begin.end()
        out = []
        while at < len(data):
            stop = data.find(b"\n", at)
            line = data[at : stop if stop >= 0 else len(data)].rstrip(b"\r")
            if line.startswith(b"end") or not line or not 32 <= line[0] <= 96:
                break
            at = stop + 1 if stop >= 0 else len(data)
            length = (line[0] - 32) & 63
            if not length:
                break
            out.append(_uu_line(line, length))
        if out:
            found.append((begin[1].decode("utf-8", "replace"), b"".join(out)))
    return found


def _uu_line(line: bytes, length: int) -> bytes:
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:  # blanks at the end cut off, or rubbish behind it: as many bytes as the line says
        encoded = line[: 1 + (length + 2) // 3 * 4]
        try:
            return binascii.a2b_uu(encoded)
        except binascii.Error:
            return b""
