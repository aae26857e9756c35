"""Where agents come from: a process with the rule code imported, which forks, drops to the recipient's ids and serves.

Must never: run any rule code before the drop, read anything but the monitor's fixed requests, take an id below the
site's floors (seccomp refuses it too), have a thread.

SECURITY: it holds CAP_SETUID and CAP_SETGID, as the monitor does, and parses two datagrams of numbers. A child gives
up ids, groups, capabilities and descriptors, and proves it, before the first line of code that knows of mail runs.
Where the site allows programs, the child, with its final ids, forks `runner` before it loses the right to execute.
Where several homes have one uid, it is `confined` to its own before that; any other is `fenced` behind it.
It has no CAP_KILL: agents are killed by `errands`, and what they leave behind.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from milterapp.delivery import confined, fenced, kinds, linux, runner, seccomp, wire
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.errands import Errands
from milterapp.delivery.event import Log

__all__ = ["LIMITS", "PROGRAMS", "ROOM", "Floors", "Zygote", "main", "start"]

LIMITS: Mapping[int, int] = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_AS: 2 << 30,
    resource.RLIMIT_FSIZE: 1 << 30,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}
ROOM = 256  # processes of its uid that an agent can add at least, and at most twice as many
PROGRAMS = 4  # the descriptor at which an agent asks for people's programs, where the site allows any
_GRACE = 2.0  # seconds for agents to end by themselves once the monitor is gone
_KILL = 15.0  # seconds to kill those that do not, and what they ran, each process once its parent has ended
_NO_ID = 2**32 - 2
_FAILED = 75  # a child's status where the drop failed
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Serve = Callable[[socket.socket, str, str], None]  # control, home, user; runs in the child, after the drop
Wall = Callable[[str], None]  # home: builds the wall around a process that is to reach that home alone
Beside = Callable[[str, str], int]  # home, user: forks what starts that user's programs, returns the connection to it


@dataclass(frozen=True, slots=True)
class Floors:
    """The least ids that an agent may have; gids: lower ones that it may have as well."""

    min_uid: int
    min_gid: int
    gids: frozenset[int] = frozenset()

    @classmethod
    def from_site(cls, settings: Mapping[str, Any]) -> Floors:
        """Return the floors of `dataclasses.asdict(Settings())`, or of that as JSON."""
        delivery = settings["delivery"]
        return cls(delivery["min_uid"], delivery["min_gid"], frozenset(delivery["gids"]))

    def allow(self, uid: int, gid: int) -> bool:
        """Return whether an agent may have these ids; never root's, whatever the settings say."""
        return max(self.min_uid, 1) <= uid < _NO_ID and (max(self.min_gid, 1) <= gid < _NO_ID or gid in self.gids - {0})

    def filter(self) -> bytes:
        """Return the seccomp filter that says the same."""
        return seccomp.service(self.min_uid, self.min_gid, self.gids)


class Zygote:
    """The loop: spawn and kill as the monitor asks, tell it who ended."""

    def __init__(
        self, control: socket.socket, floors: Floors, serve: Serve, log: Log, *, beside: Beside | None, wall: Wall,
        fence: Wall,
    ) -> None:  # fmt: skip
        self._control, self._floors, self._serve, self._log, self._beside = control, floors, serve, log, beside
        self._wall, self._fence = wall, fence
        self._children: dict[int, tuple[int, int]] = {}  # pid to uid and gid
        self._errands = Errands(self._children.keys())
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)  # noqa: FBT003 - the name of the method says it

    def run(self) -> None:
        """Serve until the monitor closes the connection; then end every child. Raises WireError, OSError."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else lambda *_: None)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        linux.adopt_orphans()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll(self._errands.timeout())}
                if self._wake.fileno() in ready:
                    self._wake.recv(4096)
                    for pid, status in self._reap():
                        self._tell("EXITED", pid=pid, status=status)
                if self._control.fileno() in ready and not self._request():
                    return
                self._errands.look()
        finally:
            self._end()

    def _request(self) -> bool:
        """Carry out one request; return False at the end of the connection."""
        datagram = wire.receive(self._control, kinds.TO_ZYGOTE, descriptors=(0, 1))
        if datagram is None:
            return False
        try:
            if datagram.kind == "KILL" and not datagram.descriptors:
                self._kill(datagram)
            elif datagram.kind in ("SPAWN", "CONFINE") and len(datagram.descriptors) == 1:
                self._spawn(datagram)
            else:
                raise wire.WireError(f"{datagram.kind} with {len(datagram.descriptors)} descriptors")
        finally:
            datagram.close()
        return True

    def _spawn(self, datagram: wire.Datagram) -> None:
        number, uid, gid = datagram.number("id"), datagram.number("uid"), datagram.number("gid")
        if not self._floors.allow(uid, gid):
            self._tell("FAILED", id=number, text=f"uid {uid} or gid {gid} is below the floor")
            return
        wait, go = os.pipe()
        with os.fdopen(wait, "rb", 0), os.fdopen(go, "wb", 0) as told:
            try:
                pid = os.fork()
            except OSError as error:
                self._tell("FAILED", id=number, text=f"fork: {error.strerror}")
                return
            if pid == 0:
                os.close(go)
                self._child(datagram, uid, gid, wait)
            self._children[pid] = (uid, gid)
            self._tell("SPAWNED", id=number, pid=pid)
            told.write(b"!")

    def _child(self, datagram: wire.Datagram, uid: int, gid: int, wait: int) -> NoReturn:
        """Be an agent. Whatever goes wrong, this process ends here.

        It begins once the monitor has been told its pid: of one that nobody knows, nobody would keep the deadline.
        """
        try:
            if not os.read(wait, 1):
                raise ConnectionError("the zygote ended")
            home, name = datagram.text("home"), datagram.text("name")
            drop(uid, gid, datagram.descriptors[0], lambda: self._before(datagram.kind, home, name))
            control = socket.socket(fileno=3)
            self._serve(control, home, name)
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's loop
            self._log("error", "no agent", uid=uid, error=f"{type(error).__name__}: {error}")
        finally:
            os._exit(_FAILED)

    def _before(self, kind: str, home: str, name: str) -> int:
        """Build the wall or the fence, with the final ids, and fork what starts programs; as `drop` says.

        The wall holds for the programs too, the fence for the agent alone.
        """
        if kind == "CONFINE":
            self._wall(home)
        programs = self._beside(home, name) if self._beside else -1
        if kind != "CONFINE":
            self._fence(home)
        return programs

    def _kill(self, datagram: wire.Datagram) -> None:
        """Kill an agent and its process group.

        A pid that is not our child's is the monitor's own, adopted from a zygote that died; any other has ended and
        its number may be somebody else's by now.
        """
        pid, uid, gid = datagram.number("pid"), datagram.number("uid"), datagram.number("gid")
        ids = self._children.get(pid) or ((uid, gid) if datagram.number("adopted") else None)
        if pid > 1 and ids is not None and self._floors.allow(*ids):
            self._errands.kill(ids, (-pid, pid))

    def _reap(self) -> Iterator[tuple[int, int]]:
        """Take the ends of children; yield pid and status of each agent."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (ids := self._children.pop(pid, None)) is None:
                self._errands.ended(pid, status)
            else:
                self._errands.agent_ended(pid, ids)
                yield pid, os.waitstatus_to_exitcode(status) & 0xFF

    def _tell(self, kind: str, **fields: int | str) -> None:
        wire.send(self._control, kind, fields)

    def _end(self) -> None:
        """Leave no agent behind: without a monitor nobody keeps their deadlines."""
        signal.set_wakeup_fd(-1)  # nobody reads it any more, and it is closed before the last child ends
        until = time.monotonic() + _GRACE
        last = until + _KILL
        while (self._children or self._errands.left()) and time.monotonic() < last:
            if time.monotonic() > until:
                until += _GRACE / 4
                for pid, ids in self._children.items():
                    self._errands.kill(ids, (-pid, pid))
                self._errands.look(now=True)
            time.sleep(0.05)
            deque(self._reap(), 0)


