"""The door's connections to the monitor: kept from one message to the next, and never believed to be alive."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery import door, kinds, sealed, wire
from milterapp.delivery.lines import Lines
from milterapp.delivery.tasks import Task, alone

ITEM = {"sender": "", "recipient": "bob@x.org", "original": "", "queue_id": "4A", "client": ""}


class Monitor(threading.Thread):
    """Answers what comes over a connection, so many messages on each; says nothing to those that it hangs up on."""

    def __init__(self, path: str, each: int, *, mute_after: int = 1000) -> None:
        super().__init__()
        self.connections, self.messages = 0, 0
        self._each, self._mute_after = each, mute_after
        self._listener = door.listen(path, 0o666)
        self.start()

    def run(self) -> None:
        """Serve until closed, one connection after the other."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                for _ in range(self._each):
                    job = wire.receive(connection, kinds.DELIVER, descriptors=(1,))
                    if job is None:
                        break
                    job.close()
                    self.messages += 1
                    if self.messages > self._mute_after:
                        break
                    wire.send(connection, "ANSWER", {"status": "ok", "text": job.text("queue_id")})

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._listener.close()


@pytest.fixture
def message() -> Iterator[int]:
    """Give a sealed message."""
    descriptor = sealed.seal([b"x"])
    yield descriptor
    os.close(descriptor)


def _send(lines: Lines, message: int, queue_id: str) -> str | None:
    def exchange() -> Task[wire.Datagram | None]:
        line = yield from lines.hand_over({**ITEM, "queue_id": queue_id}, message)
        return (yield from line.answer(time.monotonic() + lines.deadline))

    answer = alone(exchange())
    return None if answer is None else answer.text("text")


@pytest.mark.parametrize(
    ("each", "connections"), [pytest.param(10, 1, id="kept"), pytest.param(1, 3, id="ended by the monitor")]
)
def test_one_message_after_the_other(tmp_path: Path, message: int, each: int, connections: int) -> None:
    """A connection serves the next message too; where the monitor has ended it, a new one does, and nothing is lost."""
    monitor, lines = Monitor(str(tmp_path / "monitor"), each), Lines(str(tmp_path / "monitor"), 10)
    try:
        assert [_send(lines, message, one) for one in ("4A", "4B", "4C")] == ["4A", "4B", "4C"]
        assert (monitor.connections, monitor.messages) == (connections, 3)
    finally:
        lines.close()
        monitor.close()


def test_a_monitor_that_gives_up_is_believed_on_a_new_connection_alone(tmp_path: Path, message: int) -> None:
    """No answer over a kept connection is asked for once more over a new one; no answer over that is none."""
    monitor = Monitor(str(tmp_path / "monitor"), 10, mute_after=1)
    lines = Lines(str(tmp_path / "monitor"), 10)
    try:
        assert [_send(lines, message, one) for one in ("4A", "4B")] == ["4A", None]
        assert (monitor.connections, monitor.messages) == (2, 3)
    finally:
        lines.close()
        monitor.close()


def test_a_monitor_that_is_gone_is_a_fault(tmp_path: Path, message: int) -> None:
    """Where a kept connection has ended and there can be no new one, that is said."""
    monitor, lines = Monitor(str(tmp_path / "monitor"), 1), Lines(str(tmp_path / "monitor"), 10)
    try:
        assert _send(lines, message, "4A") == "4A"
    finally:
        monitor.close()
    with pytest.raises(ConnectionError):
        _send(lines, message, "4B")
    lines.close()


def test_silence_ends_with_the_deadline(tmp_path: Path, message: int) -> None:
    """A monitor that says nothing is given up after the deadline, and its connection is not used again."""
    listener, lines = door.listen(str(tmp_path / "monitor"), 0o666), Lines(str(tmp_path / "monitor"), 0.1)
    with listener, pytest.raises(TimeoutError):
        _send(lines, message, "4A")
    lines.close()
