"""Which system calls a process may make, and with which ids: allow-lists as classic BPF for seccomp(2).

Must never: import anything but the standard library and its neighbours `linux` and `syscalls`; loosen a filter (the
kernel only ever adds).

SECURITY: `service` is what makes CAP_SETUID and CAP_SETGID less than root. It is inherited by everything that the
monitor starts, agents and people's programs included, so it lets ordinary programs work and refuses what changes
ids below the floors, namespaces (a user namespace would lift the floor: its map translates ids), tracing, mounting,
loading and the kernel's larger machines. EPERM is the answer to what is refused, ENOSYS to what is younger than the
tables (so that a C library falls back), and death to a foreign architecture's numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Mapping

from milterapp.delivery import linux
from milterapp.delivery.syscalls import FILES, IDENTITY, MEMORY, NEWEST, PROCESSES, SOCKETS, WAITING, number

__all__ = ["agent", "filtered", "install", "program", "service"]

_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE = _ERRNO | errno.EPERM
_ABSENT = _ERRNO | errno.ENOSYS
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; both architectures are little-endian
_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NO_ID = 2**32 - 2
_MOST_GIDS = 64
_EVERYBODY = 0xFFFFFFFF  # kill(-1)
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
# what has the kernel send a signal, to any process of that uid
_OWNERS = (("fcntl", (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
           ("ioctl", (0x8901, 0x8902)))  # FIOSETOWN, SIOCSPGRP: the same for sockets  # fmt: skip
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _MODE_FILTER = 21, 22, 2

_ORDINARY = (FILES, WAITING, MEMORY, PROCESSES, IDENTITY, SOCKETS)
_NOT_FOR_AGENTS = ("socket", "bind", "listen", "accept", "accept4", "connect", "execve", "execveat", "setresuid",
                   "setresgid", "setgroups", "setns", "unshare", "ptrace",
                   "setsid", "setpgid")  # so that its process group holds all that comes of it  # fmt: skip

_Code = list[bytes]


def _do(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(test: int, value: int, then: int, otherwise: int) -> bytes:
    """Return a test that skips `then` or `otherwise` instructions."""
    return struct.pack("=HBBI", test, then, otherwise, value)


def _argument(index: int) -> bytes:
    """Return the load of an argument's lower 32 bits: the kernel's ids and clone flags have no others."""
    return _do(_LOAD, _ARGUMENTS + 8 * index)


def _head(machine: str) -> _Code:
    """Return the check that the numbers to come are this architecture's, and the load of the number."""
    code = [_do(_LOAD, _ARCH), _jump(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _do(_RETURN, _KILL), _do(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_jump(_AT_LEAST, _X32, 0, 1), _do(_RETURN, _KILL)]
    return code


def _where(call: str, machine: str, body: _Code) -> _Code:
    """Return the body, behind a test for the call; the body must return."""
    return [_jump(_EQUAL, number(call, machine), 0, len(body)), *body]


def _three_ids(floor: int, also: Collection[int]) -> _Code:
    """Return the body that allows setresuid(2) or setresgid(2) where all three ids are at the floor or in `also`."""
    code: _Code = []
    for index in range(3):
        code.append(_argument(index))
        rest = len(also) + 2  # instructions of this argument after its load, without the return
        for at, value in enumerate(sorted(also)):
            code.append(_jump(_EQUAL, value, rest - at, 0))
        code += [_jump(_AT_LEAST, floor, 0, 1), _jump(_AT_LEAST, _NO_ID, 0, 1), _do(_RETURN, _REFUSE)]
    return [*code, _do(_RETURN, _ALLOW)]


def _allow(groups: Iterable[Mapping[str, object]], machine: str) -> _Code:
    """Return the code that allows every call of these groups, a run of numbers at a time."""
    numbers = sorted({number(name, machine) for group in groups for name in group} - {-1})
    code: _Code = []
    while numbers:
        first = last = numbers.pop(0)
        while numbers and numbers[0] == last + 1:
            last = numbers.pop(0)
        code += [_jump(_AT_LEAST, first, 0, 2), _jump(_ABOVE, last, 1, 0), _do(_RETURN, _ALLOW)]
    return code


def _no_namespace() -> _Code:
    return [_argument(0), _jump(_ANY_BIT, _NAMESPACES, 0, 1), _do(_RETURN, _REFUSE), _do(_RETURN, _ALLOW)]


def _no_owner(machine: str) -> _Code:
    """Return the code that refuses to name who has a signal once a descriptor is ready."""
    code: _Code = []
    for call, commands in _OWNERS:
        tests = [_jump(_EQUAL, command, len(commands) - at, 0) for at, command in enumerate(commands)]
        code += _where(call, machine, [_argument(1), *tests, _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)])
    return code


def service(min_uid: int, min_gid: int, gids: Collection[int] = (), machine: str = "") -> bytes:
    """Return the filter of monitor, zygote and resolver. min_uid, min_gid: the floors; gids: low ones also allowed.

    Raises ValueError for a floor or a gid that would let root's through, KeyError for an unknown architecture.
    """
    machine = machine or os.uname().machine
    for name, value in (("min_uid", min_uid), ("min_gid", min_gid), *(("gids", gid) for gid in gids)):
        if not 0 < value < _NO_ID:
            raise ValueError(f"{name}: found {value}, expected 1 to {_NO_ID - 1}")
    if len(set(gids)) > _MOST_GIDS:
        raise ValueError(f"gids: found {len(set(gids))}, expected at most {_MOST_GIDS}")
    no_groups = [_argument(0), _jump(_EQUAL, 0, 0, 1), _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)]
    code = [
        *_head(machine),
        *_where("clone", machine, _no_namespace()),
        *_where("clone3", machine, [_do(_RETURN, _ABSENT)]),  # its flags lie in memory: the C library falls back
        *_where("setresuid", machine, _three_ids(min_uid, ())),
        *_where("setresgid", machine, _three_ids(min_gid, set(gids))),
        *_where("setgroups", machine, no_groups),  # its list lies in memory too
        *_allow(_ORDINARY, machine),
        _jump(_ABOVE, NEWEST, 0, 1),
        _do(_RETURN, _ABSENT),
        _do(_RETURN, _REFUSE),
    ]
    return b"".join(code)


