"""Threads and their places: bounded, given back, and never waited for."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from milterapp.delivery import threads
from tests.soak.killed_submit import SubmitCase
from tests.soak.strace import Call, Fault


def test_a_room_has_so_many_places() -> None:
    """Who finds no place waits until one is given back."""
    room, taken = threads.Room(2), []
    one, two = room.place(), room.place()
    waiting = threading.Thread(target=lambda: taken.append(room.place()))
    waiting.start()
    time.sleep(0.05)
    assert taken == []
    del one
    waiting.join(30)
    assert len(taken) == 1
    assert two is not None


def test_a_thread_gives_its_place_back() -> None:
    """At the end of a thread, a good one or not, its place is free and its connection closed."""
    room = threads.Room(1)
    for fails in (False, True):

        def serve(connection: socket.socket, _place: threads.Place, fails: bool = fails) -> None:
            with connection:
                connection.send(b"served")
                if fails:
                    raise SystemExit  # the one exception that a thread ends with in silence

        mine, theirs = socket.socketpair()
        mine.settimeout(30)
        threads.start(serve, theirs, room.place())
        del theirs
        assert (mine.recv(10), mine.recv(10)) == (b"served", b"")
        mine.close()
    assert room.place() is not None  # or this waits for ever


def test_a_worker_serves_one_connection_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is done takes the next connection; two at once have two, and unused ones end."""
    monkeypatch.setattr(threads, "_STAYS", 1.0)
    room, served = threads.Room(2), []

    def serve(connection: socket.socket, _place: threads.Place) -> None:
        with connection:
            served.append(threading.get_ident())
            connection.recv(1)

    workers = threads.Workers(serve)

    def begin() -> socket.socket:
        mine, theirs = socket.socketpair()
        workers.start(theirs, room.place())  # waits for ever where a place was not given back
        return mine

    def settled(condition: Callable[[], bool]) -> bool:
        until = time.monotonic() + 20
        while not condition() and time.monotonic() < until:
            time.sleep(0.01)
        return condition()

    for number in range(1, 4):
        begin().close()
        assert settled(lambda number=number: len(served) == number and workers.waiting == 1)  # type: ignore[misc]
    assert len({*served}) == 1
    both = (begin(), begin())
    assert settled(lambda: len(served) == 5)
    assert len({*served[-2:]}) == 2
    for one in both:
        one.close()
    assert settled(lambda: workers.waiting == 0)
    begin().close()
    assert settled(lambda: len(served) == 6)


@pytest.fixture
def submit() -> Iterator[SubmitCase]:
    """Run submit as the soak does."""
    case = SubmitCase()
    yield case
    case.close()


@pytest.mark.root
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_thread_without_memory_costs_its_connection_only(submit: SubmitCase) -> None:
    """A thread that cannot take its first step ends its connection; the next one is served, by the same process."""
    submit.calls()
    for number in (1, 1, 2):
        tried = submit.tried(Fault(Call("mmap", number), "ENOMEM"))
        assert tried.findings == ()
