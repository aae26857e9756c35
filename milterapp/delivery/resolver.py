"""Who a recipient is: recipient to user, uid, gid, home and extension, asked of NSS in a process of its own.

Must never: hold a capability, open a file of a user, change any, start a program, answer anything but the monitor's
RESOLVE; take a failure of NSS for an unknown user (the mail would go past that person's rules).

The name is found as local(8) finds it: the local part, unquoted, in lower case, split at recipient_delimiter.
UNKNOWN hands the message back to Postfix, which asks again itself; so whatever is odd is UNKNOWN. A recipient of a
virtual domain is looked up in the site's file alone (`recipients`): no account of this host has its name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from dataclasses import dataclass

from milterapp.delivery import confined, kinds, linux, seccomp, wire
from milterapp.delivery.event import Log
from milterapp.delivery.recipients import MapError, Person, Recipients, unquoted
from milterapp.delivery.resolver_filter import resolver_filter
from milterapp.mail.envelope import split_address, split_detail

__all__ = ["LookupFailed", "User", "look_up", "main", "resolve", "serve"]

_MOST = 255  # bytes of a name; useradd(8) allows 32
_BUFFER, _LARGEST = 16 * 1024, 4 * 1024 * 1024
_ABSENT = (0, errno.ENOENT, errno.ESRCH)


class LookupFailed(Exception):  # noqa: N818 - it is NSS that failed
    """NSS could not tell; try again later. str() says why."""


@dataclass(frozen=True, slots=True)
class User:
    """One entry of passwd(5), as far as delivery needs it."""

    name: str
    uid: int
    gid: int
    home: str


class _Passwd(ctypes.Structure):
    """`struct passwd` of glibc and musl."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("gecos", ctypes.c_char_p),
        ("home", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def look_up(name: str) -> User | None:
    """Return a user by name, None where there is none. Raises LookupFailed.

    getpwnam_r(3) itself, since the module `pwd` makes KeyError of both.
    """
    size = _BUFFER
    while True:
        entry, found, buffer = _Passwd(), ctypes.c_void_p(), ctypes.create_string_buffer(size)
        status = _libc.getpwnam_r(
            name.encode("utf-8", "surrogateescape"),
            ctypes.byref(entry),
            buffer,
            ctypes.c_size_t(size),
            ctypes.byref(found),
        )
        if status == errno.ERANGE and size < _LARGEST:
            size *= 4
        elif status != errno.EINTR:
            break
    if found:
        home = (entry.home or b"").decode("utf-8", "surrogateescape")
        return User((entry.name or b"").decode("utf-8", "surrogateescape"), entry.uid, entry.gid, home)
    if status in _ABSENT:
        return None
    raise LookupFailed(f"getpwnam: {os.strerror(status)}")


def resolve(recipient: str, delimiter: str) -> tuple[User, str] | None:
    """Return the user a recipient belongs to and the extension, None for an unknown one. Raises LookupFailed."""
    name, extension = split_detail(unquoted(split_address(recipient)[0]).lower(), delimiter)
    size = len(name.encode("utf-8", "surrogateescape"))
    if not 0 < size <= _MOST or name[0] in "-+." or any(char <= " " or char in '\x7f:/"\\' for char in name):
        return None
    user = look_up(name)
    if user is None or not user.home.startswith("/") or "\0" in user.home:
        return None
    return user, extension


def answer(recipient: str, delimiter: str) -> tuple[str, wire.Fields]:
    """Return kind and fields, without the id, of what is said about a recipient."""
    try:
        found = resolve(recipient, delimiter)
    except LookupFailed as failure:
        return "FAILED", {"text": str(failure)}
    if found is None:
        return "UNKNOWN", {}
    user, extension = found
    return "USER", _fields(user, extension)


def _fields(user: User | Person, extension: str) -> wire.Fields:
    return {"name": user.name, "uid": user.uid, "gid": user.gid, "home": user.home, "extension": extension}


def answer_virtual(recipient: str, delimiter: str, people: Recipients | None, lacks: str) -> tuple[str, wire.Fields]:
    """Return kind and fields for a recipient of a virtual domain. lacks: what the wall between them would need."""
    try:
        found = people.find(recipient, delimiter) if people else None
    except (MapError, OSError) as error:
        return "FAILED", {"text": f"delivery.recipients: {str(error).splitlines()[0]}"}
    if found is None:
        return "UNKNOWN", {}
    if lacks:
        return "FAILED", {"text": lacks}
    person, extension = found
    return "USER", _fields(person, extension)


def serve(control: socket.socket, delimiter: str, people: Recipients | None = None, lacks: str = "") -> None:
    """Answer until the monitor closes the connection. Raises WireError, OSError: then start another."""
    while (datagram := wire.receive(control, kinds.TO_RESOLVER)) is not None:
        recipient = datagram.text("recipient")
        if datagram.kind == "VIRTUAL":
            kind, fields = answer_virtual(recipient, delimiter, people, lacks)
        else:
            kind, fields = answer(recipient, delimiter)
        wire.send(control, kind, {"id": datagram.number("id"), **fields})


def main(argv: list[str]) -> int:
    """Run as the monitor's child: descriptor 3 is its connection, argv[1] the settings as JSON."""
    linux.drop_capabilities()
    linux.no_new_privileges()
    linux.die_with_parent()
    seccomp.install(resolver_filter(os.getpid()))
    settings = json.loads(argv[1])
    log = Log("resolver", settings["log"])
    own = settings["delivery"]
    people = Recipients(own["recipients"]) if own["recipients"] else None
    lacks = confined.missing(own["sandbox"]) if people else ""
    with socket.socket(fileno=3) as control:
        try:
            serve(control, own["recipient_delimiter"], people, lacks)
        except (wire.WireError, OSError) as error:
            log("error", "stopped", error=str(error))
            return os.EX_TEMPFAIL
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv))
