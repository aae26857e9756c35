"""Every edit of a message and its envelope, as Postfix carries it out."""

from __future__ import annotations

import base64
import quopri

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"

RULES = """\
rules:
  - name: prepend
    if: {subject: {contains: prepend}}
    then:
      - prepend_header: {X-Top: first}
      - prepend_header: {X-Top: above it}
  - name: remove
    if: {subject: {contains: remove}}
    then:
      remove_header: {name: X-Tag, value: {contains: bad}}
  - name: banner
    if: {subject: {contains: banner}}
    then:
      - banner: Beware caf\u00e9
      - footer: The end
  - name: drop
    if: {subject: {contains: drop}}
    then: drop_attachments
  - name: replace
    if: {subject: {contains: replace}}
    then:
      - replace_body: Nothing to see
  - name: sender
    if: {subject: {contains: sender}}
    then:
      set_sender: other@home.example
  - name: nobody
    if: {subject: {contains: nobody}}
    then:
      set_sender: <>
  - name: more
    if: {subject: {contains: more}}
    then:
      - add_recipient: carol@example.org
  - name: less
    if: {subject: {contains: less}}
    then:
      - remove_recipient: bob@example.org
"""


@pytest.fixture
def ruled(site: Site) -> Site:
    """The host with the site rules above."""
    site.site_rules(RULES)
    return site


def one(site: Site, data: bytes) -> bytes:
    """Send a message to Alice; return it as it arrived, lines ending in LF."""
    answer = site.send(data, [ALICE])
    assert answer.code == 250, answer
    site.settle()
    (found,) = site.inbox("alice")
    return found.replace(b"\r\n", b"\n")


def test_prepend(ruled: Site) -> None:
    """A header field goes above all others, the Received of the Postfix it came to included, the last one highest."""
    found = one(ruled, message("prepend"))
    assert header(found, "X-Top") == ["above it", "first"]
    assert found.index(b"X-Top: above it") < found.index(b"X-Top: first") < found.rindex(b"Received:")


def test_remove_by_value(ruled: Site) -> None:
    """Of several fields of a name those go that the rule means, also where fields of ours go before."""
    tags = b"X-Tag: bad one\r\nX-Milterapp-Tag: x\r\nX-Tag: good\r\nX-Tag: a\r\n bad fold\r\nX-Tag: fine\r\n"
    found = one(ruled, tags + message("remove"))
    assert header(found, "X-Tag") == ["good", "fine"]
    assert b"fold" not in found
    assert b"Milterapp-Tag" not in found


@pytest.mark.parametrize("lines", [1, 5_000], ids=["short", "of several packets"])
def test_banner_and_footer(ruled: Site, lines: int) -> None:
    """Banner and footer stand around the text, in its charset; what was there is there still."""
    body = b"".join(b"line %d\r\n" % number for number in range(lines))
    data = message("banner").split(b"\r\n\r\n")[0].split(b"\n\n")[0] + b"\r\n\r\n" + body
    found = one(ruled, data)
    text = found.split(b"\n\n", 1)[1]
    encoding = [each.lower() for each in header(found, "Content-Transfer-Encoding")]
    if encoding == ["base64"]:
        text = base64.b64decode(text)
    elif encoding == ["quoted-printable"]:
        text = quopri.decodestring(text)
    got = text.decode().replace("\r\n", "\n")
    assert got.startswith("Beware caf\u00e9\n")
    assert body.decode().replace("\r\n", "\n") in got
    assert got.rstrip().endswith("The end")


def test_drop_attachments(ruled: Site) -> None:
    """An attachment goes, a line says so, the other parts stay as they were."""
    parts = (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
        b"--b\r\nContent-Type: text/plain\r\n\r\nhello  there\r\n"
        b"--b\r\nContent-Type: application/x-dosexec\r\nContent-Disposition: attachment; filename=a.exe\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nTVqQ\r\n--b--\r\n"
    )
    found = one(ruled, b"From: dora@home.example\r\nSubject: drop\r\n" + parts)
    assert b"TVqQ" not in found
    assert b"a.exe" in found
    assert b"hello  there" in found


def test_replace_body(ruled: Site) -> None:
    """The whole body becomes the text."""
    found = one(ruled, message("replace"))
    assert found.split(b"\n\n", 1)[1].strip() == b"Nothing to see"


@pytest.mark.parametrize(
    ("subject", "sender"), [("sender", "other@home.example"), ("nobody", ""), ("plain", "dora@home.example")]
)
def test_sender(ruled: Site, subject: str, sender: str) -> None:
    """The message goes on with another envelope sender, or with none."""
    found = one(ruled, message(subject))
    assert header(found, "Return-Path") == [f"<{sender}>"] or found.startswith(
        f"From {sender or 'MAILER-DAEMON'} ".encode()
    )


@pytest.mark.parametrize(
    ("subject", "recipients", "arrived"),
    [
        pytest.param("more", [ALICE, BOB], [1, 1, 1], id="one more"),
        pytest.param("more", [CAROL], [0, 0, 1], id="one more that was there"),
        pytest.param("less", [ALICE, "Bob@Example.org"], [1, 0, 0], id="one less, however it was spelled"),
        pytest.param("less", [BOB], [0, 0, 0], id="nobody is left"),
        pytest.param("more less", [BOB], [0, 0, 1], id="exchanged"),
    ],
)
@pytest.mark.parametrize("over", ["smtp", "sendmail"])
def test_recipients(ruled: Site, over: str, subject: str, recipients: list[str], arrived: list[int]) -> None:
    """Recipients are added and removed; with none left the message is thrown away, and nobody hears of it."""
    if over == "smtp":
        assert ruled.send(message(subject), recipients).code == 250
    else:
        assert ruled.sendmail(message(subject), recipients, sender="dora@home.example").returncode == 0
    ruled.settle()
    assert [len(ruled.inbox(each)) for each in ("alice", "bob", "carol")] == arrived
    assert ruled.elsewhere() == []
