"""One message over SMTP to Postfix's own smtpd, or over LMTP to who keeps mail.

Must never: take anything but a 250 at the end of the data for success, change a byte of a message but its line ends,
or let an address leave its brackets.
Standards: RFC 5321, 2033 (LMTP), 2920 (PIPELINING), 3030 (CHUNKING), 6152 (8BITMIME), 6531 (SMTPUTF8).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from milterapp.delivery.tasks import READ, WRITE, Task, Wait, alone, connected

__all__ = [
    "LMTP",
    "AddressError",
    "Dialogue",
    "FinalError",
    "SenderError",
    "SmtpError",
    "Transaction",
    "connect",
    "endpoint",
    "failure",
    "gathered",
    "path",
    "send",
    "wire_form",
]

LMTP = "lmtp:"

_SEND = 64 * 1024  # bytes that are sent at once
_MOST_REPLY = 16 * 1024  # bytes of one reply
_LONGEST_ADDRESS = 1000  # bytes; smtpd's line_length_limit is 2048
_REPLY = re.compile(r"[2-5][0-9][0-9](?:[ -]|$)")
_QUEUED = re.compile(r"queued as ([0-9A-Za-z]{1,64})\b")
_DOT_STRING = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]+)*")
_QUOTED = re.compile(r'"(?:[^\x00-\x1f\x7f"\\]|\\[^\x00-\x1f])*"')
_END_OF_DATA = "the end of the data"
_NO_SENDER = frozenset({("MAIL", "500"), ("MAIL", "501"), ("MAIL", "553")})  # bad UTF-8, bad syntax, not allowed


class SmtpError(Exception):
    """Postfix did not take the message, or nobody knows; always temporary. str() holds its reply, if there was one."""


class SenderError(SmtpError):
    """The server takes the sender for no address, and would say so for ever."""


class FinalError(SmtpError):
    """The server refuses the recipient or the message, in words (5xx) that it would say again."""


class AddressError(ValueError):
    """An address that cannot stand in an SMTP command: a line end or NUL in it, too long, or empty."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """Who sends to whom. sender: "" for the null sender.

    eight_bit: the message holds bytes above 127; utf8: they stand in its header (RFC 6532).
    """

    sender: str
    recipient: str
    eight_bit: bool = True
    utf8: bool = False

    def envelope(self) -> tuple[bytes, bytes]:
        """Return sender and recipient as paths. Raises AddressError."""
        sender, recipient = b"<>" if not self.sender else path(self.sender), path(self.recipient)
        if recipient == b"<>":
            raise AddressError("no recipient")
        return sender, recipient


def letter(sender: str, recipient: str, writer: str) -> Transaction:
    """Return the transaction of a message of our own, whose header names writer and recipient and else is ASCII."""
    utf8 = not (writer + recipient).isascii()
    return Transaction(sender, recipient, eight_bit=utf8, utf8=utf8)


def path(address: str) -> bytes:
    """Return an address as SMTP's path, in angle brackets, its local part quoted where it must be.

    A local part that is well quoted already is left as it is. Raises AddressError.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = domain, ""
    if local and not _DOT_STRING.fullmatch(local) and not _QUOTED.fullmatch(local):
        local = '"' + re.sub(r'(["\\\x7f])', r"\\\1", local) + '"'
    data = f"<{local}{at}{domain}>".encode("utf-8", "surrogateescape")
    if re.search(rb"[\x00\r\n]", data) or re.search(r"[\x00-\x20<>\"\\]", domain):
        raise AddressError("an address holds what ends a command or its brackets")
    if len(data) > _LONGEST_ADDRESS:
        raise AddressError(f"an address of {len(data)} bytes, more than {_LONGEST_ADDRESS}")
    return data


def wire_form(parts: Iterable[bytes], *, dots: bool = True) -> Iterator[bytes]:
    """Yield a message as DATA takes it: lines end in CRLF, a leading dot is doubled, a lone dot ends it.

    dots: without them, as BDAT does.
    """
    at_start = True
    held = b""
    for part in parts:
        data = held + part
        held = b"\r" if data.endswith(b"\r") else b""  # its LF may come with the next part
        data = data[: len(data) - len(held)]
        if not data:
            continue
        out = (data.replace(b"\r\n", b"\n") if b"\r" in data else data).replace(b"\n", b"\r\n")
        if dots:
            stuffed = out.replace(b"\n.", b"\n..")
            yield b"." + stuffed if at_start and out.startswith(b".") else stuffed
        else:
            yield out
        at_start = out.endswith(b"\n")
    yield held + (b"" if at_start and not held else b"\r\n") + (b".\r\n" if dots else b"")


