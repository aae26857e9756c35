"""Giving privileges up: what is gone is gone, and what was not given up is noticed."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest

from milterapp.delivery import linux, sealed, seccomp
from tests.delivery.inside import busy_with, error_of, inside

EPERM = 1


@pytest.mark.root
def test_become_takes_ids_and_gives_up_everything_else() -> None:
    """After become the ids are those asked for, capabilities are gone, and there is no way back."""

    def drop() -> list[Any]:
        linux.become(20001, 20001, (20005,))
        return [
            os.getresuid(),
            os.getresgid(),
            os.getgroups(),
            linux.capabilities(),
            [error_of(lambda: os.setresuid(0, 0, 0)), error_of(lambda: os.setresgid(0, 0, 0))],
            error_of(lambda: os.setgroups([0])),
            linux.prctl(39),  # PR_GET_NO_NEW_PRIVS
        ]

    assert inside(drop) == [[20001] * 3, [20001] * 3, [20005], [0, 0, 0], [EPERM, EPERM], EPERM, 1]


@pytest.mark.root
@pytest.mark.parametrize(
    ("uid", "gid", "groups"),
    [
        pytest.param(0, 20001, (), id="root"),
        pytest.param(20001, 0, (), id="root's group"),
        pytest.param(20001, 20001, (0,), id="root's group among the others"),
        pytest.param(2**32 - 1, 20001, (), id="the uid that setresuid leaves alone"),
        pytest.param(20001, 2**32 - 1, (), id="the gid that setresgid leaves alone"),
        pytest.param(2**32 - 2, 20001, (), id="the last id"),
        pytest.param(-1, 20001, (), id="negative"),
    ],
)
def test_become_refuses_ids_that_are_none(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Such ids raise ValueError before anything changes."""

    def drop() -> list[Any]:
        try:
            linux.become(uid, gid, groups)
        except ValueError:
            return ["refused", os.getuid(), os.getgid()]
        return ["taken"]

    assert inside(drop) == ["refused", 0, 0]


@pytest.mark.root
@pytest.mark.parametrize("skipped", ["setresuid", "setresgid", "setgroups"])
def test_become_notices_a_step_that_did_nothing(skipped: str) -> None:
    """A drop whose call silently does nothing is a PrivilegeError, not a process that runs on as root."""

    def drop() -> str:
        os.setgroups([4, 5])
        with mock.patch.object(os, skipped):
            try:
                linux.become(20001, 20001)
            except (linux.PrivilegeError, OSError) as error:
                return type(error).__name__
        return "nothing noticed"

    assert inside(drop) in ("PrivilegeError", "PermissionError")


@pytest.mark.root
def test_keep_capabilities_keeps_two_and_no_root() -> None:
    """The monitor's drop leaves CAP_SETUID and CAP_SETGID, in every set and for good, and nothing else."""

    def drop() -> list[Any]:
        linux.keep_capabilities("20009")
        status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)  # noqa: SIM115
        return [
            os.getresuid(),
            os.getgroups(),
            linux.capabilities(),
            [status[key].strip() for key in ("CapBnd", "CapAmb", "NoNewPrivs")],
            error_of(lambda: os.kill(1, 0)),
            error_of(lambda: os.chown("/", 0, 0)),
        ]

    mask = 1 << linux.CAP_SETUID | 1 << linux.CAP_SETGID
    want = [[20009] * 3, [], [mask] * 3, [f"{mask:016x}", f"{mask:016x}", "1"], EPERM, EPERM]
    assert inside(drop) == want


