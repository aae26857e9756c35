"""Which files a process may still reach, whatever its uid could: a ruleset of Landlock (landlock(7)).

Must never: import anything but the standard library and `linux`; grant what was not named; know of mail.

SECURITY: a ruleset only takes away. Everything that this kernel's Landlock can refuse is handled, so what is not
granted here is refused: all files but those named, TCP (ABI 4), abstract sockets and signals to others (ABI 6). Not
covered at any ABI: stat(2), chmod(2), UDP, sockets with a path; a filter of system calls has to refuse those.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

from milterapp.delivery import linux

__all__ = ["restrict"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1, 1 << 2, 1 << 3
_OF_FILES = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15  # all others are rights on folders
_FILES = (1 << 13) - 1  # ABI 1: execute, write, read, remove and make of every kind
_FILES_SINCE = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))  # link and rename elsewhere, truncate, ioctl of devices
_TCP = 0b11  # ABI 4: bind, connect
_SCOPES = 0b11  # ABI 6: abstract unix sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, what: str, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        found = ctypes.get_errno()
        raise OSError(found, f"{what}: {os.strerror(found)}")
    return result


def _files(abi: int) -> int:
    """Return every right on files that this ABI knows."""
    return _FILES | sum(bit for since, bit in _FILES_SINCE if abi >= since)


def _handled(abi: int, *, tcp: bool) -> bytes:
    """Return struct landlock_ruleset_attr with everything that this ABI can refuse, in the length that it knows."""
    fields = [_files(abi), *([0 if tcp else _TCP] if abi >= 4 else []), *([_SCOPES] if abi >= 6 else [])]
    return struct.pack(f"={len(fields)}Q", *fields)


def restrict(
    readable: Iterable[str | int],
    abi: int = 0,
    *,
    executable: Iterable[str | int] = (),
    writable: Iterable[str | int] = (),
    tcp: bool = False,
) -> int:
    """Take away every file but those below these paths or descriptors, which can be read; return the ABI used.

    executable: what can be read and executed; writable: all of that, and changed. tcp: leave it as it is. Paths that
    do not exist are passed over. abi: at most this one, for tests; 0 for what the kernel has. Without Landlock nothing
    happens, and 0 is returned. Raises OSError: then the process must end.
    """
    found = linux.landlock_abi()
    abi = min(found, abi) if abi else found
    if abi < 1:
        return 0
    attributes = _handled(abi, tcp=tcp)
    everything = _files(abi)
    ruleset = _call(
        _CREATE_RULESET,
        "landlock_create_ruleset",
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
        ctypes.c_uint32(0),
    )
    try:
        for paths, rights in (
            (readable, _READ_FILE | _READ_DIR),
            (executable, _READ_FILE | _READ_DIR | _EXECUTE),
            (writable, everything),
        ):
            for one in paths:
                _grant(ruleset, one, rights)
        linux.no_new_privileges()
        _call(_RESTRICT_SELF, "landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return abi


def _grant(ruleset: int, beneath: str | int, rights: int) -> None:
    try:
        descriptor = os.dup(beneath) if isinstance(beneath, int) else os.open(beneath, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return  # what cannot be reached needs no grant
        raise
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = struct.pack("=Qi", rights if is_folder else rights & _OF_FILES, descriptor)
        _call(
            _ADD_RULE,
            "landlock_add_rule",
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.c_char_p(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(descriptor)
