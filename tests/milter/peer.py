"""The mail server's side of the milter protocol, as Postfix speaks it: a peer for the tests, bytes in and bytes out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Steps by their command byte: the bit "do not send it", the bit "no reply to it".
BITS: dict[str, tuple[int, int]] = {
    "C": (1 << 0, 1 << 12),
    "H": (1 << 1, 1 << 13),
    "M": (1 << 2, 1 << 14),
    "R": (1 << 3, 1 << 15),
    "B": (1 << 4, 1 << 19),
    "L": (1 << 5, 1 << 7),
    "N": (1 << 6, 1 << 18),
    "U": (1 << 8, 1 << 17),
    "T": (1 << 9, 1 << 16),
    "E": (0, 0),
}
SKIP, LEADING_BLANK = 1 << 10, 1 << 20
ALL_STEPS = (1 << 21) - 1 & ~(1 << 11)
ALL_ACTIONS = 0x1FF
OLD_STEPS = 0x7F  # what a mail server of protocol version 2 offers

CHUNK = 65535
EDITS = "h+-mib2eq"


class Gone(Exception):  # noqa: N818 - it is no error
    """The milter closed the connection."""


@dataclass
class Answer:
    """A reply: its command byte and data; `-` where none was due, `.` where the step was not wanted."""

    code: str
    data: bytes = b""
    edits: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the SMTP reply."""
        return self.data.rstrip(b"\0").decode()

    @property
    def goes_on(self) -> bool:
        """Tell whether the mail server goes on with this message."""
        return self.code in "c-.s"


