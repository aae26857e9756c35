"""Text above and below what a text part says, in the part's own charset and transfer encoding.

Must never: lose a character of the part, or break what follows: where the part's charset cannot hold the text, the
part becomes UTF-8; where its encoding is not one we write, it is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from milterapp.mail import charsets, hypertext, transfer
from milterapp.mail.edit_kinds import Banner, Footer
from milterapp.mail.limits import LimitHit
from milterapp.mail.mime import Part

__all__ = ["Insertion", "Rewritten", "inserted", "lines_of", "plain_text"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST = 900  # bytes of one line; RFC 5322 section 2.1.1 allows 998
_WRAPPED = 200  # characters, where a line is longer than that
_MOST_EDITED = 4 << 20  # bytes of a text that has to be encoded anew
_QUOTED = re.compile(r"[ !#-\[\]-~]*")


@dataclass(slots=True)
class Insertion:
    """What goes into one part. above: the last on top; below: in order; files: what replaces uuencoded files."""

    part: Part
    above: list[Banner] = field(default_factory=list)
    below: list[Footer] = field(default_factory=list)
    files: str = ""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """body: as it is to be sent; fields: what header fields of the part must say then, by name."""

    body: bytes
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is put in, and how a text in which it is put breaks its lines."""

    above: tuple[str, ...]
    below: tuple[str, ...]
    line_end: str
    flowed: bool = False
    closed: bool = True  # whether the text ends with a line end


def lines_of(text: str) -> list[str]:
    """Return a text in lines without control characters, none longer than mail may have, no empty one at its ends."""
    text = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")).strip("\n")
    found: list[str] = []
    for line in text.split("\n"):
        if len(line.encode("utf-8")) > _LONGEST:
            found += _wrap(line)
        else:
            found.append(line)
    return found


def _wrap(line: str) -> list[str]:
    found = []
    at = 0
    while len(line) - at > _WRAPPED:
        blank = line.rfind(" ", at + 1, at + _WRAPPED)
        stop = at + _WRAPPED if blank < 0 else blank
        found.append(line[at:stop])
        at = stop if blank < 0 else stop + 1
    return [*found, line[at:]]


def plain_text(texts: Sequence[str], line_end: bytes) -> Rewritten:
    """Return texts, an empty line between any two, as a part of its own: ASCII where they are, else UTF-8."""
    shown = "\n\n".join("\n".join(lines_of(text)) for text in texts)
    data = (shown + "\n").encode("utf-8")
    if data.isascii():
        fields = {"Content-Type": "text/plain; charset=us-ascii", "Content-Transfer-Encoding": "7bit"}
        return Rewritten(data.replace(b"\n", line_end), fields)
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable"}
    return Rewritten(transfer.quoted_printable(data, line_end), fields)


def inserted(wanted: Insertion, line_end: bytes) -> Rewritten | None:
    """Return a part with its texts in it, None where its transfer encoding is none we write. Raises LimitHit."""
    part = wanted.part
    if transfer.encode(b"", part.encoding, line_end) is None:
        return None
    if part.encoding in ("base64", "quoted-printable"):
        _bound(len(part.body))
    came = content = bytes(part.content)
    charset = part.content_types[0].first("charset") if part.content_types else ""
    if wanted.files:
        note = wanted.files.encode(charsets.writable(charset) or "ascii", "replace")
        content = transfer.without_uuencode(content, note)
    new = _in_own_charset(wanted, content, charset)
    fields = {}
    if new is None:
        new, charset = _in_another_charset(wanted, content, charset)
        if charset == "utf-8":
            fields["Content-Type"] = _content_type(part)
    if new == came and not fields:
        return Rewritten(bytes(part.body), {})
    encoding = part.encoding
    if not new.isascii() and encoding in ("", "7bit", "7-bit") and (fields or came.isascii()):
        encoding = fields["Content-Transfer-Encoding"] = "quoted-printable"
        _bound(len(new))
    body = transfer.encode(new, encoding, line_end) or b""
    if encoding == "base64" and bytes(part.body[-1:]) != b"\n":
        body = body.removesuffix(line_end)
    return Rewritten(body, fields)


def _bound(amount: int) -> None:
    if amount > _MOST_EDITED:
        raise LimitHit(f"more than {_MOST_EDITED} bytes of text to encode anew")


