"""The submit service: the one process that gives Postfix mail, for typed requests about a message it holds itself.

    python -I -m milterapp.delivery.submit JSON

Must never: take a sender, a recipient or a message for `keep` and replies from whoever asks beyond what the envelope
says; answer DONE before Postfix said 250 and the mark is on disk; send a thing twice that is marked.

SECURITY. It runs as its own account, with group postdrop to reach Postfix's public/ sockets. Connections are taken
from the monitor's uid alone (SO_PEERCRED). A datagram has envelope and sealed message, to be kept for the monitor, or
binds them to a line that comes with them: whoever has its other end (the recipient's agent) can only ask for what
follows from those. Headers are parsed here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from milterapp.delivery import door, linux, sealed, wire
from milterapp.delivery.event import Log
from milterapp.delivery.held import LONGEST, Held, hold
from milterapp.delivery.postman import DeferredError, Postman, RefusedError
from milterapp.delivery.requests import ENVELOPE, REQUESTS, printable, waiting
from milterapp.delivery.smtp import AddressError, SmtpError
from milterapp.delivery.submit_policy import SubmitPolicy
from milterapp.delivery.tasks import FOREVER, Task, Tasks, Wait, pause
from milterapp.state.database import StateError

__all__ = ["Service", "main"]

_CONNECTIONS = 100  # at once, and what is kept for the monitor; the rest wait in the backlog. Lines are counted apart
_FOR_ONE = 8  # lines of one user; an agent needs one, and what it killed before may still have another
_FULL = 0.05  # seconds until room is looked for again
_TIDY, _QUIET = 1.0, 60.0  # seconds between two looks at sessions with Postfix, and where there are none
_STOPPING = 30.0  # seconds for which a stop waits; what is cut off is in the gap that postman.py names
_GROWTH = 16 << 20  # bytes by which edits may make a message longer: a new body is at most a rule file long
_SWEEP = 3600.0  # seconds between two sweeps of old records


class Service:
    """Connections, a task each. idle: seconds for which a connection may say nothing, and all that a line may last."""

    def __init__(self, postman: Postman, policy: SubmitPolicy, monitor: int, log: Log, *, idle: float) -> None:
        self._postman = postman
        self._policy = policy
        self._monitor = monitor
        self._idle = idle
        self._tasks = Tasks()
        self._connections = self._lines = self._requests = 0
        self._users: Counter[str] = Counter()
        self._open, self._stopping = True, False
        self._log = log

    def run(self, listener: socket.socket) -> None:
        """Take connections until the listener is shut down; then wait for the requests under way."""
        self._tasks.start(self._listen(listener))
        swept, kept = time.monotonic(), False
        while self._open:
            self._tasks.turn(_TIDY if kept else _QUIET)
            kept = self._postman.tidy()
            if time.monotonic() - swept > _SWEEP:
                swept = time.monotonic()
                self._sweep()
        self._stopping = True
        until = time.monotonic() + _STOPPING
        while self._requests and time.monotonic() < until:
            self._tasks.turn(_TIDY)
        self._tasks.close()

    def _listen(self, listener: socket.socket) -> Task[None]:
        yield from door.callers(
            listener, self._begin,
            full=lambda: self._connections >= _CONNECTIONS,
            fault=lambda reason: self._log("error", "no connection taken", reason=reason),
        )  # fmt: skip
        self._open = False

    def _begin(self, connection: socket.socket) -> None:
        try:
            uid = wire.peer_uid(connection)
            if uid != self._monitor:
                raise wire.WireError(f"uid {uid} is not the monitor")
        except (wire.WireError, OSError) as error:
            self._log("error", "connection refused", reason=str(error))
            connection.close()
        else:
            self._tasks.start(self._serve(connection))

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Count a request under way. Raises WireError where the service stops: the asker defers."""
        if self._stopping:
            raise wire.WireError("stopping")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def _one_of(self, user: str, line: socket.socket) -> Iterator[None]:
        """Count a user's lines.

        Raises WireError, and tells who asks, where an agent keeps more than one can need, or there are too many of all:
        what is kept for the monitor goes on beside them.
        """
        if user and self._users[user] >= _FOR_ONE:
            raise _hung_up(line, f"{user!a} holds {_FOR_ONE} lines")
        if self._lines >= self._policy.lines:
            raise _hung_up(line, f"{self._lines} lines are in use")
        self._lines += 1
        self._users[user] += 1
        try:
            yield
        finally:
            self._lines -= 1
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    def _sweep(self) -> None:
        try:
            self._postman.sweep(int(time.time()))
        except StateError as error:
            self._log("error", "state", reason=str(error))

    def _serve(self, connection: socket.socket) -> Task[None]:
        """Take envelopes over one connection until its end: what to keep, or the line that requests come over."""
        with self._edge(), self._counted(), connection:
            connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
            patience = self._idle
            while (first := (yield from self._hear(connection, ENVELOPE, (1, 2), patience))) is not None:
                self._tasks.start(self._task(connection, first))
                patience = FOREVER  # a monitor may have nothing to say for long
                while self._connections >= _CONNECTIONS:
                    yield from pause(_FULL)

    def _task(self, connection: socket.socket, first: wire.Datagram) -> Task[None]:
        """Return what there is to do about an envelope. Raises WireError for one that makes no sense."""
        try:
            if "id" in first.fields:
                return self._keep(connection, first, first.number("id"))
            if len(first.descriptors) < 2:
                raise wire.WireError("an envelope without a line")
            return self._serve_line(first)
        except wire.WireError:
            first.close()
            raise

    def _keep(self, connection: socket.socket, asked: wire.Datagram, number: int) -> Task[None]:
        """Keep one message for the monitor, and answer over its connection; where that cannot be, the connection ends.

        The monitor then defers all that it asked over it. The journal knows what was sent.
        """
        answered = False
        try:
            with self._edge(), self._counted():
                if self._stopping:
                    said: tuple[str, Mapping[str, str]] = "FAILED", {"text": "milterapp submit is stopping"}
                    yield from _tell(connection, number, said, self._idle)
                else:
                    with self._busy():
                        said = yield from self._kept(asked)
                        yield from _tell(connection, number, said, self._idle)
                answered = True
        finally:
            asked.close()
            if not answered:
                with suppress(OSError):  # it has ended
                    connection.shutdown(socket.SHUT_RDWR)

    def _kept(self, asked: wire.Datagram) -> Task[tuple[str, Mapping[str, str]]]:
        """Keep a message, as edited if it was; return the answer."""
        _, *edited = asked.descriptors
        try:
            held = yield from hold(asked)
        except (sealed.SealError, OSError) as error:
            return "FAILED", {"text": waiting(f"keep: {error}")}
        kind, fields = yield from self._answer(held, wire.Datagram("KEEP", {}, tuple(edited)))
        return (kind, fields) if kind == "DONE" else ("FAILED", {"text": waiting(f"keep: {fields['text']}")})

    def _serve_line(self, first: wire.Datagram) -> Task[None]:
        """Serve one line, which came with its envelope, until its end: the monitor ends it with the agent's job."""
        try:
            with self._edge(), _line(first.descriptors[1]) as line:
                line.setblocking(False)  # noqa: FBT003 - the same
                with self._one_of(first.text("user"), line):
                    yield from self._converse(line, first)
        finally:
            first.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a connection, or what is kept for the monitor."""
        self._connections += 1
        try:
            yield
        finally:
            self._connections -= 1

    @contextmanager
    def _edge(self) -> Iterator[None]:
        """Let no fault of a connection or a line out."""
        try:
            yield
        except (wire.WireError, sealed.SealError, OSError) as error:
            self._log("warning", "connection closed", reason=str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a task's edge: the asker sees the end of the connection and defers
            self._log("error", "internal error", reason=f"{type(error).__name__}: {error}")

    def _hear(
        self,
        connection: socket.socket,
        known: Mapping[str, Collection[str]],
        descriptors: Collection[int],
        seconds: float,
    ) -> Task[wire.Datagram | None]:
        """Return the next datagram, as wire.receive() does. Raises TimeoutError too."""
        while True:
            try:
                return wire.receive(connection, known, descriptors=descriptors)
            except BlockingIOError:
                yield Wait(connection.fileno(), seconds=seconds)

    def _converse(self, line: socket.socket, first: wire.Datagram) -> Task[None]:
        """Answer what is asked over a line, within what one message can need: all others wait for the same thread."""
        until = time.monotonic() + self._idle
        held = yield from hold(first)
        left = self._policy.requests
        while (seconds := until - time.monotonic()) > 0:
            yield Wait(line.fileno(), seconds=seconds)  # also where there is something: others have their turn
            request = yield from self._hear(line, REQUESTS, (0, 1), seconds)
            if request is None:
                return
            try:
                if not left:
                    raise _hung_up(line, f"{held.user!a} asks more than {self._policy.requests} things of one message")
                left -= 1
                with self._busy():
                    kind, fields = yield from self._answer(held, request)
                    wire.send(line, kind, fields)
            finally:
                request.close()
        raise TimeoutError(f"a line of {held.user!a} lasted {self._idle:.0f} seconds")

    def _answer(self, held: Held, request: wire.Datagram) -> Task[tuple[str, Mapping[str, str]]]:
        """Return the response to one request, and write its line to the log."""
        start = time.monotonic()
        try:
            queue_id = yield from self._postman.carry(held, self._bounded(held, request), time.time())
            kind, fields = "DONE", {"queue_id": queue_id}
        except RefusedError as refused:
            kind, fields = "REFUSED", {"text": printable(str(refused))}
        except (DeferredError, SmtpError, AddressError, StateError, sealed.SealError, OSError) as error:
            kind, fields = "FAILED", {"text": printable(str(error) or type(error).__name__)}
        except Exception as error:  # noqa: BLE001 - the edge of one request: a fault of ours is temporary
            kind, fields = "FAILED", {"text": printable(f"internal error: {type(error).__name__}")}
            self._log(
                "error", "internal error", reason=f"{type(error).__name__}: {error}", queue_id=held.envelope.queue_id
            )
        self._log(
            "info", request.kind.lower(),
            queue_id=held.envelope.queue_id, recipient=printable(held.recipient), result=kind.lower(),
            new_queue_id=fields.get("queue_id", ""), reason=fields.get("text", ""),
            seconds=round(time.monotonic() - start, 3),
        )  # fmt: skip
        return kind, fields

    def _bounded(self, held: Held, request: wire.Datagram) -> wire.Datagram:
        """Return the request, to keep what edits made too long as it came: each attempt would have the same bytes.

        Raises SealError where the edited message is not sealed; RefusedError: a forward's owner then keeps it.
        """
        size = max((sealed.measure(one, LONGEST) for one in request.descriptors), default=0)
        most = max(held.size + _GROWTH, self._policy.output)
        if size <= most:
            return request
        why = f"the message as edited has {size} bytes, more than {most}"
        if request.kind != "KEEP":
            raise RefusedError(why)
        of = {"queue_id": held.envelope.queue_id, "recipient": printable(held.recipient)}
        self._log("warning", "kept unedited", **of, reason=why)
        return wire.Datagram("KEEP", {})


@contextmanager
def _line(descriptor: int) -> Iterator[socket.socket]:
    """Have a socket of a descriptor that stays the caller's, and end the line after it, which the monitor has open too.

    Raises OSError: then nothing is left open.
    """
    own = os.dup(descriptor)
    try:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=own)
    except BaseException:
        os.close(own)
        raise
    with line:
        try:
            yield line
        finally:
            with suppress(OSError):  # it has ended
                line.shutdown(socket.SHUT_RDWR)


def _hung_up(line: socket.socket, why: str) -> wire.WireError:
    """Tell whoever has the other end of a line why it ends, and return that for the log."""
    with suppress(OSError):  # nobody has, or reads it
        wire.send(line, "FAILED", {"text": printable(why)})
    return wire.WireError(why)


def _tell(connection: socket.socket, number: int, said: tuple[str, Mapping[str, str]], seconds: float) -> Task[None]:
    """Send an answer over a connection that has others too: another task may wait for what comes over it.

    Raises OSError: the asker is gone, or reads nothing for that long.
    """
    kind, fields = said
    until = time.monotonic() + seconds
    while True:
        try:
            wire.send(connection, kind, {"id": number, **fields})
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            yield from pause(_FULL)
        else:
            return


def main(argv: list[str]) -> int:
    """Run the service with the site's settings, one JSON object; return an exit code of sysexits(3)."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -I -m milterapp.delivery.submit JSON\n")
        return os.EX_USAGE
    settings: Mapping[str, Any] = json.loads(argv[0])
    own, accounts, delivery = settings["submit"], settings["accounts"], settings["delivery"]
    log = Log("submit", settings["log"])
    try:
        monitor, account = linux.account(accounts["monitor"]), linux.account(accounts["submit"])
        door.make_folder(os.path.dirname(own["socket"]), account.uid, monitor.gid, 0o2750)
        door.make_folder(own["state"], account.uid, account.gid, 0o700)
        linux.drop_to_account(accounts["submit"], supplementary=("postdrop",))
        os.umask(0o077)
        policy = SubmitPolicy.from_site(settings)
        postman = Postman(policy)
        listener = door.listen(own["socket"], 0o660)
    except (linux.PrivilegeError, ValueError) as error:
        log("error", "cannot start", reason=str(error))
        return os.EX_CONFIG
    except (StateError, OSError) as error:  # a full disk, a former one that still ends: worth another try
        log("error", "cannot start", reason=str(error))
        return os.EX_TEMPFAIL
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.shutdown(socket.SHUT_RDWR))
    log("info", "ready", socket=own["socket"])
    Service(postman, policy, monitor.uid, log, idle=delivery["deadline"] + delivery["wait"]).run(listener)
    postman.leave()
    log("info", "stopped")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
