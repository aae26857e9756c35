"""Verdicts with all their details on a real Postfix, over SMTP and of mail that sendmail(1) submits."""

from __future__ import annotations

import smtplib
import subprocess

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"

RULES = """\
rules:
  - name: bob is asked nothing
    if: {recipient: bob@example.org}
    then: accept
  - name: several lines
    if: {subject: {contains: several}}
    then:
      reject:
        code: 554
        status: 5.6.0
        text: |
          We cannot take this, 100% sure.
          See <https://mail.example.org/why> for more.
  - name: later
    if: {subject: {contains: later}}
    then:
      defer: {code: 450, status: 4.2.1, text: Come again}
  - name: odd
    if: {subject: {contains: odd}}
    then:
      hold: somebody should look, caf\u00e9
  - name: held and marked
    if: {subject: {contains: look}}
    then:
      - prefix_subject: "[seen]"
      - hold
  - name: void
    if: {subject: {contains: void}}
    then: discard
  - name: edited
    if: {subject: {contains: edit}}
    then:
      - banner: Beware
      - set_header: {X-One: new}
      - prepend_header: {X-Top: first}
      - remove_header: {name: X-Tag, value: {contains: bad}}
      - set_sender: other@home.example
  - name: replaced
    if: {subject: {contains: other body}}
    then:
      - replace_body: Nothing to see
  - name: dropped
    if: {attachment: {extension: exe}}
    then: drop_attachments
"""


@pytest.fixture
def ruled(site: Site) -> Site:
    """The host with the site rules above."""
    site.site_rules(RULES)
    return site


def submit(site: Site, over: str, data: bytes, recipients: list[str]) -> None:
    """Send a message that is taken."""
    if over == "smtp":
        assert site.send(data, recipients).code == 250
    else:
        assert site.sendmail(data, recipients, sender="dora@home.example").returncode == 0


def test_several_lines(ruled: Site) -> None:
    """A refusal's code, status and lines reach the client, each line with both, the per cent sign once."""
    with ruled.connection() as smtp:
        smtp.mail("dora@home.example")
        smtp.rcpt(ALICE)
        assert smtp.data(message("several")) == (
            554,
            b"5.6.0 We cannot take this, 100% sure.\n5.6.0 See <https://mail.example.org/why> for more.",
        )


def test_defer_in_own_words(ruled: Site) -> None:
    """So do those of a refusal for now."""
    with ruled.connection() as smtp:
        smtp.mail("dora@home.example")
        smtp.rcpt(ALICE)
        assert smtp.data(message("later")) == (450, b"4.2.1 Come again")


def test_accept_is_for_one_recipient(ruled: Site) -> None:
    """Whom a rule exempts gets the message that is refused for others only where no other is named."""
    assert ruled.send(message("several"), [BOB]).code == 250
    assert ruled.send(message("several"), [BOB, ALICE]).code == 554
    assert ruled.send(message("hello"), [BOB, ALICE]).code == 250
    ruled.settle()
    assert (len(ruled.inbox("bob")), len(ruled.inbox("alice"))) == (2, 1)


@pytest.mark.parametrize("over", ["smtp", "sendmail"])
def test_hold_says_why(ruled: Site, over: str) -> None:
    """The event has the reason (Postfix 3.7 logs none); released, the message arrives as it was decided, once."""
    submit(ruled, over, message("odd one"), [ALICE])
    submit(ruled, over, message("look here"), [ALICE])
    ruled.wait(lambda: [one["queue_name"] for one in ruled.queue()] == ["hold", "hold"], "both to be held", 60)
    # They are in the queue before postlogd(8) has written it.
    wanted = [f" {one['queue_id']}: milter-hold: END-OF-MESSAGE" for one in ruled.queue()]
    ruled.wait(lambda: all(one in "\n".join(ruled.log()) for one in wanted), "the log to say so of both", 30)
    events = [line for line in ruled.service_log("milter").splitlines() if "verdict=hold" in line][-2:]
    assert all(str(one["queue_id"]) in "".join(events) for one in ruled.queue())
    assert sorted(line.partition(" hold=")[2].partition(" ms=")[0] for line in events) == [  # pickup(8) has its order
        '"rule held and marked"',
        '"somebody should look, caf?"',
    ]
    ruled.run("postsuper", "-H", "ALL")
    ruled.settle()
    assert sorted(header(one, "Subject")[0] for one in ruled.inbox("alice")) == ["[seen] look here", "odd one"]


