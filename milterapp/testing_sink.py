"""Where mail that leaves a host ends in a test: an SMTP server on 127.0.0.1 that keeps what Postfix gives it.

Must never: listen beyond 127.0.0.1, send anything on, or keep more than a test's worth.
"""

from __future__ import annotations

import re
import socketserver
import threading
from dataclasses import dataclass

__all__ = ["Sink", "Taken"]

_LINE = 8192  # bytes of a command or a line of a message; Postfix folds at 998
_MESSAGE = 64 << 20  # bytes of a message
_PATH = re.compile(r"(?:MAIL FROM|RCPT TO):<([^>]*)>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Taken:
    """A message for one recipient. data: with LF line ends, as the rest of the tests has them."""

    sender: str
    to: str
    data: bytes


class _TooLongError(ValueError):
    """A line or a message beyond its bound: the connection ends, and Postfix keeps the message."""


class _Session(socketserver.StreamRequestHandler):
    """One connection. Its name is not the host's: Postfix takes a server that greets with its own for itself."""

    timeout = 60
    server: _Server

    def handle(self) -> None:
        """Answer until the client is gone."""
        try:
            self._talk()
        except (OSError, ValueError):
            pass  # what was not ended is not taken

    def _talk(self) -> None:
        self._say("220 sink.invalid ESMTP")
        sender, recipients = "", list[str]()
        while line := self._line().decode("utf-8", "surrogateescape"):
            word, path = line[:4].upper(), _PATH.match(line)
            if word == "QUIT":
                self._say("221 2.0.0 Bye")
                return
            if word == "DATA":
                self._say("354 go on")
                data = self._data()
                with self.server.lock:
                    self.server.taken += [Taken(sender, one, data) for one in recipients]
            elif word == "EHLO":
                self._say("250-sink.invalid\r\n250-8BITMIME\r\n250 SMTPUTF8")
                continue
            elif word == "MAIL":
                sender, recipients = path[1] if path else "", []
            elif word == "RCPT" and path:
                recipients.append(path[1])
            self._say("250 2.0.0 Ok")

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def _line(self) -> bytes:
        line = self.rfile.readline(_LINE)
        if len(line) == _LINE:
            raise _TooLongError("a line")
        return line

    def _data(self) -> bytes:
        lines, size = list[bytes](), 0
        while (line := self._line()) != b".\r\n":
            size += len(line)
            if not line or size > _MESSAGE:
                raise _TooLongError("a message")
            lines.append(line.removeprefix(b".").replace(b"\r\n", b"\n"))
        return b"".join(lines)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.lock = threading.Lock()
        self.taken: list[Taken] = []
        super().__init__(("127.0.0.1", port), _Session)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: what is missing is seen by the test."""


class Sink:
    """The server, from its making until close(). Raises OSError where the port is taken."""

    def __init__(self, port: int) -> None:
        self._server = _Server(port)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def take(self) -> list[Taken]:
        """Return what came since the last time."""
        with self._server.lock:
            found, self._server.taken = self._server.taken, []
        return found

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.socket.close()
        self._thread.join(10)
