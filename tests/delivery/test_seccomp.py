"""The filters: what passes, what is refused, and that neither ids nor architectures get round them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import seccomp, syscalls
from tests.delivery.inside import error_of, inside

ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = sorted(ARCHITECTURE)
EDGES = [0, 6, 42, 99, 100, 101, 999, 1000, 1001, 2**32 - 3, 2**32 - 2, 2**32 - 1]
IDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(EDGES))


def judge(program: bytes, machine: str, call: int | str, *arguments: int, architecture: int = 0) -> int:
    """Return what a filter answers to a call: the kernel's interpreter of classic BPF, in a few lines."""
    number = syscalls.number(call, machine) if isinstance(call, str) else call
    padded = [*(value & (2**64 - 1) for value in arguments), *[0] * 6][:6]
    data = struct.pack("<IIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *padded)
    at = accumulator = 0
    while True:
        code, then, otherwise, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            tests = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}
            tests[0x45] = bool(accumulator & value)
            at += then if tests[code] else otherwise


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    """Judge for either architecture, whichever this is."""
    return str(request.param)


SERVICE = {machine: seccomp.service(1000, 1000, (100, 6), machine) for machine in MACHINES}


def allowed(value: int, also: tuple[int, ...] = ()) -> bool:
    """Return whether an id may be taken."""
    return 1000 <= value < 2**32 - 2 or value in also


@given(ids=st.tuples(IDS, IDS, IDS))
def test_ids_are_floored(machine: str, ids: tuple[int, int, int]) -> None:
    """setresuid and setresgid pass where all three ids are allowed, and nowhere else."""
    uids = all(map(allowed, ids))
    gids = all(allowed(value, (100, 6)) for value in ids)
    assert judge(SERVICE[machine], machine, "setresuid", *ids) == (ALLOW if uids else REFUSE)
    assert judge(SERVICE[machine], machine, "setresgid", *ids) == (ALLOW if gids else REFUSE)


@given(flags=st.integers(0, 2**64 - 1))
def test_no_clone_makes_a_namespace(machine: str, flags: int) -> None:
    """Any CLONE_NEW* flag refuses the call, and without one it passes."""
    want = REFUSE if flags & 0x7E020000 else ALLOW
    assert judge(SERVICE[machine], machine, "clone", flags) == want


@pytest.mark.parametrize(("size", "want"), [(0, ALLOW), (1, REFUSE), (2**32 - 1, REFUSE)])
def test_groups_can_only_be_none(machine: str, size: int, want: int) -> None:
    """The list of groups lies where no filter sees it, so only the empty one passes."""
    assert judge(SERVICE[machine], machine, "setgroups", size) == want


@pytest.mark.parametrize("call", sorted(syscalls.REFUSED))
def test_what_is_refused_is_refused(machine: str, call: str) -> None:
    """Every call of the group REFUSED gets EPERM."""
    if syscalls.number(call, machine) >= 0:
        assert judge(SERVICE[machine], machine, call) == REFUSE


def test_every_number_has_an_answer(machine: str) -> None:
    """Numbers of no group: EPERM up to the newest that the tables know, ENOSYS beyond."""
    known = {syscalls.number(name, machine) for group in syscalls.GROUPS for name in group}
    for number in range(600):
        if number not in known:
            want = ABSENT if number > syscalls.NEWEST else REFUSE
            assert judge(SERVICE[machine], machine, number) == want, number
    assert judge(SERVICE[machine], machine, "clone3") == ABSENT


def test_foreign_architectures_die(machine: str) -> None:
    """The numbers of another architecture, and of x32, mean something else: the process is killed."""
    assert judge(SERVICE[machine], machine, 1, architecture=0x40000003) == KILL  # i386
    if machine == "x86_64":
        assert judge(SERVICE[machine], machine, 0x40000000 | 117, 0, 0, 0) == KILL


@pytest.mark.parametrize("call", ["read", "fsync", "linkat", "futex", "execve", "socket", "seccomp", "clock_gettime"])
def test_ordinary_calls_pass(machine: str, call: str) -> None:
    """What Python, SQLite and programs live on is allowed."""
    assert judge(SERVICE[machine], machine, call) == ALLOW


