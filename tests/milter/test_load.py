"""Many connections at once, and many messages: everybody is answered by the rules, and nothing grows."""

from __future__ import annotations

import os
import random
import select
import threading
import time
from pathlib import Path

from tests.benchmarks import milter_soak
from tests.milter.conftest import Serve
from tests.milter.peer import Peer

RULES = """\
rules:
  - name: bob
    if: {recipient: bob@example.org}
    then: {reject: "5.7.2 not bob"}
  - name: offers
    if: {subject: {contains: offer}}
    then: {reject: "5.7.3 no offers"}
  - name: void
    if: {body: {contains: void}}
    then: discard
"""
CONNECTIONS = 200


def test_two_hundred_at_once(serve: Serve) -> None:
    """Two hundred messages under way together, step by step in turn, each get their own verdict."""
    service = serve(RULES, milter={"workers": 2})
    peers = [service.peer() for _ in range(CONNECTIONS)]
    for number, peer in enumerate(peers):
        assert peer.connect(ip=f"192.0.2.{number}").goes_on
    for number, peer in enumerate(peers):
        assert peer.helo(b"client-%d.example" % number).goes_on
    for number, peer in enumerate(peers):
        assert peer.mail(b"<a%d@example.net>" % number).goes_on
    taken = []
    for number, peer in enumerate(peers):
        answer = peer.rcpt(b"<bob@example.org>" if number % 4 == 0 else b"<alice@example.org>")
        assert answer.goes_on is (number % 4 != 0)
        taken += [(number, peer)] if answer.goes_on else []
    for _, peer in taken:
        peer.data()
    for number, peer in taken:
        peer.header(b"Subject", b"an offer" if number % 4 == 1 else b"number %d" % number)
    answers = {}
    for number, peer in taken:
        answers[number] = peer.end_of_header()
        assert answers[number].goes_on is (number % 4 != 1)
    open_ = [(number, peer) for number, peer in taken if number % 4 > 1]
    for number, peer in open_:
        peer.body(b"into the void\r\n" if number % 4 == 2 else b"hello\r\n")
    for number, peer in open_:
        assert peer.end().code == ("d" if number % 4 == 2 else "a")
    for peer in peers:
        peer.quit()
    service.wait(lambda: len(service.events("message")) == CONNECTIONS, "an event for each", 60)
    assert not service.events("fault")


def test_slow_clients(serve: Serve) -> None:
    """Those who send byte by byte are served in the end, and meanwhile so is everybody else."""
    service = serve(RULES)
    slow = service.peer()
    slow.sock.settimeout(60)
    begun, go_on = threading.Event(), threading.Event()

    def dribble() -> None:
        send = slow.sock.sendall

        class Slowly:
            """A socket that hands over one byte at a time, and stops half-way until told to go on."""

            count = 0

            def __getattr__(self, name: str) -> object:
                return getattr(slow_socket, name)

            def sendall(self, data: bytes) -> None:
                for at in range(len(data)):
                    send(data[at : at + 1])
                    self.count += 1
                    if self.count == 40:
                        begun.set()
                        assert go_on.wait(60)

        slow_socket = slow.sock
        slow.sock = Slowly()  # type: ignore[assignment]
        slow.connect()
        outcome.append(slow.message(fields=[(b"Subject", b"an offer")]).text)
        slow.sock = slow_socket

    outcome: list[str] = []
    thread = threading.Thread(target=dribble)
    thread.start()
    assert begun.wait(60)
    for _ in range(10):
        peer = service.peer()
        peer.connect()
        assert peer.message(fields=[(b"Subject", b"an offer")]).text == "550 5.7.3 no offers"
        peer.quit()
    go_on.set()
    thread.join(60)
    assert outcome == ["550 5.7.3 no offers"]


def test_memory_and_descriptors_stay(serve: Serve) -> None:
    """After thousands of messages of all kinds a worker is as large as after hundreds, and holds no descriptor more."""
    service = serve(milter_soak.RULES, milter={"workers": 1})
    (worker,) = service.status()["workers"]
    folder = Path(f"/proc/{worker}/fd")
    peer: Peer = service.peer()
    peer.connect()
    peer.message()
    peer.quit()
    before = len(os.listdir(folder))
    assert milter_soak.soak(service, 2_000, 4)
    service.wait(lambda: len(os.listdir(folder)) <= before + 4, "the connections to be closed", 60)


def test_a_slow_pattern_stalls_nobody_else(serve: Serve) -> None:
    """While one message is searched with a pattern that costs seconds, the same worker answers others."""
    letters = random.Random(1)
    long = "".join(letters.choices("abcdefghijklmnopq ", k=2_000_000)).encode()
    rules = [
        f"  - name: {one}\n    if:\n      body: {{regex: '[a-q][^u-z]{{37}}{one}'}}\n    then: discard\n"
        for one in "uvwxyz"
    ]
    service = serve("rules:\n" + "".join(rules))
    slow, quick = service.peer(), service.peer()
    for peer in (slow, quick):
        peer.connect()
    meanwhile = 0
    until = time.monotonic() + 60
    while meanwhile < 2:  # one search may be over before we come to ask
        assert time.monotonic() < until, "nobody was answered while the other message was searched"
        assert slow.mail().goes_on
        assert slow.rcpt().goes_on
        slow.header(b"Subject", b"hello")
        slow.end_of_header()
        slow.body(long)
        slow.send("E")
        while not select.select([slow.sock], [], [], 0)[0]:
            assert quick.message().code in "ca"
            meanwhile += not select.select([slow.sock], [], [], 0)[0]
        while slow.receive().code == "p":  # it is told that it is worked on
            pass
