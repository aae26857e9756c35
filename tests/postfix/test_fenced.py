"""The fence around agents on a real Postfix: links that come and go, homes that are exchanged, places of the site's."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from milterapp.delivery import fenced, linux
from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [
    pytest.mark.root,
    pytest.mark.postfix,
    pytest.mark.skipif(linux.landlock_abi() < fenced.LEAST, reason="this kernel has no Landlock for a fence"),
]

FILE = "rules:\n  - name: all\n    then:\n      file: Filed\n"
HOME, OUTSIDE = Path("/home/alice"), Path("/home/outside")
PLACE = Path("/home/place")  # of the site's
ALICE = "alice@example.org"


@pytest.fixture
def site(host: Site) -> Iterator[Site]:
    """The host with empty mailboxes, and a folder that is alice's beside her home."""
    host.reset()
    OUTSIDE.mkdir()
    shutil.chown(OUTSIDE, "alice", "alice")
    try:
        yield host
    finally:
        for one in (HOME / ".milterapp", HOME / "Maildir"):
            if one.is_symlink():
                one.unlink()
        for one in (OUTSIDE, PLACE):
            shutil.rmtree(one, ignore_errors=True)


def filed(site: Site) -> list[str]:
    """Return the subjects of what rules have filed."""
    return sorted(header(one, "Subject")[0] for one in site.folders("alice").get("Filed", []))


@contextmanager
def swapping(state: Path, link: Path) -> Iterator[None]:
    """Have alice exchange her folder for a link and back, as fast as can be; at the end it is the folder."""
    libc = ctypes.CDLL(None)

    def exchange() -> None:
        libc.renameat2(-100, bytes(state), -100, bytes(link), 2)  # RENAME_EXCHANGE

    account = pwd.getpwnam("alice")
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(*[account.pw_gid] * 3)
            os.setresuid(*[account.pw_uid] * 3)
            while True:
                exchange()
                os.sched_yield()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if state.is_symlink():
            exchange()


def test_a_link_that_comes_and_goes(site: Site) -> None:
    """While a user exchanges ~/.milterapp for a link nothing is made where it leads; then all mail has arrived once."""
    site.rules("alice", FILE)
    site.send(message("first"))
    site.settle()
    os.link(HOME / ".milterapp/journal.sqlite", OUTSIDE / "journal.sqlite")  # so that SQLite sees no difference
    link = HOME / "link"
    link.symlink_to(OUTSIDE)
    subjects = [f"message {number}" for number in range(12)]
    with swapping(HOME / ".milterapp", link):
        answers = [site.send(message(one)) for one in subjects]
        for one in answers:
            site.wait(lambda one=one: bool(site.fates(one.queue_id)), "an attempt", 30)  # type: ignore[misc]
        assert os.listdir(OUTSIDE) == ["journal.sqlite"]
    link.unlink()
    site.settle()
    assert filed(site) == sorted(["first", *subjects])
    assert os.listdir(OUTSIDE) == ["journal.sqlite"]


def test_a_link_out_of_the_home(site: Site) -> None:
    """While ~/.milterapp is a link mail waits and nothing is made there; without the link it is filed, once."""
    mine = {"rules.yaml": "rules:\n  - name: it\n    then:\n      script: it.py\n",
            "it.py": "def main(mail):\n    mail.file('Filed')\n"}  # fmt: skip
    with site.configured("delivery:\n  personal_rules: rules.yaml\n", "monitor"):
        for name, text in mine.items():
            (HOME / name).write_text(text)
            shutil.chown(HOME / name, "alice", "alice")
        (HOME / ".milterapp").symlink_to(OUTSIDE)
        try:
            answer = site.send(message("waits"))
            assert site.deferred(answer.queue_id, times=2).dsn == "4.3.0"
            assert os.listdir(OUTSIDE) == []
            (HOME / ".milterapp").unlink()
            site.settle()
            assert filed(site) == ["waits"]
        finally:
            for name in mine:
                (HOME / name).unlink()


def test_a_home_that_was_replaced_is_reached(site: Site) -> None:
    """Where another home stands in the place of a warm agent's, the next agent files there at once."""
    site.rules("alice", FILE)
    site.send(message("first"))
    site.settle()
    old = Path("/home/.alice-old")
    HOME.rename(old)
    try:
        HOME.mkdir(mode=0o755)
        shutil.chown(HOME, "alice", "alice")
        site.rules("alice", FILE)
        answer = site.send(message("second"))
        site.settle()
        assert [one.status for one in site.fates(answer.queue_id)] == ["sent"]
        assert filed(site) == ["second"]
    finally:
        shutil.rmtree(HOME)
        old.rename(HOME)
    assert filed(site) == ["first"]
    answer = site.send(message("third"))
    site.settle()
    assert [one.status for one in site.fates(answer.queue_id)] == ["sent"]
    assert filed(site) == ["first", "third"]


def test_a_home_behind_a_link(site: Site) -> None:
    """A home that is reached through a link is a home like any other."""
    old = Path("/home/.alice-real")
    HOME.rename(old)
    HOME.symlink_to(old)
    try:
        site.rules("alice", FILE)
        site.send(message("hello"))
        site.settle()
        assert filed(site) == ["hello"]
    finally:
        HOME.unlink()
        old.rename(HOME)


def test_places_of_the_site(site: Site) -> None:
    """An absolute `maildir` is made and filed in; a program writes where the site lets it, and its agent does not."""
    PLACE.mkdir()
    PLACE.chmod(0o1777)
    written = PLACE / "written"
    written.mkdir()
    shutil.chown(written, "alice", "alice")
    site.rules(
        "alice",
        "rules:\n  - name: link\n    if:\n      subject: link\n    then:\n      file: Filed\n"
        "  - name: it\n    then:\n      pipe: it\n",
    )
    programs = f"programs:\n  it: {{run: [/bin/sh, -c, 'cat >{written}/by'], write: [{written}]}}\n"
    with site.configured(f"delivery:\n  maildir: {PLACE}/mail/alice\n{programs}", "monitor"):
        site.send(message("link"))
        site.settle()
        (found,) = (PLACE / "mail/alice/.Filed/new").iterdir()
        assert found.owner() == "alice"
        site.send(message("program"))
        site.settle()
        assert b"Subject: program" in (written / "by").read_bytes()
    with site.configured(programs, "monitor"):
        (HOME / "Maildir").symlink_to(written)
        answer = site.send(message("link"))
        site.deferred(answer.queue_id)
        (HOME / "Maildir").unlink()
        site.settle()
    assert os.listdir(written) == ["by"]
    with suppress(FileNotFoundError):
        subprocess.run(["rm", "-r", str(HOME / "Maildir")], check=True)
