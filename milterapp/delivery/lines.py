"""A client's connections to the monitor, kept for the next message: the LMTP door's, which has many at once.

Must never: use a connection for two messages at a time, or keep one over which anything but an answer came.

A connection that was kept may be one to a monitor that has ended since. Then the message is handed over once more,
over a new one: whatever became of the first attempt, the journals know it, as they do when Postfix tries again.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from milterapp.delivery import wire
from milterapp.delivery.requests import ANSWER
from milterapp.delivery.tasks import WRITE, Task, Wait, connected

__all__ = ["Line", "Lines"]

_SEND = 10.0  # seconds to connect, and for the monitor to take a message
_MOST = 32  # connections that are kept

Item = Mapping[str, str]


class Lines:
    """The connections. path: of the monitor's socket; deadline: seconds for an answer."""

    def __init__(self, path: str, deadline: float) -> None:
        self.path, self.deadline = path, deadline
        self._kept: list[socket.socket] = []
        self._most = _MOST

    def hand_over(self, item: Item, message: int, kind: str = "DELIVER") -> Task[Line]:
        """Send a message with its envelope; what comes of it the line tells. kind: of `kinds.DELIVER`.

        Raises OSError or WireError.
        """
        line = Line(self, item, message, kind)
        yield from line.send(self._kept.pop() if self._kept else None)
        return line

    def keep(self, connection: socket.socket) -> None:
        """Keep a connection for another message."""
        if len(self._kept) < self._most:
            self._kept.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Keep none any more."""
        self._most, kept, self._kept = 0, self._kept, []
        for connection in kept:
            connection.close()


class Line:
    """One message on its way over one of the connections."""

    def __init__(self, lines: Lines, item: Item, message: int, kind: str) -> None:
        self._lines, self._item, self._message, self._kind = lines, item, message, kind
        self._connection: socket.socket | None = None
        self._kept = False

    def send(self, kept: socket.socket | None) -> Task[None]:
        """Send it over that one, or a new one. Raises OSError or WireError."""
        try:
            yield from self._send_over(kept)
        except ConnectionError:
            if kept is None:
                raise
            yield from self._send_over(None)

    def _send_over(self, kept: socket.socket | None) -> Task[None]:
        connection = kept or (yield from connected(self._lines.path, socket.SOCK_SEQPACKET, _SEND))
        try:
            while True:
                try:
                    wire.send(connection, self._kind, self._item, (self._message,))
                    break
                except BlockingIOError:
                    yield Wait(connection.fileno(), WRITE, _SEND)
        except BaseException:
            connection.close()
            raise
        self._connection, self._kept = connection, kept is not None

    def answer(self, until: float) -> Task[wire.Datagram | None]:
        """Wait for the answer, until that moment of time.monotonic(); None where the monitor gave up this message.

        Raises OSError (TimeoutError), WireError. Whatever comes, the line has ended.
        """
        try:
            found = yield from self._answer(until)
        except ConnectionError:
            if not self._kept:
                raise
            found = None
        if found is None and self._kept:
            yield from self._send_over(None)
            found = yield from self._answer(until)
        return found

    def _answer(self, until: float) -> Task[wire.Datagram | None]:
        connection, self._connection = self._connection, None
        if connection is None:
            return None
        found = None
        try:
            while True:
                yield Wait(connection.fileno(), seconds=max(0.0, until - time.monotonic()))
                try:
                    found = wire.receive(connection, ANSWER)
                    break
                except BlockingIOError:
                    continue
        finally:
            if found is None:
                connection.close()
            else:
                self._lines.keep(connection)
        return found
