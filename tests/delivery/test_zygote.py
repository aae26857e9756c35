"""The zygote alone: what it forks, what it refuses, whom it kills."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from milterapp.delivery import kinds, sealed, wire
from milterapp.delivery.requests import ANSWER
from milterapp.delivery.zygote import Floors
from milterapp.settings import DeliverySettings, Settings
from tests.delivery.chain import STANDIN, wait_gone

FLOORS = Floors(1000, 1000, frozenset({100, 0}))


@pytest.mark.parametrize(
    ("uid", "gid", "want"),
    [
        pytest.param(1000, 1000, True, id="at the floors"),
        pytest.param(20001, 100, True, id="a low group that is allowed"),
        pytest.param(2**32 - 3, 2**32 - 3, True, id="the last ids"),
        pytest.param(999, 1000, False, id="uid below"),
        pytest.param(1000, 999, False, id="gid below"),
        pytest.param(100, 1000, False, id="an allowed group's number as uid"),
        pytest.param(1000, 0, False, id="root's group, even where the site allows it"),
        pytest.param(0, 0, False, id="root"),
        pytest.param(2**32 - 2, 1000, False, id="uid that is none"),
        pytest.param(2**32 - 1, 1000, False, id="uid that setresuid leaves alone"),
        pytest.param(1000, 2**32 - 1, False, id="gid that setresgid leaves alone"),
    ],
)
def test_floors(uid: int, gid: int, *, want: bool) -> None:
    """Ids at or above the floors pass, and the low groups that are named; root's never."""
    assert FLOORS.allow(uid, gid) is want


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (-5, 3)])
def test_floors_of_nothing_are_not_roots(uid: int, gid: int) -> None:
    """Settings without a floor let nobody become root."""
    assert not Floors(uid, gid).allow(0, 1000)
    assert not Floors(uid, gid).allow(1000, 0)


class Zygote:
    """A zygote with the stand-in agent, and this process in the place of its monitor."""

    def __init__(self) -> None:
        settings = json.dumps(dataclasses.asdict(Settings(delivery=DeliverySettings(gids=(100,)))))
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        with theirs:
            program = [sys.executable, "-I", STANDIN, settings, "zygote"]
            move = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", move, str(theirs.fileno()), *program],
                pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def hear(self) -> wire.Datagram:
        """Return what it says next."""
        datagram = wire.receive(self.control, kinds.FROM_ZYGOTE)
        assert datagram is not None, "the zygote ended"
        return datagram

    def spawn(self, uid: int = 20001, gid: int = 20001) -> tuple[socket.socket, wire.Datagram]:
        """Ask for an agent; return our end of its connection, and what the zygote says."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(20)
        fields: dict[str, bytes | str | int] = {"id": 5, "uid": uid, "gid": gid, "home": "/nonexistent", "name": "u"}
        with theirs:
            wire.send(self.control, "SPAWN", fields, (theirs.fileno(),))
        return mine, self.hear()

    def kill(self, pid: int, *, adopted: bool = False, uid: int = 20001) -> None:
        """Ask for a death."""
        wire.send(self.control, "KILL", {"pid": pid, "uid": uid, "gid": uid, "adopted": int(adopted)})

    def close(self) -> None:
        """Let it end."""
        self.control.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """Run a zygote."""
    zygote = Zygote()
    yield zygote
    zygote.close()


def give(agent: socket.socket, queue_id: str) -> None:
    """Give an agent a job."""
    message, other = sealed.seal([b"x"]), os.open(os.devnull, os.O_RDONLY)
    job = {"sender": "", "recipient": "u", "original": "u", "queue_id": queue_id, "client": "", "extension": ""}
    wire.send(agent, "JOB", job, (message, other))
    os.close(message)
    os.close(other)


@pytest.mark.root
def test_an_agent_is_born_and_its_end_is_told(zygote: Zygote) -> None:
    """SPAWN answers with a pid; the agent works; when its connection ends it ends, and the monitor hears of it."""
    agent, said = zygote.spawn()
    with agent:
        assert (said.kind, said.number("id")) == ("SPAWNED", 5)
        give(agent, "A")
        answer = wire.receive(agent, ANSWER)
        assert answer is not None
        assert json.loads(answer.text("event"))["uid"] == 20001
    end = zygote.hear()
    assert (end.kind, end.number("pid"), end.number("status")) == ("EXITED", said.number("pid"), 0)


@pytest.mark.root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (999, 20001), (20001, 6), (2**32 - 1, 20001), (20001, 2**32 - 1)])
def test_ids_below_the_floor_are_refused(zygote: Zygote, uid: int, gid: int) -> None:
    """Nobody is born with such ids, and the next one is born as ever."""
    agent, said = zygote.spawn(uid, gid)
    agent.close()
    assert (said.kind, said.number("id")) == ("FAILED", 5)
    agent, said = zygote.spawn(20001, 100)
    agent.close()
    assert said.kind == "SPAWNED"


@pytest.mark.root
@pytest.mark.parametrize("queue_id", ["STOP", "HANG"])
def test_an_agent_can_be_killed(zygote: Zygote, queue_id: str) -> None:
    """KILL ends a child whatever it does, though the zygote may not signal another uid itself."""
    agent, said = zygote.spawn()
    with agent:
        give(agent, queue_id)
        while not select.select([zygote.control.fileno()], [], [], 0.1)[0]:
            zygote.kill(said.number("pid"))  # as the monitor does: before the drop is done the kernel refuses
        end = zygote.hear()
    assert (end.kind, end.number("status")) == ("EXITED", 256 - signal.SIGKILL)


@pytest.mark.root
def test_a_stranger_is_not_killed(zygote: Zygote) -> None:
    """A pid that is no child of the zygote's is left alone; the monitor's own orphans are not."""
    with subprocess.Popen(["/bin/sleep", "60"], user=20001, group=20001, extra_groups=[]) as stranger:
        zygote.kill(stranger.pid)
        zygote.kill(1)
        zygote.kill(stranger.pid, adopted=True, uid=20002)
        zygote.kill(0, adopted=True)
        agent, _ = zygote.spawn()  # by then the others were read
        agent.close()
        assert zygote.hear().kind == "EXITED"
        assert stranger.poll() is None
        zygote.kill(stranger.pid, adopted=True)
        assert stranger.wait(20) == -signal.SIGKILL


@pytest.mark.root
def test_the_end_of_the_monitor_is_the_end_of_all_agents(zygote: Zygote) -> None:
    """When the connection ends the zygote kills what does not leave by itself, and goes."""
    agent, said = zygote.spawn()
    with agent:
        give(agent, "STOP")
        zygote.control.close()
        assert zygote.process.wait(20) == 0
        assert wait_gone(said.number("pid"))


@pytest.mark.root
@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        pytest.param(b"NONSENSE\n", 0, id="unknown kind"),
        pytest.param(
            b"SPAWN\nid:1:1\nuid:5:20001\ngid:5:20001\nhome:1:/\nname:1:u\n", 0, id="spawn without a descriptor"
        ),
        pytest.param(b"SPAWN\nid:1:1\nuid:2:-1\ngid:5:20001\n", 1, id="a uid that is no number"),
        pytest.param(b"KILL\npid:1:x\n", 0, id="a pid that is no number"),
    ],
)
def test_a_monitor_that_talks_nonsense_is_left(zygote: Zygote, data: bytes, descriptors: int) -> None:
    """Anything but its fixed requests ends the zygote; another is started."""
    with open(os.devnull) as null:
        socket.send_fds(zygote.control, [data], [null.fileno()] * descriptors)
    assert zygote.process.wait(20) == 75
