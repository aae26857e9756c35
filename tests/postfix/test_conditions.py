"""Every condition word on a real Postfix: asked once where it holds and once where it does not, in both places."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.rules.reading_conditions import CONDITIONS
from tests.postfix.harness import OUTSIDE, Site
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

SETTINGS = f"""\
authserv_ids: [mx.example.org]
milter:
  results_from: [{OUTSIDE}]
programs:
  succeeds:
    run: [/bin/true]
  fails:
    run: [/bin/false]
"""
# word: what holds of MESSAGE and the session it comes in, and what does not
CASES = {
    "client": ("192.0.2.0/24", "203.0.113.0/24"),
    "client_name": (".friends.example", "friends.example"),
    "local": ("no", "yes"),
    "helo": ("client.example", "other.example"),
    "sender": ("{domain: home.example}", "{domain: example.org}"),
    "login": ("dora", "bob"),
    "authenticated": ("yes", "no"),
    "tls": ("yes", "no"),
    "recipient": ("{detail: lists}", "{detail: other}"),
    "any_recipient": ("bob@example.org", "carol@example.org"),
    "every_recipient": ("{domain: example.org}", "bob@example.org"),
    "recipients": ("2", "{over: 2}"),
    "header": ("{X-Odd: {contains: grüße}}", "{X-Odd: {contains: quoted}}"),
    "raw_header": ("{X-Odd: {contains: '=?utf-8?q?'}}", "{X-Odd: {contains: grüße}}"),
    "from": ("{name: Dora Díaz}", "{name: {contains: Ann}}"),
    "to": ("{localpart: alice}", "{localpart: dora}"),
    "cc": ("carol@example.org", "dora@home.example"),
    "reply_to": ("{domain: .home.example}", "{domain: .example.org}"),
    "addressed_to": ("{in: people}", "{address: nobody@example.org}"),
    "subject": ("{regex: '\\binvoice\\b'}", "{regex: '^invoice'}"),
    "list_id": ("{ends: .lists.example}", "{starts: '<'}"),
    "message_id": ("{contains: first-of-all}", "{contains: '@other.example'}"),
    "references": ("older@home.example", "first-of-all@home.example"),
    "auth": ("{dmarc: pass, spf: fail}", "{dmarc: fail}"),
    "kind": ("list", "bounce"),
    "malformed": ("{contains: base64}", "{contains: header}"),
    "body": ("{contains: limited offer}", "{contains: not in it}"),
    "html": ("{contains: '<b>bold</b>'}", "{contains: limited offer}"),
    "raw": ("{contains: '--outer--'}", "{contains: grüße}"),
    "url": (".shop.example", ".home.example"),
    "attachment": ("{name: {glob: '*.pdf'}, size: {over: 10}}", "{extension: docm}"),
    "size": ("{over: 500, under: 100 KB}", "{over: 100 KB}"),
    "parts": ("{over: 2}", "{over: 20}"),
    "now": ("{between: [2026-01-01, 2999-12-31], zone: UTC}", "{between: [2001-01-01, 2001-12-31], zone: UTC}"),
    "score": ("{over: 2}", "{over: 3}"),
    "tag": ("marked", "unmarked"),
    "rate": ("{by: sender, over: 1, within: 1 hour}", "{by: sender, over: 100, within: 1 hour}"),
    "duplicate": ("yes", ""),  # the first message is the other one
    "command": ("succeeds", "fails"),
}
MESSAGE = """\
Authentication-Results: mx.example.org; dmarc=pass header.from=home.example;
 spf=fail smtp.mailfrom=home.example
From: =?utf-8?q?Dora_D=C3=ADaz?= <dora@home.example>
To: Alice <alice@example.org>
Cc: carol@example.org
Reply-To: desk@office.home.example
Subject: An invoice
X-Odd: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
List-Id: Some people <some.lists.example>
Message-ID: <first-of-all@home.example>
References: <oldest@home.example> <older@home.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: text/html; charset=utf-8

<p>A limited <i>offer</i>, <b>bold</b>: <a href="https://www.shop.example/x">here</a></p>
--outer
Content-Type: application/pdf; name="bill.pdf"
Content-Transfer-Encoding: base64

