"""What Linux knows of privilege and Python does not: capabilities, prctl, sealed memory, and drops that are verified.

Must never: import anything but the standard library; return from a drop that can be undone; know of mail.

SECURITY: every function here either gives something up or reads. Ids are refused outside [1, 2³²-2): setresuid(2)
takes -1 for "leave it", and silently stays what it was. Sources: capabilities(7), credentials(7), prctl(2),
memfd_create(2), landlock(7).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import grp
import os
import pwd
import resource
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "CAP_SETGID",
    "CAP_SETUID",
    "Account",
    "PrivilegeError",
    "account",
    "adopt_orphans",
    "become",
    "bound_processes",
    "capabilities",
    "children",
    "close_from",
    "count_processes",
    "die_with_parent",
    "drop_capabilities",
    "drop_to_account",
    "group",
    "is_sealed",
    "keep_capabilities",
    "landlock_abi",
    "limit",
    "no_new_privileges",
    "prctl",
    "undumpable",
]

CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 24, 28, 36, 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4
_SECUREBITS = 0b11 | 1 << 5  # root's uid brings no capability, and that and KEEPCAPS are locked
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE_RULESET = 444  # on every architecture
_NO_LANDLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})  # EPERM: a container's filter
_SIGKILL = 9
_NO_ID = 2**32 - 2  # the first id that stands for none

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """A privilege could not be given up, or has not been; the process must end."""


@dataclass(frozen=True, slots=True)
class Account:
    """The Unix account of a service."""

    name: str
    uid: int
    gid: int


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2). Raises OSError."""
    longs = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(int(_libc.prctl(option, *longs)), f"prctl({option})")


def no_new_privileges() -> None:
    """Give up setuid programs and file capabilities, for this process and all that come of it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Ask to be killed when the parent ends; only where both have one uid (the kernel asks kill(2)'s question)."""
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own has ended."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Return the children of this process, which has one thread; none where this kernel does not list them."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return []  # no /proc, or CONFIG_PROC_CHILDREN is off


def capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities, a bit each."""
    data = ctypes.create_string_buffer(24)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    _checked(int(_libc.capget(header, data)), "capget")
    low = struct.unpack("=6I", data.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    three = (effective, permitted, inheritable)
    halves = [value & 0xFFFFFFFF for value in three] + [value >> 32 for value in three]
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    _checked(int(_libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *halves), 24))), "capset")


def drop_capabilities() -> None:
    """Give up every capability, the ambient ones too. Raises PrivilegeError where one is left."""
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    if capabilities() == (0, 0, 0):
        return  # a unit's filter may refuse capset(2), which is for those who have some
    _set_capabilities(0, 0, 0)
    if capabilities() != (0, 0, 0):
        raise PrivilegeError("capabilities are left after capset(2)")


def _empty_bounding_set(kept: Sequence[int] = ()) -> None:
    """Make every capability but those kept unreachable, where this process may (CAP_SETPCAP); else its unit did."""
    for capability in range(64):
        if capability in kept:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # past the last one that this kernel knows
            if error.errno != errno.EPERM:
                raise


def become(uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """Take these ids and no others, without capabilities, and prove that there is no way back.

    Raises ValueError for an id that is none or root's (nothing is changed then), OSError or PrivilegeError where the
    drop failed: the process must end.
    """
    for value in (uid, gid, *groups):
        if not 0 < value < _NO_ID:
            raise ValueError(f"id {value} is refused: expected 1 to {_NO_ID - 1}")
    before = {0, *os.getresuid()} - {uid}, {0, *os.getresgid()} - {gid}
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    drop_capabilities()
    no_new_privileges()
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) != set(groups):
        raise PrivilegeError("the ids are not what was asked for")
    for change, ids in ((os.setresuid, before[0]), (os.setresgid, before[1])):
        for value in ids:
            try:
                change(value, value, value)
            except PermissionError:
                continue
            raise PrivilegeError(f"{change.__name__}({value}) still works after the drop")


def account(name: str) -> Account:
    """Return an account by its name, or, as chown(1) takes it, by `UID` or `UID:GID`. Raises PrivilegeError."""
    uid, colon, gid = name.partition(":")
    if name.isascii() and uid.isdigit() and (gid.isdigit() or not colon):
        return Account(name, int(uid), int(gid or uid))
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PrivilegeError(f"account {name!r} does not exist") from None
    return Account(name, entry.pw_uid, entry.pw_gid)


def group(name: str) -> int:
    """Return the id of a group by its name or number. Raises PrivilegeError."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise PrivilegeError(f"group {name!r} does not exist") from None


