"""A service's connections on one thread: tasks are generators that say what they wait for.

Must never: block (what has to is done `elsewhere`), run a task anywhere but in its own turn, or tell one of them what
another raised.

A thread for each connection hands the interpreter's lock on at every system call: with eight messages at once that was
more than half of what submit cost. asyncio would do, but a wait costs several times as much, and it passes no
descriptors.
"""

from __future__ import annotations

import _thread
import errno
import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import count
from typing import NamedTuple, TypeVar

__all__ = ["ENDED", "FOREVER", "READ", "WRITE", "Task", "Tasks", "Wait", "alone", "connected", "elsewhere", "pause"]

READ, WRITE, ENDED = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP  # poll(2) has the same numbers
FOREVER = float("inf")
_NOTHING = frozenset({errno.EBADF, errno.EPERM})  # no descriptor, or one of a file: nothing will ever be heard of it
_LOOK = 1.0  # seconds between two looks at who waits for too long
_AGAIN = 0.05  # seconds until what the kernel had no room for is tried again
_MOST_FAULTS = 200  # of epoll_wait(2) in a row: then the service had better be started anew

T = TypeVar("T")


class Wait(NamedTuple):
    """Until a descriptor can be read (or written, or its other end is gone), for so many seconds; -1: for just those.

    What it is ready for comes back, ENDED among it. After the seconds TimeoutError is raised, but where that was all.
    One task waits for a descriptor at a time; now and then it wakes for nothing, so it must be ready to wait again.
    """

    fd: int
    events: int = READ
    seconds: float = FOREVER


Task = Generator[Wait | None, int, T]  # None: until every other that can go on has had its turn


def pause(seconds: float) -> Task[None]:
    """Wait for so many seconds."""
    yield Wait(-1, 0, seconds)


