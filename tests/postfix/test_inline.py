"""In-line rules on a real Postfix: what the SMTP client hears, and what goes on."""

from __future__ import annotations

import pytest

from tests.postfix.harness import OUTSIDE, Answer, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB = "alice@example.org", "bob@example.org"

RULES = """\
rules:
  - name: a client that is not welcome
    if:
      client: 192.0.2.66
    then:
      reject: "5.7.1 Not from you"
  - name: bob takes no mail from outside.example
    if:
      recipient: bob@example.org
      sender: {domain: outside.example}
    then:
      reject: "5.7.2 Bob does not want your mail"
  - name: friends are not asked
    if:
      sender: friend@home.example
    then: accept
  - name: advertisements
    if:
      subject: {contains: limited offer}
    then:
      reject: "5.7.3 No advertisements"
  - name: later
    if:
      subject: {contains: too early}
    then:
      defer: "4.7.1 Try again tomorrow"
  - name: silence
    if:
      body: {contains: into the void}
    then: discard
  - name: a second look
    if:
      attachment: {extension: docm}
    then: hold
  - name: marked
    if:
      subject: {contains: invoice}
    then:
      - prefix_subject: "[External]"
      - add_header: {X-Site: outside}
      - remove_header: X-Tracking
"""


@pytest.fixture
def ruled(site: Site) -> Site:
    """The host with the site rules above."""
    site.site_rules(RULES)
    return site


@pytest.mark.parametrize(
    ("sender", "client", "subject", "body", "code", "text"),
    [
        ("dora@home.example", OUTSIDE, "hello", "", 250, "2.0.0 Ok"),
        ("dora@home.example", "192.0.2.66", "hello", "", 550, "5.7.1 Not from you"),
        ("dora@home.example", "192.0.2.67", "hello", "", 250, "2.0.0 Ok"),
        ("dora@home.example", OUTSIDE, "a LIMITED Offer", "", 550, "5.7.3 No advertisements"),
        ("friend@home.example", OUTSIDE, "a limited offer", "", 250, "2.0.0 Ok"),
        ("dora@home.example", OUTSIDE, "too early", "", 451, "4.7.1 Try again tomorrow"),
        ("dora@home.example", OUTSIDE, "hello", "into the void", 250, "2.0.0 Ok"),
        ("", OUTSIDE, "a limited offer", "", 550, "5.7.3 No advertisements"),
    ],
    ids=[
        "no rule",
        "client refused",
        "the next client is not",
        "subject refused",
        "accepted before it is looked at",
        "deferred",
        "discarded, unknown to its sender",
        "null sender refused",
    ],
)
def test_the_client_hears_the_verdict(
    ruled: Site, sender: str, client: str, subject: str, body: str, code: int, text: str
) -> None:
    """Each verdict reaches the SMTP client as the reply that the rule gives."""
    answer = ruled.send(message(subject, body), [ALICE], sender=sender, client=client)
    assert (answer.code, answer.text[: len(text)]) == (code, text)
    ruled.settle()
    arrives = code == 250 and "void" not in body
    assert [header(one, "Subject") for one in ruled.inbox("alice")] == ([[subject]] if arrives else [])


def test_one_recipient_is_refused_and_no_other(ruled: Site) -> None:
    """A rule on the recipient refuses that recipient at RCPT; the message goes to the others."""
    answer = ruled.send(message("hello"), [ALICE, BOB], sender="somebody@outside.example")
    assert answer.refused == {BOB: (550, "5.7.2 Bob does not want your mail")}
    assert answer.code == 250
    ruled.settle()
    assert (len(ruled.inbox("alice")), ruled.inbox("bob")) == (1, [])


def test_edits_touch_what_they_name(ruled: Site) -> None:
    """Fields are added, changed and removed; every other field and the body are as they came."""
    body = "Dear Alice,\n\n 62.00 please.\n.\nlast\n"
    assert ruled.send(message("Your invoice", body, x_tracking="abc", x_other="kept")).code == 250
    ruled.settle()
    (found,) = ruled.inbox("alice")
    assert header(found, "Subject") == ["[External] Your invoice"]
    assert header(found, "X-Site") == ["outside"]
    assert header(found, "X-Tracking") == []
    assert header(found, "X-Other") == ["kept"]
    assert found.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")


def test_hold_waits_in_the_hold_queue_until_it_is_released(ruled: Site) -> None:
    """A held message is queued on hold, and delivered once it is released."""
    held = message("minutes", "x", content_disposition='attachment; filename="minutes.docm"')
    answer = ruled.send(held)
    assert answer.code == 250
    assert [(one["queue_name"], one["queue_id"]) for one in ruled.queue()] == [("hold", answer.queue_id)]
    assert ruled.inbox("alice") == []
    ruled.run("postsuper", "-H", answer.queue_id)
    ruled.settle()
    assert len(ruled.inbox("alice")) == 1


def test_mail_of_this_host_passes_the_rules_too(ruled: Site) -> None:
    """What sendmail(1) submits is edited, and a reject of it is a bounce to its sender, never a loss."""
    ruled.sendmail(message("invoice"), [ALICE], user="bob")
    ruled.sendmail(message("a limited offer"), [ALICE], user="bob")
    ruled.settle()
    assert [header(one, "Subject") for one in ruled.inbox("alice")] == [["[External] invoice"]]
    (notice,) = ruled.inbox("bob")
    assert b"No advertisements" in notice


def test_a_recipient_of_local_mail_is_never_dropped(ruled: Site) -> None:
    """Where a rule refuses one recipient of this host's own mail, its sender gets the whole message back."""
    ruled.sendmail(message("hello"), [ALICE, BOB], sender="somebody@outside.example", user="carol")
    ruled.settle()
    assert (ruled.inbox("alice"), ruled.inbox("bob")) == ([], [])
    (notice,) = ruled.elsewhere()
    assert b"Bob does not want your mail" in notice


def test_several_messages_on_one_connection_are_decided_one_by_one(ruled: Site) -> None:
    """A verdict on one message says nothing about the next on the same connection."""
    with ruled.connection() as smtp:
        codes = []
        for subject in ("a limited offer", "hello", "too early", "invoice"):
            smtp.mail("dora@home.example")
            smtp.rcpt(ALICE)
            codes.append(smtp.data(message(subject))[0] if subject != "aborted" else 0)
        smtp.mail("dora@home.example")
        smtp.rcpt(ALICE)
        smtp.rset()
    assert codes == [550, 250, 451, 250]
    ruled.settle()
    assert sorted(header(one, "Subject")[0] for one in ruled.inbox("alice")) == ["[External] invoice", "hello"]


def test_no_milter_means_later_never_unfiltered(ruled: Site) -> None:
    """While the milter is gone Postfix answers 4xx; once it is back the same message passes."""
    ruled.stop_service("milter")
    gone: Answer = ruled.send(message("hello"))
    assert gone.code // 100 == 4
    ruled.start_service("milter")
    assert ruled.send(message("hello")).code == 250
    ruled.settle()
    assert len(ruled.inbox("alice")) == 1
