"""Tasks on one thread: each goes on when it can, is told when it waited too long, and ends nobody else."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from milterapp.delivery import tasks as module
from milterapp.delivery.tasks import ENDED, WRITE, Task, Tasks, Wait, alone, elsewhere, pause


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    """Give tasks, ended afterwards."""
    made = Tasks()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def until(tasks: Tasks, done: Callable[[], object]) -> None:
    """Turn until it is done, for thirty seconds at most."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        tasks.turn(0.05)


def test_one_goes_on_when_it_can(tasks: Tasks, ends: tuple[socket.socket, socket.socket]) -> None:
    """A task that waits for a byte goes on when it is there, and not before; the others do not wait for it."""
    heard: list[bytes] = []
    turns: list[int] = []

    def listens() -> Task[None]:
        yield Wait(ends[0].fileno())
        heard.append(ends[0].recv(10))

    def counts() -> Task[None]:
        for number in range(3):
            turns.append(number)
            yield None

    tasks.start(listens())
    tasks.start(counts())
    until(tasks, lambda: len(tasks) == 1)
    assert (turns, heard) == ([0, 1, 2], [])
    ends[1].send(b"x")
    until(tasks, lambda: not tasks)
    assert heard == [b"x"]


def test_what_it_is_ready_for(tasks: Tasks, ends: tuple[socket.socket, socket.socket]) -> None:
    """A task hears whether it can write, and whether the other end is gone."""
    ready: list[int] = []

    def waits() -> Task[None]:
        ready.append((yield Wait(ends[0].fileno(), WRITE)))
        ready.append((yield Wait(ends[0].fileno())))

    tasks.start(waits())
    until(tasks, lambda: ready)
    assert ready == [WRITE]
    ends[1].close()
    until(tasks, lambda: not tasks)
    assert ready[1] & ENDED


@pytest.mark.parametrize(("seconds", "told"), [(0.05, ["timed out"]), (30, [])], ids=["too long", "not yet"])
def test_who_waits_for_too_long_is_told(
    tasks: Tasks, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, seconds: float,
    told: list[str],
) -> None:  # fmt: skip
    """After its seconds a wait is an error of that task, and of no other."""
    monkeypatch.setattr(module, "_LOOK", 0.02)
    heard: list[str] = []

    def waits(fd: int, seconds: float) -> Task[None]:
        try:
            yield Wait(fd, seconds=seconds)
        except TimeoutError as error:
            heard.append(str(error))

    tasks.start(waits(ends[0].fileno(), seconds))
    tasks.start(waits(ends[1].fileno(), 30))
    begun = time.monotonic()
    while time.monotonic() - begun < (0.3 if len(heard) == len(told) else 20):
        tasks.turn(60)  # which must not outlast what others wait for
        tasks.start(pause(0.05))
    assert heard == told


def test_a_pause_is_as_long_as_it_says(tasks: Tasks) -> None:
    """Of two that pause the one with less to wait for goes on first, whoever began."""
    ended: list[str] = []

    def pauses(name: str, seconds: float) -> Task[None]:
        yield from pause(seconds)
        ended.append(name)

    begun = time.monotonic()
    tasks.start(pauses("long", 3.0))  # so long that the other one begins before it is over
    tasks.start(pauses("short", 0.05))
    until(tasks, lambda: not tasks)
    assert ended == ["short", "long"]
    assert time.monotonic() - begun >= 3.0


def test_a_number_that_is_used_again(tasks: Tasks) -> None:
    """A descriptor that was closed while it was watched, its number another's by now, wakes only who waits for that."""
    heard: list[bytes] = []

    def waits(end: socket.socket) -> Task[None]:
        try:
            yield Wait(end.fileno())
        finally:
            end.close()

    def hears(end: socket.socket) -> Task[None]:
        while not heard:
            yield Wait(end.fileno())
            try:
                heard.append(end.recv(10, socket.MSG_DONTWAIT))
            except BlockingIOError:
                continue

    first, theirs = socket.socketpair()
    number, elsewhere_too = first.fileno(), os.dup(first.fileno())  # so that the kernel goes on to watch it
    tasks.start(waits(first))
    theirs.send(b"first")
    until(tasks, lambda: not tasks)
    made, others = socket.socketpair()
    if (given := made.detach()) != number:  # a lower number may be free by now
        os.dup2(given, number)
        os.close(given)
    second = socket.socket(fileno=number)
    tasks.start(hears(second))
    theirs.send(b"first")
    tasks.turn(0.05)
    assert heard == []
    others.send(b"second")
    until(tasks, lambda: not tasks)
    assert heard == [b"second"]
    for one in (theirs, second, others):
        one.close()
    os.close(elsewhere_too)


def test_what_cannot_be_watched(tasks: Tasks) -> None:
    """A descriptor that is none is an error of the task that waits for it."""
    heard: list[str] = []

    def waits() -> Task[None]:
        try:
            yield Wait(10_000)
        except OSError as error:
            heard.append(error.strerror or "")

    tasks.start(waits())
    assert heard == ["Bad file descriptor"]
    assert not tasks


