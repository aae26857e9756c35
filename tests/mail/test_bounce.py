"""A bounce says who could not be reached, and whether for good."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.bounce import HARD, SOFT, Failed, bounce
from milterapp.mail.message import Mail
from tests.mail.hostile import MESSAGES
from tests.mail.read import NAMES, mail, raw


@pytest.mark.parametrize(
    ("name", "kind", "recipients", "status", "standard"),
    [
        ("bounce-of-two-recipients", HARD, ("b@b.example", "c@c.example"), "5.1.1", True),
        ("bounce-delayed", SOFT, ("b@b.example",), "4.4.1", True),
        ("bounce-qmail", HARD, ("b@b.example",), "5.1.1", False),
        ("bounce-failed-recipients-field", SOFT, ("b@b.example", "c@c.example"), "4.2.2", False),
        ("bounce-in-words-nobody-knows", HARD, ("b@b.example",), "5.7.26", False),
        ("bounce-without-recipient", SOFT, (), "", False),
    ],
)
def test_bounces(name: str, kind: str, recipients: tuple[str, ...], status: str, standard: bool) -> None:
    """Reports are read by their fields, other bounces by their words; a message that is returned has no say."""
    found = bounce(mail(name))
    assert found is not None
    assert (found.kind, found.recipients, found.status, found.standard) == (kind, recipients, status, standard)
    assert found.recipient == (recipients[0] if recipients else "")
    assert "bounce" in mail(name).kinds


@pytest.mark.parametrize("name", ["bounce-report-of-success", "talk-of-bounces", "ordinary", "empty"])
def test_no_bounces(name: str) -> None:
    """A report that mail arrived is no bounce, nor is a letter about one."""
    assert bounce(mail(name)) is None


def test_a_report_in_full() -> None:
    """All that a report says about one recipient is there; a full mailbox is no reason to give an address up."""
    found = bounce(mail("bounce-of-two-recipients"))
    assert found is not None
    said = "550 5.1.1 <b@b.example>:    no such user"
    first = Failed("b@b.example", HARD, "5.1.1", "failed", "bob@example.org", said, "mx.b.example")
    assert found.failed == (first, Failed("c@c.example", SOFT, "5.2.2", "failed"))


def test_a_bounce_that_was_returned_is_not_read() -> None:
    """What an attached message reports is that one's affair."""
    inner = raw("bounce-of-two-recipients")
    outer = (
        b"Return-Path: <>\nFrom: mailer-daemon@x.example\nContent-Type: multipart/mixed; boundary=o\n\n"
        b"--o\n\nno words\n--o\nContent-Type: message/rfc822\n\n" + inner + b"--o--\n"
    )
    found = bounce(Mail(outer))
    assert found is not None
    assert found.failed == ()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Could not deliver to the following address <" + b"a" * 1_000_000 + b"@", id="one-long-line"),
        pytest.param(b"the following addresses had\n" + b"a@" * 500_000, id="at-signs"),
        pytest.param(b"the following addresses had\n" + b"(expanded from: <\n" * 50_000, id="lines"),
        pytest.param(b"Final-Recipient: rfc822; a@b.example\nAction: failed\n\n" * 50_000, id="reports"),
        pytest.param(b"\n \n" * 300_000, id="empty-lines"),
        pytest.param(b"550 " + b"a" * 64 + b"." * 1_000_000, id="dots"),
    ],
)
@pytest.mark.parametrize("head", [b"", b"Content-Type: message/delivery-status\n", b"Content-Type: text/html\n"])
def test_reading_is_bounded(head: bytes, body: bytes) -> None:
    """A bounce made to cost is read within a bound of work."""
    one = Mail(b"Return-Path: <>\nFrom: mailer-daemon@x.example\n" + head + b"\n" + body)
    began = time.process_time()
    found = bounce(one)
    assert time.process_time() - began < 2
    assert found is None or len(found.failed) <= 1000


@pytest.mark.parametrize("name", [name for name in MESSAGES if "header" not in name and "field" not in name])
def test_hostile_fields(name: str) -> None:
    """Fields made to cost, in a bounce, are read or "could not tell"."""
    one = Mail(b"Return-Path: <>\nX-Failed-Recipients: a@b.example\n" + MESSAGES[name]()[:300_000])
    try:
        bounce(one)
    except Exception as error:  # noqa: BLE001 - whatever else came, the assertion names it
        assert type(error).__name__ == "LimitHit"  # noqa: PT017


_LINES = st.sampled_from(
    [
        "<b@b.example>:",
        "Final-Recipient: rfc822; b@b",
        "Action: failed",
        "Status: 5.1.1",
        "",
        "550 no",
        "Unable to deliver message to",
        "Your message",
        "because:",
        "Content-Type: message/delivery-status",
        "--b",
        "the following addresses had",
    ]
)


@given(
    st.sampled_from(["text/plain", "multipart/mixed; boundary=b", "multipart/report; boundary=b"]),
    st.lists(_LINES | st.text(max_size=8)),
)
def test_no_bounce_raises(media_type: str, lines: list[str]) -> None:
    """Whatever stands in a bounce, reading it raises nothing."""
    head = f"From: mailer-daemon@x\nContent-Type: {media_type}\n\n--b\n"
    found = bounce(Mail((head + "\n".join(lines)).encode("utf-8", "replace")))
    assert found is None or all("@" in one.recipient for one in found.failed)


@pytest.mark.parametrize("name", NAMES)
def test_every_message_can_be_asked(name: str) -> None:
    """Odd as it is, a message that claims to be a bounce is read."""
    found = bounce(Mail(b"Return-Path: <>\nFrom: mailer-daemon@x.example\n" + raw(name)))
    assert found is None or found.kind in (HARD, SOFT)
