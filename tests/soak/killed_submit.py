"""The submit service as what is killed: a monitor asks it to keep, an agent to forward and to answer; Postfix takes.

Doubled is allowed where Postfix took a message and the process was killed before its mark was on disk (whether it was
is read from the journal, after the kill and before the service is started again), and where Postfix's 250 could not be
read, or waited for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from milterapp.delivery import sealed, wire
from milterapp.delivery.requests import KEPT, RESPONSES
from milterapp.settings import Accounts, Settings, SubmitSettings
from milterapp.state.journal import Journal, Key
from tests.delivery.smtp_peer import SmtpPeer
from tests.soak.ledger import GAP, Tried
from tests.soak.strace import Call, Fault, attach, calls_of

__all__ = ["SubmitCase"]

ACCOUNT = 65532
MESSAGE = b"From: ann@example.org\nTo: bob@x.org\nSubject: hello\nMessage-ID: <m@example.org>\n\nhi\n"
ENVELOPE = {"sender": "ann@example.org", "recipient": "bob@x.org", "original": "info@x.org", "user": "bob"}
REQUESTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("KEEP", {}),
    ("FORWARD", {"to": "carol@example.org", "step": "1"}),
    ("REPLY", {"rule": "hours", "subject": "", "text": "From 10 to 18 h.", "step": "2"}),
)
_TRIES = 4


class SubmitCase:
    """A service, started again where it was killed, and Postfix's stand-in. Each message is from another sender."""

    name = "submit, keep, forward and answer"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="milterapp-soak-"))
        self._folder.chmod(0o755)
        (self._folder / "postfix").mkdir()
        place = self._folder / "postfix"
        self._peers = {
            "hand-back": SmtpPeer(str(place / "hand-back"), chunking=True),
            "send": SmtpPeer(str(place / "send")),
        }
        for peer in self._peers.values():
            os.chmod(peer.address, 0o666)
        own = SubmitSettings(
            socket=str(self._folder / "run/socket"), state=str(self._folder / "state"),
            hand_back=self._peers["hand-back"].address, send=self._peers["send"].address, daily_replies=10**6,
        )  # fmt: skip
        self._settings = Settings(accounts=Accounts(monitor="0", submit=str(ACCOUNT)), submit=own)
        self._service: subprocess.Popen[bytes] | None = None
        self._number = 0

    def close(self) -> None:
        """End it, and leave nothing."""
        self._stop()
        for peer in self._peers.values():
            peer.close()
        shutil.rmtree(self._folder)

    def calls(self) -> list[Call]:
        """Return the calls that the service makes for one message that nothing befalls."""
        trace = self._folder / "trace"
        queue_id = self._next()
        tracer = self._attached("-o", str(trace))
        assert self._ask(queue_id) == ["DONE"] * 3
        self._stop()
        tracer.communicate(timeout=60)
        return calls_of(trace)

    def tried(self, fault: Fault) -> Tried:
        """Ask three things about one message while this befalls the service; then again until all is done."""
        queue_id = self._next()
        tracer = self._attached(*fault.options)
        assert self._service is not None
        first = self._ask(queue_id)
        tracer.kill()  # the kernel detaches it; asked to end by itself it waits for a tracee that has just died
        tracer.communicate()
        findings = self._findings(queue_id, first)
        if "ended" in first and fault.what == "KILL":
            self._service.wait(60)
        unmarked = self._unmarked(queue_id) if self._service.poll() is not None else set()
        retries = 0
        answers = first
        while answers != ["DONE"] * 3 and retries < _TRIES:
            retries += 1
            time.sleep(0.3 if "ended" in answers else 0)  # Postfix comes back after minutes; what dies has died by then
            self._start()
            answers = self._ask(queue_id)
        findings += [] if answers == ["DONE"] * 3 else ["never done"]
        found = self._taken(queue_id)
        for kind, count in found.items():
            if count == 2 and (kind in unmarked or fault.call.name in ("recvfrom", "poll")):
                findings.append(GAP)
            elif count > 1:
                findings.append("doubled")
        findings += self._findings(queue_id, answers)
        for peer in self._peers.values():
            peer.taken.clear()
        end = "ok" if first == ["DONE"] * 3 else "ended" if "ended" in first else "defer"
        return Tried(fault, end, tuple(dict.fromkeys(findings)), retries)

    def _next(self) -> str:
        self._number += 1
        return f"4Q{self._number}"

    def _start(self) -> None:
        """Start the service where none runs."""
        if self._service is not None and self._service.poll() is None:
            return
        self._stop()
        text = json.dumps(dataclasses.asdict(self._settings))
        with open(self._folder / "log", "wb") as log:
            command = [sys.executable, "-I", "-m", "milterapp.delivery.submit", text]
            self._service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        until = time.monotonic() + 60
        while b"event=ready" not in (self._folder / "log").read_bytes():
            assert self._service.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < until, "submit does not start"
            time.sleep(0.005)

    def _attached(self, *options: str) -> subprocess.Popen[bytes]:
        """Return strace(1), attached to the service; what killed the former one may have come after its answers."""
        for _ in range(100):
            self._start()
            assert self._service is not None
            try:
                return attach(self._service.pid, "-f", *options)
            except AssertionError:
                time.sleep(0.05)
        raise AssertionError("strace does not attach")

    def _stop(self) -> None:
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None

    def _ask(self, queue_id: str) -> list[str]:
        """Return how each request was answered; `ended` for it and all after it where the connection ended."""
        answers: list[str] = []
        try:
            with ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(60)
                connection.connect(self._settings.submit.socket)
                line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.enter_context(line)
                line.settimeout(60)
                descriptor = sealed.seal([MESSAGE])
                envelope = {**ENVELOPE, "queue_id": queue_id, "sender": f"{queue_id.lower()}@example.org"}
                stack.callback(os.close, descriptor)
                with theirs:
                    wire.send(connection, "ENVELOPE", envelope, (descriptor, theirs.fileno()))
                for kind, fields in REQUESTS:
                    if kind == "KEEP":  # as the monitor asks for it, over its own connection
                        wire.send(connection, "ENVELOPE", {**envelope, "id": 1}, (descriptor,))
                        answer = wire.receive(connection, KEPT)
                    else:
                        wire.send(line, kind, fields)
                        answer = wire.receive(line, RESPONSES)
                    if answer is None:
                        break
                    answers.append(answer.kind)
        except (ConnectionError, wire.WireError):
            pass
        return answers + ["ended"] * (len(REQUESTS) - len(answers))

    def _taken(self, queue_id: str) -> dict[str, int]:
        """Return how often Postfix took each kind."""
        sender = f"<{queue_id.lower()}@example.org>"
        sent = self._peers["send"].taken
        return {
            "KEEP": sum(sender in one.mail for one in self._peers["hand-back"].taken),
            "FORWARD": sum(sender in one.mail for one in sent),
            "REPLY": sum(sender in one.rcpt for one in sent),
        }

    def _unmarked(self, queue_id: str) -> set[str]:
        """Return the kinds that Postfix took and the journal on disk does not know."""
        digest = hashlib.sha256(MESSAGE).hexdigest()
        state, copy = self._folder / "state", self._folder / "copy"
        shutil.copytree(state, copy)  # another process's look would change the original
        try:
            os.chmod(copy, 0o700)
            for path in (copy, *copy.iterdir()):
                os.chown(path, os.geteuid(), -1)
            journal = Journal(str(copy / "journal.sqlite"))
            done = journal.steps(Key(queue_id, ENVELOPE["recipient"], ENVELOPE["original"], digest))
            journal.close()
        finally:
            shutil.rmtree(copy)
        marked = {one.split(" ", 1)[0] for one in done}
        return {kind for kind, count in self._taken(queue_id).items() if count and kind not in marked}

    def _findings(self, queue_id: str, answers: list[str]) -> list[str]:
        taken = self._taken(queue_id)
        findings = [
            "false success"
            for (kind, _), answer in zip(REQUESTS, answers, strict=True)
            if answer == "DONE" and not taken[kind]
        ]
        body = MESSAGE.replace(b"\n", b"\r\n")
        kept = [one.data for one in self._peers["hand-back"].taken if queue_id.lower() in one.mail]
        return findings + ["corrupted" for data in kept if data != body]
