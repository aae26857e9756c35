"""The monitor: from a message of either door to an agent with the recipient's ids, or back to Postfix, in time.

Must never: read a message, open a file under a home, parse what a user or an agent wrote, resolve a recipient, import
anything but the standard library and its neighbours that do the same.

SECURITY: it runs as its own account with CAP_SETUID and CAP_SETGID, under a seccomp filter that lets them reach only
ids at or above the site's floors. It reads one bounded datagram of tagged fields from a peer whose uid the kernel
vouches for, and passes descriptors on. Whatever fails is deferred: Postfix has the message. What becomes of each
message stands in `deliveries`; here are the start, the loop, the two children and the end.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from milterapp.delivery import kinds, linux, seccomp, wire
from milterapp.delivery.agents import Agents
from milterapp.delivery.children import Child, Loop
from milterapp.delivery.deliveries import Deliveries
from milterapp.delivery.event import Log

__all__ = ["BusyError", "Monitor", "listen", "main", "program", "run"]

_TICK, _QUIET = 0.1, 1.0  # seconds between two looks at the clock, while something waits and while nothing does
_MOST = 500  # deliveries at once; more wait in the socket's backlog
_DESCRIPTORS = 8  # of ours for each delivery, at most
_BACKLOG = 512
_DRAIN = 25.0  # seconds for what is under way, after SIGTERM; systemd waits 90
_LEAVE = 6.0  # seconds for the children to leave then


class BusyError(Exception):
    """Another monitor runs."""


class Monitor:
    """The loop. settings: as in `dataclasses.asdict(Settings())`.

    peers: the uids that may deliver, and whether they send one message after the other over a connection.

    zygote, resolver: what to execute, with its arguments.
    """

    def __init__(
        self, settings: Mapping[str, Any], listener: socket.socket, peers: Mapping[int, bool], log: Log, *,
        zygote: Sequence[str], resolver: Sequence[str], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        own = settings["delivery"]
        self._listener, self._peers, self._log, self._clock = listener, peers, log, clock
        self._loop = Loop(log)
        self._zygote = Child("zygote", zygote, privileged=True, log=log, clock=clock)
        self._resolver = Child("resolver", resolver, privileged=False, log=log, clock=clock)
        self._agents = Agents(
            self._loop, self._zygote, log,
            most=own["agents"], idle=own["idle"], deadline=own["deadline"], clock=clock,
        )  # fmt: skip
        self._deliveries = Deliveries(settings, self._loop, self._resolver, self._agents, log, clock)
        self._most = min(_MOST, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS))
        self._listening = self._stopping = False
        self._ears_at = 0.0  # when to listen again
        self._looks_at = 0.0  # when to look at the deadlines again
        self._wake, self._woken = socket.socketpair()

    def run(self) -> None:
        """Deliver until SIGTERM, then finish what is under way and end the children."""
        self._woken.setblocking(False)  # noqa: FBT003 - the name of the method says it
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._loop.watch(self._wake, self._woke, lambda _: None)
        while not self._stopping:
            self._turn()
        self._drain()

    def _turn(self) -> None:
        self._start(self._zygote, self._from_zygote, self._zygote_lost)
        self._start(self._resolver, self._from_resolver, self._resolver_lost)
        self._listen()
        busy = len(self._deliveries) or not (self._zygote.pid and self._resolver.pid) or not self._listening
        self._loop.turn(_TICK if busy else _QUIET)
        if self._clock() >= self._looks_at:
            self._looks_at = self._clock() + _TICK
            if not self._agents.tick():
                self._zygote_lost("it does not answer")
            if not self._deliveries.tick():
                self._resolver_lost("it does not answer")
        self._deliveries.dispatch()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    # the client

    def _listen(self) -> None:
        """Listen while there is room for more."""
        wanted = not self._stopping and len(self._deliveries) < self._most and self._clock() >= self._ears_at
        if wanted and not self._listening:
            self._loop.watch(self._listener, self._accept, self._deaf)
        elif self._listening and not wanted:
            self._loop.unwatch(self._listener)
        self._listening = wanted

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        uid = wire.peer_uid(connection)
        if uid in self._peers:
            self._deliveries.accept(connection, stays=self._peers[uid])
        else:
            connection.close()
            self._log("warning", "refused", uid=uid)

    def _deaf(self, why: str) -> None:
        self._log("error", "not listening", error=why)
        self._ears_at = self._clock() + 1.0

    # the children

    def _start(self, child: Child, ready: Callable[[], None], lost: Callable[[str], None]) -> None:
        if child.start() and child.control is not None:
            self._loop.watch(child.control, ready, lost)

    def _hear(self, child: Child, known: Mapping[str, Sequence[str]]) -> wire.Datagram:
        datagram = None if child.control is None else wire.receive(child.control, known)
        if datagram is None:
            raise ConnectionError("it ended")
        return datagram

    def _from_zygote(self) -> None:
        self._agents.from_zygote(self._hear(self._zygote, kinds.FROM_ZYGOTE))

    def _from_resolver(self) -> None:
        self._deliveries.from_resolver(self._hear(self._resolver, kinds.FROM_RESOLVER))

    def _zygote_lost(self, why: str) -> None:
        self._child_lost(self._zygote, why)
        self._agents.zygote_lost()

    def _resolver_lost(self, why: str) -> None:
        self._child_lost(self._resolver, why)
        self._deliveries.resolver_lost()

    def _child_lost(self, child: Child, why: str) -> None:
        self._log("error", "lost", child=child.name, pid=child.pid, error=why)
        if child.control is not None:
            self._loop.unwatch(child.control)
        child.gone()

    def _woke(self) -> None:
        """Take the ends of children, and of agents whose zygote has died."""
        self._wake.recv(4096)
        while True:
            try:
                pid = os.waitpid(-1, os.WNOHANG)[0]
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._zygote.pid:
                self._last_words(self._zygote, self._from_zygote, self._zygote_lost)
            elif pid == self._resolver.pid:
                self._last_words(self._resolver, self._from_resolver, self._resolver_lost)
            else:
                self._agents.reaped(pid)

    def _last_words(self, child: Child, ready: Callable[[], None], lost: Callable[[str], None]) -> None:
        """Take what a child that has ended had still said: the pid of an agent may be among it."""
        pid, child.pid = child.pid, 0  # another process may have that number by now
        try:
            while True:
                ready()
        except (OSError, wire.WireError):
            lost(f"process {pid} ended")

    # the end

    def _drain(self) -> None:
        """Let what has begun come to its end, defer the rest, leave no process behind."""
        self._log("info", "stopping", under_way=len(self._deliveries))
        self._listen()
        self._listener.close()
        until = self._clock() + _DRAIN
        while len(self._deliveries) and self._clock() < until:
            self._deliveries.stop()
            self._agents.stop(kill=False)
            self._loop.turn(_TICK)
            self._agents.tick()
            self._deliveries.tick()
        self._agents.stop(kill=True)
        until = self._clock() + _LEAVE
        while len(self._agents) and self._clock() < until:
            self._loop.turn(_TICK)
            self._agents.tick()
        left = {child.pid for child in (self._zygote, self._resolver)} - {0}
        for child in (self._zygote, self._resolver):
            if child.control is not None:
                self._loop.unwatch(child.control)
                child.control.close()  # they leave by themselves, the zygote after its agents
        while left and self._clock() < until:
            left -= {pid for pid in left if _ended(pid)}
            time.sleep(0.01)
        for child in (self._zygote, self._resolver):
            child.gone()
        self._log("info", "stopped")


_STATUSES: Mapping[type[Exception], int] = {
    BusyError: os.EX_TEMPFAIL,
    linux.PrivilegeError: os.EX_NOPERM,
    ValueError: os.EX_CONFIG,
    OSError: os.EX_OSERR,
}


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True  # it was taken before


def make_folder(path: str, owner: linux.Account, group: int) -> None:
    """Make the folder of the socket where it is missing and this is root; one that exists is the site's own matter."""
    if os.geteuid() == 0 and not os.path.lexists(path):
        os.makedirs(path, 0o755)
        os.chown(path, owner.uid, group)
        os.chmod(path, 0o2750)  # noqa: S103 - the set-gid bit gives the socket the client's group