class Peer:
    """One connection to a milter."""

    def __init__(self, path: str, *, actions: int = ALL_ACTIONS, steps: int = ALL_STEPS, version: int = 6) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        try:
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise
        self.send("O", struct.pack("!III", version, actions, steps))
        answer = self.receive()
        assert answer.code == "O", answer
        self.version, self.actions, self.steps = struct.unpack("!III", answer.data[:12])
        self.macros = self._macros(answer.data[12:])
        self.leading_blank = bool(self.steps & LEADING_BLANK)
        self.queue_id = "4cXyZ01"
        self.defined: dict[str, str] = {}

    @staticmethod
    def _macros(data: bytes) -> dict[int, str]:
        found = {}
        while data:
            (stage,) = struct.unpack("!I", data[:4])
            text, _, data = data[4:].partition(b"\0")
            found[stage] = text.decode()
        return found

    # -- packets ---------------------------------------------------------------------------------------------------

    def send(self, command: str, data: bytes = b"") -> None:
        """Send one packet."""
        self.sock.sendall(struct.pack("!I", len(data) + 1) + command.encode() + data)

    def _say(self, command: str, data: bytes) -> None:
        try:
            self.send(command, data)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self) -> Answer:
        """Return the next packet. Raises Gone."""
        (size,) = struct.unpack("!I", self._exactly(4))
        packet = self._exactly(size)
        return Answer(chr(packet[0]), packet[1:])

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            try:
                piece = self.sock.recv(size)
            except ConnectionResetError:
                raise Gone from None
            if not piece:
                raise Gone
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def wants(self, command: str) -> bool:
        """Tell whether the milter wants this step."""
        return not self.steps & BITS[command][0]

    def answers(self, command: str) -> bool:
        """Tell whether the milter answers this step."""
        return not self.steps & BITS[command][1]

    def step(self, command: str, data: bytes = b"", macros: Mapping[str, str] | None = None) -> Answer:
        """Do one step as it was negotiated."""
        if macros:
            body = b"".join(
                k.encode() + b"\0" + v.encode("utf-8", "surrogateescape") + b"\0" for k, v in macros.items()
            )
            self._say("D", command.encode() + body)
        if not self.wants(command):
            return Answer(".")
        self._say(command, data)
        if not self.answers(command):
            return Answer("-")
        edits = []
        while True:
            answer = self.receive()
            if answer.code == "p":
                continue
            if command == "E" and answer.code in EDITS:
                edits.append((answer.code, answer.data))
                continue
            answer.edits = edits
            return answer

    # -- steps -----------------------------------------------------------------------------------------------------

    def connect(
        self, name: str = "mail.example.net", ip: str = "192.0.2.1", port: int = 4025, queue_id: str = ""
    ) -> Answer:
        """Say who connected. With a queue id it is what cleanup(8) does for mail that came without SMTP."""
        family = b"6" if ":" in ip else b"4" if ip else b"U"
        data = name.encode("latin-1") + b"\0" + family
        if ip:
            data += struct.pack("!H", port) + ip.encode() + b"\0"
        return self.step("C", data, {"i": queue_id} if queue_id else None)

    def helo(self, name: bytes = b"mail.example.net") -> Answer:
        """Say HELO."""
        return self.step("H", name + b"\0")

    def mail(self, sender: bytes = b"<a@example.net>", login: str = "", tls: str = "") -> Answer:
        """Say MAIL FROM."""
        macros = {"{auth_authen}": login, "{tls_version}": tls}
        return self.step("M", sender + b"\0", {name: value for name, value in macros.items() if value})

    def rcpt(self, recipient: bytes = b"<alice@example.org>") -> Answer:
        """Say RCPT TO; the queue id is there from the second on, as the first was accepted by then."""
        return self.step("R", recipient + b"\0", {"i": self.queue_id} if self.queue_id else None)

    def data(self) -> Answer:
        """Say DATA."""
        return self.step("T", b"", {"i": self.queue_id})

    def header(self, name: bytes, value: bytes) -> Answer:
        """Send one header field; value without its leading blank."""
        return self.step("L", name + b"\0" + (b" " if self.leading_blank else b"") + value + b"\0")

    def end_of_header(self) -> Answer:
        """Say that the header ends."""
        return self.step("N", b"", {"i": self.queue_id})

    def body(self, body: bytes) -> Answer:
        """Send the body in chunks, unless told to skip it."""
        answer = Answer("c")
        for at in range(0, len(body), CHUNK):
            answer = self.step("B", body[at : at + CHUNK])
            if not answer.goes_on or answer.code in ".s":
                break
        return answer

    def end(self) -> Answer:
        """Say that the message ends; the answer holds the edits."""
        return self.step("E", b"", {"i": self.queue_id})

    def abort(self) -> None:
        """Abort the message (RSET)."""
        self.send("A")

    def quit(self) -> None:
        """End the connection."""
        self.send("Q")
        self.sock.close()

    # -- a whole message ---------------------------------------------------------------------------------------------

    def message(
        self,
        fields: Sequence[tuple[bytes, bytes]] = ((b"From", b"a@example.net"), (b"Subject", b"hello")),
        body: bytes = b"Hello.\r\n",
        sender: bytes = b"<a@example.net>",
        recipients: Sequence[bytes] = (b"<alice@example.org>",),
        login: str = "",
    ) -> Outcome:
        """Send a message as Postfix would, and stop where Postfix would."""
        outcome = Outcome()
        if outcome.ends(self.mail(sender, login), "mail"):
            return outcome
        taken = 0
        for recipient in recipients:
            answer = self.rcpt(recipient)
            outcome.recipients[recipient.decode("latin-1")] = answer
            if answer.code in "ad":
                outcome.ends(answer, "rcpt")
                return outcome
            taken += answer.goes_on
        if not taken:
            outcome.ends(answer, "rcpt")
            self.abort()
            return outcome
        if outcome.ends(self.data(), "data"):
            return outcome
        for name, value in fields:
            if outcome.ends(self.header(name, value), "header"):
                return outcome
        if outcome.ends(self.end_of_header(), "eoh") or outcome.ends(self.body(body), "body"):
            return outcome
        outcome.ends(self.end(), "eom")
        return outcome


@dataclass
class Outcome:
    """Where a message's way ended and with which answer; what each recipient was told."""

    at: str = ""
    answer: Answer = field(default_factory=lambda: Answer("?"))
    recipients: dict[str, Answer] = field(default_factory=dict)

    def ends(self, answer: Answer, at: str) -> bool:
        """Note an answer; tell whether the mail server would go no further."""
        self.at, self.answer = at, answer
        return not answer.goes_on

    @property
    def code(self) -> str:
        """Return the last answer's command byte."""
        return self.answer.code

    @property
    def text(self) -> str:
        """Return the last answer's SMTP reply."""
        return self.answer.text

    @property
    def edits(self) -> list[tuple[str, bytes]]:
        """Return the edits that came with the last answer."""
        return self.answer.edits
