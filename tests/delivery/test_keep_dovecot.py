"""`keep: lmtp:` against Dovecot's own LMTP server (dovecot-lmtpd; packaging/prepare installs it)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery.smtp import SmtpError, Transaction, send

DOVECOT = shutil.which("dovecot")


def version() -> str:
    """Return Dovecot's version, "" where there is none."""
    if DOVECOT is None or not Path("/usr/lib/dovecot/lmtp").exists():
        return ""
    return subprocess.run([DOVECOT, "--version"], check=True, capture_output=True, text=True).stdout


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not version().startswith("2.3."), reason="no Dovecot 2.3, whose configuration this is"),
]
UID = 20001
CONFIGURATION = """\
base_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
ssl = no
mail_location = maildir:~/Maildir
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    address = 127.0.0.1
    port = 24240
  }}
}}
protocol lmtp {{
  auth_username_format = %Ln
}}
"""


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Path]:
    """A Dovecot that has one user, bob; gives its folder."""
    folder = Path(tempfile.mkdtemp(prefix="milterapp-dovecot-"))
    folder.chmod(0o755)
    home = folder / "bob"
    home.mkdir()
    os.chown(home, UID, UID)
    (folder / "users").write_text(f"bob::{UID}:{UID}::{home}::\n")
    (folder / "dovecot.conf").write_text(CONFIGURATION.format(folder=folder))
    assert DOVECOT
    server = subprocess.Popen([DOVECOT, "-F", "-c", str(folder / "dovecot.conf")])
    try:
        until = time.monotonic() + 60
        while not (folder / "lmtp").exists():
            assert server.poll() is None
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


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