@pytest.mark.root
def test_keep_capabilities_leaves_no_group_to_who_was_started_as_the_account() -> None:
    """systemd's User= puts the primary group among the supplementary ones; none is left, not that one either."""

    def drop() -> list[Any]:
        linux.prctl(8, 1)  # PR_SET_KEEPCAPS
        os.setgroups([20009, 20010])
        os.setresgid(20009, 20009, 20009)
        os.setresuid(20009, 20009, 20009)
        before = os.getgroups()
        linux.keep_capabilities("20009")
        return [before, os.getgroups(), os.getresgid()]

    assert inside(drop) == [[20009, 20010], [], [20009] * 3]


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop", "want"),
    [
        pytest.param(lambda: linux.drop_to_account("20009"), [20009, []], id="a service"),
        pytest.param(lambda: linux.drop_to_account("20009:20010", ("20005",)), [20010, [20005]], id="with groups"),
    ],
)
def test_a_service_started_as_root_drops(drop: Callable[[], linux.Account], want: list[Any]) -> None:
    """Ids and groups are the account's, capabilities none."""

    def run() -> list[Any]:
        drop()
        return [os.getgid(), os.getgroups(), os.getresuid(), linux.capabilities()]

    assert inside(run) == [*want, [20009] * 3, [0, 0, 0]]


def _as(uid: int, act: Callable[[], object]) -> Any:
    """Return what becomes of an act in a process of that uid."""

    def run() -> str:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        act()
        return "done"

    return inside(run)


@pytest.mark.root
def test_a_service_started_as_its_account_needs_nothing_else() -> None:
    """Started by systemd as the account it is to be, a service goes on; as another it says who it expected."""
    assert _as(20009, lambda: linux.drop_to_account("20009")) == "done"
    assert _as(20008, lambda: linux.drop_to_account("20009")).startswith(
        "PrivilegeError: started with uid 20008, expected root or 20009"
    )
    assert "lacks CAP_SETUID" in _as(20009, lambda: linux.keep_capabilities("20009"))


@pytest.mark.root
def test_a_unit_may_refuse_capset_to_who_has_no_capability() -> None:
    """Where a filter refuses capset(2), a service without capabilities starts; who has some does not."""

    def act() -> object:
        machine = os.uname().machine
        refused = seccomp._where("capset", machine, [seccomp._do(seccomp._RETURN, seccomp._REFUSE)])
        seccomp.install(b"".join([*seccomp._head(machine), *refused, seccomp._do(seccomp._RETURN, seccomp._ALLOW)]))
        linux.drop_capabilities()
        return linux.capabilities()

    def told() -> object:
        try:
            return act()
        except OSError as error:
            return error.errno

    assert _as(20009, act) == "done"
    assert inside(told) == errno.EPERM


@pytest.mark.parametrize("name", ["no-such-account", "", "0x10", "-1", "root ", "٣", "²"])
def test_an_account_that_does_not_exist_is_named(name: str) -> None:
    """An unknown account is a PrivilegeError with its name."""
    with pytest.raises(linux.PrivilegeError, match=f"account '{name}' does not exist"):
        linux.account(name)


def test_accounts_have_names_or_numbers() -> None:
    """An account is looked up by name; digits are its uid, as chown(1) has it."""
    assert linux.account("root") == linux.Account("root", 0, 0)
    assert linux.account("20001:20002") == linux.Account("20001:20002", 20001, 20002)


@pytest.mark.root
def test_root_is_no_account_for_a_service() -> None:
    """A service told to run as root does not start."""
    assert inside(lambda: linux.drop_to_account("root") and "ran").startswith("PrivilegeError")


def test_close_from_closes_what_is_open() -> None:
    """Every descriptor from the lowest up is closed, close-on-exec or not; those below stay."""

    def close() -> list[int]:
        for _ in range(20):
            os.set_inheritable(os.open("/", os.O_RDONLY), True)
        highest = os.open("/", os.O_RDONLY)
        os.dup2(highest, highest + 100)
        linux.close_from(highest)
        return [error_of(partial(os.fstat, fd)) for fd in (highest - 1, highest, highest + 100)]

    assert inside(close) == [0, 9, 9]


