"""A tap between Postfix and the milter: passes each packet on, remembers its command, and may act before it does.

Must never: change a packet.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

__all__ = ["Tap"]

PLACE = Path("/var/spool/postfix/tap")
MILTER = "/var/spool/postfix/milterapp/milter"

Hook = Callable[[str], None]


class Tap:
    """said: the commands of Postfix, heard: the milter's, both without macros, one string a connection.

    before: called with each command of Postfix before it is passed on; after: with each answer before it is.
    """

    address = "unix:tap/socket"

    def __init__(self, *, before: Hook | None = None, after: Hook | None = None) -> None:
        self.said: list[str] = []
        self.heard: list[str] = []
        self.negotiated: list[bytes] = []
        self._before, self._after = before, after
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Tap:
        PLACE.mkdir(exist_ok=True)
        path = PLACE / "socket"
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        os.chmod(path, 0o666)
        self._listening.listen(200)
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listening, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for one in [self._listening, *self._sockets]:
            one.close()

    @property
    def connections(self) -> int:
        """How many connections have not ended."""
        return sum(thread.is_alive() for thread in self._threads[1:]) // 2

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                postfix, _ = self._listening.accept()
            except OSError:
                return  # it is over
            milter = socket.socket(socket.AF_UNIX)
            self._sockets += [postfix, milter]
            number = len(self.said)
            self.said.append("")
            self.heard.append("")
            try:
                milter.connect(MILTER)
            except OSError:
                postfix.shutdown(socket.SHUT_RDWR)  # no milter: what Postfix would have found itself
                continue
            self._start(self._pass, postfix, milter, self.said, number, self._before)
            self._start(self._pass, milter, postfix, self.heard, number, self._after)

    def _pass(
        self, source: socket.socket, target: socket.socket, noted: list[str], number: int, hook: Hook | None
    ) -> None:
        try:
            for packet in _packets(source):
                command = chr(packet[4])
                if command != "D":
                    noted[number] += command
                    if command == "O" and noted is self.heard:
                        self.negotiated.append(packet[5:])
                    if hook is not None:
                        hook(command)
                target.sendall(packet)
        except OSError:
            pass  # one side is gone; so shall be the other
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _packets(source: socket.socket) -> Iterator[bytes]:
    with source.makefile("rb") as file:
        while len(head := file.read(4)) == 4:
            data = file.read(int.from_bytes(head))
            if not data:
                return
            yield head + data
