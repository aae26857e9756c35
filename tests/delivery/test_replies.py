"""Replies that never embarrass: one message for each reason not to answer, and what an answer looks like."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery.replies import answering, automatic, build, own_addresses, refusal
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.mail.message import Mail

ENVELOPE = Envelope(sender="ann@example.org", recipients=("bob@x.org",), original_recipient="info@x.org")
FIELDS = b"From: Ann <ann@example.org>\nTo: Bob <bob@x.org>\nSubject: hello\n"


def _mail(extra: bytes = b"", fields: bytes = FIELDS) -> Mail:
    return Mail(fields + extra + b"\nhi\n")


@pytest.mark.parametrize(
    "mail",
    [
        pytest.param(_mail(), id="plain"),
        pytest.param(_mail(b"Auto-Submitted: no\n"), id="auto-submitted no"),
        pytest.param(_mail(b"Auto-Submitted: (by hand) No ; x=y\n"), id="auto-submitted no with comment"),
        pytest.param(_mail(b"Precedence: first-class\n"), id="precedence"),
        pytest.param(_mail(b"X-Auto-Response-Suppress: DR, RN, NRN\n"), id="suppress receipts only"),
        pytest.param(_mail(b"Content-Type: multipart/mixed; boundary=report\n"), id="multipart"),
        pytest.param(_mail(b"Return-Path: <ann@example.org>\n"), id="return path"),
        pytest.param(_mail(b"X-Loop: ann@example.org\n"), id="somebody else's loop mark"),
        pytest.param(_mail(fields=b"To: BOB+x@X.ORG\n"), id="other case and extension"),
        pytest.param(_mail(fields=b"To: carol@x.org\nCc: z@x.org, info@x.org\n"), id="alias in cc"),
        pytest.param(_mail(fields=b"To: friends: bob@x.org, carol@x.org;\n"), id="in a group"),
        pytest.param(_mail(fields=b"To: carol@x.org\nResent-To: bob@x.org\n"), id="resent"),
        pytest.param(_mail(fields=b'To: "bob"@x.org\n'), id="quoted"),
    ],
)
def test_a_person_is_answered(mail: Mail) -> None:
    """What a person wrote to the recipient may be answered."""
    assert refusal(mail, ENVELOPE, ()) == ""


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        *[
            pytest.param(b"%s: x\n" % name, name.decode(), id=name.decode())
            for name in (
                b"List-Id", b"List-Help", b"List-Subscribe", b"List-Unsubscribe", b"List-Post", b"List-Owner",
                b"List-Archive", b"LIST-ID", b"List-Unsubscribe-Post", b"Mailing-List",
            )
        ],
        pytest.param(b"Auto-Submitted: auto-replied\n", "auto-replied", id="auto-replied"),
        pytest.param(b"Auto-Submitted: auto-generated (cron)\n", "auto-generated", id="auto-generated"),
        pytest.param(b"AUTO-SUBMITTED:\n auto-notified\n", "auto-notified", id="folded"),
        pytest.param(b"Auto-Submitted:\n", "Auto-Submitted", id="empty auto-submitted"),
        pytest.param(b"Auto-Submitted: no\nAuto-Submitted: auto-replied\n", "auto-replied", id="the second one counts"),
        pytest.param(b"Precedence: bulk\n", "bulk", id="bulk"),
        pytest.param(b"Precedence: Junk\n", "junk", id="junk"),
        pytest.param(b"Precedence: list\n", "list", id="list"),
        pytest.param(b"Precedence: auto_reply\n", "auto_reply", id="auto_reply"),
        pytest.param(b"X-Auto-Response-Suppress: All\n", "Suppress", id="suppress all"),
        pytest.param(b"X-Auto-Response-Suppress: DR, OOF\n", "Suppress", id="suppress out of office"),
        pytest.param(b"X-Auto-Response-Suppress: AutoReply\n", "Suppress", id="suppress automatic replies"),
        pytest.param(b"X-Autoreply: yes\n", "X-Autoreply", id="x-autoreply"),
        pytest.param(b"X-Autorespond: x\n", "X-Autorespond", id="x-autorespond"),
        pytest.param(b"Content-Type: Multipart/Report; report-type=delivery-status\n", "report", id="bounce"),
        pytest.param(b"Content-Type: message/delivery-status\n", "report", id="delivery status"),
        pytest.param(b"Return-Path: <>\n", "Return-Path", id="null return path"),
        pytest.param(b"X-Loop: Bob@X.org\n", "X-Loop", id="own loop mark"),
        pytest.param(b"X-Loop: a@y.org\nX-Loop: <info+x@x.org>\n", "X-Loop", id="own loop mark among others"),
    ],
)  # fmt: skip
def test_a_machine_is_not_answered_by_header(fields: bytes, why: str) -> None:
    """Each mark of a list, a bounce or an automatic message is a reason, and the reason names it."""
    assert why in refusal(_mail(fields), ENVELOPE, ())


@pytest.mark.parametrize(
    "sender",
    [
        "", "<>", "MAILER-DAEMON@x.org", "mailer-daemon", "postmaster@example.org", "owner-list@example.org",
        "list-request@example.org", "list-owner@example.org", "list-bounces@example.org",
        "list-bounces+bob=x.org@example.org", "bounce-123@example.org", "LISTSERV@example.org", "majordomo@example.org",
        "no-reply@example.org", "noreply+12@example.org", "ann", "double-bounce@x.org",
        "bob@x.org", "Bob+tag@X.org", "info@x.org", '"bob"@x.org', "info+ext@x.org",
    ],
)  # fmt: skip
def test_a_machine_or_oneself_is_not_answered(sender: str) -> None:
    """The null sender, addresses that are no person's, and every address of the recipient are not answered."""
    envelope = Envelope(sender=sender, recipients=ENVELOPE.recipients, original_recipient="info@x.org")
    assert "sender" in refusal(_mail(), envelope, ())


