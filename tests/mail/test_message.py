"""What a message says of itself, from its bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail
from tests.mail.read import NAMES, everything, mail, raw


def test_an_ordinary_message_answers_every_question() -> None:
    """Header values come decoded, addresses apart, groups flattened, list and message ids without decoration."""
    one = mail("ordinary")
    assert one.subject == "Grüße from the other side"
    assert one.values("subject") == (one.subject,)
    assert one.raw_values("Subject") == ("=?utf-8?B?R3LDvMOfZQ==?= from the other side",)
    assert [str(a) for a in one.addresses("to", "cc")] == [
        "alice@example.org",
        "bob@example.org",
        "carol@example.org",
        "dan@example.org",
    ]
    assert one.addresses("From")[0].display == "Jörg Müller"
    assert one.addresses("to")[0].display == "Alice, the first"
    assert one.list_ids == ("all.lists.example.net",)
    assert one.message_id == "<one@example.net>"
    assert one.references == ("<zero@example.net>", "<half@example.net>")
    assert one.kinds == {"list"}
    assert one.text == "Hello Alice.\n"
    assert one.body == b"Hello Alice.\r\n"
    assert one.size == len(raw("ordinary"))
    assert one.malformed == ()
    assert one.attachments == ()


def test_what_a_message_does_not_have_is_none_or_empty() -> None:
    """Absent header fields are None or (), never an empty text that a rule could match."""
    one = mail("empty")
    assert one.subject is None
    assert one.message_id is None
    assert one.values("subject") == one.list_ids == one.references == ()
    assert one.addresses("from") == ()
    assert one.text == one.html == ""
    assert one.kinds == frozenset()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bare-cr-in-header", "a bare CR in the header"),
        ("nul-in-header", "a NUL in the header"),
        ("no-header-end", "no empty line after the header"),
        ("no-line-end", "no empty line after the header"),
        ("line-without-colon", "a line in the header that is no field"),
        ("eight-bit-field-name", "a line in the header that is no field"),
        ("folded-before-first-field", "a folded line before the first field"),
        ("two-from-fields", "two from fields"),
        ("two-boundaries", "two boundaries"),
        ("two-content-types", "two content types"),
        ("parts-after-the-last-boundary", "parts after the last boundary"),
        ("multipart-not-closed", "a multipart that is not closed"),
        ("multipart-without-boundary", "a multipart without a boundary"),
        ("multipart-without-lines", "a multipart without its boundary lines"),
        ("filename-against-filename-star", "filename and filename* differ"),
        ("base64-with-rubbish", "base64 with characters or padding where none belong"),
        ("quoted-printable-broken", "quoted-printable with a broken escape"),
        ("unknown-encoding", "an unknown transfer encoding 'rot13'"),
        ("unknown-charset", "an unknown charset 'klingon'"),
        ("wrong-charset", "bytes that are no utf-8"),
        ("encoded-message", "an encoded message/rfc822"),
    ],
)
def test_damage_is_named(name: str, reason: str) -> None:
    """What readers could take differently is a reason that a rule can ask for, and nothing is raised."""
    assert reason in mail(name).malformed


@pytest.mark.parametrize(
    "name",
    [
        "ordinary",
        "mixed-alternative",
        "mixed-line-ends",
        "mbox-from-line",
        "blank-before-colon",
        "boundary-begins-like-another",
        "filename-in-pieces",
        "filename-encoded-word",
        "base64-without-padding",
        "nested-message",
        "flowed",
        "html-only",
        "digest",
        "japanese-subject",
        "eight-bit-utf8-header",
    ],
)
def test_what_all_readers_take_alike_is_not_malformed(name: str) -> None:
    """Unusual is not malformed."""
    assert mail(name).malformed == ()


@pytest.mark.parametrize("name", NAMES)
def test_no_message_raises(name: str) -> None:
    """Every question about every message here has an answer, whatever its line ends."""
    everything(mail(name))
    everything(Mail(raw(name).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")))
    everything(Mail(raw(name).replace(b"\n", b"\r")))


_SCRAPS = st.sampled_from(
    [
        *(b"From: ", b"Subject:", b"Content-Type: multipart/mixed; boundary=b\n", b"--b", b"--b--", b"\n", b"\r\n"),
        *(b"\n\n", b"\r", b"\0", b" ", b"\t", b'"', b"=?utf-8?q?=C3?=", b"=?utf-7?b?2AA=?=", b"<", b">", b"@", b","),
        *(b"(", b")", b"\\", b"Content-Transfer-Encoding: base64\n", b"Content-Type: text/html; charset=utf-7\n"),
        *(b"Content-Transfer-Encoding: quoted-printable\n", b"Content-Type: message/rfc822\n", b"=", b"=41", b"QUJD"),
        *(b"Content-Disposition: attachment; filename*0*=utf-8''%41; filename*1=b\n", b"&#x", b"<!--", b"<p ", b"&amp"),
        *(b"Content-Type: text/plain; format=flowed\n", b"> a \n", b"begin 644 x\n", b"#0V%T\n", b"\xff", b"\xc3\xa4"),
    ]
)


@given(st.lists(_SCRAPS | st.binary(max_size=8), max_size=40).map(b"".join))
def test_no_bytes_raise(data: bytes) -> None:
    """Whatever stands in a message, reading it raises nothing and gives no surrogates."""
    everything(Mail(data))


@given(st.binary(max_size=200))
def test_a_message_is_its_header_and_its_body(data: bytes) -> None:
    """Fields and body together are the bytes as they came; nothing is dropped but the line between them."""
    one = Mail(data)
    fields = b"".join(field.raw for field in one.header)
    assert fields in data
    assert data.endswith(one.body)


class TestFromFields:
    """A milter is given fields apart."""

    def test_the_header_alone_is_not_complete(self) -> None:
        """Without a body there are header answers only, and malformed speaks of the header alone."""
        one = Mail.from_fields([(b"From", b"a@example.org"), (b"Subject", b" x\n y")])
        assert not one.complete
        assert one.subject == "x y"
        assert one.text == ""
        assert one.malformed == ()
        assert [field.name for field in one.header] == ["From", "Subject"]

    def test_with_a_body_it_is_the_message(self) -> None:
        """Fields and body make the message that would have come in one piece."""
        one = Mail.from_fields([(b"From", b"a@example.org"), (b"Subject", b" x\r\n y")], body=b"hello\r\n")
        assert one.raw == b"From: a@example.org\r\nSubject: x\r\n y\r\n\r\nhello\r\n"
        assert one.complete
        assert one.body == b"hello\r\n"
        assert one.text == "hello\n"

    def test_a_field_stays_the_one_it_was(self) -> None:
        """A name or value that would end a header does not hide the fields behind it."""
        one = Mail.from_fields([(b"no name\xff", b"x"), (b"X", b"a\nb c\n"), (b"Subject", b"s")])
        assert one.subject == "s"
        assert len(one.header) == 3

    def test_no_field_at_all_leaves_the_body_a_body(self) -> None:
        """A body that looks like a header is none."""
        one = Mail.from_fields([], body=b"Subject: x\n\ny\n")
        assert one.header == ()
        assert one.text == "Subject: x\n\ny\n"


@pytest.mark.parametrize(
    ("limits", "question"),
    [
        (Limits(header_fields=2), "subject"),
        (Limits(header_bytes=20), "subject"),
        (Limits(header_bytes=20), "body"),
        (Limits(mime_parts=2), "parts"),
        (Limits(mime_depth=1), "text"),
        (Limits(decoded_bytes=10), "text"),
        (Limits(decoded_bytes=10), "malformed"),
        (Limits(message_bytes=100), "parts"),
    ],
    ids=str,
)
def test_a_bound_of_ours_is_could_not_tell(limits: Limits, question: str) -> None:
    """A limit is never "no match": it raises, names itself, and does so again without the work."""
    one = Mail(raw("mixed-alternative"), limits)
    for _ in range(2):
        with pytest.raises(LimitHit, match=r"\d"):
            getattr(one, question)


def test_a_limit_on_the_body_leaves_the_header_readable() -> None:
    """Header rules go on where body rules could not tell."""
    one = Mail(raw("mixed-alternative"), Limits(mime_parts=1))
    assert one.subject == "two texts and a file"
    with pytest.raises(LimitHit, match="more than 1 MIME parts"):
        _ = one.parts


def test_addresses_are_bounded_over_all_fields() -> None:
    """The most addresses a message can have count over its fields together."""
    one = Mail(b"From: a@b, c@d\nTo: e@f\n\n", Limits(addresses=2))
    assert len(one.addresses("from")) == 2
    with pytest.raises(LimitHit, match="more than 2 addresses"):
        one.addresses("to")
