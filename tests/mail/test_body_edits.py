"""Edits of the body change the parts they name, each in its own charset and encoding, and not one byte besides."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milterapp.mail.edits import (
    AddHeader,
    Banner,
    DropAttachments,
    Edit,
    Footer,
    ReplaceBody,
    apply,
    body_change,
    edits_body,
    header_changes,
    notes,
)
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from tests.mail.hostile import MESSAGES
from tests.mail.read import NAMES, raw
from tests.mail.test_edits import carried_out

TEXT = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n"
NOTE = b"Content-Type: text/plain; charset=us-ascii\nContent-Transfer-Encoding: 7bit\nContent-Disposition: inline\n\n"
TRANSFER = b"Content-Transfer-Encoding: 7bit\nMIME-Version: 1.0\n"
GIF = b"Content-Type: image/gif\nContent-ID: <1@example.org>\nContent-Transfer-Encoding: base64\n\nR0lGODlhAQABAAAAACw="


@pytest.mark.parametrize(
    ("name", "edits", "changes"),
    [
        pytest.param(
            "alternative-in-mixed",
            [Footer("see öffentlich")],
            [
                (b"Gr=FC=DFe aus =\nK=F6ln  =20", b"Gr=FC=DFe aus K=F6ln  =20\n\nsee =F6ffentlich"),
                (b"</p></BODY>", b"</p>\n<div>see \xc3\xb6ffentlich</div>\n</BODY>"),
            ],
            id="text-and-html-in-their-own-charset-and-encoding",
        ),
        pytest.param(
            "alternative-in-mixed",
            [Banner("<b>", "<i>b</i>", only="html")],
            [(b'class="a>b">', b'class="a>b">\n<i>b</i>\n')],
            id="html-only",
        ),
        pytest.param(
            "alternative-in-mixed",
            [Banner("€", only="text")],
            [
                (b"charset=iso-8859-1", b"charset=utf-8"),
                (b"Gr=FC=DFe aus =\nK=F6ln", b"=E2=82=AC\n\nGr=C3=BC=C3=9Fe aus K=C3=B6ln"),
            ],
            id="what-the-charset-has-not-makes-that-part-utf-8",
        ),
        pytest.param(
            "alternative-in-mixed",
            [DropAttachments((5, 7), "Taken out.")],
            [
                (GIF, NOTE + b"Taken out.\n\nan attachment without a name (image/gif, 14 bytes)"),
                (
                    b"Content-Type: text/plain; name=notes.txt\nContent-Disposition: attachment\n\nnot the text",
                    NOTE + b"Taken out.\n\nnotes.txt (text/plain, 12 bytes)",
                ),
            ],
            id="dropped-parts-leave-a-note",
        ),
        pytest.param(
            "alternative-in-mixed",
            [DropAttachments((3, 5)), Footer("x")],
            [
                (b"Gr=FC=DFe aus =\nK=F6ln  =20", b"Gr=FC=DFe aus K=F6ln  =20\n\nx"),
            ],
            id="a-footer-and-a-dropped-container",
        ),
        pytest.param(
            "ordinary",
            [Banner("b"), Banner("a")],
            [(b"\r\n\r\nHello", b"\r\n\r\na\r\n\r\nb\r\n\r\nHello")],
            id="banners",
        ),
        pytest.param("ordinary", [Footer("-- \n a ")], [(b"Alice.\r\n", b"Alice.\r\n\r\n-- \r\n a \r\n")], id="footer"),
        pytest.param(
            "ordinary",
            [Footer("ü")],
            [
                (b"\r\n\r\nHello", b"\r\n" + TEXT.replace(b"\n", b"\r\n") + b"MIME-Version: 1.0\r\n\r\nHello"),
                (b"Alice.\r\n", b"Alice.\r\n\r\n=C3=BC\r\n"),
            ],
            id="us-ascii-becomes-utf-8",
        ),
        pytest.param(
            "flowed",
            [Footer("> no quote \n")],
            [(b"signature\n", b"signature\n\n > no quote\n")],
            id="flowed-stuffed",
        ),
        pytest.param("signed-pgp-mime", [Footer("x", signed=True)], [(b"text\n--s", b"text\n\nx\n--s")], id="signed"),
        pytest.param(
            "attachments-without-text",
            [Banner("b"), Footer("f")],
            [(b"--a b\nContent", b"--a b\n" + NOTE + b"b\n\nf\n--a b\nContent")],
            id="a-text-part-where-there-is-none",
        ),
        pytest.param(
            "attachment-alone",
            [DropAttachments((0,), "Gone.")],
            [
                (b"application/pdf; name=x.pdf", b"text/plain; charset=us-ascii"),
                (b"Content-Disposition: attachment; filename=x.pdf\n", b""),
                (b"Encoding: base64", b"Encoding: 7bit"),
                (b"Content-ID: <1@example.org>\n", b""),
                (b"JVBERi0=\n", b"Gone.\n\nx.pdf (application/pdf, 5 bytes)\n"),
            ],
            id="all-of-a-message-dropped",
        ),
        pytest.param(
            "uuencoded-below-text",
            [DropAttachments((0,), "Gone.")],
            [(b"begin 644 game.exe\n#0V%T\n`\nend\n", b"Gone.\n")],
            id="uuencoded-files-go-the-text-stays",
        ),
        pytest.param(
            "unknown-charset",
            [Footer("fü")],
            [(b"Gr\xc3\xbc\xc3\x9fe\n", b"Gr\xc3\xbc\xc3\x9fe\n\nf?\n")],
            id="unknown",
        ),
        pytest.param("ordinary", [DropAttachments((9,))], [], id="no-such-part"),
        pytest.param(
            "multipart-only-closed",
            [DropAttachments((1,))],
            [
                (b"multipart/mixed; boundary=b\n", b"text/plain; charset=us-ascii\n" + TRANSFER),
                (
                    b"text that only some readers show\n\n--b--\n",
                    b"an attachment without a name (multipart/mixed, 40 bytes)\n",
                ),
            ],
            id="a-multipart-that-is-none",
        ),
    ],
)
def test_apply(name: str, edits: list[Edit], changes: list[tuple[bytes, bytes]]) -> None:
    """What is named changes, all other bytes leave as they came."""
    expected = raw(name)
    if edits[0] == DropAttachments((3, 5)):
        start, end = expected.index(b"Content-Type: multipart/related"), expected.index(b"\n--inner--")
        note = NOTE + b"an attachment without a name (multipart/related, %d bytes)\n"
        body = len(expected[start:end].partition(b"\n\n")[2])
        gif = b"an attachment without a name (image/gif, 14 bytes)"
        expected = expected[:start] + note % body + gif + expected[end:]
    for before, after in changes:
        assert before in expected
        expected = expected.replace(before, after, 1)
    assert apply(raw(name), edits) == expected


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("signed-pgp-mime", "footer: a signed message"),
        ("signed-smime-opaque", "footer: a signed message"),
        ("encrypted-pgp-mime", "footer: an encrypted message"),
        ("signed-pgp-inline", "footer: a signed message"),
        ("signed-below-a-list-footer", "footer: a signed message"),
        ("attachment-alone", "footer: no text part that could take it"),
        ("multipart-only-closed", "footer: no text part that could take it"),
        ("multipart-without-lines", "footer: no text part that could take it"),
        ("two-boundaries", "footer: no text part that could take it"),
        ("unknown-encoding", "footer: a text part in an unknown transfer encoding"),
    ],
)
def test_what_is_left_alone(name: str, note: str) -> None:
    """A signed, an encrypted or an unclear message leaves as it came, and a note says why."""
    data = raw(name)
    assert apply(data, [Footer("x")]) == data
    assert notes(Mail(data), [Footer("x")]) == (note,)
    assert body_change(Mail(data), [Footer("x")]) is None
    assert header_changes(Mail(data), [Footer("x")]) == ()


def test_an_opaque_or_encrypted_message_cannot_take_a_footer_even_if_told() -> None:
    """`signed` lets a footer into text that can be reached, and nothing else."""
    for name in ("signed-smime-opaque", "encrypted-pgp-mime"):
        assert apply(raw(name), [Footer("x", signed=True)]) == raw(name)


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        pytest.param([ReplaceBody("gone ü")], "gone ü\n", id="alone"),
        pytest.param([Banner("a"), ReplaceBody("gone"), Footer("f"), Banner("b")], "b\n\ngone\n\nf\n", id="and-footer"),
        pytest.param([ReplaceBody("x"), ReplaceBody("y")], "y\n", id="the-last-counts"),
        pytest.param([DropAttachments((7,)), ReplaceBody("y")], "y\n", id="nothing-left-to-drop"),
    ],
)
def test_replace_body(edits: list[Edit], text: str) -> None:
    """One plain text takes the place of everything; what was edited before is void."""
    after = Mail(apply(raw("alternative-in-mixed"), edits))
    assert after.text == text
    assert len(after.parts) == 1
    assert after.malformed == ()
    assert after.subject == "hello"


def test_a_body_must_be_known_to_be_edited() -> None:
    """With the header alone a body can be replaced, not edited."""
    known = Mail.from_fields([(b"From", b"a@b")])
    assert body_change(known, [ReplaceBody("x")]) == b"x\n"
    with pytest.raises(ValueError, match="not known"):
        body_change(known, [Footer("x")])
    assert edits_body([AddHeader("a", "b"), Footer("x")])
    assert not edits_body([AddHeader("a", "b")])


@pytest.mark.parametrize("text", ["a\0b", "a\rb", "x" * 5000, "wörter " * 900, "\ud800", "a\x85b\u2028c"])
def test_no_text_breaks_the_message(text: str) -> None:
    """No control character and no line that mail does not carry comes of a text."""
    data = apply(raw("ordinary").replace(b"\r\n", b"\n"), [Footer(text)])
    assert all(len(line) < 998 for line in data.split(b"\n"))
    assert b"\0" not in data
    assert b"\r" not in data
    assert Mail(data).malformed == ()


def test_an_html_footer_is_text_where_it_is_text() -> None:
    """A text becomes HTML, escaped; what the page hides is no place for it."""
    head = b"Content-Type: text/html; charset=koi8-r\nContent-Transfer-Encoding: 8bit\n\n"
    html = head + b"<html><!-- <body> --><body><script>'</body>'</script>x</body>\n"
    after = apply(html, [Banner("<&\"'"), Footer("ü\nя")])
    assert after == html.replace(b"--><body>", b"--><body>\n<div>&lt;&amp;&quot;&#x27;</div>\n").replace(
        b"x</body>", b"x\n<div>&#252;<br>\n\xd1</div>\n</body>"
    )


@pytest.mark.parametrize(
    ("head", "body", "after"),
    [
        pytest.param(b"; charset=windows-1252", b"\x80\r\n", b"\x80\r\n\r\n\x80\r\n", id="windows-1252-has-a-euro"),
        pytest.param(b"; charset=iso-8859-15", b"x\r\n", b"x\r\n\r\n\xa4\r\n", id="latin-9-too"),
        pytest.param(b"; charset=utf-8", b"\xc3\xa4\r\n", b"\xc3\xa4\r\n\r\n\xe2\x82\xac\r\n", id="utf-8"),
        pytest.param(b"; charset=gb18030", b"x", b"x\r\n\r\n\xa2\xe3\r\n"[:-2], id="not-closed"),
    ],
)
def test_eight_bit_stays_eight_bit(head: bytes, body: bytes, after: bytes) -> None:
    """Text of 8-bit characters takes its footer in them."""
    start = b"Content-Type: text/plain" + head + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    assert apply(start + body, [Footer("€")]) == start + after


_EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(Banner, st.text(max_size=12), signed=st.booleans()),
    st.builds(Footer, st.text(max_size=12), only=st.sampled_from(["", "text", "html"]), signed=st.booleans()),
    st.builds(DropAttachments, st.lists(st.integers(0, 8), max_size=3).map(tuple), st.text(max_size=5)),
    st.builds(ReplaceBody, st.text(max_size=9)),
    st.builds(AddHeader, st.just("X"), st.text(max_size=5)),
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(st.sampled_from(NAMES), st.lists(_EDITS, max_size=4), st.booleans())
def test_the_message_and_the_milters_calls_agree(name: str, edits: list[Edit], crlf: bool) -> None:
    """What apply writes has the header and the body that the milter's calls make, and can still be read."""
    data = raw(name)
    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") if crlf else data
    before = Mail(data)
    after = Mail(apply(data, edits))
    expected = carried_out(before, header_changes(before, edits))
    body = body_change(before, edits)
    assert [(field.name, field.raw_text) for field in after.header] == [
        (field, value.strip(" \t")) for field, value in expected
    ]
    assert after.body.lstrip(b"\r\n") == (before.body if body is None else body).lstrip(b"\r\n")
    assert (body is None) == (before.body == after.body)
    _ = after.parts, after.text, after.malformed


