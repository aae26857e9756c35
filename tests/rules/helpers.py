"""What the tests of rules share: loading rules from text, and facts to decide with."""

from __future__ import annotations

from datetime import UTC, datetime

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.limits import DEFAULT, Limits
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision
from milterapp.rules.facts import Facts
from milterapp.rules.load import load
from milterapp.rules.policy import Policy

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)

ENVELOPE = Envelope(
    client="192.0.2.7",
    client_name="mx.example.org",
    helo="mx.example.org",
    sender="bob@example.org",
    recipients=("alice@example.com",),
)

FIELDS = b"""\
Received: from mx.example.org by mx.example.com
From: "Bob B" <bob+news@example.org>
To: alice@example.com, list@lists.example.net
Cc: carol@example.com
Reply-To: replies@example.org
Subject: =?utf-8?q?Caf=C3=A9_invoice_2024?=
List-Id: Python development <python-dev.python.org>
Message-ID: <1@example.org>
References: <0@example.org> <half@example.org>
In-Reply-To: <0@example.org>
Authentication-Results: mx.example.com; spf=pass smtp.mailfrom=bob@example.org; dkim=pass header.d=example.org;
 dkim=fail header.d=other.example
Authentication-Results: mx.example.org; dmarc=pass header.from=example.org
X-Score: 7.5
X-Tag: one
X-Tag: two
"""

MESSAGE = (
    FIELDS
    + b"""\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/plain; charset=utf-8

A limited offer, \xc3\xa9tonnant.
Second line here, at https://shop.example.net/offer.
--b
Content-Type: text/html

<p>An <b>HTML</b> part</p>
--b
Content-Type: application/pdf; name="Invoice.PDF"
Content-Disposition: attachment; filename="Invoice.PDF"
Content-Transfer-Encoding: base64

aGVsbG8gd29ybGQ=
--b
Content-Type: application/zip
Content-Disposition: attachment; filename="photos.zip"

PK
--b--
"""
)


def policy_of(text: str, *, site: bool = False, lists: dict[str, bytes] | None = None) -> Policy:
    """Return the policy of a rule file that must be without a problem."""
    policy, problems = load(
        text.encode(),
        "rules.yaml",
        site=site,
        read_list=(lists or {}).__getitem__,
        authserv_ids=("mx.example.com",),
        programs=("spool", "scan"),
    )
    assert [str(problem) for problem in problems if not problem.warning] == []
    assert policy is not None
    return policy


def facts_of(
    raw: bytes = MESSAGE,
    *,
    envelope: Envelope = ENVELOPE,
    recipient: str = "alice@example.com",
    stage: Stage = Stage.BODY,
    limits: Limits = DEFAULT,
) -> Facts:
    """Return facts for a message."""
    return Facts(stage, envelope, recipient, Mail(raw, limits) if stage >= Stage.HEADERS else None, NOW)


def decide_text(text: str, raw: bytes = MESSAGE, *, site: bool = False, envelope: Envelope = ENVELOPE) -> Decision:
    """Load rules and decide for a message at once."""
    return decide(policy_of(text, site=site), facts_of(raw, envelope=envelope))


def indent(text: str, blanks: int) -> str:
    """Return every line indented."""
    return "\n".join(" " * blanks + line for line in text.splitlines())


def rule_of(condition: str, then: str = "stop") -> str:
    """Return a rule file with one rule."""
    return f"rules:\n  - name: it\n    if:\n{indent(condition, 6)}\n    then:\n{indent(then, 6)}\n"
