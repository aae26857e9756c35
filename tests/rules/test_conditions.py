"""Tests of what each condition and operator means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.envelope import Envelope
from milterapp.rules.reading_conditions import CONDITIONS
from tests.rules.helpers import ENVELOPE, MESSAGE, decide_text, rule_of

LISTS = """\
lists:
  friends: [bob@example.org, .cousins.example]
  words: ['caf*', Hello]
  ours: [192.0.2.0/28, '2001:db8::/32']
  hosts: [.example.org, other.example]
"""

# name: (condition, whether it holds for MESSAGE as ENVELOPE brought it)
SITE = {
    "client is address": ("client: 192.0.2.7", True),
    "client is another": ("client: 192.0.2.8", False),
    "client in network": ("client: 192.0.2.0/24", True),
    "client any of": ("client: [198.51.100.0/24, 192.0.2.0/29]", True),
    "client in list": ("client: {in: ours}", True),
    "client exists": ("client: {exists: yes}", True),
    "client not there": ("client: {exists: no}", False),
    "client_name is domain": ("client_name: mx.example.org", True),
    "client_name below": ("client_name: .example.org", True),
    "client_name not that domain alone": ("client_name: example.org", False),
    "client_name in list": ("client_name: {in: hosts}", True),
    "local": ("local: yes", False),
    "not local": ("local: no", True),
    "helo": ("helo: MX.Example.Org.", True),
    "helo glob": ("helo: {glob: 'mx?.*'}", False),
    "sender is": ("sender: bob@example.org", True),
    "sender exists": ("sender: {exists: no}", False),
    "sender domain": ("sender: {domain: example.org}", True),
    "login": ("login: bob", False),
    "authenticated": ("authenticated: no", True),
    "tls": ("tls: yes", False),
    "recipient": ("recipient: alice@example.com", True),
    "another recipient": ("recipient: bob@example.com", False),
    "any_recipient": ("any_recipient: {domain: example.com}", True),
    "every_recipient": ("every_recipient: {domain: example.com}", False),
    "recipients over": ("recipients: {over: 1}", True),
    "recipients under": ("recipients: {under: 2}", False),
    "recipients is": ("recipients: 2", True),
    "rate is assumed to be none": ("rate: {by: sender, over: 0, within: 1 hour}", False),
    "a Thursday at noon": ("now: {weekday: thursday, time: 12:00-13:00}", True),
}

PERSONAL = {
    "header is": ("header: {X-Tag: TWO}", True),
    "header name in any case": ("header: {x-tAG: one}", True),
    "header is not part": ("header: {X-Tag: tw}", False),
    "header absent": ("header: {X-None: {exists: yes}}", False),
    "header not there": ("header: {X-None: {exists: no}}", True),
    "two headers both": ("header: {X-Tag: one, X-Score: '7.5'}", True),
    "two headers not both": ("header: {X-Tag: one, X-Score: '8'}", False),
    "one occurrence for both operators": ("header: {X-Tag: {starts: t, ends: e}}", False),
    "one occurrence passes both": ("header: {X-Tag: {starts: o, ends: e}}", True),
    "count": ("header: {X-Tag: {count: 2}}", True),
    "count of those that pass": ("header: {X-Tag: {starts: o, count: {over: 1}}}", False),
    "count none": ("header: {X-None: {count: 0}}", True),
    "number over": ("header: {X-Score: {over: 5}}", True),
    "number under": ("header: {X-Score: {under: 5}}", False),
    "no number is neither": ("header: {X-Tag: {over: 0}}", False),
    "raw_header is not decoded": ("raw_header: {Subject: {contains: Café}}", False),
    "raw_header": ("raw_header: {Subject: {contains: '=?utf-8'}}", True),
    "from without detail": ("from: bob@example.org", True),
    "from with detail": ("from: bob+news@example.org", True),
    "from another detail": ("from: bob+other@example.org", False),
    "from in any case": ("from: BOB@EXAMPLE.ORG", True),
    "from case": ("from: {is: Bob@example.org, case: yes}", False),
    "from in list": ("from: {in: friends}", True),
    "from domain": ("from: {domain: example.org}", True),
    "from domain alone": ("from: {domain: org}", False),
    "from below domain": ("from: {domain: .org}", True),
    "from domains": ("from: {domain: [.net, .org]}", True),
    "from localpart": ("from: {localpart: bob}", True),
    "from localpart with detail": ("from: {localpart: bob+news}", True),
    "from detail": ("from: {detail: news}", True),
    "from detail exists": ("from: {detail: {exists: yes}}", True),
    "cc detail does not exist": ("cc: {detail: {exists: yes}}", False),
    "from address": ("from: {address: bob@example.org}", False),
    "from address whole": ("from: {address: {ends: '+news@example.org'}}", True),
    "from name": ("from: {name: {contains: bob}}", True),
    "from name elsewhere": ("from: {name: {contains: example}}", False),
    "from contains is the address": ("from: {contains: 'bob b'}", False),
    "same address passes all": ("to: {localpart: alice, domain: lists.example.net}", False),
    "some address passes": ("to: {localpart: list, domain: lists.example.net}", True),
    "cc": ("cc: carol@example.com", True),
    "reply_to": ("reply_to: replies@example.org", True),
    "addressed_to takes cc": ("addressed_to: carol@example.com", True),
    "addressed_to": ("addressed_to: dave@example.com", False),
    "subject is": ("subject: CAFÉ INVOICE 2024", True),
    "subject composed": ("subject: {starts: 'Café'}", True),
    "subject decomposed": ("subject: {starts: 'Cafe\u0301'}", True),
    "subject contains": ("subject: {contains: invoice}", True),
    "subject contains any": ("subject: {contains: [bill, invoice]}", True),
    "subject contains with case": ("subject: {contains: Invoice, case: yes}", False),
    "subject starts with case": ("subject: {starts: café, case: yes}", False),
    "subject ends with case": ("subject: {ends: '2024', case: yes}", True),
    "subject glob": ("subject: {glob: 'caf? *2024'}", True),
    "subject glob is whole": ("subject: {glob: 'caf?'}", False),
    "subject glob bracket is plain": ("subject: {glob: '[c]*'}", False),
    "subject regex": (r"subject: {regex: '\binvoice \d+'}", True),
    "subject regex with case": (r"subject: {regex: '\bInvoice', case: yes}", False),
    "subject in list": ("subject: {in: words}", True),
    "list_id": ("list_id: python-dev.python.org", True),
    "list_id ends": ("list_id: {ends: .python.org}", True),
    "list_id below": ("list_id: .python.org", True),
    "list_id other": ("list_id: python-dev", False),
    "message_id": ("message_id: 1@example.org", True),
    "references": ("references: half@example.org", True),
    "references takes in-reply-to": ("references: {count: 2}", True),
    "references other": ("references: 1@example.org", False),
    "auth": ("auth: {spf: pass}", True),
    "auth in any case": ("auth: {spf: PASS}", True),
    "auth any of several": ("auth: {dkim: fail}", True),
    "auth of a domain": ("auth: {dkim: {is: pass, domain: example.org}}", True),
    "auth of another domain": ("auth: {dkim: {is: pass, domain: other.example}}", False),
    "auth of a mailfrom": ("auth: {spf: {is: pass, domain: .org}}", True),
    "auth by a stranger": ("auth: {dmarc: pass}", False),
    "auth not there": ("auth: {dmarc: {exists: no}}", True),
    "auth all methods": ("auth: {spf: pass, dkim: pass}", True),
    "auth not all methods": ("auth: {spf: pass, dmarc: pass}", False),
    "kind": ("kind: list", True),
    "kind any of": ("kind: [bounce, list]", True),
    "another kind": ("kind: bounce", False),
    "malformed": ("malformed: yes", False),
    "well-formed": ("malformed: no", True),
    "body": ("body: {contains: LIMITED offer}", True),
    "body regex at a line": ("body: {regex: '^second line'}", True),
    "body without html": ("body: {contains: '<b>'}", False),
    "html": ("html: {contains: '<b>html'}", True),
    "raw is not decoded": ("raw: {contains: aGVsbG8gd29ybGQ=}", True),
    "raw has the header": ("raw: {regex: '(?s)^From: .*^Subject: '}", True),
    "raw without what is decoded": ("raw: {contains: hello world}", False),
    "url": ("url: shop.example.net", True),
    "url below": ("url: .example.net", True),
    "url other": ("url: example.net", False),
    "url exists": ("url: {exists: yes}", True),
    "parts": ("parts: 5", True),
    "parts over": ("parts: {over: 5}", False),
    "attachment": ("attachment: {exists: yes}", True),
    "attachment name": ("attachment: {name: {glob: '*.pdf'}}", True),
    "attachment extension": ("attachment: {extension: [exe, pdf]}", True),
    "attachment other extension": ("attachment: {extension: exe}", False),
    "attachment type": ("attachment: {type: application/pdf}", True),
    "attachment size is decoded": ("attachment: {name: invoice.pdf, size: 11}", True),
    "the same attachment": ("attachment: {name: {ends: .pdf}, type: application/zip}", False),
    "attachment size": ("attachment: {size: {over: 1 kB}}", False),
    "attachment count": ("attachment: {count: {over: 1}}", True),
    "attachment count of pdf": ("attachment: {extension: pdf, count: 1}", True),
    "size over": ("size: {over: 500}", True),
    "size under": ("size: {under: 500}", False),
    "size with unit": ("size: {under: 1 MiB, over: 0.5 kB}", True),
    "recipient": ("recipient: alice@example.com", True),
    "now weekday": ("now: {weekday: [thursday, friday]}", True),
    "now another weekday": ("now: {weekday: monday}", False),
    "now time": ("now: {time: 12:30-12:31}", True),
    "now the last minute is out": ("now: {time: 12:00-12:30}", False),
    "now over midnight": ("now: {time: 22:00-13:00}", True),
    "now one of several times": ("now: {time: [01:00-02:00, 12:00-24:00]}", True),
    "now between days": ("now: {between: [2024-02-29, 2024-02-29]}", True),
    "now before": ("now: {between: [2024-03-01, 2024-03-02]}", False),
    "now between moments": ("now: {between: ['2024-02-29T12:30', '2024-02-29T12:31']}", True),
    "now elsewhere": ("now: {time: 21:30-21:31, zone: Asia/Tokyo}", True),
    "now elsewhere is another day": ("now: {weekday: thursday, zone: Pacific/Kiritimati}", False),
    "score begins with none": ("score: 0", True),
    "score over": ("score: {over: 0}", False),
    "score within": ("score: {over: -1, under: 0.5}", True),
    "no tag": ("tag: friend", False),
    "no tag of a list": ("tag: {in: words}", False),
    "duplicate is assumed not": ("duplicate: yes", False),
    "duplicate within": ("duplicate: {within: 2 days}", False),
    "command is assumed to end well": ("command: scan", True),
    "command with a status": ("command: {run: scan, arguments: [-q], status: 1}", False),
    "all": ("all:\n  - cc: carol@example.com\n  - kind: list", True),
    "all but one": ("all:\n  - cc: carol@example.com\n  - kind: bounce", False),
    "any": ("any:\n  - kind: bounce\n  - cc: carol@example.com", True),
    "any of none": ("any:\n  - kind: bounce\n  - cc: dora@example.com", False),
    "not": ("not: {kind: bounce}", True),
    "not what holds": ("not: {kind: list}", False),
    "neither": ("not: {any: [{kind: bounce}, {kind: bulk}]}", True),
    "several keys": ("kind: list\ncc: carol@example.com", True),
    "several keys, one not": ("kind: list\ncc: dora@example.com", False),
    "a list": ("- kind: list\n- cc: carol@example.com", True),
}


def holds(condition: str, *, site: bool, envelope: Envelope = ENVELOPE, raw: bytes = MESSAGE) -> bool:
    """Return whether a rule with this condition holds."""
    return decide_text(LISTS + rule_of(condition), raw, site=site, envelope=envelope).matched == ("it",)


@pytest.mark.parametrize(("condition", "wanted"), SITE.values(), ids=SITE)
def test_a_site_condition(condition: str, wanted: bool) -> None:
    """Each condition on the session holds for what it names and for nothing else."""
    envelope = replace(ENVELOPE, recipients=("alice@example.com", "dora@example.net"))
    assert holds(condition, site=True, envelope=envelope) is wanted


@pytest.mark.parametrize(("condition", "wanted"), PERSONAL.values(), ids=PERSONAL)
def test_a_personal_condition(condition: str, wanted: bool) -> None:
    """Each condition on the message holds for what it names and for nothing else."""
    assert holds(condition, site=False) is wanted


@pytest.mark.parametrize(("condition", "wanted"), PERSONAL.values(), ids=PERSONAL)
def test_a_negated_condition(condition: str, wanted: bool) -> None:
    """`not` turns what is known around, whatever the condition."""
    negated = f"not:\n  all:\n  - {condition}".replace("\n", "\n  ") if "\n" not in condition else ""
    if negated:
        assert holds(f"not:\n  {condition}", site=False) is not wanted


def test_every_condition_is_tried() -> None:
    """No condition is without a case above."""
    words = {condition.split(":")[0].split("\n")[0] for condition, _ in (*SITE.values(), *PERSONAL.values())}
    assert set(CONDITIONS) <= words


def test_a_null_sender_has_no_address() -> None:
    """A bounce is found by the sender that is not there, and by nothing that asks for one."""
    envelope = replace(ENVELOPE, sender="")
    assert holds("sender: {exists: no}", site=True, envelope=envelope)
    assert not holds("sender: {contains: '@'}", site=True, envelope=envelope)


def test_every_recipient_needs_one() -> None:
    """Of no recipients nothing is true for every one."""
    assert not holds("every_recipient: {exists: yes}", site=True, envelope=replace(ENVELOPE, recipients=()))
    assert holds("every_recipient: {domain: .example.com}", site=True)


def test_an_ipv4_mapped_client_is_ipv4() -> None:
    """A client that arrives on an IPv6 socket is found by its IPv4 network."""
    assert holds("client: 192.0.2.0/24", site=True, envelope=replace(ENVELOPE, client="::ffff:192.0.2.7"))


def test_the_original_recipient_counts() -> None:
    """A personal rule finds mail by the alias it was sent to."""
    envelope = replace(ENVELOPE, original_recipient="sales@example.com")
    assert holds("recipient: sales@example.com", site=False, envelope=envelope)


def test_an_international_domain_is_its_a_label() -> None:
    """A domain written either way is the same domain."""
    assert holds("from: {domain: bücher.example}", site=False, raw=b"From: a@xn--bcher-kva.example\n\n")
    assert not holds("from: {domain: bücher.example}", site=False, raw=b"From: a@bucher.example\n\n")
