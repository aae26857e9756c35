"""`keep: lmtp:` against Dovecot's own LMTP server (dovecot-lmtpd; packaging/prepare installs it)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery.smtp import SmtpError, Transaction, send
from tests.dovecot import is_there, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not is_there(), reason="no Dovecot 2.3, whose configuration this is"),
]
UID = 20001


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Path]:
    """A Dovecot that has one user, bob; gives its folder."""
    with serving([f"bob::{UID}:{UID}::{{folder}}/bob::"]) as folder:
        (folder / "bob").mkdir()
        os.chown(folder / "bob", UID, UID)
        yield folder


def mail(folder: Path) -> list[bytes]:
    """Return what bob has."""
    return [one.read_bytes() for one in sorted((folder / "bob/Maildir/new").glob("*"))]


@pytest.mark.parametrize("place", ["lmtp:unix:{folder}/lmtp", "lmtp:inet:127.0.0.1:24240"], ids=["unix", "inet"])
def test_dovecot_takes_what_is_kept(dovecot: Path, place: str) -> None:
    """A message goes to Dovecot whole, dots, long lines and 8-bit included, and lies in the user's Maildir."""
    body = b".\n..two\n\xe9" + b"x" * 3000 + b"\n"
    before = len(mail(dovecot))
    transaction = Transaction("ann@example.org", "bob@example.org", eight_bit=True)
    send(place.format(folder=dovecot), transaction, [b"Subject: hello\n\n", body], timeout=20)
    found = mail(dovecot)
    assert len(found) == before + 1
    assert b"Return-Path: <ann@example.org>" in found[-1]
    assert found[-1].partition(b"\n\n")[2] == body


def test_what_dovecot_refuses_is_a_failure(dovecot: Path) -> None:
    """A user that Dovecot does not know is an error that holds its words: temporary, for who asked."""
    with pytest.raises(SmtpError, match=r"RCPT: 550 5\.1\.1"):
        send(f"lmtp:unix:{dovecot}/lmtp", Transaction("", "carol@example.org"), [b"x: y\n\nz\n"], timeout=20)
