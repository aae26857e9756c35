"""A real agent in a forked child with a real uid; the test holds monitor's and submit's ends of its connections."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milterapp.delivery import runner, sealed, wire
from milterapp.delivery.agent import serve
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.fenced import Reach
from milterapp.delivery.requests import ANSWER, REQUESTS

UID = 20001
MESSAGE = b"Return-Path: <ann@example.org>\nFrom: ann@example.org\nTo: bob@x.org\nSubject: hello\n\nhi\n"
JOB = {
    "sender": "ann@example.org", "recipient": "bob@x.org", "original": "info@x.org", "queue_id": "4A",
    "client": "192.0.2.1", "extension": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that submit got; message: the edited one, None where it brought none."""

    kind: str
    fields: Mapping[str, str]
    message: bytes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job. status None: the agent died without an answer."""

    status: str | None
    text: str = ""
    event: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Submit:
    """Plays submit: answers each kind of request as told, once for each key, and keeps what was sent."""

    answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def answer(self, connection: socket.socket, key: str) -> bool:
        """Answer one request; False at the end of the connection."""
        try:
            request = wire.receive(connection, REQUESTS, descriptors=(0, 1))
        except ConnectionError:
            return False
        if request is None:
            return False
        kind, text = self.do(request, key)
        try:
            wire.send(connection, kind, {"queue_id" if kind == "DONE" else "text": text})
        except ConnectionError:
            return False  # it died while it waited; what was sent was sent
        return True

    def do(self, request: wire.Datagram, key: str) -> tuple[str, str]:
        """Do what is asked; return the kind of the answer and its one field. Closes what came."""
        message = sealed.read(request.descriptors[0]) if request.descriptors else None
        fields = {tag: request.text(tag) for tag in request.fields}
        self.asked.append(Asked(request.kind, fields, message))
        request.close()
        kind, text = self.answers.get(request.kind, ("DONE", ""))
        if kind == "DONE":
            text = self.sent.setdefault((key, request.kind, fields.get("step", "")), f"4S{len(self.sent)}")
        return kind, text

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of what was asked, in order."""
        return [one.kind for one in self.asked]


class Person:
    """A user with a home of its own, below a folder that others can pass."""

    def __init__(self, uid: int = UID) -> None:
        self.uid = uid
        self.base = Path(tempfile.mkdtemp(prefix="milterapp-agent-"))
        self.base.chmod(0o755)
        self.home = self.base / "home"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, uid, uid)

    def write(self, text: str, name: str = ".milterapp/rules.yaml") -> Path:
        """Write a file below the home as its user would."""
        path = self.home / name
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
            os.chown(path.parent, self.uid, self.uid)
        path.write_text(text)
        path.chmod(0o600)
        os.chown(path, self.uid, self.uid)
        return path

    def mail(self, folder: str = "Maildir") -> list[bytes]:
        """Return the messages of a folder, seen or not."""
        places = [self.home / folder / part for part in ("new", "cur")]
        return [path.read_bytes() for place in places if place.is_dir() for path in sorted(place.iterdir())]

    def close(self) -> None:
        """Remove it all."""
        shutil.rmtree(self.base)


class AgentProcess:
    """One agent, warm until it is closed."""

    def __init__(self, person: Person, *, home: str = "", **settings: Any) -> None:
        self.control, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(child.fileno(), 3)
                os.closerange(4, 1024)  # the ends of other agents, too
                os.setgroups([])
                os.setresgid(person.uid, person.uid, person.uid)
                os.setresuid(person.uid, person.uid, person.uid)
                place = home or str(person.home)
                programs = settings.get("programs")
                runs = runner.beside(programs, place, "bob", keep=4) if programs else -1
                own = AgentSettings(**settings)
                Reach.of(own).fence(place)
                serve(socket.socket(fileno=3), own, place, "bob", runs)
            finally:
                os._exit(99)
        child.close()

    def deliver(self, submit: Submit, message: bytes = MESSAGE, /, **fields: str) -> Result:
        """Give it one job, answer what it asks submit, and return what came of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = sealed.seal([message])
        said = {**JOB, **fields}
        key = "|".join((said["queue_id"], said["recipient"], said["original"]))
        with ours:
            try:
                wire.send(self.control, "JOB", said, (descriptor, theirs.fileno()))
            except BrokenPipeError:
                return Result(None)  # it died before it took the job
            finally:
                theirs.close()
                os.close(descriptor)
            waiting: Sequence[socket.socket] = (self.control, ours)
            while True:
                ready, _, _ = select.select(waiting, [], [], 30)
                if ours in ready:
                    if not submit.answer(ours, key):
                        waiting = (self.control,)
                elif self.control in ready:
                    return self._result(submit, key)
                else:
                    raise TimeoutError("the agent says nothing")

    def _result(self, submit: Submit, key: str) -> Result:
        """Return the answer; what is only to be kept is asked of submit, as the monitor does."""
        try:
            answer = wire.receive(self.control, ANSWER, descriptors=(0, 1))
        except ConnectionError:
            answer = None
        if answer is None:
            return Result(None)
        status, text, event = answer.text("status"), answer.text("text"), json.loads(answer.text("event"))
        if status == "keep":
            kind, said = submit.do(wire.Datagram("KEEP", {}, answer.descriptors), key)
            status, text = ("ok", "") if kind == "DONE" else ("defer", said)
        return Result(status, text, event)

    def close(self) -> int:
        """Hang up, and return its exit status."""
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()


Start = Callable[..., AgentProcess]  # what the fixture `start` gives
