"""The pipe clients as what is killed, from its first system call to its last, before a real monitor and real agents."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from milterapp.postfix.wiring import STATUS_TABLE
from tests.delivery.chain import PIPE, Chain
from tests.delivery.clients import PYTHON_CLIENT, Command
from tests.soak.ledger import Tried
from tests.soak.strace import Call, Fault, calls_of

__all__ = ["ClientCase", "became"]

UID = 20021
RULES = """\
rules:
  - name: no
    if: {subject: {contains: refuse}}
    then: {reject: "5.7.1 not for me"}
  - name: file
    then: {file: Filed}
"""
_TRIES = 3
_SYS_EXITS = {  # sys_exits.c of Postfix, as far as pipe(8) does not defer by itself
    64: "5.3.0 command line usage error", 65: "5.3.0 data format error", 66: "5.3.0 cannot open input",
    67: "5.1.1 user unknown", 68: "5.1.2 host name unknown", 69: "5.3.0 service unavailable",
    70: "5.3.0 internal software error", 72: "5.3.0 critical OS file missing",
    73: "5.3.0 can't create user output file", 74: "5.3.0 input/output error", 76: "5.5.0 remote error in protocol",
    77: "5.7.0 permission denied", 78: "5.3.5 local configuration error",
}  # fmt: skip
_FILTER = [
    (re.compile(line[1 : line.rindex("/")], re.IGNORECASE), line[line.rindex("/") + 1 :].strip())
    for line in STATUS_TABLE.splitlines()
    if line.startswith("/")
]


def became(status: int, output: bytes) -> str:
    """Return what pipe(8) makes of an exit status and an output: ok, defer or bounce.

    status: negative for a signal. Source: pipe_command.c and sys_exits.c; then the filter that `setup` writes.
    """
    said = output.decode("latin-1").strip()
    if status == 0:
        return "ok"
    if status < 0 or status in (71, 75):
        return "defer"
    if re.match(r"[245]\.\d{1,3}\.\d{1,3}(\s|$)", said):
        text = said
    else:
        text = _SYS_EXITS.get(status, f'5.3.0 Command died with status {status}: "python3"')
        text += f". Command output: {said}" if said else ""
    for pattern, result in _FILTER:
        if pattern.search(text):
            text = result
            break
    return "defer" if text.startswith("4") else "bounce"


@dataclass
class ClientCase:
    """Messages to one user of a running chain. program: the client; status: what must become of them in the end."""

    chain: Chain
    name: str
    program: Command
    subject: str
    status: str = "ok"
    number: int = 0

    @classmethod
    def all(cls, chain: Chain, compiled: Command) -> list[ClientCase]:
        """Return one that is filed, and one that is refused, for each client. Gives their user a home and rules."""
        home = Path(chain.folder) / f"home/u{UID}"
        if not home.exists():
            home = chain.home(UID)
            (home / ".milterapp").mkdir(mode=0o700)
            (home / ".milterapp/rules.yaml").write_text(RULES)
            for path in (home / ".milterapp", home / ".milterapp/rules.yaml"):
                os.chown(path, UID, UID)
        return [
            cls(chain, f"{name}, {what}", program, subject, status)
            for name, program in (("client", PYTHON_CLIENT), ("compiled client", compiled))
            for what, subject, status in (("filed", "file", "ok"), ("refused", "refuse", "bounce"))
        ]

    def calls(self) -> list[Call]:
        """Return the calls of one delivery that nothing befalls."""
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)  # strace runs as the client's account
            trace = Path(folder) / "trace"
            assert self._attempt(self._next(), "-o", str(trace)) == self.status
            return calls_of(trace)

    def tried(self, fault: Fault) -> Tried:
        """Deliver one message while this befalls the client; then again with the same queue id, as Postfix would."""
        queue_id = self._next()
        findings: list[str] = []
        first = self._attempt(queue_id, "-o", "/dev/null", *fault.options)
        if first not in (self.status, "defer"):
            findings.append("bounced" if first == "bounce" else "false success")
        findings += self._findings(queue_id, done=first == self.status)
        retries, last = 0, first
        while last == "defer" and retries < _TRIES:
            retries += 1
            last = self._attempt(queue_id)
        findings += [] if last == self.status else ["never done"]
        findings += self._findings(queue_id, done=True)
        for path in self._filed():
            path.unlink()
        return Tried(fault, first, tuple(dict.fromkeys(findings)), retries)

    def _filed(self) -> list[Path]:
        return list(Path(self.chain.folder).glob(f"home/u{UID}/Maildir/**/new/*"))

    def _next(self) -> str:
        self.number += 1
        return f"{self.subject}-{Path(self.program[-1]).stem}-{self.number}"

    def _message(self, queue_id: str) -> bytes:
        return f"From: a@example.org\nSubject: {self.subject}\nX-Id: {queue_id}\n\n{queue_id * 400}\n".encode()

    def _attempt(self, queue_id: str, *strace: str) -> str:
        recipient = f"u{UID}@example.org"
        command = [*self.program, f"--socket={self.chain.socket}"]
        ids = ["setpriv", f"--reuid={PIPE}", f"--regid={PIPE}", "--clear-groups"]
        run = [*ids, "strace", *strace, *command] if strace else [*ids, *command]
        done = subprocess.run(
            [*run, "sender@example.org", recipient, recipient, queue_id, "192.0.2.1"],
            input=self._message(queue_id), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
        return became(done.returncode, done.stdout)

    def _findings(self, queue_id: str, done: bool) -> list[str]:
        mine = f"\nX-Id: {queue_id}\n".encode()
        found = [message for path in self._filed() if mine in (message := path.read_bytes())]
        findings = ["doubled"] if len(found) > 1 else []
        wanted = self.status == "ok"
        findings += ["lost"] if done and wanted and not found else []
        findings += ["doubled"] if found and not wanted else []
        if any(not one.endswith(self._message(queue_id)) for one in found):
            findings.append("corrupted")
        return findings