def _texts(wanted: Insertion, content: bytes) -> _Texts:
    part = wanted.part
    line_end = "\r\n" if b"\r\n" in content or (b"\n" not in content and b"\r\n" in bytes(part.source[:2000])) else "\n"
    if part.type == "text/html":
        above = [_html(edit) for edit in reversed(wanted.above)]
        below = [_html(edit) for edit in wanted.below]
        return _Texts(tuple(above), tuple(below), line_end)
    flowed = bool(part.content_types) and part.content_types[0].first("format").lower() == "flowed"
    said = [[_plain(edit, flowed=flowed) for edit in edits] for edits in (reversed(wanted.above), wanted.below)]
    closed = content.endswith(b"\n") or (not part.depth and not content)
    return _Texts(tuple(said[0]), tuple(said[1]), line_end, flowed, closed)


def _in_own_charset(wanted: Insertion, content: bytes, charset: str, errors: str = "strict") -> bytes | None:
    """Return the content with its texts in its own charset, byte by byte as it came; None where they do not fit."""
    html = wanted.part.type == "text/html"
    codec = charsets.writable(charset)
    if not codec or (html and codec == "iso2022_jp"):  # there, a byte of a character can look like a bracket
        return None
    texts = _texts(wanted, content)
    try:
        above, below = (
            [one.replace("\n", texts.line_end).encode(codec, "xmlcharrefreplace" if html else errors) for one in them]
            for them in (texts.above, texts.below)
        )
    except UnicodeEncodeError:
        return None
    line_end = texts.line_end.encode("ascii")
    if html:
        start, end = hypertext.insertion_points(content.decode("latin-1"))
        head = b"".join(line_end + one for one in above) + (line_end if above else b"")
        tail = b"".join(line_end + one for one in below) + (line_end if below else b"")
        return content[:start] + head + content[start:end] + tail + content[end:]
    last = content[content.rstrip(b"\r\n").rfind(b"\n") + 1 :].rstrip(b"\r\n")
    soft = texts.flowed and last.endswith(b" ") and last != b"-- "
    return b"".join(_joined(above, content, below, line_end, soft=soft, closed=texts.closed))


def _joined(
    above: Sequence[bytes], content: bytes, below: Sequence[bytes], line_end: bytes, *, soft: bool, closed: bool
) -> list[bytes]:
    """Return the pieces of a text: an empty line between what is put in and what was there."""
    out: list[bytes] = []
    for one in above:
        out += [one, line_end, line_end]
    if not content.strip():
        out += [piece for one in below for piece in (one, line_end, line_end)]
        return [*out[:-2], line_end] if closed else out[:-2]
    out.append(content)
    if below and not content.endswith(b"\n"):
        out.append(line_end)
    if below and soft:  # the empty line would become the end of the paragraph
        out.append(line_end)
    for one in below:
        out += [line_end, one, line_end]
    return out if closed or not below else out[:-1]


def _in_another_charset(wanted: Insertion, content: bytes, charset: str) -> tuple[bytes, str]:
    """Return the content with its texts and the charset it then has: UTF-8, its own where it cannot be read whole.

    Raises LimitHit.
    """
    _bound(len(content))
    text, fault = charsets.decode(content, charset)
    if fault and (charsets.writable(charset) or charsets.known(charset) is None):
        kept = charset if charsets.writable(charset) else ""
        return _in_own_charset(wanted, content, kept, "replace") or content, charset
    return _in_own_charset(wanted, text.encode("utf-8"), "utf-8") or content, "utf-8"


def _content_type(part: Part) -> str:
    """Return what the part's type is once it is UTF-8, with those other parameters that are plain."""
    found = f"{part.type}; charset=utf-8"
    for name, readings in part.content_types[0].readings.items() if part.content_types else ():
        if name != "charset" and name.isascii() and name.isprintable() and _QUOTED.fullmatch(readings[0]):
            found += f'; {name}="{readings[0]}"' if re.search(r"[^\w.-]", readings[0]) else f"; {name}={readings[0]}"
    return found


def _plain(edit: Banner | Footer, *, flowed: bool) -> str:
    lines = lines_of(edit.text)
    if flowed:  # RFC 3676 sections 4.1 and 4.4: lines that end where they end, and quote nothing
        lines = [line if line == "-- " else line.rstrip(" ") for line in lines]
        lines = [" " + line if line.startswith((" ", ">", "From ")) else line for line in lines]
    return "\n".join(lines)


def _html(edit: Banner | Footer) -> str:
    if edit.html:
        return "\n".join(lines_of(edit.html))
    return "<div>" + "<br>\n".join(escape(line) for line in lines_of(edit.text)) + "</div>"
