"""The systemd units: how exposed each service is, that it may do what it must, and that its folders are there."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery import syscalls

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))

# The overall exposure level of systemd-analyze(1), 0 to 10, that each may have at most.
MOST = {
    "milterapp-lmtp": 0.7,
    "milterapp-milter": 0.7,
    "milterapp-script": 0.7,
    "milterapp-monitor": 1.6,  # CAP_SETUID, CAP_SETGID, and the homes
    "milterapp-submit": 0.8,
}


def test_every_service_has_its_mark() -> None:
    """Each service that stays running has a unit, and each unit a mark."""
    assert (
        {unit.stem for unit in UNITS}
        == set(MOST)
        == {f"milterapp-{one}" for one in ("lmtp", "milter", "monitor", "script", "submit")}
    )


needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
ids = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def values(unit: Path, key: str) -> list[str]:
    """Return the values of a key, a line each."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def analyze(*arguments: str) -> str:
    """Run systemd-analyze(1)."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def calls_of(group: str) -> frozenset[str]:
    """Return the names of the system calls of one of systemd's groups, or the call of that name."""

    def expand(name: str) -> Iterator[str]:
        if not name.startswith("@"):
            yield name
            return
        for line in analyze("syscall-filter", name).splitlines()[1:]:
            word = line.strip()
            if word and not word.startswith("#"):
                yield from expand(word)

    return frozenset(expand(group))


@needs_systemd_analyze
@ids
def test_exposure(unit: Path) -> None:
    """Each unit closes what its service does not need: its exposure level is at or below its mark."""
    if "--offline" not in analyze("--help"):
        pytest.skip("this systemd-analyze has no --offline (before version 250)")
    most = MOST[unit.stem]
    analyze("security", "--offline=true", f"--threshold={round(most * 10)}", "--no-pager", str(unit))


def allowed_calls(unit: Path) -> set[str]:
    """Return the system calls that a unit's filter lets through."""
    allowed: set[str] = set()
    for line in values(unit, "SystemCallFilter"):
        named = {one for word in line.removeprefix("~").split() for one in calls_of(word)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


# What the spawner needs of the system: to take a job, to fork, and to have a script process caged.
SPAWNER = (
    "accept4 bind listen socket getsockopt recvmsg sendmsg epoll_create1 epoll_ctl epoll_wait poll pipe2 pread64",
    "clone wait4 kill pidfd_open close_range memfd_create fcntl dup2 chdir unlink umask",
    "prctl prlimit64 seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
)


@needs_systemd_analyze
@pytest.mark.parametrize("unit", [one for one in UNITS if one.stem == "milterapp-script"], ids=lambda unit: unit.stem)
def test_the_spawner_may_cage_a_script(unit: Path) -> None:
    """The unit's SystemCallFilter lets the spawner do its work, and what the sandbox is built on; no change of ids."""
    allowed = allowed_calls(unit)
    assert {*" ".join(SPAWNER).split()} - allowed == set()
    assert allowed & {"setresuid", "setresgid", "setgroups", "mount", "ptrace", "capset"} == set()


@needs_systemd_analyze
@pytest.mark.parametrize("unit", [one for one in UNITS if one.stem == "milterapp-monitor"], ids=lambda unit: unit.stem)
def test_the_monitor_may_call_what_its_own_filter_lets_it(unit: Path) -> None:
    """The unit's SystemCallFilter refuses the monitor nothing that processes below it are built on."""
    allowed = allowed_calls(unit)
    groups = (
        syscalls.MEMORY,
        syscalls.PROCESSES,
        syscalls.SOCKETS,
        syscalls.WAITING,
        syscalls.FILES,
        syscalls.IDENTITY,
    )
    wanted = {one for group in groups for one in group}
    here = {one for one in wanted if syscalls.number(one, "x86_64") >= 0}
    assert here - allowed == set()


@ids
def test_kinds_of_keys(unit: Path) -> None:
    """Every service takes no new privileges, keeps to native system calls, and names its manual page."""
    assert values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "SystemCallArchitectures") == ["native"]
    assert values(unit, "Documentation") == [f"man:{unit.stem}(8)"]
    assert values(unit, "ExecStart") == [f"/usr/bin/milterapp {unit.stem.removeprefix('milterapp-')}"]


@ids
def test_a_service_is_started_again_for_ever(unit: Path) -> None:
    """What ended is started again, without a number of times after which systemd would leave it and mail would wait."""
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert "75" not in values(unit, "RestartPreventExitStatus")[0].split()


@ids
def test_only_the_monitor_has_capabilities(unit: Path) -> None:
    """No unit but the monitor's names a capability, and that one only the two."""
    wanted = ["CAP_SETUID CAP_SETGID"] if unit.stem == "milterapp-monitor" else [""]
    assert values(unit, "CapabilityBoundingSet") == wanted
    assert values(unit, "AmbientCapabilities") == wanted


@ids
def test_no_network_and_no_namespace(unit: Path) -> None:
    """No service reaches a network, or makes a namespace: what its account alone would let it."""
    assert values(unit, "PrivateNetwork") == ["yes"]
    assert values(unit, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert values(unit, "IPAddressDeny") == ["any"]
    assert values(unit, "RestrictNamespaces") == ["yes"]


@ids
def test_accounts_and_folders_are_made(unit: Path) -> None:
    """The account is in sysusers.d and in packaging/accounts, and tmpfiles.d gives it the folders it may write."""
    (account,) = values(unit, "User")
    for place in ("sysusers.d/milterapp.conf", "accounts"):
        assert re.search(rf"^(?:u|account) {account}\b", (PACKAGING / place).read_text(), re.MULTILINE), place
    folders = dict(
        re.findall(r"^d (\S+)\s+\S+ (\S+)", (PACKAGING / "tmpfiles.d/milterapp.conf").read_text(), re.MULTILINE)
    )
    for path in " ".join(values(unit, "ReadWritePaths")).split():
        assert folders[path] == account


def test_both_ways_make_the_same_accounts_and_folders() -> None:
    """packaging/accounts and sysusers.d, tmpfiles.d make the same."""
    script = (PACKAGING / "accounts").read_text()
    users = (PACKAGING / "sysusers.d/milterapp.conf").read_text()
    members = dict(re.findall(r"^m (\S+)\s+(\S+)", users, re.MULTILINE))
    want = {name: members.get(name, "") for name in re.findall(r"^u (\S+)", users, re.MULTILINE)}
    assert dict(re.findall(r"^account (\S+) ?([^#\s]*)", script, re.MULTILINE)) == want
    tmpfiles = re.findall(
        r"^d (\S+)\s+(\S+) (\S+)\s+(\S+)", (PACKAGING / "tmpfiles.d/milterapp.conf").read_text(), re.MULTILINE
    )
    made = re.findall(r'^folder "?(\S+?)"? (\d+) (\S+) (\S+)', script, re.MULTILINE)
    made = [(path.replace("$queue", "/var/spool/postfix"), *rest) for path, *rest in made]
    assert {*tmpfiles} <= {*made}
