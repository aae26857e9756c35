"""The kind of a message is read from its header alone."""

from __future__ import annotations

import pytest

from milterapp.mail.kinds import KINDS
from milterapp.mail.message import Mail


@pytest.mark.parametrize(
    ("header", "kinds"),
    [
        ("From: a@b", set()),
        ("List-Id: <x.y>", {"list"}),
        ("List-Post: <mailto:x@y>", {"list"}),
        ("List-Unsubscribe: <mailto:x@y>", {"list", "bulk"}),
        ("Precedence: list", {"list", "bulk"}),
        ("Precedence: Bulk", {"bulk"}),
        ("Precedence: first-class", set()),
        ("X-Listening: no", set()),
        ("Auto-Submitted: auto-replied (vacation)", {"auto-reply"}),
        ("Auto-Submitted: auto-replied; x=y", {"auto-reply"}),
        ("Auto-Submitted: auto-generated", set()),
        ("Auto-Submitted: no", set()),
        ("X-Autoreply: yes", {"auto-reply"}),
        ("Precedence: auto_reply", {"auto-reply"}),
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=b", {"bounce"}),
        ("Content-Type: multipart/report; report-type=disposition-notification; boundary=b", set()),
        ("From: Mail Delivery System <MAILER-DAEMON@example.org>", {"bounce"}),
        ("Return-Path: <>\nFrom: postmaster@example.org", {"bounce"}),
        ("Return-Path: <>\nFrom: a@example.org", set()),
        ("Return-Path: <a@b>\nFrom: postmaster@example.org", set()),
        ("X-Failed-Recipients: a@b", {"bounce"}),
        ("Content-Type: multipart/encrypted; boundary=b", {"encrypted"}),
        ("Content-Type: application/pkcs7-mime; smime-type=enveloped-data", {"encrypted"}),
        ("Content-Type: application/x-pkcs7-mime; name=smime.p7m", {"encrypted"}),
        ("Content-Type: application/pkcs7-mime; smime-type=signed-data", {"signed"}),
        ("Content-Type: multipart/signed; boundary=b", {"signed"}),
        ("Content-Type: text/plain; name=multipart/signed", set()),
    ],
)
def test_kinds(header: str, kinds: set[str]) -> None:
    """Each kind by the fields that say so, and not by those that only look alike."""
    found = Mail.from_fields([tuple(line.encode().split(b":", 1)) for line in header.split("\n")]).kinds  # type: ignore[misc]
    assert found == kinds
    assert found <= set(KINDS)
