"""Which system calls a script process may make: enough to import and compute, as an allow-list for seccomp(2).

Must never: let through what opens for writing, makes a socket or a process, or reaches another process.
"""

from __future__ import annotations

import errno
import functools
import os

from milterapp.delivery.seccomp import (  # the words that its filters are made of too
    _ABSENT,
    _ALLOW,
    _ANY_BIT,
    _EQUAL,
    _ERRNO,
    _REFUSE,
    _RETURN,
    _allow,
    _argument,
    _do,
    _head,
    _jump,
    _where,
)
from milterapp.delivery.syscalls import number

__all__ = ["script_filter"]

_CALLS = (
    "read readv pread64 write writev close lseek fstat stat lstat newfstatat statx access faccessat faccessat2",
    "readlink readlinkat getdents getdents64 getcwd dup fadvise64",
    "mmap mprotect munmap mremap brk madvise",
    "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall",
    "poll ppoll select pselect6 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times",
    "futex sched_yield sched_getaffinity getcpu rseq set_robust_list",
    "getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups",
    "getrlimit getrusage uname sysinfo getrandom exit exit_group",
)
_OPEN = (("openat", 2), ("open", 1))  # and which argument holds the flags
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_ASYNC | 0o20000000  # __O_TMPFILE
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC


@functools.cache
def script_filter(machine: str = "") -> bytes:
    """Return the allow-list of a script process: EPERM for everything else, ENOSYS where a C library falls back."""
    machine = machine or os.uname().machine
    read_only = [_jump(_ANY_BIT, _TO_WRITE, 0, 1), _do(_RETURN, _REFUSE), _do(_RETURN, _ALLOW)]
    code = _head(machine)
    for call, argument in _OPEN:
        if number(call, machine) >= 0:
            code += _where(call, machine, [_argument(argument), *read_only])
    commands = [_jump(_EQUAL, value, len(_FCNTL) - at, 0) for at, value in enumerate(_FCNTL)]
    code += [
        *_where("fcntl", machine, [_argument(1), *commands, _do(_RETURN, _REFUSE), _do(_RETURN, _ALLOW)]),
        *_where(
            "prlimit64",  # its own limits, not those of another process of this uid
            machine,
            [_argument(0), _jump(_EQUAL, 0, 0, 1), _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)],
        ),
        *_where("ioctl", machine, [_do(_RETURN, _ERRNO | errno.ENOTTY)]),  # nothing here is a terminal
        *_where("clone3", machine, [_do(_RETURN, _ABSENT)]),
        *_where("openat2", machine, [_do(_RETURN, _ABSENT)]),  # its flags lie in memory
        *_allow([dict.fromkeys(" ".join(_CALLS).split())], machine),
        _do(_RETURN, _REFUSE),
    ]
    return b"".join(code)
