"""The resolver's filter: it reads, asks over sockets and computes; it changes, starts and signals nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import resolver, seccomp, syscalls
from milterapp.delivery.resolver_filter import NEVER, resolver_filter
from tests.delivery.inside import error_of, inside
from tests.delivery.test_seccomp import ABSENT, ALLOW, MACHINES, REFUSE, judge

OWN = 4321
FILTERS = {machine: resolver_filter(OWN, machine) for machine in MACHINES}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_it_never_may(machine: str) -> None:
    """No file is changed, no program or process started, nobody signalled, no connection taken."""
    for call in NEVER:
        if syscalls.number(call, machine) >= 0:
            assert judge(FILTERS[machine], machine, call) == REFUSE, call


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "arguments", "want"),
    [
        ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),
        ("openat", (0, 0, os.O_WRONLY), REFUSE),
        ("openat", (0, 0, os.O_RDWR), REFUSE),
        ("openat", (0, 0, os.O_CREAT), REFUSE),
        ("openat2", (), ABSENT),
        ("clone", (0x10000 | 0x100,), ALLOW),
        ("clone", (17,), REFUSE),
        ("tgkill", (OWN, OWN, 6), ALLOW),
        ("tgkill", (OWN + 1, OWN + 1, 9), REFUSE),
        ("fcntl", (3, 4, os.O_NONBLOCK), ALLOW),
        ("fcntl", (3, 8, OWN + 1), REFUSE),
        ("fcntl", (3, 10, 9), REFUSE),
        ("fcntl", (3, 15, 0), REFUSE),
        ("ioctl", (3, 0x541B), ALLOW),
        ("ioctl", (3, 0x8901), REFUSE),
        ("ioctl", (3, 0x8902), REFUSE),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (OWN + 1,), REFUSE),
        ("socket", (), ALLOW),
        ("connect", (), ALLOW),
        ("mmap", (), ALLOW),
        ("sendmsg", (), ALLOW),
    ],
)
def test_what_is_judged_by_its_arguments(machine: str, call: str, arguments: tuple[int, ...], want: int) -> None:
    """Reading, threads and connections are a name service's; writing, other processes and their signals are not."""
    assert judge(FILTERS[machine], machine, call, *arguments) == want


def test_under_it_a_name_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    """Installed, names are looked up, threads run and sockets connect; files, processes and signals are refused."""
    (tmp_path / "file").write_text("as it was")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def run() -> list[Any]:
            seccomp.install(seccomp.service(1000, 1000))
            seccomp.install(resolver_filter(os.getpid()))
            found = resolver.look_up(pwd.getpwuid(0).pw_name)
            seen: list[int] = []
            thread = threading.Thread(target=lambda: seen.append(1))
            thread.start()
            thread.join()
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(tmp_path / "socket"))
            refused = [
                error_of(lambda: os.open(tmp_path / "file", os.O_WRONLY)),
                error_of(lambda: os.unlink(tmp_path / "socket")),
                error_of(lambda: os.rename(tmp_path / "file", tmp_path / "other")),
                error_of(os.fork),
                error_of(lambda: os.execv("/bin/true", ["true"])),
                error_of(lambda: os.kill(os.getppid(), 0)),
                error_of(lambda: os.kill(os.getpid(), 0)),
                error_of(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())),
                error_of(lambda: fcntl.ioctl(0, 0x8901, struct.pack("i", os.getppid()))),  # FIOSETOWN
            ]
            return [found.uid if found else None, seen, sorted(set(refused))]

        assert inside(run) == [0, [1], [errno.EPERM]]
    assert (tmp_path / "file").read_text() == "as it was"
