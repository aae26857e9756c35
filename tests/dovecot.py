"""Dovecot's own LMTP server, started for a test beside the host's (dovecot-lmtpd; packaging/prepare installs it).

Must never: listen where the host's would, or outlive its test.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["doveadm", "is_there", "serving"]

DOVECOT = shutil.which("dovecot")
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


def is_there() -> bool:
    """Return whether this machine has the version whose configuration this is."""
    if DOVECOT is None or not Path("/usr/lib/dovecot/lmtp").exists():
        return False
    done = subprocess.run([DOVECOT, "--version"], check=True, capture_output=True, text=True)
    return done.stdout.startswith("2.3.")


@contextmanager
def serving(users: Iterable[str], more: str = "") -> Iterator[Path]:
    """Run it with these users; give its folder, in which `lmtp` is its socket.

    users: lines of its passwd-file, `{folder}` for that folder; more: configuration.
    """
    folder = Path(tempfile.mkdtemp(prefix="milterapp-dovecot-"))
    folder.chmod(0o755)
    (folder / "users").write_text("".join(f"{one}\n" for one in users).format(folder=folder))
    (folder / "dovecot.conf").write_text(CONFIGURATION.format(folder=folder) + more)
    assert DOVECOT
    server = subprocess.Popen([DOVECOT, "-F", "-c", str(folder / "dovecot.conf")])
    try:
        until = time.monotonic() + 60
        while not _listens(folder):
            assert server.poll() is None
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


def _listens(folder: Path) -> bool:
    """Return whether it takes connections; a socket is there a moment before it does."""
    addresses: tuple[tuple[int, str | tuple[str, int]], ...] = (
        (socket.AF_UNIX, str(folder / "lmtp")), (socket.AF_INET, ("127.0.0.1", 24240)),
    )  # fmt: skip
    for family, address in addresses:
        with socket.socket(family) as one:
            if one.connect_ex(address) != 0:
                return False
    return True


def doveadm(folder: Path, *words: str) -> str:
    """Run doveadm(1) with that server's configuration; return what it printed."""
    command = ["doveadm", "-c", str(folder / "dovecot.conf"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
