"""Threads and their places: bounded, given back, and never waited for."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator

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
