"""The pool of agents: one for each (uid, home), kept warm, bounded in number, each with one job at a time.

Must never: give a second job to an agent that has one, start a second agent for one user (two could deliver one
message at once), leave one running past its deadline, or read what a user wrote.

The zygote forks them and kills them; the pool counts an agent until the kernel says that it has ended.

Few messages need submit, so an agent has a line to it that leads nowhere yet: once it asks something, whoever gave the
job hands our end on, and ends it with the job; the next job comes with a new line. Until then the line serves one job
after the other.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from milterapp.delivery import linux, wire
from milterapp.delivery.children import Child, Loop
from milterapp.delivery.event import Log
from milterapp.delivery.requests import ANSWER

__all__ = ["Agents", "Done", "Room", "User", "Verdict"]

_LEAVE = 2.0  # seconds an agent has to end by itself
_AGAIN = 1.0  # seconds between two attempts to kill
_OLD = 300.0  # seconds after which another is to serve: its limit of processes counts what its user ran at its start
_STATUSES = ("ok", "defer", "reject", "keep")
_AGAIN_BY_ANOTHER = "again"  # of an agent that has had a message before: its user has another home by now


@dataclass(frozen=True, slots=True)
class User:
    """Whom an agent works for. confined: others may have the same uid, so it reaches this home alone."""

    name: str
    uid: int
    gid: int
    home: str
    confined: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ended. status: ok, defer or reject; keep: it is to be handed back, which is all there is to do.

    decided: what the agent reports, unparsed; warm: it had run; again: it has not begun, and another agent is to have
    it; edited: the sealed memfd of what is to be handed back, the receiver's to close, -1 where that is as it came.
    """

    status: str
    text: str
    decided: str | None = None
    warm: bool | None = None
    again: bool = False
    edited: int = -1


Done = Callable[[Verdict], None]
Asks = Callable[[socket.socket], None]  # is lent our end of a line over which something has come


class Room(Enum):
    """Whether an agent could take a job: now, after its current one, or after somebody else's has ended."""

    NOW = "now"
    BUSY = "busy"
    FULL = "full"


class _State(Enum):
    BUSY = "busy"
    IDLE = "idle"
    ENDING = "ending"


@dataclass(slots=True, eq=False)
class _Agent:
    number: int
    user: User
    control: socket.socket
    until: float
    born: float
    state: _State = _State.BUSY
    pid: int = 0
    job: Done | None = None
    asks: Asks | None = None
    line: socket.socket | None = None
    jobs: int = 0
    doomed: bool = False


