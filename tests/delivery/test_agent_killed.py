"""No mail is lost or doubled: the agent is killed, or its calls fail, at one system call after the other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.delivery.agent_process import AgentProcess, Person, Result, Submit

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

RULES = """\
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
FOLDERS = ("Maildir/.Lists", "Maildir/.Other.Place")
CALLS = (
    "openat", "openat2", "write", "pwrite64", "fsync", "fdatasync", "linkat", "unlinkat", "unlink", "mkdirat", "close",
    "sendmsg", "sendto", "recvmsg", "memfd_create", "fcntl", "ftruncate", "pread64", "read", "newfstatat", "getdents64",
)  # fmt: skip
CHANGING = frozenset(
    ("write", "pwrite64", "fsync", "fdatasync", "linkat", "mkdirat", "memfd_create", "ftruncate", "openat")
)
SAMPLE = int(os.environ.get("MILTERAPP_KILLS", "90"))  # of about 300 system calls; 0 for all


class Strace:
    """strace, attached to an agent that waits for its job."""

    def __init__(self, agent: AgentProcess, *options: str) -> None:
        command = ["strace", "-o", "/dev/null", *options, "-p", str(agent.pid)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        assert b"attached" in self.process.stderr.readline()

    def end(self) -> None:
        """Wait for it to end with its agent."""
        self.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Give every (system call, number) of one delivery, the evenly spread sample of them that is tried."""
    person, trace = Person(), tmp_path_factory.mktemp("trace") / "trace"
    person.write(RULES)
    agent = AgentProcess(person)
    strace = Strace(agent, "-o", str(trace))
    assert agent.deliver(Submit()).status == "ok"
    agent.close()
    strace.end()
    person.close()
    found = Counter(match[1] for line in trace.read_text().splitlines() if (match := re.match(r"(\w+)\(", line)))
    everything = [(name, number) for name in CALLS for number in range(1, found[name] + 1)]
    assert len(everything) > 100
    step = max(1, len(everything) // SAMPLE) if SAMPLE else 1
    return everything[::step]


def _attempt(person: Person, submit: Submit, *inject: str) -> Result:
    agent = AgentProcess(person)
    if not inject:
        result = agent.deliver(submit)
        agent.close()
        return result
    strace = Strace(agent, *inject)
    result = agent.deliver(submit)
    agent.close()
    strace.end()
    return result


def _check(person: Person, submit: Submit, done: bool) -> None:
    """Hold what is visible to: never a part of a message, never two, and all of it where the answer was ok."""
    wanted = {"ok": (1,), "not": (0, 1)}["ok" if done else "not"]
    for folder in FOLDERS:
        mail = person.mail(folder)
        assert len(mail) in wanted
        assert all(one.endswith(b"\nX-Mark: seen\n\nhi\n") and one.startswith(b"Return-Path: <ann@") for one in mail)
    assert len(submit.sent) in wanted


def _seen(person: Person) -> None:
    """Do what a mail reader does between two attempts."""
    for folder in FOLDERS:
        new = person.home / folder / "new"
        for path in list(new.iterdir()) if new.is_dir() else []:
            (path.parent.parent / "cur").mkdir(exist_ok=True)
            path.rename(path.parent.parent / "cur" / f"{path.name}:2,S")


def _tried(inject: str, *, must_end: bool) -> tuple[str | None, Path]:
    person, submit = Person(), Submit()
    try:
        person.write(RULES)
        first = _attempt(person, submit, "-e", inject)
        assert first.status in ((None, "ok") if must_end else (None, "ok", "defer")), first
        _check(person, submit, done=first.status == "ok")
        _seen(person)
        for path in person.home.rglob("*"):
            os.chown(path, person.uid, person.uid)
        again = _attempt(person, submit)
        assert again.status == "ok", again
        _check(person, submit, done=True)
    finally:
        person.close()
    return first.status, person.home


def test_killed_at_every_system_call(calls: list[tuple[str, int]]) -> None:
    """Killed at any system call, and its mail read meanwhile, a retry completes what is missing, repeating nothing."""
    ends = Counter(_tried(f"inject={name}:signal=KILL:when={number}", must_end=True)[0] for name, number in calls)
    assert ends[None] > len(calls) // 2  # most of them before the answer


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_every_call_fails_once(calls: list[tuple[str, int]], error: str) -> None:
    """Where a call fails, the disk full or broken, there is no false success; a retry completes what is missing."""
    changing = [call for call in calls if call[0] in CHANGING][:: 2 if SAMPLE else 1]
    for name, number in changing:
        _tried(f"inject={name}:error={error}:when={number}", must_end=False)
