"""`milterapp-pipe --direct` behind Exim 4, Debian's, unpacked and not installed: it cannot stand beside Postfix.

The transport is the one of milterapp-pipe(8), read from there. Exim delivers while it is called (-odi), as root and
then as the recipient; no daemon runs.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postfix.harness import PYTHON, Site, message
from tests.postfix.mailboxes import header, maildir

pytestmark = [pytest.mark.root, pytest.mark.postfix]

UNPACKED = Path("/opt/milterapp/.venv/exim")
MANUAL = Path("/opt/milterapp/man/milterapp-pipe.8")
PLACE = Path("/home/exim")
CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")
COMMAND = f"{PYTHON} -I -m milterapp.commands.direct --direct"
ALICE, BOB, DORA = "alice@example.org", "bob@example.org", "dora@home.example"
EXIM = """\
primary_hostname = mx.example.org
qualify_domain = example.org
domainlist local_domains = example.org
exim_path = {place}/exim4
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {place}/spool
log_file_path = {place}/log/%slog
never_users = root
keep_environment =
ignore_bounce_errors_after = 0s
begin routers
local:
  driver = accept
  domains = +local_domains
  check_local_user
  local_part_suffix = +*
  local_part_suffix_optional
  transport = milterapp
elsewhere:
  driver = accept
  domains = ! +local_domains
  transport = elsewhere
begin transports
{transport}
elsewhere:
  driver = appendfile
  directory = {place}/elsewhere
  maildir_format
  user = elsewhere
