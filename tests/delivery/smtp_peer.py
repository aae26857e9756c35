"""An SMTP server on a unix-domain socket that keeps what it is given: the other end of submit in these tests."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Taken:
    """A message it answered 250 for; commands and data as they came, dots undone."""

    mail: str
    rcpt: str
    data: bytes
    queue_id: str


@dataclass
class SmtpPeer:
    """Serves any number of sessions at once.

    refuse: what to answer instead of taking a message; refuse_sender: what to answer to any sender but the null one.
    once: hang up after a message; chunking: offer CHUNKING; dies: at the next message, hang up without a reply,
    "unread", when it has begun to come, or "mute", when all of it has. sessions: how many there were; left: how many
    ended with QUIT.
    """

    address: str
    taken: list[Taken] = field(default_factory=list)
    refuse: str = ""
    refuse_sender: str = ""
    silent: threading.Event | None = None
    once: bool = False
    chunking: bool = False
    dies: str = ""
    sessions: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb", buffering=0) as lines:
            try:
                self._session(lines)
            except (OSError, ValueError):
                pass  # the client hung up

    def _session(self, lines: socket.SocketIO) -> None:
        def say(text: str) -> None:
            if self.dies != "mute":
                lines.write(text.encode() + b"\r\n")

        self.sessions += 1
        said: dict[str, str] = {}
        say("220 localhost ESMTP")
        while line := lines.readline().decode("utf-8", "surrogateescape"):
            word = line[:4].upper()
            said[word] = line.rstrip("\r\n")
            if word in ("EHLO", "LHLO"):
                chunking = "250-CHUNKING\r\n" if self.chunking else ""
                say(f"250-localhost\r\n250-PIPELINING\r\n{chunking}250-8BITMIME\r\n250 SMTPUTF8")
            elif word == "BDAT" and "MAIL" not in said:
                self._whole(lines, line)
                say("503 5.5.1 Error: need MAIL command")
            elif word in ("DATA", "BDAT"):
                if word == "DATA":
                    say("354 go on")
                data = self._undotted(lines) if word == "DATA" else self._whole(lines, line)
                dies, self.dies = self.dies, ""
                if data is None or dies:
                    return  # as a real one: what was not ended is not taken
                if self.silent is not None:
                    self.silent.wait(10)
                if self.refuse:
                    say(self.refuse)
                    continue
                queue_id = f"4Q{len(self.taken)}"
                self.taken.append(Taken(said["MAIL"], said["RCPT"], data, queue_id))
                say(f"250 2.0.0 Ok: queued as {queue_id}")
                if self.once:
                    return
            elif word == "MAIL" and self.dies == "unread":
                self.dies = ""
                return
            elif word == "MAIL" and self.refuse_sender and not said[word].startswith("MAIL FROM:<>"):
                del said[word]  # whoever goes on to BDAT sends it to nobody, whatever the test allows by then
                say(self.refuse_sender)
            elif word == "QUIT":
                self.left += 1
                return
            else:
                say("250 2.1.0 Ok")

    @staticmethod
    def _undotted(lines: socket.SocketIO) -> bytes | None:
        """Return what stands before the lone dot, None where none comes."""
        data = b""
        while (piece := lines.readline()) not in (b".\r\n", b""):
            data += piece.removeprefix(b".")
        return data if piece else None

    @staticmethod
    def _whole(lines: socket.SocketIO, command: str) -> bytes | None:
        """Return the one chunk, None where it ends too soon."""
        words = command.split()
        data, size = b"", int(words[1])
        assert words[2] == "LAST"
        while len(data) < size and (piece := lines.read(size - len(data))):
            data += piece
        return data if len(data) == size else None

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        Path(self.address).unlink(missing_ok=True)
