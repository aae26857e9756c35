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

import errno
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from milterapp.delivery import door, linux, threads, wire
from milterapp.delivery.event import Log
from milterapp.delivery.lines import Line, Lines
from milterapp.delivery.lmtp_session import Answer, Item, Session

__all__ = ["Service", "ask", "main"]

DEADLINE = 540.0  # seconds for the monitor; Postfix waits lmtp_data_done_timeout, 600
_IDLE = 330.0  # seconds for which a client may say nothing; Postfix waits 300 in the middle of a message
_STACK = 512 * 1024
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})  # it passes
_STOPPING = 30.0  # seconds for which a stop waits for messages under way; the journals know the rest


def ask(lines: Lines, items: Sequence[Item], message: int, kind: str = "DELIVER") -> list[Answer]:
    """Hand the message to the monitor for each recipient, all at once; return their answers in the same order.

    Every fault is a deferral of that one recipient. message: sealed, shared by all of them; kind: of `kinds.DELIVER`.
    """
    until = time.monotonic() + lines.deadline
    asked = [_begin(lines, item, message, kind) for item in items]
    return [one if isinstance(one, Answer) else _wait(one, until) for one in asked]


def _begin(lines: Lines, item: Item, message: int, kind: str) -> Line | Answer:
    try:
        return lines.hand_over(item, message, kind)
    except (OSError, wire.WireError) as error:
        return Answer("defer", f"4.3.0 the monitor does not answer: {getattr(error, 'strerror', '') or error}")


def _wait(line: Line, until: float) -> Answer:
    try:
        answer = line.answer(until)
    except TimeoutError:
        return Answer("defer", "4.3.0 no answer in time")
    except (OSError, wire.WireError) as error:
        return Answer("defer", f"4.3.0 the monitor's answer: {error}")
    if answer is None:
        return Answer("defer", "4.3.0 the monitor gave up this message")
    return Answer(answer.text("status"), answer.text("text"))


class Service:
    """Connections, a thread each. monitor: path of its socket; connections: how many at once."""

    def __init__(self, monitor: str, log: Log, *, connections: int) -> None:
        self._lines, self._log = Lines(monitor, DEADLINE), log
        self._room = threads.Room(connections)
        self._quiet = threading.Condition()
        self._messages = 0
        self._stopping = False

    def run(self, listeners: Mapping[str, socket.socket]) -> None:
        """Take connections until a listener is shut down; then wait for the messages under way.

        listeners: by the kind of datagram that the monitor gets for who comes there, of `kinds.DELIVER`.
        """
        threading.stack_size(_STACK)
        poll = select.poll()
        for listener in listeners.values():
            poll.register(listener, select.POLLIN)
        while True:
            place = self._room.place()
            ready = {descriptor for descriptor, _ in poll.poll()}
            kind, listener = next(one for one in listeners.items() if one[1].fileno() in ready)
            try:
                connection, _ = listener.accept()
            except OSError as error:
                del place
                if error.errno not in _FULL:
                    break
                self._log("error", "not listening", error=str(error))
                time.sleep(1)
                continue
            try:
                threads.start(partial(self._serve, kind), connection, place)
            except RuntimeError as error:
                self._log("error", "connection refused", error=str(error))
                connection.close()
            del connection, place  # they are the thread's
        with self._quiet:
            self._stopping = True
            self._quiet.wait_for(lambda: self._messages == 0, timeout=_STOPPING)
        self._lines.close()

    def _serve(self, kind: str, connection: socket.socket, _place: threads.Place) -> None:
        try:
            with connection:
                threads.patient(connection, _IDLE)
                hand_over = partial(self._hand_over, kind)
                Session(connection, hand_over, stopping=lambda: self._stopping, busy=self._busy).run()
        except OSError as error:
            self._log("warning", "connection closed", error=error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - a thread's edge: Postfix sees the end of the connection and defers
            self._log("error", "internal error", error=f"{type(error).__name__}: {error}")

    def _busy(self, busy: bool) -> None:  # noqa: FBT001 - the session calls it with that one value
        with self._quiet:
            self._messages += 1 if busy else -1
            self._quiet.notify_all()

    def _hand_over(self, kind: str, items: Sequence[Item], message: int) -> Sequence[Answer]:
        start = time.monotonic()
        answers = ask(self._lines, items, message, kind)
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