@pytest.mark.parametrize("sender", ["requests@x.org", "ownerless@x.org", "daemon.mailer@x.org", "bobby@x.org"])
def test_a_likeness_is_no_reason(sender: str) -> None:
    """An address that only looks a little like a machine's is answered."""
    envelope = Envelope(sender=sender, recipients=ENVELOPE.recipients)
    assert refusal(_mail(), envelope, ()) == ""


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"To: carol@x.org\n", id="another"),
        pytest.param(b"From: a@x.org\n", id="nobody"),
        pytest.param(b"To: undisclosed-recipients:;\n", id="undisclosed"),
        pytest.param(b"To: bob@x.org.example.net\n", id="a longer domain"),
        pytest.param(b"To: notbob@x.org\n", id="a longer local part"),
        pytest.param(b'To: "bob@x.org" <carol@x.org>\n', id="as a display name"),
        pytest.param(b"Subject: bob@x.org\n", id="elsewhere"),
    ],
)
def test_only_what_was_written_to_the_recipient_is_answered(fields: bytes) -> None:
    """Where no address of the recipient stands in To, Cc, Bcc or Resent-* there is no answer."""
    assert "no address of the recipient" in refusal(_mail(fields=fields), ENVELOPE, ())


def test_further_addresses_count() -> None:
    """An address that the recipient owns besides is its own: written to, answered; as a sender, not."""
    mail = _mail(fields=b"To: robert@y.org\n")
    assert refusal(mail, ENVELOPE, ()) != ""
    assert refusal(mail, ENVELOPE, ("Robert@Y.org",)) == ""
    assert "is the recipient" in refusal(
        mail, Envelope(sender="robert@y.org", recipients=("bob@x.org",)), ("robert@y.org",)
    )


def test_a_header_over_the_limits_is_not_answered() -> None:
    """Where a limit keeps us from reading the whole header, "could not tell" is a reason not to answer."""
    mail = Mail(FIELDS + b"X: y\n" * 50 + b"\n", Limits(header_fields=20))
    assert "cannot be read whole" in refusal(mail, ENVELOPE, ())
    cut = Mail((FIELDS + b"X: y\n" * 50)[:101], Limits(header_bytes=100))
    assert "cannot be read whole" in refusal(cut, ENVELOPE, ())