def listen(path: str) -> socket.socket:
    """Return the listening socket, in place of one that a former monitor left. Raises BusyError or OSError.

    Its mode lets everybody connect; who may is for its folder to say, and for SO_PEERCRED.
    """
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
                probe.connect(path)
            raise BlockingIOError
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)
    except BlockingIOError as error:
        raise BusyError(f"another monitor serves {path}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o111)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _lmtp_uid(name: str) -> Iterator[int]:
    """Yield the uid of the LMTP door, where its account was made; a site with the pipe door alone needs none."""
    try:
        yield linux.account(name).uid
    except linux.PrivilegeError:
        return


def program(module: str, settings: str) -> list[str]:
    """Return how to execute one of our modules, isolated, with the settings as JSON."""
    return [sys.executable, "-I", "-m", module, settings]


def run(text: str, *, zygote: Sequence[str] = (), resolver: Sequence[str] = ()) -> int:
    """Run the monitor with settings as JSON until it is stopped; return an exit status of sysexits(3).

    zygote, resolver: what to execute in place of ours, for tests.
    """
    settings = json.loads(text)
    own, accounts, log = settings["delivery"], settings["accounts"], Log("monitor", settings["log"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST * _DESCRIPTORS)), hard))
    try:
        client = linux.account(accounts["pipe"])
        peers = {client.uid: False} | dict.fromkeys(_lmtp_uid(accounts["lmtp"]), True)
        make_folder(os.path.dirname(own["socket"]), linux.account(accounts["monitor"]), client.gid)
        account = linux.keep_capabilities(accounts["monitor"])
        seccomp.install(seccomp.service(own["min_uid"], own["min_gid"], own["gids"]))
        linux.undumpable()
        linux.adopt_orphans()
        listener = listen(own["socket"])
    except tuple(_STATUSES) as error:
        log("error", "cannot start", error=str(error))
        return next(status for kind, status in _STATUSES.items() if isinstance(error, kind))
    log("info", "ready", uid=account.uid, socket=own["socket"], landlock=linux.landlock_abi())
    Monitor(
        settings, listener, peers, log,
        zygote=zygote or program("milterapp.delivery.zygote", text),
        resolver=resolver or program("milterapp.delivery.resolver", text),
    ).run()  # fmt: skip
    return os.EX_OK


def main(argv: Sequence[str]) -> int:
    """Run the monitor; argv[1]: the settings as JSON."""
    return run(argv[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
