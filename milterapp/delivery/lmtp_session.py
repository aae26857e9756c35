"""One LMTP connection: commands in, replies out, and for each message one answer a recipient (RFC 2033).

Must never: answer 250 at the end of a message for what the monitor did not answer `ok` for, give a fault of ours or of
the client a reply that would bounce mail, or hold a message but in sealed memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from milterapp.delivery import lmtp_syntax as syntax
from milterapp.delivery import received, sealed
from milterapp.delivery.requests import printable
from milterapp.delivery.stores import one_line
from milterapp.delivery.tasks import READ, WRITE, Task, Wait

__all__ = ["Answer", "Item", "Session"]

_LINE = 8192  # bytes of a command: ORCPT and XFORWARD write up to three for one
_CHUNK = 64 * 1024
_RECIPIENTS = 100  # of one message; RFC 5321 section 4.5.3.1.8
_LONGEST = 1 << 31  # bytes of a message, far above any message_size_limit
_IDENT = 64  # characters of a queue id
_OFFER = (
    b"250-milterapp\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    b"250 XFORWARD ADDR IDENT\r\n"
)
_MAIL = frozenset({"BODY", "SIZE", "SMTPUTF8", "RET", "ENVID", "AUTH"})
_RCPT = frozenset({"ORCPT", "NOTIFY"})

Item = Mapping[str, str]  # sender, recipient, original, queue_id, client: what DELIVER carries


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a message for one recipient. status: ok, defer or reject; text: as the monitor said it."""

    status: str
    text: str = ""

    def reply(self, recipient: str) -> str:
        """Return it as the line of LMTP."""
        if self.status == "ok":
            return f"250 2.1.5 <{printable(recipient)}> {printable(self.text) or 'delivered'}"
        if self.status == "reject" and self.text.startswith("5."):
            return f"550 {printable(self.text, 500)}"
        text = self.text if self.text.startswith("4.") else f"4.3.0 {self.text}"
        return f"451 {printable(text, 500)}"


T = TypeVar("T")
HandOver = Callable[[Sequence[Item], int], Task[Sequence[Answer]]]  # one item a recipient; the sealed message


class _Hangup(Exception):  # noqa: N818 - an end, and no error
    """Nothing more can be said."""


@dataclass(slots=True)
class _Transaction:
    """What was said of the message to come."""

    forwarded: Mapping[str, str] = field(default_factory=dict)
    sender: str | None = None
    recipients: list[tuple[str, str]] = field(default_factory=list)  # address, original