def test_the_delimiter_is_the_sites() -> None:
    """An extension is what the site's recipient_delimiter splits off, and only that."""
    mail = _mail(fields=b"To: bob-x@x.org\n")
    assert refusal(mail, ENVELOPE, (), delimiter="+") != ""
    assert refusal(mail, ENVELOPE, (), delimiter="-") == ""
    assert own_addresses("Bob-x@X.org", "", delimiter="-") == {"bob-x@x.org", "bob@x.org"}


NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def _built(mail: Mail, *, sender: str = "ann@example.org", subject: str = "", text: str = "I am away.") -> bytes:
    parts = build(mail, sender=sender, own="bob@x.org", subject=subject, text=text, now=NOW, message_id="k.0@x.org")
    return b"".join(parts)


def test_an_answer_to_the_byte() -> None:
    """An answer has the fields of RFC 3834, lines in CRLF, and one recipient."""
    assert _built(_mail(b"Message-ID: <m@example.org>\nReferences: <r1@a> <r2@a>\n")) == (
        b"From: bob@x.org\r\nTo: ann@example.org\r\nSubject: Re: hello\r\nDate: Mon, 06 May 2024 07:08:09 +0000\r\n"
        b"Message-ID: <k.0@x.org>\r\nIn-Reply-To: <m@example.org>\r\n"
        b"References: <r1@a>\r\n <r2@a>\r\n <m@example.org>\r\n"
        b"Auto-Submitted: auto-replied\r\nX-Auto-Response-Suppress: All\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nI am away.\r\n"
    )


@pytest.mark.parametrize(
    ("extra", "references"),
    [
        pytest.param(b"", None, id="no message-id"),
        pytest.param(b"Message-ID: <m@a>\n", "<m@a>", id="message-id alone"),
        pytest.param(b"Message-ID: <m@a>\nIn-Reply-To: <p@a>\n", "<p@a> <m@a>", id="in-reply-to stands for references"),
        pytest.param(b"Message-ID: <m@a>\nReferences: <m@a> x <r@a>\n", "<r@a> <m@a>", id="once each, no rubbish"),
        pytest.param(b"Message-ID: none\n", None, id="not a message-id"),
    ],
)
def test_references(extra: bytes, references: str | None) -> None:
    """References are the message's own and its Message-ID (RFC 5322 section 3.6.4); nothing else gets in."""
    reply = message_from_bytes(_built(_mail(extra)), policy=policy.default)
    assert (None if reply["References"] is None else " ".join(reply["References"].split())) == references


def test_many_references_are_cut() -> None:
    """A long thread keeps the last references, and the message's own."""
    thread = b" ".join(b"<%d@a>" % number for number in range(100))
    reply = message_from_bytes(
        _built(_mail(b"Message-ID: <m@a>\nReferences: " + thread + b"\n")), policy=policy.default
    )
    assert reply["References"].split() == [*(f"<{number}@a>" for number in range(89, 100)), "<m@a>"]


@pytest.mark.parametrize(
    ("came", "given", "wanted"),
    [
        pytest.param(b"hello", "", "Re: hello", id="plain"),
        pytest.param(b"RE: re: hello", "", "Re: hello", id="re once"),
        pytest.param(b"=?utf-8?q?gr=C3=BC=C3=9Fe?=", "", "Re: grüße", id="encoded"),
        pytest.param(b"=?utf-8?q?a=0D=0ABcc:_c=40x?=", "", "Re: a Bcc: c@x", id="line end inside"),
        pytest.param(b"hello", "I am away — till May", "I am away — till May", id="given"),
        pytest.param(b"hello", "a\r\nBcc: c@x.org", "a Bcc: c@x.org", id="given with line end"),
        pytest.param(b"\xff\xfe", "", None, id="rubbish"),
    ],
)
def test_subjects(came: bytes, given: str, wanted: str | None) -> None:
    """The subject is one encoded line: the rule's, or `Re: ` and the message's."""
    built = _built(_mail(fields=b"To: bob@x.org\nSubject: " + came + b"\n"), subject=given)
    reply = message_from_bytes(built, policy=policy.default)
    assert built.isascii()
    assert reply["Bcc"] is None
    assert wanted is None or reply["Subject"] == wanted