def test_requeued_is_not_asked_again(ruled: Site) -> None:
    """A held message that postsuper -r requeues goes on as it was decided: Postfix asks no milter again."""
    submit(ruled, "smtp", message("look here"), [ALICE])
    (held,) = ruled.queue()
    ruled.run("postsuper", "-r", str(held["queue_id"]))
    subprocess.run(["postkick", "public", "pickup", "W"], check=False)  # which looks by itself once a minute
    ruled.wait(lambda: bool(ruled.inbox("alice")), "the message", 120)
    assert [header(one, "Subject") for one in ruled.inbox("alice")] == [["[seen] look here"]]


def test_discarded_in_silence(ruled: Site) -> None:
    """What sendmail(1) submits is thrown away without a notice."""
    submit(ruled, "sendmail", message("into the void"), [ALICE])
    ruled.settle()
    assert (ruled.inbox("alice"), ruled.inbox("bob"), ruled.elsewhere()) == ([], [], [])


def test_sendmail_is_refused_with_a_notice(ruled: Site) -> None:
    """What sendmail(1) submits and a rule refuses comes back to its sender with the rule's text; deferred, it waits."""
    ruled.sendmail(message("several"), [ALICE], user="carol")
    ruled.settle()
    (notice,) = ruled.inbox("carol")
    assert b"We cannot take this, 100% sure." in notice
    assert ruled.inbox("alice") == []


@pytest.mark.parametrize("over", ["smtp", "sendmail"])
def test_edits(ruled: Site, over: str) -> None:
    """Header, body and sender are edited, whichever way the message came."""
    data = b"X-Tag: bad one\r\nX-Tag: good\r\nX-One: old\r\n" + message("edit", "text\n")
    submit(ruled, over, data, [ALICE])
    submit(ruled, over, message("other body", "text\n"), [ALICE])
    ruled.settle()
    found = {header(one, "Subject")[0]: one for one in ruled.inbox("alice")}
    edited, replaced = found["edit"], found["other body"]
    assert (header(edited, "X-Tag"), header(edited, "X-One"), header(edited, "X-Top")) == (["good"], ["new"], ["first"])
    assert edited.startswith(b"From other@home.example ") or header(edited, "Return-Path") == ["<other@home.example>"]
    assert edited.replace(b"\r\n", b"\n").partition(b"\n\n")[2].startswith(b"Beware")
    assert replaced.replace(b"\r\n", b"\n").partition(b"\n\n")[2].strip() == b"Nothing to see"


def test_attachment_of_sendmail(ruled: Site) -> None:
    """An attachment goes from what sendmail(1) submits."""
    data = (
        b"From: dora@home.example\r\nSubject: file\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="b"\r\n'
        b"\r\n--b\r\n\r\nhello\r\n--b\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Disposition: attachment; filename=a.exe\r\nContent-Transfer-Encoding: base64\r\n\r\nTVqQ\r\n--b--\r\n"
    )
    submit(ruled, "sendmail", data, [ALICE])
    ruled.settle()
    (found,) = ruled.inbox("alice")
    assert b"TVqQ" not in found
    assert b"hello" in found


def test_smtputf8_edits(ruled: Site) -> None:
    """A message in UTF-8 throughout is edited, and stays what it was beside that."""
    subject = "edit caf\u00e9"
    data = message("x", "na\u00efve\n").replace(b"Subject: x", f"Subject: {subject}".encode())
    with ruled.connection() as smtp:
        smtp.command_encoding = "utf-8"
        assert smtp.mail("jos\u00e9@home.example", ["SMTPUTF8", "BODY=8BITMIME"])[0] == 250
        assert smtp.rcpt(ALICE)[0] == 250
        assert smtp.data(data)[0] == 250
    ruled.settle()
    (found,) = ruled.inbox("alice")
    assert f"Subject: {subject}".encode() in found
    assert header(found, "X-Top") == ["first"]


def test_connection_cut_in_the_middle(ruled: Site) -> None:
    """A client that hangs up within its message leaves nothing; the next on a new connection is served."""
    smtp = smtplib.SMTP("127.0.0.1", 25, "client.example", timeout=60)
    smtp.ehlo()
    smtp.mail("dora@home.example")
    smtp.rcpt(ALICE)
    smtp.docmd("DATA")
    smtp.send(b"Subject: edit\r\n\r\nhalf")
    smtp.close()
    assert ruled.send(message("hello"), [ALICE]).code == 250
    ruled.settle()
    assert [header(one, "Subject") for one in ruled.inbox("alice")] == [["hello"]]


def test_postfix_never_passes_mail_by_itself(site: Site) -> None:
    """Both ways into the milter defer without it: `accept` would queue a body that was half replaced (before 3.12)."""
    for parameter in ("smtpd_milters", "non_smtpd_milters"):
        assert "default_action=tempfail" in site.run("postconf", "-h", parameter)
