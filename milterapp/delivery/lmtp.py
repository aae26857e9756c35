"""The LMTP door: takes mail from Postfix's lmtp(8) and hands it to the monitor, one answer for each recipient.

    python -I -m milterapp.delivery.lmtp JSON

Must never: name a uid, parse more of a message than its topmost Received field, answer for the monitor anything but a
deferral.

SECURITY. It runs as its own account without a capability, and with the pipe client's group, to reach the monitor's
socket. Who may connect is for the socket's folder to say. What it can do is what the pipe client can: hand over a
message with its envelope. It stays, so that no process is started for a message. Which of its sockets a client came by
says whether the recipients are accounts of this host or people in virtual domains: nothing that a client says can.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from milterapp.delivery import door, linux, wire
from milterapp.delivery.event import Log
from milterapp.delivery.lines import Line, Lines
from milterapp.delivery.lmtp_session import Answer, Item, Session
from milterapp.delivery.tasks import Task, Tasks

__all__ = ["Service", "ask", "main"]

DEADLINE = 540.0  # seconds for the monitor; Postfix waits lmtp_data_done_timeout, 600
_IDLE = 330.0  # seconds for which a client may say nothing; Postfix waits 300 in the middle of a message
_QUIET, _SOON = 60.0, 1.0  # seconds of a turn in which nothing happens; and while it stops
_DESCRIPTORS = 16384  # at most: a connection to the monitor for each recipient of the messages under way
_STOPPING = 30.0  # seconds for which a stop waits for messages under way; the journals know the rest


def ask(lines: Lines, items: Sequence[Item], message: int, kind: str = "DELIVER") -> Task[list[Answer]]:
    """Hand the message to the monitor for each recipient, all at once; return their answers in the same order.

    Every fault is a deferral of that one recipient. message: sealed, shared by all of them; kind: of `kinds.DELIVER`.
    """
    until = time.monotonic() + lines.deadline
    asked: list[Line | Answer] = []
    answers: list[Answer] = []
    for item in items:
        line = yield from _begin(lines, item, message, kind)
        asked.append(line)
    for one in asked:
        answer = yield from _wait(one, until)
        answers.append(answer)
    return answers


def _begin(lines: Lines, item: Item, message: int, kind: str) -> Task[Line | Answer]:
    try:
        return (yield from lines.hand_over(item, message, kind))
    except (OSError, wire.WireError) as error:
        return Answer("defer", f"4.3.0 the monitor does not answer: {getattr(error, 'strerror', '') or error}")


def _wait(line: Line | Answer, until: float) -> Task[Answer]:
    if isinstance(line, Answer):
        return line
    try:
        answer = yield from line.answer(until)
    except TimeoutError:
        return Answer("defer", "4.3.0 no answer in time")
    except (OSError, wire.WireError) as error:
        return Answer("defer", f"4.3.0 the monitor's answer: {error}")
    if answer is None:
        return Answer("defer", "4.3.0 the monitor gave up this message")
    return Answer(answer.text("status"), answer.text("text"))


class Service:
    """Connections, a task each. monitor: path of its socket; connections: how many at once."""

    def __init__(self, monitor: str, log: Log, *, connections: int) -> None:
        self._lines, self._log = Lines(monitor, DEADLINE), log
        self._tasks = Tasks()
        self._most, self._connections, self._messages = connections, 0, 0
        self._stopping = False

    def run(self, listeners: Mapping[str, socket.socket]) -> None:
        """Take connections until a listener is shut down; then wait for the messages under way.

        listeners: by the kind of datagram that the monitor gets for who comes there, of `kinds.DELIVER`.
        """
        for kind, listener in listeners.items():
            self._tasks.start(self._listen(kind, listener))
        while not self._stopping:
            self._tasks.turn(_QUIET)
        until = time.monotonic() + _STOPPING
        while self._messages and time.monotonic() < until:
            self._tasks.turn(_SOON)
        self._tasks.close()
        self._lines.close()

    def _listen(self, kind: str, listener: socket.socket) -> Task[None]:
        yield from door.callers(
            listener, lambda connection: self._tasks.start(self._serve(kind, connection)),
            full=lambda: self._connections >= self._most,
            fault=lambda reason: self._log("error", "not listening", error=reason),
        )  # fmt: skip
        self._stopping = True

    def _serve(self, kind: str, connection: socket.socket) -> Task[None]:
        self._connections += 1
        try:
            with connection:
                hand_over = partial(self._hand_over, kind)
                yield from Session(
                    connection, hand_over, idle=_IDLE, stopping=lambda: self._stopping, busy=self._busy
                ).run()
        except OSError as error:
            self._log("warning", "connection closed", error=error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - a task's edge: Postfix sees the end of the connection and defers
            self._log("error", "internal error", error=f"{type(error).__name__}: {error}")
        finally:
            self._connections -= 1

    def _busy(self, busy: bool) -> None:  # noqa: FBT001 - the session calls it with that one value
        self._messages += 1 if busy else -1

    def _hand_over(self, kind: str, items: Sequence[Item], message: int) -> Task[Sequence[Answer]]:
        start = time.monotonic()
        answers = yield from ask(self._lines, items, message, kind)
        self._log(
            "info", "message", queue_id=items[0]["queue_id"], recipients=len(items), size=os.fstat(message).st_size,
            answers=" ".join(one.status for one in answers), seconds=round(time.monotonic() - start, 3),
        )  # fmt: skip
        return answers


def main(argv: list[str]) -> int:
    """Run the service with the site's settings, one JSON object; return an exit code of sysexits(3)."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -I -m milterapp.delivery.lmtp JSON\n")
        return os.EX_USAGE
    settings: Mapping[str, Any] = json.loads(argv[0])
    own, accounts, log = settings["lmtp"], settings["accounts"], Log("lmtp", settings["log"])
    places = {"DELIVER": own["socket"]} | (
        {"VIRTUAL": own["virtual_socket"]} if settings["delivery"]["recipients"] else {}
    )
    try:
        client, account = linux.account(accounts["pipe"]), linux.account(accounts["lmtp"])
        group = linux.group(own["socket_group"])
        for place in places.values():
            door.make_folder(os.path.dirname(place), account.uid, group, 0o2750)
        linux.drop_to_account(accounts["lmtp"], supplementary=(str(client.gid),))
        linux.undumpable()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
        os.umask(0o077)
        listeners = {kind: door.listen(place, 0o660, socket.SOCK_STREAM) for kind, place in places.items()}
    except (linux.PrivilegeError, ValueError, OSError) as error:
        log("error", "cannot start", error=str(error))
        return os.EX_TEMPFAIL if isinstance(error, OSError) else os.EX_CONFIG  # what may pass is tried again

    def stop(*_: object) -> None:
        for listener in listeners.values():
            listener.shutdown(socket.SHUT_RDWR)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log("info", "ready", socket=own["socket"], virtual=places.get("VIRTUAL"))
    Service(settings["delivery"]["socket"], log, connections=own["connections"]).run(listeners)
    log("info", "stopped")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
