"""One bounded datagram of tagged fields, with descriptors beside it, over a SOCK_SEQPACKET unix socket.

Must never: import anything but the standard library (the pipe client and the monitor read with it), or hand on a
datagram that is longer, holds another tag, or brings more descriptors than the reader asked for.

A datagram is a kind and then fields, each `TAG:LENGTH:` followed by LENGTH bytes and a newline. Values are bytes: no
charset, no quoting, nothing to escape. Standard: unix(7), netstrings in spirit.
"""

from __future__ import annotations

import array
import os
import re
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LIMIT", "Datagram", "Fields", "WireError", "decode", "encode", "peer_uid", "receive", "send"]

LIMIT = 64 * 1024  # bytes of one datagram
_MOST_DESCRIPTORS = 4
_HEAD = re.compile(rb"([^:]{1,40}):([0-9]{1,6}):")
# Plain numbers: to take them from the module's enumerations, and combine those, costs more than to read a field.
_ROOM = int(socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4))
_SOCKET, _RIGHTS, _CLOEXEC = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS), int(socket.MSG_CMSG_CLOEXEC)
_CUT, _NO_SIGNAL = int(socket.MSG_TRUNC | socket.MSG_CTRUNC), int(socket.MSG_NOSIGNAL)

Fields = Mapping[str, bytes | str | int]  # what is sent; an int as decimal digits, a str as UTF-8


class WireError(Exception):
    """A datagram that the reader did not ask for; the connection it came over is closed."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """kind: a word in capitals; fields: tag to value; descriptors: now the receiver's to close."""

    kind: str
    fields: Mapping[str, bytes]
    descriptors: tuple[int, ...] = ()

    def text(self, tag: str) -> str:
        """Return a field as text, bytes that are not UTF-8 as surrogate escapes; "" where it is absent."""
        return self.fields.get(tag, b"").decode("utf-8", "surrogateescape")

    def number(self, tag: str) -> int:
        """Return a field as a number of decimal digits. Raises WireError where it is none."""
        value = self.fields.get(tag, b"")
        if not value.isdigit() or len(value) > 20:
            raise WireError(f"{self.kind}: {tag} is not a number")
        return int(value)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)


def encode(kind: str, fields: Fields) -> bytes:
    """Return the bytes of a datagram. Raises WireError where they exceed LIMIT."""
    out = [b"%s\n" % kind.encode()]
    for tag, value in fields.items():
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        out.append(b"%s:%d:%s\n" % (tag.encode(), len(data), data))
    joined = b"".join(out)
    if len(joined) > LIMIT:
        raise WireError(f"{kind}: {len(joined)} bytes, more than {LIMIT}")
    return joined


def decode(data: bytes, known: Mapping[str, Collection[str]], descriptors: tuple[int, ...] = ()) -> Datagram:
    """Return the datagram. known: the kinds the reader takes, each with its tags. Raises WireError on anything else."""
    at = data.find(b"\n") + 1
    kind = (data[: at - 1] if at else data).decode("ascii", "replace")
    tags = known.get(kind)
    if len(data) > LIMIT or tags is None:
        raise WireError(f"unexpected datagram {kind[:20]!a} of {len(data)} bytes")
    fields: dict[str, bytes] = {}
    while 0 < at < len(data):
        head = _HEAD.match(data, at)
        tag = (data[at : at + 40] if head is None else head[1]).decode("ascii", "replace")
        if head is None or tag not in tags or tag in fields:
            raise WireError(f"{kind}: field {tag!a} is unknown, double or malformed")
        begin = head.end()
        at = begin + int(head[2])
        if data[at : at + 1] != b"\n":
            raise WireError(f"{kind}: field {tag!a} is cut short")
        fields[tag] = data[begin:at]
        at += 1
    return Datagram(kind, fields, descriptors)


def send(sock: socket.socket, kind: str, fields: Fields, descriptors: Sequence[int] = ()) -> None:
    """Send one datagram. Raises WireError (too long) or OSError."""
    data = encode(kind, fields)
    if descriptors:
        sock.sendmsg([data], [(_SOCKET, _RIGHTS, array.array("i", descriptors))], _NO_SIGNAL)
    else:
        sock.send(data, _NO_SIGNAL)


def receive(
    sock: socket.socket, known: Mapping[str, Collection[str]], *, descriptors: Collection[int] = (0,)
) -> Datagram | None:
    """Return the next datagram, None at the end of the connection.

    Descriptors arrive close-on-exec. Raises WireError where their number is none of `descriptors`, or the datagram is
    not one of `known`; then all that came are closed. Raises OSError (BlockingIOError included).
    """
    data, ancillary, flags, _ = sock.recvmsg(LIMIT + 1, _ROOM, _CLOEXEC)
    fds: tuple[int, ...] = ()
    for level, kind, payload in ancillary:
        if level == _SOCKET and kind == _RIGHTS:
            fds += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    if not data and not fds:
        return None
    try:
        if flags & _CUT:
            raise WireError("a datagram was cut short")
        if len(fds) not in descriptors:
            raise WireError(f"{len(fds)} descriptors came, {list(descriptors)} expected")
        return decode(data, known, fds)
    except WireError:
        for fd in fds:
            os.close(fd)
        raise


def peer_uid(sock: socket.socket) -> int:
    """Return the uid that the kernel vouches for at the other end (SO_PEERCRED: as of its connect or socketpair)."""
    credentials = array.array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return credentials[1]