def connected(path: str, kind: int, seconds: float) -> Task[socket.socket]:
    """Return a connection to a unix socket, after that long at most where its backlog is full. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                connection.connect(path)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TimeoutError("timed out") from error
                yield from pause(_AGAIN)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


class Tasks:
    """The tasks of one thread. A task answers for what it raises: what leaves it leaves turn()."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[Task[None], float]] = {}  # by descriptor: who, and until when
        self._pausing: list[tuple[float, int, Task[None]]] = []  # a heap; the number decides between equal times
        self._ready: deque[Task[None]] = deque()
        self._numbers = count()
        self._looks_at = 0.0
        self._timed = False  # whether anything may wait for too long
        self._faults = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._pausing) + len(self._ready)

    def start(self, task: Task[None]) -> None:
        """Begin a task; its first step is done when this returns."""
        self._step(task)

    def turn(self, seconds: float) -> None:
        """Wait for that long at most, and let everything go on that can."""
        now = time.monotonic()
        if self._ready:
            seconds = 0.0
        elif self._pausing:
            seconds = min(seconds, max(0.0, self._pausing[0][0] - now))
        if self._timed:
            seconds = min(seconds, _LOOK)
        for fd, events in self._events(seconds):
            found = self._waiting.pop(fd, None)
            if found is not None:
                self._step(found[0], events)
        for _ in range(len(self._ready)):
            self._step(self._ready.popleft())
        now = time.monotonic()
        while self._pausing and self._pausing[0][0] <= now:
            self._step(heapq.heappop(self._pausing)[2])
        if now >= self._looks_at:
            self._looks_at = now + _LOOK
            self._look(now)

    def _events(self, seconds: float) -> list[tuple[int, int]]:
        """Return what has happened. One fault ends no service: some task may wait for what must not be missed."""
        try:
            found = self._epoll.poll(seconds)
        except OSError:
            self._faults += 1
            if self._faults > _MOST_FAULTS:
                raise
            time.sleep(_AGAIN)
            return []
        self._faults = 0
        return found

    def close(self) -> None:
        """End every task where it stands."""
        tasks = [*(one for one, _ in self._waiting.values()), *(one for *_, one in self._pausing), *self._ready]
        self._waiting.clear()
        self._pausing.clear()
        self._ready.clear()
        for task in tasks:
            with suppress(Exception):  # the rest must clean up all the same
                task.close()
        self._epoll.close()

    def _look(self, now: float) -> None:
        """Wake who has waited for too long."""
        self._timed = False
        for fd, (task, until) in list(self._waiting.items()):
            if until > now:
                self._timed = self._timed or until != FOREVER
            elif self._waiting.get(fd, (None,))[0] is task:
                del self._waiting[fd]
                self._step(task, error=TimeoutError("timed out"))

    def _step(self, task: Task[None], events: int | None = None, error: Exception | None = None) -> None:
        """Let a task go on. events: what it is ready for; None for one that waits for nothing, or begins."""
        try:
            if error is not None:
                wait = task.throw(error)
            elif events is None:
                wait = next(task)
            else:
                wait = task.send(events)
        except StopIteration:
            return
        if wait is None:
            self._ready.append(task)
        elif wait.fd < 0:
            heapq.heappush(self._pausing, (time.monotonic() + wait.seconds, next(self._numbers), task))
        else:
            self._watch(task, wait)

    def _watch(self, task: Task[None], wait: Wait, until: float = 0.0) -> None:
        """Hear of the descriptor once. A number may be another's by now: so nothing is remembered of it.

        Where the kernel has no room to watch it, that passes: who has sent a message must hear what became of it.
        """
        until = until or time.monotonic() + wait.seconds
        events = wait.events | select.EPOLLONESHOT
        try:
            try:
                self._epoll.modify(wait.fd, events)
            except FileNotFoundError:
                self._epoll.register(wait.fd, events)
        except OSError as error:
            if error.errno in _NOTHING:
                self._step(task, error=error)
            elif time.monotonic() >= until:
                self._step(task, error=TimeoutError("timed out"))
            else:
                again = self._later(task, wait, until)
                next(again)
                heapq.heappush(self._pausing, (time.monotonic() + _AGAIN, next(self._numbers), again))
            return
        self._waiting[wait.fd] = task, until
        self._timed = self._timed or wait.seconds != FOREVER

    def _later(self, task: Task[None], wait: Wait, until: float) -> Task[None]:
        """Watch for a task, in a while; ended before, it ends the task."""
        try:
            yield None
        except GeneratorExit:
            task.close()
            raise
        self._watch(task, wait, until)


def alone(task: Task[T]) -> T:
    """Run one task to its end, in its own thread, which waits with it. Raises what it raises."""
    try:
        wait = next(task)
        while True:
            if wait is None or wait.fd < 0:
                time.sleep(0 if wait is None else wait.seconds)
                wait = next(task)
                continue
            poll = select.poll()
            poll.register(wait.fd, wait.events)
            ready = poll.poll(None if wait.seconds == FOREVER else 1000 * wait.seconds)
            wait = task.send(ready[0][1]) if ready else task.throw(TimeoutError("timed out"))
    except StopIteration as ended:
        found: T = ended.value
        return found


def elsewhere(do: Callable[[], T]) -> Task[T]:
    """Have a thread do what blocks, and wait for it. Raises what that raises; OSError where there can be no thread."""
    ours, theirs = socket.socketpair()
    found: list[T] = []
    fault: list[BaseException] = []
    with ours:
        try:
            _thread.start_new_thread(_do, (do, found, fault, theirs))
        except RuntimeError as error:
            theirs.close()
            raise OSError(str(error)) from error
        del theirs  # the thread's, or nobody's where it does not begin after all: then its end is heard at once
        yield Wait(ours.fileno())
    if fault:
        raise fault[0]
    if not found:
        raise OSError("no thread could begin")
    return found[0]


def _do(do: Callable[[], T], found: list[T], fault: list[BaseException], end: socket.socket) -> None:
    with end:
        try:
            found.append(do())
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
            fault.append(error)
