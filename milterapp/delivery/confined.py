"""The wall between recipients that share one uid: a process that reaches one home, and what all may read.

Must never: import anything but the standard library and its neighbours; let a process go on where the wall could not
be built, or where the home lies within what all may read.

SECURITY: the recipients of virtual domains (`recipients`) may have one uid for all their homes, so the kernel's own
walls do not stand between them. Landlock keeps an agent, its scripts and its programs from opening any file outside
their own home and the system's folders, tracing others, and from ABI 6 on signalling them. What Landlock knows nothing
of is refused by a filter of system calls: changing mode, owner, times or attributes of a file by its name, limits of
another process, watching a folder. Not stopped: stat(2) of what lies in another's home, and using up the processes
and memory that the uid has; below ABI 6, a signal to another recipient's agent, whose message then waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from milterapp.delivery import landlock, linux, seccomp
from milterapp.delivery.seccomp import _ALLOW, _EQUAL, _REFUSE, _RETURN, _argument, _do, _head, _jump, _where
from milterapp.delivery.syscalls import number

__all__ = ["DEVICES", "LEAST_ABI", "SYSTEM", "confine", "confined_filter", "missing", "python"]

LEAST_ABI = {"full": 6, "good": 2, "basic": 2}  # of Landlock, by delivery.sandbox; 1 has no link(2) between folders
SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc", "/sbin", "/usr")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NEVER = tuple(
    " ".join((
        "chmod fchmodat fchmodat2 chown lchown fchownat utime utimes futimesat utimensat truncate",
        "setxattr lsetxattr removexattr lremovexattr inotify_add_watch process_vm_readv process_vm_writev",
        "process_madvise migrate_pages move_pages sched_setaffinity ioprio_set",
    )).split()
)  # fmt: skip


def missing(floor: str) -> str:
    """Return what this machine lacks for the wall, with the remedy, "" where it has all. floor: delivery.sandbox.

    Raises OSError where it could not be told.
    """
    found, least = linux.landlock_abi(), LEAST_ABI[floor]
    if found >= least:
        return ""
    return (
        f"recipients of delivery.recipients need Landlock ABI {least}, this kernel has {found or 'none'}: "
        "boot one that has it (Linux 5.19 for 2, 6.12 for 6; lsm=landlock,...), or give them accounts of their own"
    )


def python() -> set[str]:
    """Return the folders of Python's code and of ours, which every agent reads."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return {sys.prefix, sys.base_prefix, ours, *(one for one in sys.path if one)}


def confine(home: str, readable: Iterable[str] = (), writable: Iterable[str] = ()) -> None:
    """Let this process, and all that come of it, open nothing but the home and what all may read, for ever.

    readable, writable: folders more, the site's. Raises OSError or ValueError: then the process must end.
    """
    system = [*SYSTEM, *readable, *python()]
    real = os.path.realpath(home)
    for one in system:
        if f"{real}/".startswith(f"{os.path.realpath(one).rstrip('/')}/"):
            raise ValueError(f"the home lies below {one}, where every recipient may read")
    if landlock.restrict((), executable=system, writable=(home, *writable, *DEVICES)) < min(LEAST_ABI.values()):
        raise OSError("no wall between recipients: this kernel's Landlock is too old, or turned off")
    seccomp.install(confined_filter())


def confined_filter(machine: str = "") -> bytes:
    """Return what a confined process has taken away on top of what it had."""
    machine = machine or os.uname().machine
    allow, refuse = _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)
    code = _head(machine)
    for call in _NEVER:
        if number(call, machine) >= 0:
            code += _where(call, machine, [refuse])
    code += [*_where("prlimit64", machine, [_argument(0), _jump(_EQUAL, 0, 0, 1), allow, refuse]), allow]
    return b"".join(code)
