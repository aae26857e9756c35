"""A thread for each connection of a service, and room for so many of them.

Must never: wait for a thread to begin. `threading` does, and for ever where the new thread lacks the memory for its
first step: the listener of the service would never take another connection.
"""

from __future__ import annotations

import _thread
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Place", "Room", "Workers", "patient", "start"]

_STAYS = 5.0  # seconds for which a thread waits for another connection


class Place:
    """One of the places in a room: held for as long as somebody refers to it."""

    def __init__(self, free: threading.BoundedSemaphore) -> None:
        self._free = free

    def __del__(self) -> None:
        self._free.release()


class Room:
    """Room for so many at once."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    def place(self) -> Place:
        """Wait for a place, and take it."""
        self._free.acquire()
        return Place(self._free)


def patient(connection: socket.socket, seconds: float) -> None:
    """Have each call on a connection give up after so many seconds, with BlockingIOError (socket(7), SO_RCVTIMEO).

    socket.settimeout() does it by a poll(2) before each call.
    """
    connection.setblocking(True)  # noqa: FBT003 - the name of the method says it
    time = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, time)


Serve = Callable[[socket.socket, Place], None]


class Workers:
    """Threads for connections that come often and end soon: each serves one after the other, and ends unused.

    A thread that waits has begun long ago, so nobody waits for it; where none waits, start() makes one. waiting: how
    many do.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._changed = threading.Condition(threading.Lock())
        self.waiting = 0
        self._given: deque[tuple[socket.socket, Place]] = deque()

    def start(self, connection: socket.socket, place: Place) -> None:
        """Serve a connection, as start() does."""
        with self._changed:
            if self.waiting > len(self._given):
                self._given.append((connection, place))
                self._changed.notify()
                return
        _thread.start_new_thread(self._work, ([(connection, place)],))

    def _work(self, first: list[tuple[socket.socket, Place]]) -> None:
        connection, place = first.pop()  # a thread's own arguments live for as long as it does
        while True:
            self._serve(connection, place)
            del connection, place  # the place is another's while this thread waits
            with self._changed:
                self.waiting += 1
                try:
                    if not self._changed.wait_for(lambda: self._given, timeout=_STAYS):
                        return
                    connection, place = self._given.popleft()
                finally:
                    self.waiting -= 1


def start(serve: Serve, connection: socket.socket, place: Place) -> None:
    """Serve a connection in a thread of its own. Raises RuntimeError where there can be none.

    Where the thread cannot begin after all, connection and place are given up, so the caller must not keep them: the
    other end sees its connection end.
    """
    _thread.start_new_thread(serve, (connection, place))
