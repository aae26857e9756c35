"""The monitor's event loop and its two child processes: watched sockets, started programs, at the other end of a pair.

Must never: let an error at one socket reach another's; start a child more often than once a second; execute anything
but what the monitor was built with, or pass on its environment.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from milterapp.delivery import linux, wire
from milterapp.delivery.event import Log

__all__ = ["Child", "Loop"]

_AGAIN = 1.0  # seconds between two starts of one child
_NOBODY = 65534  # the group that owns nothing; the monitor's own opens the folder of submit's socket
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    ready: Callable[[], None]
    fail: Callable[[str], None]


class Loop:
    """Sockets that wait to be read, each with what to do then and what to do when that fails."""

    def __init__(self, log: Log) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._log = log

    def watch(self, sock: socket.socket, ready: Callable[[], None], fail: Callable[[str], None]) -> None:
        """Call ready where there is something to read, and fail with a reason where that raised."""
        if sock.getblocking():
            sock.setblocking(False)  # noqa: FBT003 - the name of the method says it
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._watched[sock.fileno()] = _Watched(ready, fail)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching; nothing happens where it was not watched."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def turn(self, timeout: float | None) -> None:
        """Wait, seconds, and handle what is ready."""
        for fd, watched in [(fd, self._watched.get(fd)) for fd, _ in self._epoll.poll(timeout)]:
            if watched is None or self._watched.get(fd) is not watched:
                continue  # what came before it in this turn closed it
            try:
                watched.ready()
            except BlockingIOError:
                continue
            except (wire.WireError, OSError) as error:
                watched.fail(str(error))
            except Exception as error:  # noqa: BLE001 - the edge: one delivery is deferred, the others go on
                self._log("error", "fault", error=f"{type(error).__name__}: {error}")
                watched.fail("internal error")


@dataclass(slots=True)
class Child:
    """A program that runs beside the monitor, its descriptor 3 connected to `control`.

    privileged: it keeps the monitor's capabilities. lost: what to do when it is gone; it is started again after that.
    """

    name: str
    argv: Sequence[str]
    privileged: bool
    log: Log
    clock: Callable[[], float] = time.monotonic
    pid: int = 0
    control: socket.socket | None = None
    _next: float = field(default=float("-inf"))

    def start(self) -> bool:
        """Start it where it does not run and may be started now; return whether it was."""
        if self.pid or self.clock() < self._next:
            return False
        self._next = self.clock() + _AGAIN
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._execute(theirs)
        theirs.close()
        self.pid, self.control = pid, mine
        self.log("info", "started", child=self.name, pid=pid)
        return True

    def again(self) -> float:
        """Return the seconds until it may be started."""
        return max(0.0, self._next - self.clock())

    def gone(self) -> None:
        """Make sure that it is gone, and forget it; waiting for it is left to the monitor's reaping."""
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except OSError:
                pass  # it was gone already
            self.pid = 0

    def send(self, kind: str, fields: wire.Fields, descriptors: Sequence[int] = ()) -> None:
        """Send it a request. Raises OSError (it does not run, it does not read) or WireError."""
        if self.control is None:
            raise ConnectionError(f"the {self.name} is being started")
        wire.send(self.control, kind, fields, descriptors)

    def _execute(self, theirs: socket.socket) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if theirs.fileno() == 3:
                theirs.set_inheritable(True)
            else:
                os.dup2(theirs.fileno(), 3)
            linux.close_from(4)
            if not self.privileged:
                _give_up()
            zone = {"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}
            os.execve(self.argv[0], list(self.argv), _ENVIRONMENT | zone)  # noqa: S606 - that is the point
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into the monitor's loop
            self.log("error", "not started", child=self.name, error=str(error))
        finally:
            os._exit(os.EX_OSERR)


def _give_up() -> None:
    """Drop capabilities, and the monitor's group with them where a floor above nobody's does not forbid it."""
    os.setgroups([])  # the primary one may be among them
    try:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    except OSError:
        pass
    linux.drop_capabilities()
