"""The world of packaging/world, from within it: what it gives, and that nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.postfix.harness import in_world

pytestmark = [pytest.mark.root, pytest.mark.postfix]

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
WORLD = str(PACKAGING / "world")


@pytest.fixture(autouse=True)
def inside() -> None:
    """Only in a world can another one be tried without leaving a trace where it goes wrong."""
    if not in_world():
        pytest.fail("run these tests through packaging/test", pytrace=False)


def commands_with(word: str) -> list[list[str]]:
    """Return the command lines with a word on them, of all processes."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = one.read_text(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if word in words:
            found.append(words[:-1])
    return found


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("nosuchcommand", 127)],
    ids=["success", "failure", "killed", "not found"],
)
def test_its_status_is_the_commands(command: str, status: int) -> None:
    """What the command ended with is what the world ends with."""
    assert subprocess.run([WORLD, "sh", "-c", command], check=False, capture_output=True).returncode == status


@pytest.mark.parametrize("within", [[], [WORLD]], ids=["a world", "a world within another"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_everything_in_it_ends_with_it(number: signal.Signals, within: list[str]) -> None:
    """Ended by any signal, it leaves no process, also none that went into a session or a world of its own."""
    word = f"17{number.value}36{len(within)}04"
    with subprocess.Popen(
        [*within, WORLD, "sh", "-c", f"setsid sleep {word} & sleep {word} & echo ready; wait"], stdout=subprocess.PIPE
    ) as world:
        assert world.stdout is not None
        assert world.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        # Both are sleep: until setsid has become that, it may be seen without any command line.
        while (found := commands_with(word)) != [["sleep", word]] * 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == [["sleep", word]] * 2
        world.send_signal(number)
        world.wait(20)
    deadline = time.monotonic() + 20
    while commands_with(word) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert commands_with(word) == []


def test_nothing_outside_it_changes() -> None:
    """Accounts, mounts, homes, mail and the host name outside are what they were."""

    def outside() -> tuple[object, ...]:
        return (
            Path("/etc/passwd").read_bytes(),
            Path("/proc/self/mountinfo").read_bytes(),
            sorted(os.listdir("/home")),
            sorted(os.listdir("/var/spool/postfix")),
            os.uname().nodename,
        )

    before = outside()
    change = "useradd mallory; touch /home/x /var/spool/postfix/x /etc/x /tmp/outside-x; hostname elsewhere"
    assert subprocess.run([WORLD, "sh", "-c", change], check=False, capture_output=True).returncode == 0
    assert outside() == before
    assert not Path("/tmp/outside-x").exists()


@pytest.mark.parametrize(("given", "lowest"), [({}, 1000), ({"MILTERAPP_PEOPLE": "5000"}, 5000)], ids=["none", "some"])
def test_the_peoples_uids_can_be_given(given: dict[str, str], lowest: int) -> None:
    """Worlds side by side can have people of different uids, so that none uses up another's processes."""
    around = {name: value for name, value in os.environ.items() if name != "MILTERAPP_PEOPLE"} | given
    script = "for one in alice bob carol; do id -u $one; id -g $one; done"
    ids = [int(one) for one in subprocess.check_output([WORLD, "sh", "-c", script], env=around).split()]
    assert (len(ids), lowest <= min(ids), max(ids) < lowest + 1000) == (6, True, True)


def test_accounts_made_again_change_nothing() -> None:
    """packaging/accounts says what it makes; where all is there already it says and changes nothing."""
    before = Path("/etc/passwd").read_bytes()
    done = subprocess.run([str(PACKAGING / "accounts")], check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert Path("/etc/passwd").read_bytes() == before


def test_accounts_can_be_removed() -> None:
    """--undo takes out every account it made, and keeps what was sent and the rules."""
    script = "packaging/accounts --undo && ! grep -q milterapp /etc/passwd && test -d /var/lib/milterapp/submit"
    done = subprocess.run([WORLD, "sh", "-c", script], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"removed the account") >= 4


def test_systemd_makes_the_same_accounts_and_folders() -> None:
    """sysusers.d and tmpfiles.d name what packaging/accounts makes, with the same modes and owners."""
    script = (PACKAGING / "accounts").read_text()
    made = set(re.findall(r"^account (\S+)", script, re.MULTILINE))
    declared = set(re.findall(r"^u (\S+)", (PACKAGING / "sysusers.d/milterapp.conf").read_text(), re.MULTILINE))
    assert made == declared
    tmpfiles = (PACKAGING / "tmpfiles.d/milterapp.conf").read_text()
    for path, mode, owner, group in re.findall(r"^d (\S+)\s+(\S+)\s+(\S+)\s+(\S+)", tmpfiles, re.MULTILINE):
        found = Path(path).stat()
        assert f"{found.st_mode & 0o7777:04o}" == mode, path
        assert (Path(path).owner(), Path(path).group()) == (owner, group), path
