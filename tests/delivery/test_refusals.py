"""Whom a personal refusal may be told: a table of what the site says, what its servers found, and the sender."""

from __future__ import annotations

import pytest

from milterapp.delivery import refusals
from milterapp.mail.edits import AddHeader
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision, Filter, Reply, Verdict
from milterapp.rules.deliveries import File, Keep, SendReply, Vacation

IDS = ("mx.example.com",)
SENDER = "ann@news.example.org"
OURS, OTHERS = "Authentication-Results: mx.example.com; {}\n", "Authentication-Results: mx.evil.example; {}\n"
PASSED = OURS.format("spf=pass smtp.mailfrom=ann@news.example.org")
FAILED = OURS.format("spf=fail smtp.mailfrom=ann@news.example.org")
SIGNED = OURS.format("dkim=pass header.d=example.org")

# name: (header, whether `likely` may, whether `proven` may)
FOUND = {
    "nothing": ("", True, False),
    "SPF passed": (PASSED, True, True),
    "SPF passed, of a bare domain": (OURS.format("spf=pass smtp.mailfrom=news.example.org"), True, True),
    "SPF passed, of another domain": (OURS.format("spf=pass smtp.mailfrom=a@other.example"), True, False),
    "SPF passed, of a domain above": (OURS.format("spf=pass smtp.mailfrom=a@example.org"), True, False),
    "SPF passed, of the greeting": (OURS.format("spf=pass smtp.helo=news.example.org"), True, False),
    "SPF failed": (FAILED, False, False),
    "SPF failed softly": (FAILED.replace("spf=fail", "spf=softfail"), False, False),
    "SPF is neutral": (FAILED.replace("spf=fail", "spf=neutral"), True, False),
    "SPF had trouble": (FAILED.replace("spf=fail", "spf=temperror"), True, False),
    "SPF failed, say others": (OTHERS.format("spf=fail smtp.mailfrom=ann@news.example.org"), True, False),
    "SPF passed, say others": (OTHERS.format("spf=pass smtp.mailfrom=ann@news.example.org"), True, False),
    "signed": (SIGNED, True, True),
    "signed by another": (OURS.format("dkim=pass header.d=other.example"), True, False),
    "signed by a lookalike": (OURS.format("dkim=pass header.d=s.example.org"), True, False),
    "signed by the top": (OURS.format("dkim=pass header.d=org"), True, False),
    "passed on, SPF failed, signed": (FAILED + SIGNED, True, True),
    "SPF failed, signed by another": (FAILED + OURS.format("dkim=pass header.d=other.example"), False, False),
    "DMARC passed": (OURS.format("dmarc=pass header.from=example.org"), True, True),
    "DMARC failed": (OURS.format("dmarc=fail header.from=example.org"), False, False),
    "a signature that failed": (OURS.format("dkim=fail header.d=example.org"), True, False),
}


def doubt(header: str, word: str, *, sender: str = SENDER, local: bool = False, limits: Limits | None = None) -> str:
    """Return why a refusal may not come back."""
    mail = Mail(f"{header}Subject: x\n\n".encode(), limits or Limits())
    return refusals.doubt(mail, Envelope(sender=sender, local=local, recipients=("bob@x.org",)), word, IDS)


@pytest.mark.parametrize(("header", "likely", "proven"), FOUND.values(), ids=FOUND)
def test_who_may_be_told(header: str, likely: bool, proven: bool) -> None:
    """`always` tells everybody, `never` nobody; the two between ask what the site's own servers found."""
    told = [doubt(header, word) == "" for word in refusals.WORDS]
    assert told == [True, likely, proven, False]


def test_mail_of_this_host_is_proven() -> None:
    """What was submitted here needs no check, but where one failed all the same."""
    assert doubt("", "proven", local=True) == ""
    assert "forged" in doubt(FAILED, "proven", local=True)


def test_the_null_sender_is_postfix_s_matter() -> None:
    """Nothing is sent to it, so nothing has to be proven."""
    assert doubt(FAILED, "likely", sender="") == ""


def test_a_header_that_cannot_be_read_is_doubt() -> None:
    """Where a limit is hit, nobody is told."""
    assert "cannot be read" in doubt(PASSED * 5, "likely", limits=Limits(header_fields=3))


def test_what_a_refusal_becomes() -> None:
    """A kept message keeps its copies and edits, answers nobody, and says why; what is refused needs no edit."""
    copy, answers = File(("A",), copy=True), (SendReply("x"), Vacation("y"))
    reply = Reply(550, "5.7.1", "No")
    refused = Decision(Verdict.REJECT, reply, deliveries=(copy, *answers), matched=("a",), log=("b",))
    mail, envelope = Mail(f"{FAILED}\n".encode()), Envelope(sender=SENDER)
    kept = refusals.answered(refused, mail, envelope, "likely", IDS)
    assert (kept.verdict, kept.reply, kept.deliveries, kept.matched) == (Verdict.NONE, None, (copy, Keep()), ("a",))
    assert kept.log == ("b", "kept, not rejected (5.7.1 No): the envelope sender is likely forged (spf=fail)")
    assert refusals.answered(refused, mail, envelope, "always", IDS) is refused

    edited = Decision(Verdict.REJECT, reply, edits=(AddHeader("X-A", "b"),), filters=(Filter("scan"),))
    kept = refusals.answered(edited, mail, envelope, "likely", IDS)
    assert (kept.deliveries, kept.edits, kept.filters) == ((Keep(),), edited.edits, edited.filters)
    assert refusals.answered(edited, mail, envelope, "always", IDS) == Decision(Verdict.REJECT, reply)
    for verdict in set(Verdict) - {Verdict.REJECT}:
        other = Decision(verdict, deliveries=(copy,))
        assert refusals.answered(other, mail, envelope, "never", IDS) is other