def gathered(parts: Iterable[bytes]) -> bytes | Iterable[bytes]:
    """Return a message in one piece, where it is small enough for one packet; else its parts, to be taken once."""
    rest, found = iter(parts), b""
    for part in rest:
        found += part
        if len(found) > _SEND:
            return chain((found,), rest)
    return found


def endpoint(address: str) -> str | tuple[str, int]:
    """Return where to connect for a path, `lmtp:unix:PATH` or `lmtp:inet:HOST:PORT`: a path, or host and port.

    Raises ValueError with what was expected.
    """
    if not address.startswith(LMTP):
        return address
    kind, _, place = address.removeprefix(LMTP).partition(":")
    host, _, port = place.rpartition(":")
    if kind == "unix" and place.startswith("/"):
        return place
    if kind == "inet" and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
        return host.removeprefix("[").removesuffix("]"), int(port)
    raise ValueError("lmtp:unix:/PATH or lmtp:inet:HOST:PORT")


def _connect(address: str, timeout: float) -> Task[socket.socket]:
    """Return a connection. Raises OSError or ValueError. Only a path is connected to without blocking."""
    place = endpoint(address)
    if not isinstance(place, str):
        connection = socket.create_connection(place, timeout)
        connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
        return connection
    return (yield from connected(place, socket.SOCK_STREAM, timeout))


def connect(address: str, timeout: float) -> Task[Dialogue]:
    """Return a session, greeted. timeout: seconds for each step. Raises OSError, ValueError or SmtpError."""
    dialogue = Dialogue((yield from _connect(address, timeout)), timeout)
    try:
        yield from dialogue.greet(b"LHLO" if address.startswith(LMTP) else b"EHLO")
    except BaseException:
        dialogue.close()
        raise
    return dialogue


def failure(address: str, error: Exception) -> SmtpError:
    """Return what a fault of a connection is."""
    why = "timed out" if isinstance(error, BlockingIOError) else getattr(error, "strerror", "") or error
    return SmtpError(f"{address}: {why}")


def send(address: str, transaction: Transaction, parts: Iterable[bytes], *, timeout: float) -> str:
    """Send one message to the smtpd at that path, or to the LMTP server there; return the queue id its reply names.

    address: as for endpoint(); timeout: seconds for each step. LMTP answers once for each recipient, and there is one.
    The queue id is "" where the reply names none. It blocks. Raises SmtpError (every reply but the expected one, a
    timeout, a lost connection) and AddressError.
    """
    return alone(_send(address, transaction, parts, timeout))


def _send(address: str, transaction: Transaction, parts: Iterable[bytes], timeout: float) -> Task[str]:
    envelope = transaction.envelope()
    try:
        dialogue = yield from connect(address, timeout)
        try:
            return (yield from dialogue.run(*envelope, parts, transaction, last=True))
        finally:
            dialogue.close()
    except (OSError, ValueError) as error:
        raise failure(address, error) from error


def _queue_id(reply: Sequence[str]) -> str:
    found = _QUEUED.search(" ".join(reply))
    return found[1] if found else ""


