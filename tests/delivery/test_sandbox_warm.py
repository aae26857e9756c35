"""The script process that stays: several jobs one after the other, and an end with the first thing that goes wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from milterapp.delivery import linux, seccomp
from milterapp.delivery.sandbox import Ask, Bounds, SandboxError
from milterapp.delivery.sandbox_warm import Serve, Warm
from milterapp.delivery.zygote import LIMITS
from tests.delivery.agent_like import UID
from tests.delivery.inside import inside

pytestmark = pytest.mark.root


def as_agent(act: Callable[[], Any]) -> Any:
    """Return what an act gives in a process as an agent is; the reason of a SandboxError where it raises one."""

    def agent() -> Any:
        seccomp.install(seccomp.service(1000, 1000))
        linux.become(UID, UID)
        linux.undumpable()
        linux.limit(LIMITS)
        seccomp.install(seccomp.agent())
        try:
            return act()
        except SandboxError as error:
            return error.reason

    return inside(agent)


def echo(job: bytes, ask: Ask) -> bytes:
    """Answer with the job, what was asked, and the process."""
    return b"%s %s %d" % (job, ask(job), os.getpid())


def test_jobs_one_after_the_other() -> None:
    """One process does them, each with its own questions, however large; then it is ended and waited for."""

    def act() -> list[Any]:
        warm = Warm(echo, None, Bounds())
        big = b"x" * 500_000
        said = [warm.run(job, lambda question: question[:1] + b"!") for job in (b"a", b"b", b"")]
        whole = Warm(lambda job, _: job, None, Bounds()).run(big, None) == big
        pids = {one.rpartition(b" ")[2] for one in said}
        warm.end()
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) == int(next(iter(pids)))]
        return [[one.rpartition(b" ")[0].decode() for one in said], len(pids), warm.jobs, whole, left]

    assert as_agent(act) == [["a a!", "b b!", " !"], 1, 3, True, []]


@pytest.mark.parametrize("limit", ["jobs", "work"])
def test_it_wears_out(limit: str) -> None:
    """After so many jobs, or so much work, the next one needs another process."""

    def act() -> list[bool]:
        Warm.MOST, Warm.BUSY = 100, 1000.0
        warm = Warm(echo, None, Bounds())
        found = [warm.worn]
        for _ in range(2):
            warm.run(b"", lambda question: question)
            found.append(warm.worn)
        Warm.MOST, Warm.BUSY = (2, 1000.0) if limit == "jobs" else (100, 0.0)
        return [*found, warm.worn]

    assert as_agent(act) == [False, False, False, True]


def again(bad: Callable[[bytes, Ask], bytes]) -> Serve:
    """Return what does the first job well and the second one so."""

    def serve(job: bytes, ask: Ask) -> bytes:
        return b"good" if job == b"1" else bad(job, ask)

    return serve


def _raise(_job: bytes, _ask: Ask) -> bytes:
    raise ValueError


def _leave(_job: bytes, _ask: Ask) -> bytes:
    os._exit(0)


def _half(_job: bytes, _ask: Ask) -> bytes:
    os.write(3, b"=\x10\x00\x00\x00half")
    os._exit(0)


def _twice(_job: bytes, _ask: Ask) -> bytes:
    os.write(3, b"=\x00\x00\x00\x00=\x00\x00\x00\x00")
    time.sleep(60)
    return b""


def _spin(_job: bytes, _ask: Ask) -> bytes:
    while True:
        pass


def _eat(_job: bytes, _ask: Ask) -> bytes:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def _sleep(_job: bytes, _ask: Ask) -> bytes:
    time.sleep(60)
    return b""


BAD = {
    "raises": (_raise, Bounds(), "crashed"),
    "leaves": (_leave, Bounds(), "crashed"),
    "half an answer": (_half, Bounds(), "protocol"),
    "two answers": (_twice, Bounds(), "protocol"),
    "cpu": (_spin, Bounds(cpu=1), "cpu"),
    "memory": (_eat, Bounds(memory=64 << 20), "memory"),
    "wall": (_sleep, Bounds(wall=0.5), "time"),
    "huge": (lambda _job, _ask: bytes(200_000), Bounds(output=100_000), "output"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_end_with_what_goes_wrong(name: str) -> None:
    """The second job's failure has its reason, and the process is gone and waited for."""
    bad, bounds, reason = BAD[name]

    def act() -> list[Any]:
        warm = Warm(again(bad), None, dataclasses.replace(bounds, wall=60.0))
        first = warm.run(b"1", None).decode()
        warm._bounds = bounds  # a short time is for the job that does not end
        try:
            warm.run(b"2", None)
        except SandboxError as error:
            said = error.reason
        try:
            os.waitpid(-1, os.WNOHANG)
            gone = False
        except ChildProcessError:
            gone = True
        return [first, said, warm.worn, gone]

    assert as_agent(act) == ["good", reason, True, True]


def test_an_answer_that_nobody_asked_for() -> None:
    """What a process says before its turn is the answer to nothing."""
    said = []

    def serve(job: bytes, _ask: Ask) -> bytes:
        if job == b"1":
            said.append(b"=\x0e\x00\x00\x00tokens!!forged")
            return b"good"
        os.write(3, said[0])
        return b"bad"

    def act() -> list[str]:
        warm = Warm(serve, None, Bounds())
        return [warm.run(b"1", None).decode(), warm.run(b"2", None).decode()]

    assert as_agent(act) == "protocol"


def test_it_ends_with_its_agent() -> None:
    """An agent that is killed leaves no script process behind."""
    reader, writer = os.pipe()
    agent = os.fork()
    if agent == 0:
        try:
            os.setresuid(UID, UID, UID)
            warm = Warm(lambda _job, _ask: str(os.getpid()).encode(), None, Bounds())
            os.write(writer, warm.run(b"", None))
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    pid = int(os.read(reader, 100))
    os.close(reader)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    until = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}/fd") and time.monotonic() < until:
        if _state(pid) == "Z":  # dead, and its new parent has yet to hear of it
            break
        time.sleep(0.02)
    assert _state(pid) in ("", "Z")


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(") ")[2][:1]
    except OSError:
        return ""