begin retry
* * F,5d,1s
"""


def transport(command: str) -> str:
    """Return the transport that the manual page shows, with that command."""
    shown = re.search(r"(?s)In Exim it is a pipe transport:.*?\.RS\n(.*?)\.RE", MANUAL.read_text())
    assert shown
    text = shown[1].replace("\\-", "-")
    assert "command = /usr/bin/milterapp-pipe --direct\n" in text
    return text.replace("/usr/bin/milterapp-pipe --direct", command)


class Exim:
    """That Exim. site: the host it is on."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def configure(self, command: str = COMMAND) -> None:
        """Give it its configuration, with what its transport runs."""
        Path("/etc/exim4/exim4.conf").write_text(EXIM.format(place=PLACE, transport=transport(command)))

    def send(self, data: bytes, recipient: str = ALICE, sender: str = DORA) -> None:
        """Send a message; it is delivered, or not, when this returns."""
        self._run("-odi", "-f", sender or "<>", recipient, data=data.replace(b"\r\n", b"\n"))

    def retry(self) -> None:
        """Have it try everything again."""
        self._run("-qff")

    def queue(self) -> str:
        """Return what is queued (exim -bp)."""
        return self._run("-bp").decode()

    def log(self) -> str:
        """Return its main log."""
        return (PLACE / "log/mainlog").read_text()

    def elsewhere(self) -> list[bytes]:
        """Return what left the host."""
        return maildir(PLACE / "elsewhere")

    @staticmethod
    def _run(*arguments: str, data: bytes = b"") -> bytes:
        done = subprocess.run([f"{PLACE}/exim4", *arguments], input=data, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture(scope="module")
def unpacked(host: Site) -> Site:
    """The host with Exim in a place of its own."""
    if not (UNPACKED / "usr/sbin/exim4").exists():
        pytest.skip("no Exim: packaging/prepare could not get it")
    subprocess.run(["useradd", "--system", "--user-group", "Debian-exim"], check=True)
    for name, owner in (("", "root"), ("spool", "Debian-exim"), ("log", "Debian-exim"), ("elsewhere", "elsewhere")):
        (PLACE / name).mkdir(mode=0o755)
        subprocess.run(["chown", f"{owner}:{owner}", str(PLACE / name)], check=True)
    subprocess.run(["install", "-m", "4755", str(UNPACKED / "usr/sbin/exim4"), str(PLACE / "exim4")], check=True)
    libraries = sorted({str(one.parent) for one in UNPACKED.rglob("*.so.*")})
    Path("/etc/ld.so.conf.d/zz-exim.conf").write_text("\n".join(libraries) + "\n")  # this world's own /etc
    subprocess.run(["ldconfig"], check=True)
    Path("/etc/exim4").mkdir(exist_ok=True)
    return host


@pytest.fixture
def exim(unpacked: Site) -> Iterator[Exim]:
    """That Exim, with empty mailboxes, no rules and `keep: maildir`."""
    unpacked.reset()
    CONFIGURATION.write_text("delivery:\n  keep: maildir\n")
    for name in ("spool", "log", "elsewhere"):
        subprocess.run(["find", str(PLACE / name), "-mindepth", "1", "-delete"], check=True)
    found = Exim(unpacked)
    found.configure()
    try:
        yield found
    finally:
        CONFIGURATION.unlink(missing_ok=True)


def inbox(person: str) -> list[bytes]:
    """Return what is in a person's Maildir."""
    return [one.read_bytes() for one in Path(f"/home/{person}/Maildir/new").glob("*")]


def test_a_message_is_filed_as_its_recipient(exim: Exim) -> None:
    """What no rule speaks of is in the inbox, what a rule files in its folder, with Exim's sender and the detail."""
    exim.site.rules("alice", "rules:\n  - name: a\n    if:\n      recipient: {detail: x}\n    then:\n      file: Box\n")
    exim.send(message("kept"))
    exim.send(message("filed"), "alice+x@example.org", sender="")
    (kept,) = inbox("alice")
    assert kept.startswith(b"Return-path: <dora@home.example>\n")
    assert header(kept, "X-Original-To") == [ALICE]
    (filed,) = exim.site.folders("alice")["Box"]
    assert (header(filed, "Subject"), header(filed, "Return-Path")) == (["filed"], ["<>"])
    assert exim.site.run("find", "/home/alice/Maildir", "!", "-user", "alice") == ""
    assert (exim.queue(), exim.elsewhere()) == ("", [])


def test_a_reject_is_a_notice_in_the_words_of_the_rule(exim: Exim) -> None:
    """A reject bounces with the rule's words, nothing is kept, nothing is queued."""
    exim.site.rules("alice", 'rules:\n  - name: no\n    then:\n      reject: "5.7.1 Not here"\n')
    exim.send(message("a word"))
    exim.retry()
    (notice,) = exim.elsewhere()
    assert b"5.7.1 Not here" in notice
    assert (inbox("alice"), exim.queue()) == ([], "")


def test_a_deferral_waits_and_a_retry_repeats_nothing(exim: Exim) -> None:
    """A rule's `defer` stays in Exim's queue over retries; the message arrives once, with no notice to anybody."""
    exim.site.rules("bob", 'rules:\n  - name: later\n    then:\n      defer: "4.7.1 Not today"\n')
    exim.send(message("later"), BOB)
    exim.retry()
    assert (inbox("bob"), BOB in exim.queue()) == ([], True)
    exim.site.rules("bob", "rules:\n  - name: all\n    then: keep\n")
    exim.retry()
    assert (len(inbox("bob")), exim.queue(), exim.elsewhere()) == (1, "", [])


FAULTS = {
    "keep: postfix": "",  # which --direct cannot do: status 75
    "a traceback": f"{PYTHON} -I -c 1/0",
    "no such program": "/nonexistent/milterapp-pipe --direct",
    "killed": "/bin/sh -c 'kill -9 $$'",
    "usage": f"{COMMAND} --nonsense",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_of_ours_bounces(exim: Exim, fault: str) -> None:
    """Whatever keeps the program from its work, the message stays in Exim's queue, and arrives once it is mended."""
    if FAULTS[fault]:
        exim.configure(FAULTS[fault])
    else:
        CONFIGURATION.unlink()
    exim.send(message("patience"))
    exim.retry()
    assert (exim.elsewhere(), inbox("alice"), ALICE in exim.queue()) == ([], [], True), exim.log()
    exim.configure()
    CONFIGURATION.write_text("delivery:\n  keep: maildir\n")
    exim.retry()
    assert (len(inbox("alice")), exim.queue(), exim.elsewhere()) == (1, "", []), exim.log()
