"""What the rule language promises beside its words, on a real Postfix: values, signed mail, long lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postfix.harness import SITE_RULES, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

VALUES = """\
rules:
  - name: said
    then:
      - add_header: {X-Said: '${subject}'}
      - file: 'By/${subject}'
"""
HOSTILE = {
    "a way up": ("../../.ssh", "../../.ssh"),
    "a line end": ("=?utf-8?q?a=0D=0ABcc:_eve=40ads.example?=", "a Bcc: eve@ads.example"),
    "a NUL": ("=?utf-8?q?a=00b?=", ""),
    "a hidden folder": (".hidden", ".hidden"),
    "two levels": ("a/b.c", "a/b.c"),
}


@pytest.mark.parametrize(("subject", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_a_value_is_encoded_for_its_place(site: Site, subject: str, shown: str) -> None:
    """Whatever a subject holds, it is one level of a folder and one line of a header, and nothing is anywhere else."""
    site.rules("alice", VALUES)
    before = {path for path in Path("/home").rglob("*") if "alice/Maildir" not in str(path)}
    site.send(message(subject))
    site.settle()
    ((folder, (found,)),) = site.folders("alice").items()
    assert folder.startswith("By/")
    assert folder.count("/") == 1
    assert header(found, "Bcc") == []
    assert len(header(found, "X-Said")) == 1
    assert not shown or header(found, "X-Said") == [shown]
    after = {path for path in Path("/home").rglob("*") if "alice/Maildir" not in str(path)}
    assert {path for path in after - before if "/.milterapp" not in str(path)} == set()


SIGNED = """\
--s
Content-Type: text/plain

Hello.
--s
Content-Type: application/pkcs7-signature; name=smime.p7s
Content-Transfer-Encoding: base64

MIAGCSqGSIb3DQEHAqCAMIACAQExADALBgkqhkiG9w0BBwGggDCC
--s--
"""


def test_signed_mail_passes_untouched(site: Site) -> None:
    """Banner and footer go into other mail, in-line, and into no byte of a signed message's body."""
    site.site_rules("rules:\n  - name: both\n    then:\n      - banner: Beware\n      - footer: The end\n")
    kind = 'multipart/signed; protocol="application/pkcs7-signature"; micalg=sha-256; boundary=s'
    site.send(message("signed", SIGNED, content_type=kind))
    site.send(message("plain"))
    site.settle()
    found = {header(one, "Subject")[0]: one.partition(b"\n\n")[2].rstrip(b"\n") for one in site.inbox("alice")}
    assert found["signed"] == SIGNED.encode().rstrip(b"\n")
    assert found["plain"].startswith(b"Beware")
    assert found["plain"].endswith(b"The end")


def test_a_list_of_100_000_in_a_file(site: Site) -> None:
    """The milter starts with it, and finds its first and last entry, and no other's."""
    listed = SITE_RULES.parent / "blocked.txt"
    listed.write_text("".join(f"user{at}@host{at}.example\n" for at in range(100_000)))
    site.site_rules(
        "lists:\n  blocked: {file: blocked.txt}\nrules:\n  - name: blocked\n    if:\n      sender: {in: blocked}\n"
        '    then:\n      reject: "5.7.1 Not you"\n'
    )
    senders = ("user0@host0.example", "user99999@host99999.example", "user0@host1.example")
    assert [site.send(message("x"), sender=one).code for one in senders] == [550, 550, 250]