def test_limits_only_go_down() -> None:
    """A limit is lowered for good; one that is lower already stays as it was."""

    def lower() -> list[Any]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
        linux.limit({resource.RLIMIT_NOFILE: 100, resource.RLIMIT_CORE: 0})
        return [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)]

    assert inside(lower) == [[60, 60], [0, 0]]


@pytest.mark.root
@pytest.mark.parametrize(
    ("there", "hard", "want"),
    [
        pytest.param(0, -1, 32, id="nobody: twice the room"),
        pytest.param(10, -1, 32, id="fewer than the room"),
        pytest.param(100, -1, 128, id="many: a step of the room above the next step"),
        pytest.param(100, 120, 120, id="a limit that is lower already"),
        pytest.param(100, 50, 50, id="one that is exceeded"),
    ],
)
def test_a_bound_on_processes_leaves_room(there: int, hard: int, want: int) -> None:
    """The bound counts what the uid runs, threads too, and leaves one to two times the room, for good."""
    uid = 20031

    def bound() -> list[Any]:
        if hard >= 0:
            resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        linux.count_processes()
        linux.become(uid, uid)
        linux.bound_processes(16)
        forked: list[int] = []
        try:
            while len(forked) < 200:
                if (pid := os.fork()) == 0:
                    signal.pause()
                forked.append(pid)
        except BlockingIOError:
            pass
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [resource.getrlimit(resource.RLIMIT_NPROC), len(forked)]

    busy = busy_with(uid, there) if there else None
    try:
        assert inside(bound) == [[want, want], max(0, want - there - 1)]
    finally:
        if busy is not None:
            busy.kill()
            busy.communicate()


def test_only_a_sealed_memfd_is_sealed() -> None:
    """A file, a pipe and a memfd that can still be written are not; one that was sealed is."""
    reader, writer = os.pipe()
    loose, tight = os.memfd_create("loose", os.MFD_ALLOW_SEALING), sealed.seal([b"x"])
    file = os.open(__file__, os.O_RDONLY)
    try:
        assert [linux.is_sealed(fd) for fd in (reader, file, loose, tight, 9999)] == [False] * 3 + [True, False]
    finally:
        for fd in (reader, writer, loose, tight, file):
            os.close(fd)


def test_a_process_that_asked_dies_with_its_parent() -> None:
    """A child of the same uid ends when its parent does, whatever it is doing."""

    def orphan() -> str:
        reader, writer = os.pipe()
        if os.fork() == 0:
            ready, go = os.pipe()
            if os.fork() == 0:
                linux.die_with_parent()
                os.write(go, b"x")
                signal.pause()
            os.read(ready, 1)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            return pipe.read()  # the end of it: nobody holds the writing end any more

    assert inside(orphan) == ""


def test_the_abi_of_landlock_is_a_number() -> None:
    """A kernel without Landlock says 0."""
    assert linux.landlock_abi() >= 0


@pytest.mark.parametrize(
    ("found", "none"),
    [(errno.ENOSYS, True), (errno.EOPNOTSUPP, True), (errno.EPERM, True), (errno.ENOMEM, False), (errno.EINTR, False)],
    ids=["too old", "turned off", "a container's filter", "no memory", "interrupted"],
)
def test_no_landlock_is_what_the_kernel_says(found: int, none: bool) -> None:
    """A call that fails for another reason is an error: no script may run with a wall less than there could be."""

    def act() -> object:
        number = linux._LANDLOCK_CREATE_RULESET
        code = [
            *seccomp._head(os.uname().machine),
            seccomp._jump(seccomp._EQUAL, number, 0, 1),
            seccomp._do(seccomp._RETURN, seccomp._ERRNO | found),
            seccomp._do(seccomp._RETURN, seccomp._ALLOW),
        ]
        seccomp.install(b"".join(code))
        try:
            return linux.landlock_abi()
        except OSError as error:
            return -(error.errno or 0)

    assert inside(act) == (0 if none else -found)
