"""Tests of milterapp.milter.serving and worker: one thread serves, and gives way; none is in another's way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.milter.conftest import Serve, Service
from tests.milter.peer import Peer

RULES = """\
rules:
  - name: evil
    if: {helo: evil}
    then: {reject: "5.7.1 no"}
  - name: void
    if: {body: {contains: into the void}}
    then: discard
  - name: stamped
    if: {subject: {contains: stamp}}
    then: {banner: "a banner"}
"""
BODY = b"a line of text that holds nothing\r\n" * 1000  # 35 KB: more than a thread reads without giving way

# In a process of its own: the threads of a worker end with it alone.
ONE_THREAD = """\
import sys
from milterapp.commands import milter
from milterapp.milter import serving
serving._MOST = 1
sys.exit(milter.main(sys.argv[1:]))
"""


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def still_refuses(service: Service) -> bool:
    """Tell whether a new connection is answered by the rules."""
    peer: Peer = service.peer()
    peer.connect()
    answer = peer.helo(b"evil").text
    peer.quit()
    return answer == "550 5.7.1 no"


def test_large_messages_in_turn(serve: Serve) -> None:
    """Each message that is much to read has another thread serve the others, and the threads are not more for it."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    for number in range(60):
        peer = service.peer()
        peer.connect()
        outcome = peer.message(body=BODY + (b"into the void\r\n" if number % 2 else b""))
        assert outcome.code == ("d" if number % 2 else "a")
        peer.quit()
    # One that has given its answer is a moment away from waiting for its turn, or from its end.
    service.wait(lambda: threads(worker) < 12, "the threads to end that nobody needs")
    assert still_refuses(service)


def test_large_messages_at_once(serve: Serve) -> None:
    """Forty of them at once, on connections that stay for three, each get their own answer."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    wrong: list[str] = []

    def send(number: int) -> None:
        peer = Peer(service.socket)
        with contextlib.closing(peer.sock):
            peer.connect()
            for turn in range(3):
                void = (number + turn) % 2
                outcome = peer.message(body=BODY + (b"into the void\r\n" if void else b""))
                if outcome.code != ("d" if void else "a"):
                    wrong.append(f"{number}: {outcome}")
            peer.quit()

    senders = [threading.Thread(target=send, args=(number,)) for number in range(40)]
    for one in senders:
        one.start()
    for one in senders:
        one.join()
    assert wrong == []
    service.wait(lambda: threads(worker) < 12, "the threads to end that nobody needs")
    assert still_refuses(service)


def test_who_does_not_read_its_answer(serve: Serve) -> None:
    """A mail server that does not take the body that was replaced holds up nobody else, and gets all of it at last."""
    service = serve(RULES)
    slow = service.peer()
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect()
    slow.mail()
    slow.rcpt()
    slow.data()
    slow.header(b"Subject", b"stamp")
    slow.header(b"Content-Type", b"text/plain; charset=us-ascii")
    slow.end_of_header()
    assert slow.body(BODY * 60).goes_on
    slow.send("E")
    for _ in range(3):
        assert still_refuses(service)
    edits = b""
    while (answer := slow.receive()).code == "b":
        edits += answer.data
    assert answer.code == "a"
    assert b"a banner" in edits
    assert edits.endswith(BODY)


def test_who_reads_no_answer_for_a_while(serve: Serve) -> None:
    """A mail server that asks again and again before it reads has an answer to each, however full its socket was."""
    service = serve(RULES)
    peer = service.peer(steps=0, actions=0x3F, version=2)
    peer.connect()
    count = 40_000

    def ask() -> None:
        for _ in range(count):
            peer.send("U", b"NOOP\0")

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1)
    for _ in range(count):
        assert peer.receive().code == "c"
    asking.join()
    assert peer.helo(b"evil").text == "550 5.7.1 no"
    assert still_refuses(service)


def test_who_hangs_up_meanwhile(serve: Serve) -> None:
    """A mail server that is gone before its answer leaves nothing behind: no descriptor, no thread, no message."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    folder = Path(f"/proc/{worker}/fd")
    assert still_refuses(service)
    before = len(os.listdir(folder))
    for _ in range(20):
        peer = Peer(service.socket)
        peer.connect()
        peer.mail()
        peer.rcpt()
        peer.data()
        peer.header(b"Subject", b"stamp")
        peer.end_of_header()
        peer.body(BODY * 20)
        peer.send("E")
        peer.sock.close()
    service.wait(lambda: len(os.listdir(folder)) <= before, "the connections to be closed")
    assert still_refuses(service)
    assert not service.events("fault")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_worker_that_is_told_to_end(serve: Serve, how: signal.Signals) -> None:
    """It takes nobody new, answers those it has to their end, and another takes its place."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    peer = service.peer()
    peer.connect()
    os.kill(worker, how)
    service.wait(lambda: worker in service.status()["leaving"] and service.status()["workers"], "another worker")
    assert still_refuses(service)
    assert peer.helo(b"x").goes_on
    assert peer.message(body=b"into the void\r\n").code == "d"
    peer.quit()
    service.wait(lambda: not os.path.exists(f"/proc/{worker}"), "the old one to end")
    assert not service.events("worker died")


def test_a_worker_does_not_hear_sighup(serve: Serve) -> None:
    """SIGHUP is the supervisor's; a worker that gets it goes on."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    os.kill(worker, signal.SIGHUP)
    assert still_refuses(service)
    assert service.status()["workers"] == [worker]


def test_no_thread_to_give_way_to(serve: Serve) -> None:
    """Where there are as many threads as there may be the leader does what is slow itself, and nobody is lost."""
    service = serve(RULES, program=("-c", ONE_THREAD))
    (worker,) = service.status()["workers"]
    peers = [service.peer() for _ in range(3)]
    for peer in peers:
        peer.connect()
    for peer in peers:
        assert peer.message(body=BODY + b"into the void\r\n").code == "d"
    assert threads(worker) == 4  # one that serves, the ticker, the counters, and the one that waits for the end
    for peer in peers:
        peer.quit()
    assert service.stop() == 0
    assert [one["cut_off"] for one in service.events("stopped")] == [0]