class Agents:
    """The pool. most: agents at once; idle, deadline: seconds."""

    def __init__(
        self, loop: Loop, zygote: Child, log: Log, *, most: int, idle: float, deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._loop, self._zygote, self._log, self._clock = loop, zygote, log, clock
        self._most, self._idle, self._deadline = most, idle, deadline
        self._agents: dict[int, _Agent] = {}
        self._by_key: dict[tuple[int, str], _Agent] = {}
        self._adopted: dict[int, tuple[User, float]] = {}  # of a zygote that died: pid to user, when to kill
        self._last = 0

    def __len__(self) -> int:
        return len(self._agents) + len(self._adopted)

    @property
    def working(self) -> int:
        """Return how many have a job."""
        return sum(agent.job is not None for agent in self._agents.values())

    def room(self, user: User) -> Room:
        """Return whether a job of this user could be given now."""
        agent = self._by_key.get((user.uid, user.home))
        if agent is not None:
            old = self._clock() > agent.born + _OLD
            if agent.state is _State.IDLE and (old or agent.user.confined is not user.confined):
                self._end(agent)
            return Room.NOW if agent.state is _State.IDLE else Room.BUSY
        if any((one.uid, one.home) == (user.uid, user.home) for one, _ in self._adopted.values()):
            return Room.BUSY
        if self._zygote.control is None or len(self) >= self._most:
            return Room.FULL
        return Room.NOW

    def make_room(self, wanted: int) -> None:
        """End as many warm agents as are wanted beyond those that end already, the longest waiting first."""
        if not wanted:
            return
        wanted -= sum(agent.state is _State.ENDING for agent in self._agents.values())
        idle = [agent for agent in self._agents.values() if agent.state is _State.IDLE]
        for agent in sorted(idle, key=lambda agent: agent.until)[: max(0, wanted)]:
            self._end(agent)

    def give(self, user: User, job: wire.Fields, message: int, asks: Asks, done: Done) -> None:
        """Give a job to the user's agent, where there is room; done is called once. The descriptor stays the caller's.

        asks: is called where the agent asks submit something. Raises OSError or WireError where it could not be given.
        """
        agent = self._by_key.get((user.uid, user.home)) or self._spawn(user)
        try:
            if agent.line is not None:
                wire.send(agent.control, "JOB", job, (message,))
            else:
                self._send_with_line(agent, job, message)
        except (OSError, wire.WireError):
            self._end(agent)
            raise
        agent.state, agent.job, agent.until = _State.BUSY, done, self._clock() + self._deadline
        agent.asks = asks
        agent.jobs += 1

    def _send_with_line(self, agent: _Agent, job: wire.Fields, message: int) -> None:
        agent.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._loop.watch(agent.line, lambda: self._asked(agent), lambda reason: self._faulty(agent, reason))
        with theirs:
            wire.send(agent.control, "JOB", job, (message, theirs.fileno()))

    def _asked(self, agent: _Agent) -> None:
        """Hand on the line over which an agent asks something. Raises WireError where it has nothing to ask about."""
        line, agent.line = agent.line, None
        if line is None:
            return
        with line:
            self._loop.unwatch(line)
            if not line.recv(1, socket.MSG_PEEK):
                return  # it ends
            if agent.job is None or agent.asks is None:
                raise wire.WireError("it asked without a job")
            agent.asks(line)

    def from_zygote(self, datagram: wire.Datagram) -> None:
        """Take what the zygote says."""
        if datagram.kind == "EXITED":
            self._exited(datagram.number("pid"), datagram.number("status"))
            return
        agent = self._agents.get(datagram.number("id"))
        if datagram.kind == "SPAWNED" and agent is not None:
            agent.pid = datagram.number("pid")
            if agent.doomed:
                self._kill(agent)
        elif datagram.kind == "FAILED" and agent is not None:
            self._lost(agent, f"no agent: {datagram.text('text')}")
            self._forget(agent)

    def zygote_lost(self) -> None:
        """Defer what is under way; the agents lose their connection, and their lives soon after."""
        for agent in list(self._agents.values()):
            self._hear(agent)
            self._lost(agent, "the zygote ended")
            self._forget(agent)
            if agent.pid:
                self._adopted[agent.pid] = (agent.user, self._clock() + _LEAVE)

    def reaped(self, pid: int) -> None:
        """Take note that the kernel has given us the end of an adopted agent."""
        self._adopted.pop(pid, None)

    def tick(self) -> bool:
        """Keep the deadlines. Return False where the zygote did not even start an agent in that time."""
        now, well = self._clock(), True
        for agent in list(self._agents.values()):
            if agent.until > now:
                continue
            if agent.state is _State.IDLE:
                self._end(agent)
            elif agent.state is _State.ENDING:
                self._kill(agent)
            else:
                well = well and agent.pid != 0
                self._log("warning", "deadline", user=agent.user.name, pid=agent.pid)
                self._lost(agent, "the delivery took too long")
                self._kill(agent)
        for pid, (user, when) in list(self._adopted.items()):
            if when <= now:
                self._adopted[pid] = (user, now + _AGAIN)
                self._ask_kill(pid, user, adopted=True)
        return well

    def stop(self, *, kill: bool) -> None:
        """End the idle ones, and with kill all of them."""
        for agent in list(self._agents.values()):
            if kill:
                self._lost(agent, "milterapp is stopping")
                self._kill(agent)
            elif agent.state is _State.IDLE:
                self._end(agent)

    def _spawn(self, user: User) -> _Agent:
        """Ask for an agent; what is sent to it waits in the socket until it runs."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._last += 1
        ids = {"id": self._last, "uid": user.uid, "gid": user.gid}
        try:
            with theirs:
                self._zygote.send(
                    "CONFINE" if user.confined else "SPAWN",
                    {**ids, "home": user.home, "name": user.name},
                    (theirs.fileno(),),
                )
        except (OSError, wire.WireError):
            mine.close()
            raise
        now = self._clock()
        agent = _Agent(self._last, user, mine, now + self._deadline, now)
        self._agents[agent.number] = self._by_key[user.uid, user.home] = agent
        self._loop.watch(mine, lambda: self._ready(agent), lambda reason: self._faulty(agent, reason))
        return agent

    def _ready(self, agent: _Agent) -> None:
        """Take an agent's answer. Raises WireError for anything else, OSError."""
        datagram = wire.receive(agent.control, ANSWER, descriptors=(0, 1))
        if datagram is None:
            self._lost(agent, "the agent ended")
            self._end(agent)
            return
        job, status = agent.job, datagram.text("status")
        again = status == _AGAIN_BY_ANOTHER and agent.jobs > 1  # a new one has to know
        edited = datagram.descriptors[0] if datagram.descriptors else -1
        sane = status in _STATUSES or again
        if job is None or not sane or (edited >= 0 and (status != "keep" or not linux.is_sealed(edited))):
            datagram.close()
            raise wire.WireError("an answer that makes no sense")
        agent.job = None
        if again:
            self._end(agent)
        else:
            agent.state, agent.until = _State.IDLE, self._clock() + self._idle
        status = "defer" if again else status
        job(Verdict(status, datagram.text("text"), datagram.text("event"), agent.jobs > 1, again, edited))

    def _hear(self, agent: _Agent) -> None:
        """Take an answer that lies in the socket of an agent that has ended since."""
        try:
            if agent.state is _State.BUSY:
                self._ready(agent)
        except (wire.WireError, OSError):
            pass  # then the job is lost

    def _faulty(self, agent: _Agent, reason: str) -> None:
        self._log("warning", "agent", user=agent.user.name, pid=agent.pid, error=reason)
        self._lost(agent, "the agent did not answer properly")
        self._kill(agent)

    def _lost(self, agent: _Agent, text: str) -> None:
        job, agent.job = agent.job, None
        if job is not None:
            job(Verdict("defer", text, warm=agent.jobs > 1))

    def _end(self, agent: _Agent) -> None:
        """Let it end: it sees the end of its connection, and is killed where it does not leave."""
        for one in (agent.control, *([agent.line] if agent.line else ())):
            self._loop.unwatch(one)
            one.close()
        agent.line = None
        agent.state, agent.until = _State.ENDING, self._clock() + _LEAVE

    def _kill(self, agent: _Agent) -> None:
        self._end(agent)
        agent.until = self._clock() + _AGAIN
        agent.doomed = True
        if agent.pid:
            self._ask_kill(agent.pid, agent.user, adopted=False)

    def _ask_kill(self, pid: int, user: User, *, adopted: bool) -> None:
        try:
            self._zygote.send("KILL", {"pid": pid, "uid": user.uid, "gid": user.gid, "adopted": int(adopted)})
        except (OSError, wire.WireError) as error:
            self._log("warning", "not killed", pid=pid, error=str(error))

    def _exited(self, pid: int, status: int) -> None:
        for agent in self._agents.values():
            if agent.pid == pid:
                break
        else:
            return
        self._hear(agent)
        how = f"signal {256 - status}" if status > 256 - signal.NSIG else f"status {status}"
        self._lost(agent, f"the agent ended with {how}")
        self._forget(agent)
        if status not in (0, 256 - signal.SIGKILL):
            self._log("warning", "agent ended", user=agent.user.name, pid=pid, how=how)

    def _forget(self, agent: _Agent) -> None:
        self._end(agent)
        self._agents.pop(agent.number, None)
        if self._by_key.get((agent.user.uid, agent.user.home)) is agent:
            del self._by_key[agent.user.uid, agent.user.home]