class Dialogue:
    """A session. timeout: seconds for each step.

    accepted: whether the server took the sender of this transaction; uncertain: whether it may have taken the message,
    and only its reply could tell.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._connection, self._timeout = connection, timeout
        self._buffer = b""
        self._offered: frozenset[str] = frozenset()
        self.accepted = self.uncertain = False

    def greet(self, hello: bytes) -> Task[None]:
        """Begin. hello: EHLO or LHLO. Raises OSError or SmtpError."""
        yield from self._expect("220", "the greeting")
        self._offered = frozenset(line.upper() for line in (yield from self._ask(hello + b" localhost", "250"))[1:])

    def leave(self) -> None:
        """Take leave, and hang up."""
        with suppress(OSError):
            self._connection.send(b"QUIT\r\n")
        self.close()

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):  # what the server has taken it has taken
            self._connection.close()

    def run(
        self, sender: bytes, recipient: bytes, message: bytes | Iterable[bytes], holds: Transaction, *, last: bool
    ) -> Task[str]:
        """Send one message, and return its queue id. Whoever raises hangs up. last: take leave with it.

        sender, recipient: the paths of that envelope; holds: what the message is made of (RFC 6531 section 3.4).
        message: of one piece is sent with the envelope where the server takes that; parts are not looked at before the
        server has taken the envelope.
        """
        self.accepted = self.uncertain = False
        parameters = b" BODY=8BITMIME" if holds.eight_bit and "8BITMIME" in self._offered else b""
        if (holds.utf8 or not (sender.isascii() and recipient.isascii())) and "SMTPUTF8" in self._offered:
            parameters += b" SMTPUTF8"
        at_once = "PIPELINING" in self._offered
        envelope = (b"MAIL FROM:" + sender + parameters, b"RCPT TO:" + recipient)
        if isinstance(message, bytes) and at_once and not last and "CHUNKING" in self._offered:
            return (yield from self._run_at_once(envelope, message))
        yield from self._begin(envelope, at_once=at_once)
        held = b""
        for part in wire_form((message,) if isinstance(message, bytes) else message):
            held += part
            if len(held) >= _SEND:
                yield from self._say(held)
                held = b""
        yield from self._say(held + b"QUIT\r\n" if at_once and last else held)
        reply = yield from self._expect("250", _END_OF_DATA)
        if last and not at_once:
            with suppress(OSError):  # the message is Postfix's already
                self._connection.send(b"QUIT\r\n")
        return _queue_id(reply)

    def _run_at_once(self, envelope: Sequence[bytes], message: bytes) -> Task[str]:
        """Say envelope and message in one packet, and hear the replies (RFC 3030 section 4.2).

        What the server did not read to its end it did not take: then the connection is reset, and nothing is uncertain.
        """
        data = b"".join(wire_form((message,), dots=False))
        yield from self._say(b"".join((*(one + b"\r\n" for one in envelope), b"BDAT %d LAST\r\n" % len(data), data)))
        self.uncertain = True
        for command in envelope:
            yield from self._expect("250", command[:4].decode("ascii"))
            self.accepted = True
        return _queue_id((yield from self._expect("250", _END_OF_DATA)))

    def _begin(self, envelope: Sequence[bytes], *, at_once: bool) -> Task[None]:
        """Say the envelope and DATA, in one go where the server takes that (RFC 2920), and hear the replies.

        Whoever raises hangs up: a server that went on to DATA all the same never sees the end of a message.
        """
        commands = [*((one, "250") for one in envelope), (b"DATA", "354")]
        if at_once:
            yield from self._say(b"".join(command + b"\r\n" for command, _ in commands))
        for command, wanted in commands:
            if at_once:
                yield from self._expect(wanted, command[:4].decode("ascii"))
            else:
                yield from self._ask(command, wanted)
            self.accepted = True

    def _ask(self, command: bytes, wanted: str) -> Task[list[str]]:
        yield from self._say(command + b"\r\n")
        return (yield from self._expect(wanted, command[:4].decode("ascii")))

    def _say(self, data: bytes) -> Task[None]:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._connection.send(rest) :]
            except BlockingIOError:
                yield Wait(self._connection.fileno(), WRITE, self._timeout)

    def _expect(self, wanted: str, what: str) -> Task[list[str]]:
        """Return the lines of the next reply without their code. Raises SmtpError where the code is another."""
        lines: list[str] = []
        total = 0
        while True:
            line = yield from self._line()
            total += len(line)
            if not _REPLY.match(line) or total > _MOST_REPLY:
                raise SmtpError(f"{what}: not an SMTP reply")
            lines.append(line[4:])
            if line[3:4] != "-":
                break
        if line[:3] != wanted:
            self.uncertain = False
            kind = SenderError if (what, line[:3]) in _NO_SENDER else SmtpError
            if line[:1] == "5" and what in ("RCPT", _END_OF_DATA):
                kind = FinalError
            raise kind(f"{what}: {line[:3]} {' '.join(lines)[:200]}")
        return lines

    def _line(self) -> Task[str]:
        while b"\n" not in self._buffer:
            yield Wait(self._connection.fileno(), READ, self._timeout)
            try:
                data = self._connection.recv(4096)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                self.uncertain = False
                raise
            if not data:
                raise SmtpError("the other end closed the connection")
            self._buffer += data
            if len(self._buffer) > _MOST_REPLY:
                raise SmtpError("a reply without end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "replace")
