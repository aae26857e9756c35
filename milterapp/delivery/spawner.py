"""The spawner: runs scripts of the site's rules for the milter, whose threaded workers must never fork.

    python -I -m milterapp.delivery.spawner JSON

Must never: start a thread, read a job (its children do not either; the script process itself does), let a child live
past its deadline, or take a job from anybody but the milter.

SECURITY. It runs as its own account, with no capability, nothing it may write and one socket. A connection is taken
from the milter's uid alone (SO_PEERCRED) and handed to a child unread; the child takes one bounded datagram with one
sealed memfd, passes what that holds on to the script process (`sandbox`), and what that answers back, both unread.
"""

from __future__ import annotations

import gc
import json
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from milterapp import log
from milterapp.delivery import door, linux, sandbox, sealed, wire
from milterapp.delivery.requests import SCRIPT_JOBS, printable
from milterapp.script.examining import serve_examination
from milterapp.script.run import serve
from milterapp.settings import MilterSettings

__all__ = ["Spawner", "Terms", "main"]

_GRACE = 1.0  # seconds that a child has beyond that to say so itself
_AGAIN = 0.5  # seconds, where a connection cannot be taken
_CHANNEL = 3  # a child's descriptor
_LONGEST_SCRIPT = 4 << 20  # bytes, what comes with it included

