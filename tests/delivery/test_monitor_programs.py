"""Programs and scripts in the whole chain: whom processes that the user has already keep waiting, and what is left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from milterapp.delivery import sealed, wire
from milterapp.delivery.agents import Agents, Room, User, Verdict
from milterapp.delivery.children import Child, Loop
from milterapp.delivery.event import Log
from milterapp.delivery.requests import JOB
from milterapp.settings import Program
from tests.delivery.chain import Chain
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

    def started(script: str = "exit 0", time: float = 5.0) -> Chain:
        programs = {"it": Program(("/bin/sh", "-c", script, "it"), time=time)}
        begun.append(Chain(real=True, programs=programs, deadline=8.0, wait=5.0, idle=2.0))
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