def _is_root(wanted: Account) -> bool:
    """Return whether there is something to drop. Raises PrivilegeError for a caller that is neither."""
    if os.geteuid() not in (0, wanted.uid) or not wanted.uid:
        raise PrivilegeError(f"started with uid {os.geteuid()}, expected root or {wanted.name} ({wanted.uid})")
    return os.geteuid() == 0


def drop_to_account(name: str, supplementary: Sequence[str] = ()) -> Account:
    """Become a service's account, with these supplementary groups only; started as that account, keep its groups.

    Either way no capability is left. Raises PrivilegeError.
    """
    wanted = account(name)
    if _is_root(wanted):
        groups = [group(one) for one in supplementary]
        _empty_bounding_set()
        become(wanted.uid, wanted.gid, groups)
    else:
        drop_capabilities()
        no_new_privileges()
    return wanted


def keep_capabilities(name: str, kept: Sequence[int] = (CAP_SETUID, CAP_SETGID)) -> Account:
    """Become a service's account, without supplementary groups, and keep these capabilities, also for what it executes.

    All others are given up. Started as that account, they must be there already (systemd's AmbientCapabilities=).
    Until a filter floors them, CAP_SETUID and CAP_SETGID are root. Raises PrivilegeError.
    """
    wanted = account(name)
    mask = sum(1 << capability for capability in kept)
    if _is_root(wanted):
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)
        _set_capabilities(mask | 1 << CAP_SETPCAP, mask | 1 << CAP_SETPCAP, mask)
        prctl(_PR_SET_KEEPCAPS, 0)
        prctl(_PR_SET_SECUREBITS, _SECUREBITS)
        _empty_bounding_set(kept)
    elif capabilities()[1] & mask != mask:
        raise PrivilegeError(f"{name} lacks CAP_SETUID and CAP_SETGID (systemd: AmbientCapabilities=)")
    _set_capabilities(mask, mask, mask)
    os.setgroups([])  # initgroups(3), and so systemd's User=, puts the primary group among them: a child would keep it
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for capability in kept:
        prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)
    no_new_privileges()
    ids = os.getresuid(), os.getresgid(), os.getgroups()
    if capabilities() != (mask,) * 3 or ids != ((wanted.uid,) * 3, (wanted.gid,) * 3, []):
        raise PrivilegeError("ids or capabilities are not what was asked for")
    return wanted


def undumpable() -> None:
    """Keep other processes of this uid from reading this one's memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def close_from(lowest: int) -> None:
    """Close every descriptor from this one up, close-on-exec or not."""
    close_range = getattr(_libc, "close_range", None)
    if close_range is not None and close_range(ctypes.c_uint(lowest), ctypes.c_uint(0xFFFFFFFF), 0) == 0:
        return
    os.closerange(lowest, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit(bounds: Mapping[int, int]) -> None:
    """Lower resource limits, soft and hard, to these; one that is lower already stays. Units: setrlimit(2)."""
    for which, most in bounds.items():
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (value, value))


def count_processes() -> None:
    """Have the kernel note whether the next uid has processes; nothing may be forked before `bound_processes`."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))


def bound_processes(room: int) -> None:
    """Bound what this uid has, soft and hard, to what it has now and a rest of one to two times the room.

    Threads count. The uid was taken after `count_processes`, and executing is not refused yet: execve(2) fails with
    EAGAIN, before it looks at the file, while the uid that was taken has more than the soft limit, so no /proc is read,
    which may be large or hidden. A limit that is lower already stays.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = 2 * room
    while hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_NPROC, (most - room, hard))
        try:
            os.execv("/dev/null/", ["-"])  # noqa: S606 - no such file can be
        except BlockingIOError:
            most += room
        except OSError:
            break
    limit({resource.RLIMIT_NPROC: most})


def is_sealed(fd: int) -> bool:
    """Return whether a descriptor is memory that nobody can change any more."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel offers; 0 for none, and where it is turned off.

    Raises OSError where it could not be told: none is what the kernel says, not what failed.
    """
    result = int(_libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    if result < 0 and ctypes.get_errno() not in _NO_LANDLOCK:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    return max(result, 0)