def agent(machine: str = "") -> bytes:
    """Return what an agent has taken away on top: new connections, executing, changing ids, leaving its group.

    An agent reaches `submit` over the one connection it is handed; people's programs come from a child of the zygote.
    """
    machine = machine or os.uname().machine
    code = _head(machine)
    for call in _NOT_FOR_AGENTS:
        code += _where(call, machine, [_do(_RETURN, _REFUSE)])
    return b"".join([*code, _do(_RETURN, _ALLOW)])


def program(protected: Collection[int] = (), *, network: bool = False, machine: str = "") -> bytes:
    """Return the allow-list of people's programs: what ordinary programs need, as `service`, without their ways out.

    setsid(2) and setpgid(2) say that they worked and do nothing, so that a process group holds all that comes of a
    program, however often it forks. No signal goes to the processes `protected`, to their groups, or to all at once,
    and none by way of a descriptor.
    network: sockets of any family; otherwise unix-domain ones alone.
    """
    machine = machine or os.uname().machine
    targets = sorted({_EVERYBODY} | {pid for one in protected for pid in (one, -one & 0xFFFFFFFF)})
    no_target = [_jump(_EQUAL, pid, len(targets) - at, 0) for at, pid in enumerate(targets)]
    unix_only = [_argument(0), _jump(_EQUAL, socket.AF_UNIX, 1, 0), _do(_RETURN, _REFUSE), _do(_RETURN, _ALLOW)]
    code = [
        *_head(machine),
        *_where("clone", machine, _no_namespace()),
        *_where("clone3", machine, [_do(_RETURN, _ABSENT)]),
        *_where("setsid", machine, [_do(_RETURN, _ERRNO)]),
        *_where("setpgid", machine, [_do(_RETURN, _ERRNO)]),
        *_where("pidfd_send_signal", machine, [_do(_RETURN, _ABSENT)]),
        *_where(
            "prlimit64", machine, [_argument(0), _jump(_EQUAL, 0, 0, 1), _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)]
        ),
        *_no_owner(machine),
    ]
    for call in _SIGNALS:
        code += _where(call, machine, [_argument(0), *no_target, _do(_RETURN, _ALLOW), _do(_RETURN, _REFUSE)])
    if not network:
        code += _where("socket", machine, unix_only)
    code += [
        *_allow(_ORDINARY, machine),
        _jump(_ABOVE, NEWEST, 0, 1),
        _do(_RETURN, _ABSENT),
        _do(_RETURN, _REFUSE),
    ]
    return b"".join(code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Put this process and all that come of it under a filter, for ever. Raises OSError."""
    linux.no_new_privileges()
    packed = _Program(len(program) // 8, program)
    linux.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(packed))


def filtered() -> bool:
    """Return whether this process is under a filter."""
    return linux.prctl(_PR_GET_SECCOMP) == _MODE_FILTER