@given(st.text(), st.text(), st.text())
def test_nothing_becomes_a_header(subject: str, text: str, sender: str) -> None:
    """Whatever subject, text and addresses hold, the answer has its twelve fields at most and lines of legal length."""
    built = _built(
        _mail(b"Message-ID: <m@a>\n"), subject=subject, text=text, sender=sender.encode("utf-8", "replace").decode()
    )
    header, _, body = built.partition(b"\r\n\r\n")
    names = [line.partition(b":")[0] for line in header.split(b"\r\n") if not line.startswith(b" ")]
    assert set(names) <= {
        b"From", b"To", b"Subject", b"Date", b"Message-ID", b"In-Reply-To", b"References", b"Auto-Submitted",
        b"X-Auto-Response-Suppress", b"MIME-Version", b"Content-Type", b"Content-Transfer-Encoding",
    }  # fmt: skip
    assert len(names) == len(set(names))
    assert body.isascii()
    assert max(map(len, body.split(b"\r\n"))) <= 78
    assert b"\n" not in built.replace(b"\r\n", b"")


def test_the_text_arrives_as_written() -> None:
    """A text of any script and line length comes out of the answer as it went in."""
    text = "Grüße,\n\n" + "日本語 " * 100 + "\n.\n-- \nBob   "
    reply = message_from_bytes(_built(_mail(), text=text), policy=policy.default)
    assert reply.get_content() == (text + "\n").replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("to", "own"),
    [(b"info@x.org", "info@x.org"), (b"bob@x.org", "bob@x.org"), (b"bob@x.org, INFO+1@x.org", "info@x.org")],
)
def test_who_answers(to: bytes, own: str) -> None:
    """The answer comes from the address that was written to: the alias where it was that, else the recipient."""
    assert answering(_mail(fields=b"To: " + to + b"\n"), ENVELOPE) == own


def test_no_address_ends_a_header_line() -> None:
    """Sender, own address and the domain in the Message-ID add no field, whatever control characters they hold."""
    odd = "a\r\nBcc: c@x.org\x0b\x7f@x.org"
    parts = build(
        Mail(b"From: a@x.org\n\n"), sender=odd, own=odd, subject="s", text="t", now=NOW, message_id=f"k.0@{odd}"
    )
    head = b"".join(parts).partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")]
    assert b"Bcc" not in names
    assert len(names) == len(set(names)) == 10
    assert not set(head) & ({*range(32), 127} - {10, 13})


@pytest.mark.parametrize(
    ("wish", "own"),
    [
        pytest.param("", "bob@x.org", id="none"),
        pytest.param("Info@X.org", "info@x.org", id="before the aliases"),
        pytest.param("bob@x.org", "bob@x.org", id="after the aliases"),
        pytest.param("info+x@x.org", "bob@x.org", id="an extension of another"),
        pytest.param("ceo@x.org", "bob@x.org", id="somebody else"),
        pytest.param("info@x.org, ceo@x.org", "bob@x.org", id="two"),
        pytest.param("info@x.org\r\nBcc: c@x.org", "bob@x.org", id="a line end"),
        pytest.param("@", "bob@x.org", id="no address"),
    ],
)
def test_nobody_answers_as_somebody_else(wish: str, own: str) -> None:
    """A wish is heard where it is an address that the message came by; any other is ignored."""
    assert answering(_mail(), ENVELOPE, wish=wish) == own


def test_an_answer_as_the_address_without_its_extension() -> None:
    """The address without its extension is the recipient's as well."""
    envelope = Envelope(sender="ann@example.org", recipients=("bob+lists@x.org",), original_recipient="bob+lists@x.org")
    assert answering(_mail(), envelope, wish="bob@x.org") == "bob@x.org"
    assert answering(_mail(), envelope, wish="bob+other@x.org") == "bob+lists@x.org"


@pytest.mark.parametrize(
    ("came", "wanted"), [("hello", "Auto: hello"), ("Re: a", "Auto: Re: a"), (" ", "Automatic reply")]
)
def test_the_subject_of_a_vacation(came: str, wanted: str) -> None:
    """A vacation without a subject has the message's, marked as automatic."""
    assert automatic(came) == wanted
