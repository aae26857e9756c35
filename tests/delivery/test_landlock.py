"""Landlock alone, with a real uid and no filter of system calls: what each ABI takes away, and what stays readable."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import landlock, linux
from tests.delivery.agent_like import UID
from tests.delivery.inside import inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(linux.landlock_abi() < 1, reason="this kernel has no Landlock"),
]
ABIS = [pytest.param(abi, id=f"abi-{abi}") for abi in range(1, max(linux.landlock_abi(), 1) + 1)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Make a home of uid 20001 with a mailbox and a folder to be read."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        for folder in ("readable", "readable/below", "mailbox"):
            (top / folder).mkdir()
        for file in ("readable/a", "readable/below/b", "mailbox/c"):
            (top / file).write_text("text")
        for path in (top, *top.rglob("*")):
            os.chown(path, UID, UID)
        yield top


def restricted(home: Path, abi: int, act: Callable[[], object], *readable: str | int) -> str:
    """Return what becomes of an act as uid 20001 below a ruleset: `done`, or the errno's name."""

    def there() -> Any:
        linux.become(UID, UID)
        os.chdir(home)
        assert landlock.restrict(readable or ("readable", "readable/nothing", "/nonexistent"), abi) == abi
        try:
            act()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"

    return str(inside(there))


READS: dict[str, tuple[Callable[[], object], str]] = {
    "a file": (lambda: os.open("readable/a", os.O_RDONLY), "done"),
    "a file below": (lambda: os.open("readable/below/b", os.O_RDONLY), "done"),
    "a list": (lambda: os.listdir("readable"), "done"),
    "the mailbox": (lambda: os.open("mailbox/c", os.O_RDONLY), "EACCES"),
    "by a way round": (lambda: os.open("readable/../mailbox/c", os.O_RDONLY), "EACCES"),
    "the home": (lambda: os.listdir("."), "EACCES"),
    "passwd": (lambda: os.open("/etc/passwd", os.O_RDONLY), "EACCES"),
    "proc": (lambda: os.open("/proc/self/status", os.O_RDONLY), "EACCES"),
    "a size": (lambda: os.stat("mailbox/c"), "done"),
    "write": (lambda: os.open("readable/a", os.O_WRONLY), "EACCES"),
    "make": (lambda: os.open("readable/new", os.O_CREAT | os.O_WRONLY), "EACCES"),
    "mkdir": (lambda: os.mkdir("readable/new"), "EACCES"),
    "unlink": (lambda: os.unlink("readable/a"), "EACCES"),
    "rename": (lambda: os.rename("readable/a", "readable/z"), "EACCES"),
    "link": (lambda: os.link("mailbox/c", "readable/c"), "EACCES EXDEV"),
    "exec": (lambda: os.execv("/bin/true", ["true"]), "EACCES"),
    "ptrace-like": (lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY), "EACCES"),
}


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("name", READS)
def test_files(name: str, abi: int, home: Path) -> None:
    """Below what is granted everything is readable, and nothing is writable anywhere."""
    act, want = READS[name]
    assert restricted(home, abi, act) in want.split()


def connect() -> None:
    """Connect by TCP to a port where nobody listens."""
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def bind() -> None:
    """Listen on TCP."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def abstract() -> None:
    """Send to an abstract socket of somebody outside."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(b"", f"\0milterapp-test-{os.getppid()}")


SINCE: dict[str, tuple[Callable[[], object], int, str]] = {
    "truncate": (lambda: os.truncate("readable/a", 1), 3, "EACCES"),
    "connect": (connect, 4, "EACCES"),
    "bind": (bind, 4, "EACCES"),
    "abstract socket": (abstract, 6, "EPERM"),
}


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("name", SINCE)
def test_what_later_versions_take_away(name: str, abi: int, home: Path) -> None:
    """Truncating, TCP and abstract sockets are refused from their ABI on."""
    act, since, want = SINCE[name]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0milterapp-test-{os.getpid()}")
        found = restricted(home, abi, act)
    assert (found == want) == (abi >= since), found


@pytest.mark.parametrize("abi", ABIS)
def test_signals(abi: int, home: Path) -> None:
    """From ABI 6 on a process of the same uid outside cannot be signalled."""
    outside = os.fork()
    if outside == 0:
        linux.become(UID, UID)
        signal.pause()
    try:
        until = time.monotonic() + 10
        while os.stat(f"/proc/{outside}").st_uid != UID and time.monotonic() < until:
            time.sleep(0.01)
        want = "EPERM" if abi >= 6 else "done"
        assert restricted(home, abi, lambda: os.kill(outside, 0)) == want
    finally:
        os.kill(outside, signal.SIGKILL)
        os.waitpid(outside, 0)


def test_a_descriptor(home: Path) -> None:
    """A folder can be given by a descriptor too, so that its path is not looked up again."""
    folder = os.open(home / "mailbox", os.O_RDONLY | os.O_DIRECTORY)
    try:
        abi = linux.landlock_abi()
        assert restricted(home, abi, lambda: os.open("mailbox/c", os.O_RDONLY), folder) == "done"
        assert restricted(home, abi, lambda: os.open("readable/a", os.O_RDONLY), folder) == "EACCES"
    finally:
        os.close(folder)