Work = Callable[[bytes, sandbox.Ask], bytes]
_WORK: Mapping[str, Work] = {"RUN": serve, "EXAMINE": serve_examination}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job is run on. milter: whose uid may ask; processes: jobs at once; seconds: the most for one; message:
    the most bytes of one; floor: the least level of the sandbox.
    """

    milter: int
    processes: int = 16
    seconds: float = 10.0
    message: int = 128 << 20
    floor: str = "good"


@dataclass(frozen=True, slots=True)
class _Child:
    """pidfd: readable once it has ended; until: when it is killed, of the monotonic clock."""

    pid: int
    pidfd: int
    until: float


class Spawner:
    """Takes connections and forks a child for each, so many at once; the rest wait in the backlog."""

    def __init__(self, listener: socket.socket, terms: Terms) -> None:
        listener.setblocking(False)  # noqa: FBT003 - the name of the method says it
        self._listener = listener
        self._terms = terms
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}  # by pidfd
        self._listening = False
        self._not_before = 0.0
        self._stopping = False
        self._log = log.get("script")

    def run(self) -> None:
        """Serve until stop(); children under way are ended with it, as nobody waits longer for them than for us."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._selector.register(reading, selectors.EVENT_READ)
        gc.freeze()  # so that a child's collection copies no page of ours
        while not self._stopping:
            self._turn(reading)
        signal.set_wakeup_fd(-1)
        for child in list(self._children.values()):
            self._end(child)

    def stop(self, *_: object) -> None:
        """End at the next turn; a signal handler."""
        self._stopping = True

    def _turn(self, reading: int) -> None:
        """Wait until something happens, and see to it."""
        now = time.monotonic()
        wants = len(self._children) < self._terms.processes and now >= self._not_before
        if wants is not self._listening:
            self._listening = wants
            if wants:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)
        moments = [child.until for child in self._children.values()]
        moments += [self._not_before] if self._not_before > now else []
        for key, _ in self._selector.select(max(0.0, min(moments) - now) if moments else None):
            if key.fd == reading:
                os.read(reading, 512)
            elif key.fd in self._children:
                self._end(self._children[key.fd])
            else:
                self._take()
        for child in list(self._children.values()):
            if time.monotonic() >= child.until:
                self._log.error("killed past its deadline", pid=child.pid)
                self._end(child)

    def _take(self) -> None:
        """Take one connection, from the milter only, and give it a child."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._log.error("no connection taken", reason=str(error))
            self._not_before = time.monotonic() + _AGAIN
            return
        with connection:
            try:
                uid = wire.peer_uid(connection)
                if uid != self._terms.milter:
                    self._log.error("connection refused", reason=f"uid {uid} is not the milter")
                    return
                self._fork(connection)
            except OSError as error:  # who asked sees the end of its connection
                self._log.error("no process for a job", reason=str(error))
                self._not_before = time.monotonic() + _AGAIN

    def _fork(self, connection: socket.socket) -> None:
        """Raises OSError."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(connection, parent, self._terms)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        until = time.monotonic() + self._terms.seconds + _GRACE
        self._children[pidfd] = _Child(pid, pidfd, until)
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _end(self, child: _Child) -> None:
        """Kill a child where it lives, its script process with it, and forget it."""
        self._selector.unregister(child.pidfd)
        del self._children[child.pidfd]
        os.close(child.pidfd)
        os.kill(child.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        os.waitpid(child.pid, 0)


def _child(connection: socket.socket, parent: int, terms: Terms) -> NoReturn:
    """Do one job. Whatever happens, this process ends here; who asked sees an answer, or the end of its connection."""
    try:
        linux.die_with_parent()
        if os.getppid() != parent:
            raise ProcessLookupError("the spawner has ended")
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(connection.fileno(), _CHANNEL, inheritable=False)
        linux.close_from(_CHANNEL + 1)
        _serve(socket.socket(fileno=_CHANNEL), terms)
    except (wire.WireError, sealed.SealError, OSError) as error:
        log.get("script").error("connection closed", reason=str(error) or type(error).__name__)
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into the spawner's loop
        log.get("script").error("internal error", reason=f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _serve(connection: socket.socket, terms: Terms) -> None:
    """Take one job and answer it. Raises WireError, SealError, OSError."""
    until = time.monotonic() + terms.seconds
    connection.settimeout(terms.seconds)
    request = wire.receive(connection, SCRIPT_JOBS, descriptors=(1,))
    if request is None:
        return
    (job,) = request.descriptors
    sealed.measure(job, terms.message + _LONGEST_SCRIPT)
    left = min(until - time.monotonic(), request.number("milliseconds") / 1000)
    if left <= 0:
        raise TimeoutError("no time is left for the job")
    data = sealed.read(job)
    request.close()
    work, bounds = _WORK[request.kind], sandbox.Bounds(cpu=math.ceil(left), wall=left, questions=0)
    try:
        answer = sandbox.run(lambda ask: work(data, ask), None, bounds, None, terms.floor)
    except sandbox.SandboxError as error:
        wire.send(connection, "FAILED", {"reason": error.reason, "text": printable(str(error))})
        return
    memory = sealed.seal([answer])
    wire.send(connection, "DONE", {}, [memory])


def main(argv: list[str]) -> int:
    """Run the service with the site's settings, one JSON object; return an exit code of sysexits(3)."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -I -m milterapp.delivery.spawner JSON\n")
        return os.EX_USAGE
    settings: Mapping[str, Any] = json.loads(argv[0])
    own, accounts = settings["script"], settings["accounts"]
    log.configure(settings["log"])
    said = log.get("script")
    try:
        milter, account = linux.account(accounts["milter"]), linux.account(accounts["script"])
        if milter.uid == account.uid:
            raise linux.PrivilegeError("accounts.script is accounts.milter, expected another")
        door.make_folder(os.path.dirname(own["socket"]), account.uid, milter.gid, 0o2750)
        linux.drop_to_account(accounts["script"])
        os.umask(0o077)
        sandbox.prepare()
        listener = door.listen(own["socket"], 0o660)
    except (linux.PrivilegeError, ValueError) as error:
        said.error("cannot start", reason=str(error))
        return os.EX_CONFIG
    except OSError as error:  # a former one that still ends: worth another try
        said.error("cannot start", reason=str(error))
        return os.EX_TEMPFAIL
    terms = Terms(
        milter.uid,
        own["processes"],
        MilterSettings(**settings["milter"]).script_time,
        settings["limits"]["message_bytes"],
        settings["delivery"]["sandbox"],
    )
    spawner = Spawner(listener, terms)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, spawner.stop)
    said.info("ready", socket=own["socket"], sandbox=str(sandbox.probe()))
    spawner.run()
    said.info("stopped")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
