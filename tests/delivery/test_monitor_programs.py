"""Programs and scripts in the whole chain: whom processes that the user has already keep waiting, and what is left."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from milterapp.delivery import sealed, wire
from milterapp.delivery.agents import Agents, Room, User, Verdict
from milterapp.delivery.children import Child, Loop
from milterapp.delivery.event import Log
from milterapp.delivery.requests import JOB
from milterapp.settings import Program
from tests.delivery.chain import Chain, wait_gone
from tests.delivery.inside import busy_with
from tests.delivery.test_monitor_agents import write_rules

FILE = b"rules:\n  - name: a\n    then:\n      file: A\n"
SCRIPT = b"rules:\n  - name: a\n    then:\n      script: a.py\n"
PIPE = b"rules:\n  - name: a\n    then:\n      pipe: it\n"

Begin = Callable[..., Chain]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Give what starts chains at whose site a program, `it`, is allowed: a shell script."""
    begun: list[Chain] = []

    def started(script: str, **delivery: Any) -> Chain:
        programs = {"it": Program(("/bin/sh", "-c", script, "it"), time=60.0)}
        begun.append(Chain(real=True, programs=programs, **delivery))
        return begun[-1]

    yield started
    for one in begun:
        one.close()


@pytest.mark.root
@pytest.mark.parametrize(
    ("uid", "rules"), [(20041, FILE), (20042, SCRIPT), (20043, PIPE)], ids=["rule", "script", "program"]
)
def test_a_user_with_many_threads_has_mail(begin: Begin, uid: int, rules: bytes) -> None:
    """What a user runs already leaves room for an agent, its runner, a script and a program."""
    chain = begin("test $(cat | wc -c) -gt 0 && touch done")
    home = chain.home(uid)
    write_rules(home, uid, rules)
    (home / ".milterapp/a.py").write_text("def main(mail):\n    mail.file('A')\n")
    os.chown(home / ".milterapp/a.py", uid, uid)
    busy = busy_with(uid, 600)
    try:
        assert chain.deliver(f"u{uid}@x") == (0, b"")
        assert (home / "done").exists() is (rules == PIPE)
        assert (home / "Maildir/.A/new").is_dir() is (rules != PIPE)
    finally:
        busy.kill()
        busy.communicate()


DETACHED = """
import ctypes, os, time
ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: dies with nobody
for _ in range(2):
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
open("ready", "w").close()
time.sleep(1000)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "acts", [["KILL runner"], ["STOP runner"], ["STOP runner", "KILL agent"], ["STOP all"]], ids=" and ".join
)
def test_what_a_user_stops_or_kills_is_ended(begin: Begin, acts: Sequence[str]) -> None:
    """A user who stops or kills the own runner has nothing left of it, nor of what it ran; others go on, warm."""
    chain = begin(f"test -e over || exec /usr/bin/python3 -I -c '{DETACHED}'", deadline=10.0, idle=60.0)
    home, other = chain.home(20044), chain.home(20045)
    for one, uid in ((home, 20044), (other, 20045)):
        write_rules(one, uid, PIPE)
    (other / "over").touch()
    assert chain.deliver("u20045@x", "OTHER") == (0, b"")
    others = processes(chain, 20045)
    client, (agent, runner, *program) = running(chain, 20044)
    assert len(program) == 3
    for act in acts:
        how, _, whom = act.partition(" ")
        pids = {"agent": [agent], "runner": [runner], "all": [agent, runner, *program]}[whom]
        subprocess.run(["/bin/kill", f"-{how}", *map(str, pids)], user=20044, group=20044, extra_groups=[], check=True)
    assert chain.end(client)[0] == 75
    assert [wait_gone(pid) for pid in (agent, runner, *program)] == [True] * 5
    assert processes(chain, 20045) == others
    (home / "over").touch()
    assert [chain.deliver(f"u{uid}@x", "NEXT") for uid in (20044, 20045)] == [(0, b"")] * 2
    chain.wait("delivery", 4)
    assert [one["warm"] for one in chain.log("delivery")] == [False, False, False, True]


@pytest.mark.root
def test_the_end_of_the_monitor_ends_a_stopped_runner(begin: Begin) -> None:
    """What a user stopped does not outlive zygote and monitor, not even where the monitor was killed."""
    chain = begin(f"exec /usr/bin/python3 -I -c '{DETACHED}'")
    write_rules(chain.home(20046), 20046, PIPE)
    client, mine = running(chain, 20046)
    subprocess.run(["/bin/kill", "-STOP", str(mine[1])], user=20046, group=20046, extra_groups=[], check=True)
    chain.monitor.kill()
    assert chain.end(client)[0] == 75
    assert [wait_gone(pid) for pid in mine] == [True] * 5


def running(chain: Chain, uid: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Begin a delivery, and wait until its program runs; return the client and that user's processes."""
    client = chain.begin(f"u{uid}@x", "MINE")
    until = time.monotonic() + 20
    while not os.path.exists(f"{chain.folder}/home/u{uid}/ready"):
        assert time.monotonic() < until, "the program does not run"
        time.sleep(0.01)
    return client, processes(chain, uid)


def processes(chain: Chain, uid: int) -> list[int]:
    """Return those of a uid that the monitor has, an agent, its runner, and what that runs, in this order."""
    found = []
    for pid in chain.children():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # what the zygote sends to kill is there for a moment
        if f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in lines:
            found.append(pid)
    return found


class _Zygote:
    """A zygote whose agents are the test itself."""

    control = True

    def send(self, _: str, fields: wire.Fields, descriptors: Sequence[int]) -> None:
        """Keep the agent's end."""
        self.number, self.agent = fields["id"], socket.socket(fileno=os.dup(descriptors[0]))


def test_a_busy_agent_is_not_kept_for_ever() -> None:
    """After five minutes another serves, for its limits count what its user ran when it began; before, the same one."""
    now, loop, zygote = [0.0], Loop(Log("test")), _Zygote()
    said: list[Verdict] = []
    agents = Agents(loop, cast(Child, zygote), Log("test"), most=2, idle=1e6, deadline=1e6, clock=lambda: now[0])
    user = User("bob", 20001, 20001, "/home/bob")
    message = sealed.seal([b"x"])

    def deliver() -> None:
        agents.give(user, dict.fromkeys(JOB["JOB"], "x"), message, lambda _: None, said.append)
        job = wire.receive(zygote.agent, JOB, descriptors=(1, 2))
        assert job is not None
        job.close()
        wire.send(zygote.agent, "ANSWER", {"status": "ok", "text": "", "event": ""})
        loop.turn(5)

    for now[0] in (0.0, 200.0, 299.0):
        assert agents.room(user) is Room.NOW
        deliver()
    assert [one.warm for one in said] == [False, True, True]
    now[0] = 301.0
    assert agents.room(user) is Room.BUSY  # and ends
    assert zygote.agent.recv(1) == b""
    zygote.agent.close()
    agents.from_zygote(datagram("SPAWNED", id=zygote.number, pid=4000))
    agents.from_zygote(datagram("EXITED", pid=4000, status=0))
    assert agents.room(user) is Room.NOW
    deliver()
    assert said[-1].warm is False
    agents.stop(kill=True)
    zygote.agent.close()
    os.close(message)


def datagram(kind: str, **fields: int | str | bytes) -> wire.Datagram:
    """Return what the zygote says."""
    return wire.Datagram(kind, {name: str(value).encode() for name, value in fields.items()})
