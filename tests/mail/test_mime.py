"""Parts are found by their boundaries, all of them, and their names, types and sizes are every reader's."""

from __future__ import annotations

import pytest

from milterapp.mail.attachments import extensions
from milterapp.mail.message import Mail
from tests.mail.read import mail


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("ordinary", ["text/plain"]),
        (
            "mixed-alternative",
            ["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "application/pdf"],
        ),
        ("two-boundaries", ["multipart/mixed", "text/plain", "application/x-msdownload"]),
        ("two-content-types", ["text/plain", "application/x-msdownload"]),
        (
            "boundary-begins-like-another",
            ["multipart/mixed", "multipart/mixed", "text/plain", "text/plain", "text/plain"],
        ),
        ("parts-after-the-last-boundary", ["multipart/mixed", "text/plain", "text/plain"]),
        ("multipart-not-closed", ["multipart/mixed", "text/plain", "text/plain"]),
        ("multipart-without-boundary", ["multipart/mixed", "text/plain"]),
        ("multipart-without-lines", ["multipart/mixed", "text/plain"]),
        (
            "nested-message",
            ["multipart/mixed", "text/plain", "message/rfc822", "multipart/mixed", "text/plain", "application/zip"],
        ),
        ("encoded-message", ["message/rfc822", "text/plain"]),
        ("digest", ["multipart/digest", "message/rfc822", "text/plain"]),
    ],
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_parts(name: str, types: list[str], line_end: bytes) -> None:
    """Containers come before what they hold; where readers disagree, the parts of both readings are there."""
    one = mail(name)
    one = Mail(one.raw.replace(b"\r\n", b"\n").replace(b"\n", line_end))
    assert [part.type for part in one.parts] == types


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mixed-alternative", "Grüße, this line goes on.\nHello\xa0& welcome\nhere"),
        ("boundary-begins-like-another", "inner one\ninner two\nouter two"),
        ("parts-after-the-last-boundary", "seen"),
        ("multipart-not-closed", "one\ntwo, and then nothing\n"),
        ("multipart-without-boundary", "one"),
        ("multipart-without-lines", "just text\n"),
        ("nested-message", "see below\ninner text"),
        ("encoded-message", "hidden text\n"),
        ("base64-with-rubbish", "hello world"),
        ("base64-without-padding", "hello"),
        ("quoted-printable-broken", "a=ZZ bc=\n"),
        ("unknown-encoding", "Uryyb\n"),
        ("unknown-charset", "Grüße\n"),
        ("wrong-charset", "Gr\ufffd\ufffde\n"),
        ("flowed", "This is one paragraph of three lines.\n> and a quoted one.\nstuffed\n-- \nsignature\n"),
        ("flowed-delsp", "wonder\n"),
        ("html-only", "Viagra\n\na<b AB &nosuch; €\n\none two\n\nline\nbreak"),
        ("japanese-subject", "\x1b$BF|K\\8l\x1b(B\n"),
    ],
)
def test_text(name: str, text: str) -> None:
    """The text is what a reader sees, decoded; attachments, scripts and comments are not in it."""
    assert mail(name).text == text


@pytest.mark.parametrize(
    ("name", "names", "kind", "size"),
    [
        ("mixed-alternative", ("r.pdf",), "application/pdf", 10),
        ("two-boundaries", ("evil.exe",), "application/x-msdownload", 2),
        ("two-content-types", ("evil.exe",), "application/x-msdownload", 2),
        ("parts-after-the-last-boundary", ("evil.exe",), "text/plain", 2),
        (
            "filename-against-filename-star",
            ("evil.exe", "harmless.txt", "third.txt"),
            "application/octet-stream",
            3,
        ),
        ("filename-in-pieces", ("äü b.exe",), "application/octet-stream", 3),
        ("filename-encoded-word", ("ä.exe",), "application/octet-stream", 3),
        ("filename-not-quoted", ("my summer photos.jpg",), "application/octet-stream", 3),
        ("nested-message", ("inner.zip",), "application/zip", 2),
        ("uuencoded-in-text", ("cat.exe",), "application/octet-stream", 3),
    ],
)
def test_attachments(name: str, names: tuple[str, ...], kind: str, size: int) -> None:
    """An attachment has every name a reader could save it under, its type, and its size once decoded."""
    (attachment,) = mail(name).attachments
    assert (attachment.names, attachment.type, attachment.size) == (names, kind, size)
    assert len(attachment.content) == size


@pytest.mark.parametrize("name", ["ordinary", "html-only", "flowed", "digest"])
def test_text_without_a_name_is_no_attachment(name: str) -> None:
    """What is shown in place is not attached."""
    assert mail(name).attachments == ()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.EXE"], ("exe",)),
        (["a.tar.gz"], ("gz",)),
        (["a.exe. "], ("exe",)),
        (["a.pdf", "b.exe", "c.pdf"], ("pdf", "exe")),
        (["none", ".hidden", "dir.d/name", ""], ()),
    ],
)
def test_extensions(names: list[str], found: tuple[str, ...]) -> None:
    """An extension is lower case, and blanks or dots behind it do not hide it."""
    assert extensions(names) == found


@pytest.mark.parametrize(
    ("line", "is_boundary"),
    [
        (b"--b", True),
        (b"--b \t", True),
        (b"--b\r", True),
        (b"--bb", False),
        (b"--b x", False),
        (b" --b", False),
        (b"x--b", False),
        (b"---b", False),
    ],
)
def test_boundary_lines(line: bytes, *, is_boundary: bool) -> None:
    """A boundary is a whole line: two dashes, its text, and blanks at most."""
    data = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n" + line + b"\n\ntwo\n--b--\n"
    assert len(Mail(data).parts) == (3 if is_boundary else 2)


def test_a_part_without_content_is_a_part() -> None:
    """Boundary lines next to each other have an empty part between them."""
    one = Mail(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n--b\n\n--b--")
    assert [part.size for part in one.parts[1:]] == [0, 0]
    assert one.malformed == ()


def test_a_body_may_begin_the_message() -> None:
    """A part can begin at the first byte there is."""
    one = Mail(b"Content-Type: multipart/mixed\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--")
    assert [part.depth for part in one.parts] == [0, 1]
    assert repr(one.parts[1]) == "Part('text/plain', 1 bytes, depth=1)"
