"""The agent as what is killed: three decisions, each with its retry and with a mail reader between the two attempts."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milterapp.settings import Program
from tests.delivery.agent_process import AgentProcess, Person, Result, Submit
from tests.soak.ledger import Tried
from tests.soak.strace import Call, Fault, attach, calls_of

__all__ = ["AGENTS", "AgentCase"]

MESSAGE = (
    b"Return-Path: <ann@example.org>\nFrom: ann@example.org\nTo: bob@x.org\nSubject: hello\n"
    b"Message-ID: <one@example.org>\n\nhi\n"
)
MARKED = b"X-Mark: seen\n"
NOTICE = b"\nSubject: Your mail rules cannot be used\n"  # what a file that could not be read may bring, once
_TRIES = 3  # after the first; one is enough, more would be a finding

FILE_AND_FORWARD = """\
rules:
  - name: lists
    then:
      - add_header: {X-Mark: seen}
      - file: {folder: Lists, copy: true}
      - forward: {to: carol@example.org, copy: true}
  - name: flagged
    then:
      - flag: flagged
      - file: Other/Place
"""
KEEP_AND_ANSWER = """\
rules:
  - name: a second time
    if: {duplicate: yes}
    then: discard
  - name: mark
    then:
      - add_header: {X-Mark: seen}
  - name: away
    then: {vacation: I am away.}
"""
COPY_AND_REFUSE = """\
rules:
  - name: a copy
    then:
      - add_header: {X-Mark: seen}
      - file: {folder: Refused, copy: true}
  - name: no
    then: {reject: "5.7.1 not for me"}
"""
HAND_BACK = """\
rules:
  - name: mark
    then:
      - add_header: {X-Mark: seen}
      - keep
"""
FILTER_AND_FILE = """\
rules:
  - name: mark
    if: {command: it}
    then:
      - filter: mark
      - file: {folder: Copy, copy: true}
      - file: Filtered
"""
PROGRAMS = {
    "it": dataclasses.asdict(Program(("/bin/true",), time=60.0)),
    "mark": dataclasses.asdict(Program(("/bin/sed", "0,/^$/s/^$/X-Mark: seen\\n/"), time=60.0)),
}


@dataclass(frozen=True)
class AgentCase:
    """One decision. folders: where one copy must be; sent: what submit must have sent once; status: the answer."""

    name: str
    rules: str
    folders: tuple[str, ...]
    sent: tuple[str, ...]
    status: str = "ok"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def calls(self) -> list[Call]:
        """Return the calls of one delivery that nothing befalls."""
        person, submit = Person(), Submit()
        try:
            self._prepare(person)
            with tempfile.TemporaryDirectory() as folder:
                trace = Path(folder) / "trace"
                found = self._attempt(person, submit, "-o", str(trace))
                assert found.status == self.status, found
                assert not self._findings(person, submit, done=True)
                return calls_of(trace)
        finally:
            person.close()

    def tried(self, fault: Fault) -> Tried:
        """Deliver one message to a new user while this befalls the agent; then again, as Postfix would."""
        person, submit = Person(), Submit()
        findings: list[str] = []
        try:
            self._prepare(person)
            first = self._attempt(person, submit, *fault.options)
            allowed = (None, self.status) if fault.what == "KILL" else (None, self.status, "defer")
            if first.status not in allowed:
                findings.append("bounced" if first.status == "reject" else "false success")
            findings += self._findings(person, submit, done=first.status == self.status)
            _read(person)
            for path in person.home.rglob("*"):  # the reader is the user
                os.chown(path, person.uid, person.uid, follow_symlinks=False)
            retries = 0
            while retries < _TRIES:
                retries += 1
                again = self._attempt(person, submit)
                if again.status == self.status:
                    break
            else:
                findings.append("never done")
            findings += self._findings(person, submit, done=True)
        finally:
            person.close()
        return Tried(fault, first.status or "ended", tuple(dict.fromkeys(findings)), retries)

    def _prepare(self, person: Person) -> None:
        """Give the person what the case is about."""
        person.write(self.rules)

    def _attempt(self, person: Person, submit: Submit, *strace: str) -> Result:
        agent = AgentProcess(person, **self.settings)
        tracer = attach(agent.pid, *strace) if strace else None
        result = agent.deliver(submit, MESSAGE)
        agent.close()
        if tracer is not None:
            tracer.communicate(timeout=60)
        return result

    def _findings(self, person: Person, submit: Submit, done: bool) -> list[str]:
        """Return what is wrong with what can be seen. done: the answer was given, so all of it must be there."""
        findings = []
        for folder in self.folders:
            found = person.mail(folder)
            mail = [one for one in found if NOTICE not in one]
            findings += ["doubled"] if len(mail) > 1 or len(found) - len(mail) > 1 else []
            findings += ["lost"] if done and not mail else []
            body = MESSAGE.partition(b"\n\n")[2]
            if any(
                not one.startswith(b"Return-Path: <ann@") or not one.endswith(MARKED + b"\n" + body) for one in mail
            ):
                findings.append("corrupted")
        sent = sorted(kind for _, kind, _ in submit.sent if kind != "NOTICE")  # to its user, who may be told
        findings += ["doubled"] if len(sent) > len(set(sent)) or set(sent) - set(self.sent) else []
        findings += ["lost"] if done and set(self.sent) - set(sent) else []
        if any(one.message is not None and MARKED not in one.message for one in submit.asked):
            findings.append("corrupted")
        return findings


def _read(person: Person) -> None:
    """Do what a mail reader does between two attempts: move new mail to cur, marked as seen."""
    for new in person.home.glob("Maildir/**/new"):
        for path in list(new.iterdir()):
            (new.parent / "cur").mkdir(exist_ok=True)
            path.rename(new.parent / "cur" / f"{path.name}:2,S")


AGENTS = (
    AgentCase("agent, file and forward", FILE_AND_FORWARD, ("Maildir/.Lists", "Maildir/.Other.Place"), ("FORWARD",)),
    AgentCase("agent, keep and answer", KEEP_AND_ANSWER, ("Maildir",), ("REPLY",), settings={"keep": "maildir"}),
    AgentCase("agent, copy and refuse", COPY_AND_REFUSE, ("Maildir/.Refused",), (), "reject"),
    AgentCase("agent, hand back", HAND_BACK, (), ("KEEP",)),
    AgentCase(
        "agent, filter and file",
        FILTER_AND_FILE,
        ("Maildir/.Copy", "Maildir/.Filtered"),
        (),
        settings={"programs": PROGRAMS},
    ),
)
