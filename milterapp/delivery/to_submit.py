"""The monitor's one connection to submit: what it asks there itself, and the lines of agents that it vouches for.

Must never: read a message, parse what submit says of one, import anything but the standard library and its neighbours
that do the same, or ask for one thing twice: what was asked over a connection that has ended is over, and Postfix comes
again.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress

from milterapp.delivery import wire
from milterapp.delivery.children import Loop
from milterapp.delivery.requests import KEPT

__all__ = ["Done", "ToSubmit"]

Done = Callable[[bool, str], None]  # whether Postfix has it, and as which queue id; else why not


class ToSubmit:
    """The connection, made when it is needed, and anew where it has ended: it was another submit's."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop, self._path = loop, path
        self._connection: socket.socket | None = None
        self._asked: dict[int, tuple[Hashable, Done]] = {}
        self._of: Counter[Hashable] = Counter()
        self._lines: dict[int, socket.socket] = {}

    def __len__(self) -> int:
        """Return how many messages it was asked to keep and has not answered for."""
        return len(self._asked)

    def of(self, owner: Hashable) -> int:
        """Return how many of those are one owner's."""
        return self._of[owner]

    def reach(self) -> None:
        """See that there is somebody to ask. Raises OSError."""
        if self._connection is not None:
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._path)
            self._loop.watch(connection, lambda: self._hear(connection), lambda _: self._end())
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def vouch(self, number: int, kind: str, envelope: wire.Fields, message: int, line: socket.socket) -> None:
        """Tell submit of which envelope and message a line is. Raises OSError or WireError.

        Our end is kept as well, to end the line with the job it is for, whatever the agent does with its own.
        """
        ours = line.dup()
        try:
            self._send(kind, envelope, (message, line.fileno()))
        except BaseException:
            ours.close()
            raise
        self._lines[number] = ours

    def end_line(self, number: int) -> None:
        """End the line of a job that is over; nothing happens where it had none."""
        line = self._lines.pop(number, None)
        if line is not None:
            with line, suppress(OSError):  # it has ended
                line.shutdown(socket.SHUT_RDWR)

    def keep(
        self, number: int, kind: str, envelope: wire.Fields, messages: tuple[int, ...], owner: Hashable, done: Done,
    ) -> None:  # fmt: skip
        """Ask submit to keep a message; done is called once, but where it is forgotten. Raises OSError or WireError.

        number: tells it from all others, and is never used again; messages: as it came, and as edited, if it was.
        """
        self._send(kind, {**envelope, "id": number}, messages)
        self._asked[number] = owner, done
        self._of[owner] += 1

    def forget(self, number: int) -> Done | None:
        """Hear no more of what was asked, and return who was to be told; None where it was not asked."""
        if number not in self._asked:
            return None
        owner, done = self._asked.pop(number)
        self._of[owner] -= 1
        if not self._of[owner]:
            del self._of[owner]
        return done

    def _send(self, kind: str, fields: wire.Fields, descriptors: tuple[int, ...]) -> None:
        for kept in (self._connection is not None, False):
            self.reach()
            connection = self._connection
            if connection is None:
                raise ConnectionError("not connected")
            try:
                wire.send(connection, kind, fields, descriptors)
            except ConnectionError:
                self._end()
                if not kept:
                    raise
            else:
                return

    def _hear(self, connection: socket.socket) -> None:
        """Take an answer. Raises WireError or OSError: that ends the connection."""
        answer = wire.receive(connection, KEPT)
        if answer is None:
            self._end()
            return
        done = self.forget(answer.number("id"))
        if done is not None:
            kept = answer.kind == "DONE"
            done(kept, answer.text("queue_id" if kept else "text"))

    def _end(self) -> None:
        """Give the connection up, and all that was asked over it and over the lines that went with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.unwatch(connection)
            connection.close()
        for number in list(self._lines):
            self.end_line(number)
        for done in [self.forget(number) for number in list(self._asked)]:
            if done is not None:
                done(False, "milterapp submit gave up")  # noqa: FBT003 - the type of Done says it
