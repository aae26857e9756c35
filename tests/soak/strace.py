"""strace(1) as what kills a process, or lets one of its calls fail, at a given system call; and as what counts them.

Source: strace(1), "Tampering". The call at which a process is killed is not made.
"""

from __future__ import annotations

import errno
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CRITICAL", "ERRORS", "Call", "Fault", "attach", "calls_of", "sample", "sweep"]

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EACCES", "EMFILE", "ENOMEM", "EINTR")
FULL = ("ENOSPC", "EDQUOT", "EIO")  # what, once it is so, stays so for a while
# Around these lie the moments at which something becomes durable, or known to somebody else.
CRITICAL = frozenset((
    "link", "linkat", "unlink", "unlinkat", "rename", "renameat", "fsync", "fdatasync", "pwrite64", "ftruncate",
    "mkdir", "mkdirat", "sendmsg", "sendto", "recvmsg", "recvfrom",
))  # fmt: skip
WRITING = frozenset((
    "write", "pwrite64", "fsync", "fdatasync", "linkat", "link", "mkdirat", "mkdir", "openat", "ftruncate",
))  # fmt: skip
_DONE = frozenset(("link", "linkat", "fsync", "fdatasync", "sendmsg", "sendto"))
# Calls that end the process or do not return an error as others do: there is nothing to inject into them.
_NO_ERROR = frozenset(("exit_group", "exit", "rt_sigreturn", "execve", "vfork"))
_LINE = re.compile(r"(?:\d+ +)?(?P<name>[a-z]\w*)\(|(?:\d+ +)?<\.\.\. ")


@dataclass(frozen=True, slots=True)
class Call:
    """The number-th call of that name in one process, counted from 1."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a process. what: KILL, or an errno; stays: from that call on, not at that call alone."""

    call: Call
    what: str
    stays: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Return what tells strace(1)."""
        how = "signal=KILL" if self.what == "KILL" else f"error={self.what}"
        when = f"{self.call.number}{'+' if self.stays else ''}"
        return "-e", f"trace={self.call.name}", "-e", f"inject={self.call.name}:{how}:when={when}"

    def __str__(self) -> str:
        return f"{self.what}{' from' if self.stays else ' at'} {self.call.name} {self.call.number}"


def attach(pid: int, *options: str) -> subprocess.Popen[bytes]:
    """Attach strace(1) to a process and return it. Raises AssertionError where it could not."""
    process = subprocess.Popen(
        ["strace", "-o", "/dev/null", *options, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    if b"attached" not in said:
        process.kill()
        process.communicate()
        raise AssertionError(said)
    return process


def calls_of(trace: Path) -> list[Call]:
    """Return the calls that a trace shows, in order, each number of a name once, whichever thread made it."""
    seen: dict[str, Counter[str]] = {}
    found: list[Call] = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or match["name"] is None:
            continue
        first = line.split(None, 1)[0]
        count = seen.setdefault(first if first.isdigit() else "", Counter())
        count[match["name"]] += 1
        call = Call(match["name"], count[match["name"]])
        if call not in found:
            found.append(call)
    return found


def sweep(calls: Sequence[Call]) -> list[Fault]:
    """Return every fault at every call: killed, each error once, and a disk that fails from there on."""
    assert all(hasattr(errno, one) for one in ERRORS)
    failing = [one for one in calls if one.name not in _NO_ERROR]
    return [
        *(Fault(call, "KILL") for call in calls),
        *(Fault(call, error) for call in failing for error in ERRORS),
        *(Fault(call, error, stays=True) for call in failing if call.name in WRITING for error in FULL),
    ]


def sample(calls: Sequence[Call], every: int) -> list[Fault]:
    """Return a fixed part of the sweep.

    Killed at every so manieth call, before each critical one, and after those by which something is done; each
    critical one fails with one of the errors in turn, and every so manieth of the rest.
    """
    critical = [at for at, call in enumerate(calls) if call.name in CRITICAL]
    near = {*critical, *(at + 1 for at in critical if calls[at].name in _DONE)}
    killed = [call for at, call in enumerate(calls) if at % every == 0 or at in near]
    failing = [
        call
        for at, call in enumerate(calls)
        if call.name not in _NO_ERROR and (call.name in CRITICAL or at % every == every // 2)
    ]
    return [
        *(Fault(call, "KILL") for call in killed),
        *(Fault(call, ERRORS[at % len(ERRORS)]) for at, call in enumerate(failing)),
        *_full(failing),
    ]


def _full(calls: Iterable[Call]) -> list[Fault]:
    writing = [one for one in calls if one.name in WRITING]
    return [Fault(call, FULL[at % len(FULL)], stays=True) for at, call in enumerate(writing[::4])]