class Session:
    """A connection until its end, which blocks nobody. stopping: whether no further message is to be begun.

    idle: seconds for which the client may say nothing; busy: called with True when a message is being taken, False
    when it is answered.
    """

    def __init__(
        self, connection: socket.socket, hand_over: HandOver, *, idle: float,
        stopping: Callable[[], bool] = lambda: False, busy: Callable[[bool], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._connection, self._hand_over = connection, hand_over
        self._idle, self._stopping, self._busy = idle, stopping, busy
        self._in, self._out = b"", b""
        self._greeted = False
        self._now = _Transaction()

    def run(self) -> Task[None]:
        """Serve until the client leaves. Raises OSError (TimeoutError where it says nothing for too long)."""
        self._connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
        try:
            self._say("220 milterapp LMTP")
            while True:
                line = yield from self._line()
                if self._stopping():
                    self._end("421 4.3.2 milterapp is stopping")
                verb, argument = syntax.command(line)
                try:
                    goes_on = _VERBS.get(verb, Session._unknown)(self, argument)
                    if goes_on is not None:
                        yield from goes_on
                except syntax.SyntaxFault as fault:
                    self._say(f"501 5.5.4 {printable(str(fault))}")
        except _Hangup:
            yield from self._flush()

    # what is said

    def _say(self, line: str) -> None:
        self._out += line.encode("ascii", "replace") + b"\r\n"

    def _flush(self) -> Task[None]:
        out, self._out = self._out, b""
        while out:
            try:
                out = out[self._connection.send(out) :]
            except BlockingIOError:
                yield from self._wait(WRITE, "it takes no reply")

    def _wait(self, events: int, fault: str) -> Task[None]:
        try:
            yield Wait(self._connection.fileno(), events, self._idle)
        except TimeoutError as error:
            raise TimeoutError(fault) from error

    def _end(self, line: str) -> None:
        self._say(line)
        raise _Hangup

    def _receive(self) -> Task[bytes]:
        """Return what comes next; replies leave first, all at once where commands came at once."""
        yield from self._flush()
        while True:
            yield from self._wait(READ, "it says nothing")
            try:
                data = self._connection.recv(_CHUNK)
            except BlockingIOError:
                continue
            if not data:
                raise _Hangup
            return data

    def _line(self) -> Task[bytes]:
        while b"\n" not in self._in:
            if len(self._in) > _LINE:
                self._end("421 4.5.2 a command without end")
            self._in += yield from self._receive()
        line, _, self._in = self._in.partition(b"\n")
        return line.removesuffix(b"\r")

    # the commands

    def _unknown(self, _: str) -> None:
        self._say("500 5.5.1 not a command of LMTP")

    def _lhlo(self, _: str) -> None:
        self._greeted, self._now = True, _Transaction()
        self._out += _OFFER

    def _xforward(self, argument: str) -> None:
        if self._now.sender is not None:
            self._say("503 5.5.1 a message has begun")
            return
        self._now.forwarded = {**self._now.forwarded, **syntax.attributes(argument)}
        self._say("250 2.0.0 Ok")

    def _mail(self, argument: str) -> None:
        sender, parameters = syntax.path(argument, "FROM")
        if not self._greeted or self._now.sender is not None:
            self._say("503 5.5.1 LHLO first, and one MAIL a message")
        elif set(parameters) - _MAIL:
            self._say("555 5.5.4 a parameter of MAIL that is not offered")
        else:
            self._now.sender = sender
            self._say("250 2.1.0 Ok")

    def _rcpt(self, argument: str) -> None:
        recipient, parameters = syntax.path(argument, "TO")
        if self._now.sender is None:
            self._say("503 5.5.1 MAIL first")
        elif set(parameters) - _RCPT:
            self._say("555 5.5.4 a parameter of RCPT that is not offered")
        elif not recipient:
            self._say("501 5.1.3 no recipient")
        elif len(self._now.recipients) >= _RECIPIENTS:
            self._say("452 4.5.3 too many recipients")
        else:
            self._now.recipients.append((recipient, syntax.original(parameters.get("ORCPT", "")) or recipient))
            self._say("250 2.1.5 Ok")

    def _data(self, _: str) -> Task[None]:
        if not self._now.recipients:
            self._say("503 5.5.1 no recipient")
            return
        self._say("354 go on")
        self._busy(True)  # noqa: FBT003 - the parameter's name says it
        try:
            message = yield from self._take()
            try:
                ident = self._now.forwarded.get("IDENT", "")[:_IDENT] or received.queue_id(message)
                items = [self._item(ident, *one) for one in self._now.recipients]
                answers = yield from self._hand_over(items, message)
            finally:
                os.close(message)
            for (recipient, _original), answer in zip(self._now.recipients, answers, strict=True):
                self._say(answer.reply(recipient))
            self._now = _Transaction()
            if b"\n" not in self._in:  # else they leave with the answers to the commands behind: QUIT, of Postfix's
                yield from self._flush()
        finally:
            self._busy(False)  # noqa: FBT003 - the same

    def _item(self, ident: str, recipient: str, original: str) -> Item:
        client = self._now.forwarded.get("ADDR", "")
        return {
            "sender": self._now.sender or "",
            "recipient": recipient,
            "original": original if original == recipient else f"rfc822;{original}",
            "queue_id": ident,
            "client": client[5:] if client.upper().startswith("IPV6:") else client or "unknown",
        }

    def _take(self) -> Task[int]:
        """Return the message, sealed, with the Return-Path that a final delivery adds (RFC 5321 section 4.4)."""
        descriptor = self._stored(sealed.begin)
        try:
            first = b"Return-Path: <" + one_line(self._now.sender or "") + b">\n"
            undotted, size = syntax.Undotted(), 0
            data, self._in = self._in, b""
            while True:
                piece, rest = undotted.feed(data)
                size += len(piece)
                if size > _LONGEST:
                    self._end("421 4.3.4 a message without end")
                self._store(descriptor, first + piece)
                first = b""
                if rest is not None:
                    self._in = rest
                    break
                data = yield from self._receive()
            self._stored(partial(sealed.fix, descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _store(self, descriptor: int, piece: bytes) -> None:
        if piece:
            self._stored(partial(sealed.append, descriptor, piece))

    def _stored(self, do: Callable[[], T]) -> T:
        """Do what needs memory; where there is none, the client hears so and tries again."""
        try:
            return do()
        except OSError as error:
            self._end(f"421 4.3.1 {printable(error.strerror or 'no room')}")
            raise

    def _rset(self, _: str) -> None:
        self._now = _Transaction()
        self._say("250 2.0.0 Ok")

    def _noop(self, _: str) -> None:
        self._say("250 2.0.0 Ok")

    def _vrfy(self, _: str) -> None:
        self._say("252 2.5.0 send it and see")

    def _quit(self, _: str) -> None:
        self._end("221 2.0.0 Bye")


_VERBS: Mapping[str, Callable[[Session, str], Task[None] | None]] = {
    "LHLO": Session._lhlo,  # noqa: SLF001 - its own methods
    "XFORWARD": Session._xforward,  # noqa: SLF001
    "MAIL": Session._mail,  # noqa: SLF001
    "RCPT": Session._rcpt,  # noqa: SLF001
    "DATA": Session._data,  # noqa: SLF001
    "RSET": Session._rset,  # noqa: SLF001
    "NOOP": Session._noop,  # noqa: SLF001
    "VRFY": Session._vrfy,  # noqa: SLF001
    "QUIT": Session._quit,  # noqa: SLF001
}