QWxsIHRoYXQgaXMgaW4gdGhlIGZpbGU=!
--outer--
"""


def rules(*, site: bool) -> tuple[str, set[str]]:
    """Return rules that mark a message with each condition that holds, and the words of all that are asked."""
    words = {word for word, one in CONDITIONS.items() if (one.site if site else one.personal)}
    words -= {"recipient"} if site else set()  # in-line it speaks of one recipient, whom nothing but a verdict reaches
    lines = ["lists:", "  people: [alice@example.org]", "rules:"]
    if site:  # what the recipient's rules ask for as well
        lines += ["  - name: mark", "    then:", "      - tag: marked", "      - score: 2.5"]
    for word in sorted(words):
        for answer, condition in zip(("Yes", "No"), CASES[word], strict=True):
            if condition:
                lines += [f"  - name: {word} {answer}", "    if:", f"      {word}: {condition}", "    then:"]
                lines += [f"      add_header: {{X-{'Site' if site else 'Own'}-{answer}: {word}}}"]
    if site:
        lines += ["  - name: one recipient", "    if:", "      recipient: carol@example.org", "    then: reject"]
    return "\n".join(lines) + "\n", words


@pytest.fixture
def asked(site: Site, tmp_path: Path) -> Iterator[Site]:
    """The host with TLS, clients that may say more of themselves (XCLIENT), and rules that ask everything."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mx.example.org",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = {
        "smtpd_authorized_xclient_hosts": OUTSIDE,
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(certificate),
        "smtpd_tls_key_file": str(key),
    }
    with site.configured(SETTINGS, "monitor"):
        try:
            site.site_rules(rules(site=True)[0])  # starts the milter
            site.postconf(**settings)
            site.postfix("reload")
            site.rules("alice", rules(site=False)[0])
            yield site
        finally:
            site.run("postconf", "-X", *settings)
            site.postfix("reload")
    site.site_rules("")


def send(site: Site) -> None:
    """Send the message as a client that is called mail.friends.example and logged in as dora, over TLS."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with site.connection(OUTSIDE) as smtp:
        smtp.starttls(context=trusting)
        smtp.ehlo()
        code, text = smtp.docmd("XCLIENT", "NAME=mail.friends.example LOGIN=dora")
        assert code == 220, text
        smtp.ehlo()
        to = ["alice+lists@example.org", "bob@example.org", "carol@example.org"]
        assert list(smtp.sendmail("dora@home.example", to, MESSAGE)) == ["carol@example.org"]


@pytest.mark.parametrize("word", sorted(CONDITIONS))
def test_every_word_has_a_case(word: str) -> None:
    """A condition that is added gets its two cases here."""
    assert word in CASES


def test_every_condition(asked: Site) -> None:
    """In-line and for the recipient, each condition holds where it should, and its counterpart does not.

    The message comes twice, since `rate` and `duplicate` speak of earlier ones; what is looked at is the second.
    """
    before = asked.service_log("milter")
    for _ in range(2):
        send(asked)
        asked.settle()
    assert "fault=" not in asked.service_log("milter").removeprefix(before)
    first, second = sorted(asked.inbox("alice"), key=lambda one: header(one, "X-Site-Yes").count("duplicate"))
    for place, site in (("Site", True), ("Own", False)):
        assert set(header(second, f"X-{place}-Yes")) == rules(site=site)[1]
        assert header(second, f"X-{place}-No") == []
        assert set(header(first, f"X-{place}-Yes")) == rules(site=site)[1] - {"rate", "duplicate"}
        assert header(first, f"X-{place}-No") == []


def test_of_a_plain_message_little_holds(asked: Site) -> None:
    """The same rules say nothing of the kind about a plain message of a user of this host."""
    asked.sendmail(b"Subject: hello\n\nhello\n", ["alice@example.org"], sender="bob@example.org", user="bob")
    asked.settle()
    (found,) = asked.inbox("alice")
    assert set(header(found, "X-Site-Yes")) == {"every_recipient", "now", "score", "tag"}
    assert set(header(found, "X-Own-Yes")) == {"now", "score", "tag", "command"}