@given(
    st.sampled_from(["ordinary", "alternative-in-mixed", "text-in-utf-16"]),
    st.text("aäя€>-= .\n", max_size=20),
)
def test_the_footer_is_read_at_the_end(name: str, text: str) -> None:
    """Whatever the charset and the encoding, readers see the text as it was and the footer below it."""
    said = f"|{text}|"
    came, after = (
        next(part.text for part in Mail(data).parts if part.type == "text/plain")
        for data in (raw(name), apply(raw(name), [Footer(said)]))
    )
    assert after.rstrip("\n") == came.removesuffix("\n") + "\n\n" + said


def test_flowed_text_keeps_its_paragraphs() -> None:
    """A paragraph left open does not swallow the footer, and nothing in the footer flows or quotes."""
    head = b"Content-Type: text/plain; format=flowed\n\n"
    assert apply(head + b"open \n", [Footer("From a \n>b\n c")]) == head + b"open \n\n\n From a\n >b\n  c\n"


@pytest.mark.parametrize("name", MESSAGES)
def test_hostile_messages(name: str) -> None:
    """A message made to cost is edited, left alone, or "could not tell"."""
    data = MESSAGES[name]()
    try:
        after = apply(data, [Footer("ü"), DropAttachments((1,), "x")])
    except LimitHit:
        return
    assert len(after) < 4 * len(data) + 10_000


def test_a_large_text_is_encoded_anew_only_within_a_bound() -> None:
    """What can be put in as it is goes in however large the text; what would cost is "could not tell"."""
    data = b"From: a@b\n\n" + b"a line\n" * 1_000_000
    assert apply(data, [Footer("x")]) == data + b"\nx\n"
    for head in (b"", b"Content-Type: text/plain; charset=utf-8\n", b"Content-Transfer-Encoding: base64\n"):
        with pytest.raises(LimitHit, match="to encode anew"):
            apply(head + data, [Footer("ü")])