@pytest.mark.parametrize(
    "call", ["socket", "connect", "execve", "execveat", "setresuid", "setgroups", "ptrace", "setsid"]
)
def test_an_agent_has_more_taken_away(machine: str, call: str) -> None:
    """No new connections, no executing, no ids; everything else is left to the first filter."""
    program = seccomp.agent(machine)
    assert judge(program, machine, call) == REFUSE
    assert judge(program, machine, "openat") == ALLOW


@pytest.mark.parametrize(
    ("uid", "gid", "gids"),
    [
        pytest.param(0, 1000, (), id="floor that lets root through"),
        pytest.param(1000, 0, (), id="floor that lets root's group through"),
        pytest.param(1000, 1000, (100, 0), id="root's group among the allowed"),
        pytest.param(2**32, 1000, (), id="floor beyond every id"),
        pytest.param(1000, 1000, tuple(range(1, 99)), id="too many groups"),
    ],
)
def test_floors_that_are_none_are_refused(uid: int, gid: int, gids: tuple[int, ...]) -> None:
    """Settings that would open the way to root are a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        seccomp.service(uid, gid, gids)


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def test_the_numbers_are_the_kernels(machine: str) -> None:
    """The tables agree with the kernel's own headers."""
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}: install linux-libc-dev")
    header = HEADERS[machine].read_text()
    numbers = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", header)}
    ours = {name: syscalls.number(name, machine) for group in syscalls.GROUPS for name in group}
    shared = numbers.keys() & {name for name, value in ours.items() if value >= 0}
    assert len(shared) > 200
    assert {name: ours[name] for name in shared if name != "newfstatat"} == {
        name: numbers[name] for name in shared if name != "newfstatat"
    }
    older = {name for name, value in ours.items() if value < 0 and name in numbers}
    assert not older, "the architecture has calls that the table says it lacks"


def raw(call: int, *arguments: int) -> int:
    """Return the errno of a system call, 0 where it works."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(call), *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result < 0 else 0


def test_the_kernel_agrees() -> None:
    """Installed in a process, every refused call is refused, and what judges by argument judges."""

    def run() -> list[Any]:
        seccomp.install(seccomp.service(1000, 1000))
        refused = {name for name in syscalls.REFUSED if raw(syscalls.number(name), *[0] * 6) != errno.EPERM}
        return [
            sorted(refused),
            raw(syscalls.number("clone3"), 0, 0),
            raw(syscalls.number("clone"), 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
            raw(600),
            error_of(lambda: os.setresuid(0, 0, 0)),
            seccomp.filtered(),
        ]

    assert inside(run) == [[], errno.ENOSYS, errno.EPERM, errno.ENOSYS, errno.EPERM, True]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86-64")
def test_the_kernel_kills_for_x32() -> None:
    """A number of the x32 ABI is death, not a way round the table."""

    def run() -> int:
        seccomp.install(seccomp.service(1000, 1000))
        return raw(0x40000000 | 117, 0, 0, 0)

    assert inside(run) == f"signal {signal.SIGSYS.value}"


def test_ordinary_programs_work() -> None:
    """Under the filter SQLite commits, threads run, programs start, and files are linked and synced."""

    def run() -> list[Any]:
        seccomp.install(seccomp.service(1000, 1000))
        with tempfile.TemporaryDirectory() as folder:
            database = sqlite3.connect(f"{folder}/x.sqlite")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE t (a)")
            database.execute("INSERT INTO t VALUES (1)")
            database.commit()
            rows = database.execute("SELECT a FROM t").fetchall()
            database.close()
            seen: list[int] = []
            thread = threading.Thread(target=lambda: seen.append(1))
            thread.start()
            thread.join()
            program = [sys.executable, "-I", "-c", "import email, ssl, decimal; print('hello')"]
            output = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout
            with open(f"{folder}/a", "wb") as file:
                os.fsync(file.fileno())
            os.link(f"{folder}/a", f"{folder}/b")
            return [rows, seen, output]

    assert inside(run) == [[[1]], [1], "hello\n"]