class _Faulty:
    """An epoll that fails so often, at one of its calls, with a real one behind it."""

    def __init__(self, call: str, times: int) -> None:
        self._real = select.epoll()
        self._call, self._times = call, times

    def __getattr__(self, name: str) -> object:
        if name == self._call and self._times:
            self._times -= 1
            return self._fail
        return getattr(self._real, name)

    @staticmethod
    def _fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize("call", ["poll", "modify", "register"])
@pytest.mark.parametrize(("times", "heard"), [(3, [b"x"]), (10_000, ["timed out"])], ids=["passes", "stays"])
def test_what_the_kernel_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket], call: str, times: int,
    heard: list[object],
) -> None:  # fmt: skip
    """A call that fails for a while costs only that while; one that fails for ever is told, or ends the service."""
    monkeypatch.setattr(module, "_AGAIN", 0.01)
    monkeypatch.setattr(module, "_MOST_FAULTS", 20)
    tasks = Tasks()
    found: list[object] = []
    monkeypatch.setattr(tasks, "_epoll", _Faulty(call, times))

    def waits() -> Task[None]:
        try:
            yield Wait(ends[0].fileno(), seconds=20 if heard == [b"x"] else 0.2)
            found.append(ends[0].recv(10))
        except TimeoutError as error:
            found.append(str(error))

    ends[1].send(b"x")
    tasks.start(waits())
    if (call, times) == ("poll", 10_000):
        with pytest.raises(OSError, match="Cannot allocate"):
            until(tasks, lambda: found)
    else:
        until(tasks, lambda: found)
        assert found == heard
    tasks.close()


def test_the_end_of_all(ends: tuple[socket.socket, socket.socket]) -> None:
    """Closed, each task ends where it stands, and cleans up."""
    ended: list[str] = []
    tasks = Tasks()

    def stands(name: str, wait: Wait | None) -> Task[None]:
        try:
            while True:
                yield wait
        finally:
            ended.append(name)

    tasks.start(stands("waits", Wait(ends[0].fileno())))
    tasks.start(stands("pauses", Wait(-1, 0, 30)))
    tasks.start(stands("goes on", None))
    tasks._epoll = _Faulty("modify", 1)  # type: ignore[assignment]  # whose calls do not fail by themselves
    tasks.start(stands("is to be watched", Wait(ends[1].fileno())))
    tasks.turn(0)
    tasks.close()
    assert sorted(ended) == ["goes on", "is to be watched", "pauses", "waits"]


def test_one_that_does_not_end_keeps_no_other(ends: tuple[socket.socket, socket.socket]) -> None:
    """Closed, a task that raises or goes on is left behind, and the next one cleans up."""
    ended: list[str] = []
    tasks = Tasks()

    def goes_on() -> Task[None]:
        try:
            yield Wait(ends[0].fileno())
        finally:
            yield None

    def cleans_up() -> Task[None]:
        try:
            yield Wait(ends[1].fileno())
        finally:
            ended.append("cleaned up")

    tasks.start(goes_on())
    tasks.start(cleans_up())
    tasks.close()
    assert ended == ["cleaned up"]


def _fails() -> str:
    raise ValueError("no")


def test_elsewhere(tasks: Tasks) -> None:
    """What blocks is done in a thread of its own, while others go on; what it returns or raises comes back."""
    gate, found, turns = threading.Event(), [], []

    def blocks() -> str:
        assert gate.wait(10)
        return threading.current_thread().name

    def asks() -> Task[None]:
        found.append((yield from elsewhere(blocks)))
        try:
            yield from elsewhere(_fails)
        except ValueError as error:
            found.append(str(error))

    def counts() -> Task[None]:
        turns.append(1)
        yield None
        turns.append(2)
        gate.set()

    tasks.start(asks())
    tasks.start(counts())
    until(tasks, lambda: not tasks)
    assert turns == [1, 2]
    assert found[0] != threading.current_thread().name
    assert found[1:] == ["no"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody closes what a lost thread had
def test_elsewhere_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had, or one never begins, that is an error, and nobody waits for it."""

    def none(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    def never_begins(*_: object) -> int:
        return 1

    for start, said in ((none, "can't start new thread"), (never_begins, "no thread could begin")):
        monkeypatch.setattr("_thread.start_new_thread", start)
        with pytest.raises(OSError, match=said):
            alone(elsewhere(lambda: "x"))


def test_alone(ends: tuple[socket.socket, socket.socket]) -> None:
    """One task by itself waits in its thread: for a byte, for a while, for too long."""

    def waits(seconds: float) -> Task[bytes]:
        yield None
        yield from pause(0.01)
        yield Wait(ends[0].fileno(), seconds=seconds)
        return ends[0].recv(10)

    with pytest.raises(TimeoutError):
        alone(waits(0.05))
    ends[1].send(b"x")
    assert alone(waits(10)) == b"x"
    with pytest.raises(ValueError, match="no"):
        alone(elsewhere(_fails))
