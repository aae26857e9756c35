"""A monitor with everything around it, as processes of their own: what the tests of monitor and pipe begin with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from milterapp.delivery import wire
from milterapp.delivery.requests import ENVELOPE, REQUESTS
from milterapp.settings import Accounts, DeliverySettings, Program, Settings, SubmitSettings
from tests.delivery.clients import PYTHON_CLIENT

MONITOR, PIPE, STRANGER, LMTP = 20009, 20008, 20007, 20006
STANDIN = str(Path(__file__).with_name("standin.py"))
MESSAGE = b"From: a@example.org\n\nhello\n"

_CONNECT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"x"], [connection.fileno()])
"""


class Submit(threading.Thread):
    """A submit that takes every request, tells what came, and answers what the test says."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.requests: list[tuple[str, str, str, bytes]] = []  # kind, recipient, user, message
        self.kept: list[tuple[str, str, bytes]] = []  # for the monitor itself: recipient, user, message
        self.deaf = False  # whether those, and agents, are never answered
        self.deaf_to: str | None = None  # the user of whom those are never answered
        self.lines: list[threading.Thread] = []  # of agents, each alive until its line has ended
        self.heard: list[str] = []  # the recipient of each envelope that came with a line
        self.answer: tuple[str, dict[str, str]] = ("DONE", {"queue_id": "NEW"})
        self.connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        os.chmod(path, 0o666)
        self._listener.listen(64)
        self.start()

    def run(self) -> None:
        """Serve every connection in a thread of its own."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._outlive, args=(self._serve, connection), daemon=True).start()

    @staticmethod
    def _outlive(serve: Callable[..., None], *arguments: object) -> None:
        """Serve until the other end is gone, at whatever moment that is."""
        with contextlib.suppress(OSError, wire.WireError):
            serve(*arguments)

    def _serve(self, connection: socket.socket) -> None:
        """Take envelopes; what is asked about each comes over the line that came with it."""
        self.connections.append(connection)
        while (envelope := wire.receive(connection, ENVELOPE, descriptors=(1, 2))) is not None:
            message = os.pread(envelope.descriptors[0], 1 << 20, 0)
            if "id" in envelope.fields:
                self._keep(connection, envelope, message)
                continue
            line = socket.socket(fileno=os.dup(envelope.descriptors[1]))
            line.setblocking(True)
            self.heard.append(envelope.text("recipient"))
            envelope.close()
            arguments = (self._answer, line, envelope, message)
            self.lines.append(threading.Thread(target=self._outlive, args=arguments, daemon=True))
            self.lines[-1].start()

    def _keep(self, connection: socket.socket, asked: wire.Datagram, message: bytes) -> None:
        """Do what the monitor itself asks."""
        if asked.descriptors[1:]:
            message = os.pread(asked.descriptors[1], 1 << 20, 0)
        asked.close()
        self.kept.append((asked.text("recipient"), asked.text("user"), message))
        if not self.deaf and asked.text("user") != self.deaf_to:
            kind, fields = self.answer
            wire.send(connection, kind, {"id": asked.text("id"), **fields})

    def _answer(self, line: socket.socket, envelope: wire.Datagram, message: bytes) -> None:
        with line:
            while (request := wire.receive(line, REQUESTS, descriptors=(0, 1))) is not None:
                request.close()
                self.requests.append((request.kind, envelope.text("recipient"), envelope.text("user"), message))
                if not self.deaf:
                    wire.send(line, self.answer[0], self.answer[1])

    def stop(self) -> None:
        """Refuse from now on."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it was stopped before
        self._listener.close()
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Chain:
    """The processes. Accounts are bare numbers, so that nothing needs to be made. real: with people's agents.

    prefix: what starts the monitor, in place of nothing. programs: what the site allows.
    """

    program = PYTHON_CLIENT  # what is the client

    def __init__(
        self, *, real: bool = False, prefix: Sequence[str] = (), programs: Mapping[str, Program] | None = None,
        **delivery: Any,
    ) -> None:  # fmt: skip
        self.folder = tempfile.mkdtemp(prefix="milterapp-chain-")
        os.chmod(self.folder, 0o755)
        os.mkdir(f"{self.folder}/monitor")
        os.chown(f"{self.folder}/monitor", MONITOR, PIPE)
        os.mkdir(f"{self.folder}/submit")
        self.socket = f"{self.folder}/monitor/socket"
        settings = Settings(
            accounts=Accounts(monitor=str(MONITOR), pipe=str(PIPE), lmtp=str(LMTP)),
            delivery=DeliverySettings(socket=self.socket, **delivery),
            submit=SubmitSettings(socket=f"{self.folder}/submit/socket"),
            log="json",
            programs=dict(programs or {}),
        )
        self.submit = Submit(settings.submit.socket)
        self.log_path = f"{self.folder}/log"
        self._clients: list[subprocess.Popen[bytes]] = []
        with open(self.log_path, "wb") as log:
            role = ["monitor", "real"] if real else ["monitor"]
            self.monitor = subprocess.Popen(
                [*prefix, sys.executable, "-I", STANDIN, json.dumps(dataclasses.asdict(settings)), *role],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.wait("ready")
        except AssertionError:
            self.close()
            raise

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """Return the log lines so far, all or those of one event."""
        lines = []
        for line in Path(self.log_path).read_text().splitlines(keepends=True):
            if not line.startswith("{"):
                raise AssertionError(f"in the log: {Path(self.log_path).read_text()}")
            if line.endswith("\n"):
                lines.append(json.loads(line))
        return [one for one in lines if not event or one["event"] == event]

    def wait(self, event: str, count: int = 1, seconds: float = 20.0, **fields: Any) -> dict[str, Any]:
        """Return the log line of an event with these fields, once there are `count` of them."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and (self.monitor.poll() is None or event != "ready"):
            found = [one for one in self.log(event) if fields.items() <= one.items()]
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.01)
        raise AssertionError(f"no {event} {fields} in the log: {Path(self.log_path).read_text()}")

    def client(self, *arguments: str, uid: int = PIPE, message: bytes | None = MESSAGE) -> subprocess.Popen[bytes]:
        """Start a pipe client with these five arguments; message None: its standard input is left open."""
        client = subprocess.Popen(
            [*self.program, f"--socket={self.socket}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            user=uid, group=uid, extra_groups=[],
        )  # fmt: skip
        self._clients.append(client)
        if message is not None:
            assert client.stdin is not None
            client.stdin.write(message)
            client.stdin.close()
        return client

    def begin(self, recipient: str = "u20001@example.org", queue_id: str = "4ABC") -> subprocess.Popen[bytes]:
        """Start a delivery."""
        return self.client("sender@example.org", recipient, recipient, queue_id, "192.0.2.1")

    def end(self, client: subprocess.Popen[bytes]) -> tuple[int, bytes]:
        """Return exit status and output of a client."""
        assert client.stdout is not None
        output = client.stdout.read()
        client.stdout.close()
        return client.wait(20), output

    def deliver(self, recipient: str = "u20001@example.org", queue_id: str = "4ABC") -> tuple[int, bytes]:
        """Deliver and return exit status and output."""
        return self.end(self.begin(recipient, queue_id))

    def decided(self, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Return what the agent reported of a delivery."""
        decided: dict[str, Any] = json.loads(self.wait("delivery", count, **fields)["decided"])
        return decided

    def connect(self, uid: int = PIPE) -> socket.socket:
        """Return a connection to the monitor, made with the uid of the pipe client, or another's."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine, theirs:
            subprocess.run(
                ["/usr/bin/python3", "-I", "-S", "-c", _CONNECT, self.socket, str(theirs.fileno())],
                user=uid, group=PIPE, extra_groups=[], pass_fds=[theirs.fileno()], check=True, timeout=20,
            )  # fmt: skip
            _, descriptors, _, _ = socket.recv_fds(mine, 1, 1)
        connection = socket.socket(fileno=descriptors[0])
        connection.settimeout(20)
        return connection

    def home(self, uid: int) -> Path:
        """Make and return the home of a user."""
        home = Path(self.folder) / "home" / f"u{uid}"
        home.mkdir(parents=True, mode=0o755)
        os.chown(home, uid, uid)
        return home

    def children(self) -> list[int]:
        """Return the processes that the monitor has, all the way down."""
        return descendants(self.monitor.pid)

    def asleep(self, count: int = 1) -> None:
        """Wait until so many agents are in the middle of their HANG."""
        wait_until(lambda: sum("nanosleep" in waits_in(pid) for pid in self.children()) >= count, "agents at work")

    def answerless(self, client: subprocess.Popen[bytes]) -> None:
        """Wait until a client has sent its message and waits for the answer."""
        wait_until(lambda: "skb" in waits_in(client.pid), "the client to wait")

    def close(self) -> None:
        """Stop everything, and leave nothing."""
        left = self.children()
        self.monitor.terminate()
        try:
            self.monitor.wait(20)
        finally:
            self.monitor.kill()
            self.monitor.wait()
            for client in self._clients:
                client.kill()
                client.wait()
                for stream in (client.stdin, client.stdout):
                    if stream is not None:
                        stream.close()
            self.submit.stop()
            alive = [pid for pid in left if os.path.exists(f"/proc/{pid}") and not wait_gone(pid)]
            shutil.rmtree(self.folder)
        assert not alive, f"left running: {alive}"


def wait_until(done: Callable[[], object], what: str) -> None:
    """Wait until something is so; fail where it is not in time."""
    until = time.monotonic() + 20
    while not done():
        assert time.monotonic() < until, f"waited 20 s for {what}"
        time.sleep(0.01)


def waits_in(pid: int) -> str:
    """Return the kernel's function that a process waits in (proc(5)), or nothing."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_gone(pid: int, seconds: float = 20.0) -> bool:
    """Return whether a process ends in time."""
    until = time.monotonic() + seconds
    late = False
    while not late:
        late = time.monotonic() >= until  # before the look, so that it is looked at least once
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def descendants(pid: int) -> list[int]:
    """Return the processes below one, its children first."""
    found: list[int] = []
    todo: Sequence[int] = [pid]
    while todo:
        below = []
        for one in todo:
            try:
                below += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
        found += below
        todo = below
    return found