def drop(uid: int, gid: int, control: int, beside: Callable[[], int] = lambda: -1) -> None:
    """Give up everything but these ids and one descriptor, which becomes 3. Raises: then the process must end.

    beside: what takes away the more that an agent's ids would reach, before it forks a process while this one may still
    execute, or after; it returns a descriptor, which becomes PROGRAMS, or -1.
    """
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    if control != 3:
        os.dup2(control, 3, inheritable=False)
    linux.close_from(4)
    linux.count_processes()
    linux.become(uid, gid)
    linux.undumpable()
    linux.limit(LIMITS)
    linux.bound_processes(ROOM)
    os.chdir("/")
    programs = beside()
    if programs >= 0 and programs != PROGRAMS:
        os.dup2(programs, PROGRAMS, inheritable=False)
        os.close(programs)
    seccomp.install(seccomp.agent())
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def start(argv: list[str], load: Callable[[Mapping[str, Any]], Serve]) -> int:
    """Run as the monitor's child: descriptor 3 is its connection, argv[1] the settings as JSON.

    load: imports what an agent needs, once, and returns what serves in the child.
    """
    settings = json.loads(argv[1])
    log = Log("zygote", settings["log"])
    floors = Floors.from_site(settings)
    if not seccomp.filtered():
        seccomp.install(floors.filter())
    try:
        serve = load(settings)
    except Exception as error:  # noqa: BLE001 - an installation that is broken; the log says how, mail waits
        log("error", "cannot import", error=f"{type(error).__name__}: {error}")
        return os.EX_SOFTWARE
    gc.collect()
    gc.freeze()  # what is here stays shared with the agents
    programs = settings.get("programs")
    readable, writable = _shared(settings)
    reach = fenced.Reach.of(AgentSettings.from_site(settings))
    with socket.socket(fileno=3) as control:
        try:
            Zygote(
                control, floors, serve, log,
                beside=(lambda home, name: runner.beside(programs, home, name, keep=PROGRAMS)) if programs else None,
                wall=lambda home: confined.confine(home, readable, writable), fence=reach.fence,
            ).run()  # fmt: skip
        except (wire.WireError, OSError) as error:
            log("error", "stopped", error=str(error))
            return os.EX_TEMPFAIL
    return os.EX_OK


def _shared(settings: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the folders that the site lets everybody's agents and programs read, and write, beside the system's."""
    delivery, programs = settings["delivery"], settings.get("programs", {}).values()
    files = [delivery[name] for name in ("personal_rules", "rules_before", "rules_after")]
    read = [os.path.dirname(one) for one in files if one.startswith("/")]
    read += [one for program in programs for one in program["read"] if one.rstrip("/")]
    return read, [one for program in programs for one in program["write"]]


def _load(settings: Mapping[str, Any]) -> Serve:
    from milterapp.delivery import agent, sandbox
    from milterapp.delivery.agent_settings import AgentSettings

    sandbox.prepare()
    own = AgentSettings.from_site(settings)
    programs = PROGRAMS if own.programs else -1
    return lambda control, home, user: agent.serve(control, own, home, user, programs)


def main(argv: list[str]) -> int:
    """Run the zygote with the real agent."""
    return start(argv, _load)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
