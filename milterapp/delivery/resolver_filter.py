"""What the resolver has taken away on top of the monitor's filter: everything but asking who somebody is.

Must never: import anything but the standard library and its neighbours; keep a name service from reading files and
speaking over sockets.

SECURITY: the resolver has the uid of the monitor, and with it that of the folder in which clients look for the monitor.
So it may change no file, take no connection, start no program and signal nobody.
"""

from __future__ import annotations

import os

from milterapp.delivery.seccomp import (  # the words that its filters are made of too
    _ABSENT,
    _ALLOW,
    _ANY_BIT,
    _EQUAL,
    _REFUSE,
    _RETURN,
    _argument,
    _do,
    _head,
    _jump,
    _no_owner,
    _where,
)
from milterapp.delivery.syscalls import number

__all__ = ["NEVER", "resolver_filter"]

NEVER = tuple(
    " ".join((
        "execve execveat fork vfork kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal",
        "process_mrelease setpriority ioprio_set sched_setaffinity setresuid setresgid setgroups",
        "bind listen accept accept4",
        "creat truncate rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat",
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat mknod mknodat",
        "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr",
    )).split()
)  # fmt: skip
_OPEN = (("openat", 2), ("open", 1))  # and which argument holds the flags
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000


def resolver_filter(pid: int, machine: str = "") -> bytes:
    """Return the filter. pid: the process's own, whose threads alone it may signal (as abort(3) does)."""
    machine = machine or os.uname().machine
    allow, refuse = _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)
    code = _head(machine)
    for call in NEVER:
        if number(call, machine) >= 0:
            code += _where(call, machine, [refuse])
    for call, argument in _OPEN:
        if number(call, machine) >= 0:
            code += _where(call, machine, [_argument(argument), _jump(_ANY_BIT, _TO_WRITE, 0, 1), refuse, allow])
    code += [
        *_no_owner(machine),  # both calls are settled here: what else they do, a name service may
        *_where("openat2", machine, [_do(_RETURN, _ABSENT)]),  # its flags lie in memory: nobody needs it here
        *_where("clone", machine, [_argument(0), _jump(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, refuse]),
        *_where("tgkill", machine, [_argument(0), _jump(_EQUAL, pid, 0, 1), allow, refuse]),
        *_where("prlimit64", machine, [_argument(0), _jump(_EQUAL, 0, 0, 1), allow, refuse]),
        allow,
    ]
    return b"".join(code)
