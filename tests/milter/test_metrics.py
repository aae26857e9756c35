"""Tests of milterapp.milter.counters and metrics."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from milterapp.commands.status import text
from milterapp.milter import metrics
from milterapp.milter.control import ask
from milterapp.milter.counters import BUCKETS, Counters, Counts, read
from milterapp.milter.event import Happening
from milterapp.milter.metrics import render
from milterapp.rules.decision import Decision, Verdict
from tests.milter.conftest import Serve, Service

RULES = """\
rules:
  - name: refused
    if: {subject: {contains: offer}}
    then: {reject: "5.7.1 no"}
  - name: 'watched "one"'
    observe: true
    if: {subject: {contains: watched}}
    then: {reject: "5.7.1 no"}
"""


def happening(decision: Decision, fault: str = "") -> Happening:
    """Return an event of a message."""
    return Happening("4X", "", "", "", "", "a@b.example", (), decision, fault, "defer" if fault else "")


@pytest.fixture
def pair() -> Any:
    """Give the two ends of a report."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


def total(end: socket.socket) -> Counts:
    """Return the sum of what was reported."""
    counts: Counts = Counter()
    for some in read(end):
        counts.update(some)
    return counts


def test_counts_are_added_up(pair: tuple[socket.socket, socket.socket]) -> None:
    """What is counted arrives once, and what came before the first report too."""
    counters = Counters(pair[0])
    for _ in range(3):
        counters.add(happening(Decision(Verdict.REJECT, matched=("a", "b"))), 0.0015, {"b"})
    counters.flush()
    counters.add(happening(Decision(), "eoh: a limit: x"), 99, set())
    counters.flush()
    counters.flush()
    assert total(pair[1]) == {
        ("messages", "reject", ""): 3,
        ("messages", "defer", ""): 1,
        ("rules", "a"): 3,
        ("would_have", "b"): 3,
        ("faults", "eoh"): 1,
        ("seconds", "0.002"): 3,
        ("seconds", "+Inf"): 1,
        ("microseconds",): 99_004_500,
    }


def test_nobody_takes_them(pair: tuple[socket.socket, socket.socket]) -> None:
    """While nobody reads nothing waits and nothing is lost."""
    counters = Counters(pair[0])
    names = tuple(f"rule {number}" for number in range(2000))
    for _ in range(50):
        counters.add(happening(Decision(matched=names)), 0.01, set())
        counters.flush()
    found = total(pair[1])
    while found["rules", names[-1]] < 50:
        counters.flush()
        some = total(pair[1])
        assert some
        found.update(some)
    assert {found["rules", name] for name in names} == {50}


def test_nobody_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    """A supervisor that is gone is no reason to fail."""
    pair[1].close()
    counters = Counters(pair[0])
    counters.add(happening(Decision()), 0.01, set())
    counters.flush()


def test_render() -> None:
    """The text is the exposition format: help and type before the values, names escaped, buckets that add up."""
    counts: Counts = Counter({("rules", 'a "b"\\\n'): 2, ("seconds", "0.001"): 3, ("seconds", "+Inf"): 1})
    lines = render(counts, {"x": (1.5, "X.")}).splitlines()
    assert 'milterapp_rule_matches_total{rule="a \\"b\\"\\\\\\n"} 2.0' in lines
    buckets = [line for line in lines if "_bucket" in line]
    assert len(buckets) == len(BUCKETS) + 1
    assert [float(line.split()[-1]) for line in buckets] == [0] + [3] * (len(BUCKETS) - 1) + [4]
    assert lines[-3:] == ["# HELP x X.", "# TYPE x gauge", "x 1.5"]
    assert all(re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{.*\})? [\d.e+-]+", line) for line in lines)


def free_port() -> int:
    """Return a port that nobody has, nor is given who asks for any (ip(7), ip_local_port_range)."""
    for port in range(20_000, 30_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def held(service: Service) -> Iterator[None]:
    """Hold the supervisor while a request is made: it waits half a second for one, which we may need longer for."""
    service.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        service.process.send_signal(signal.SIGCONT)


def test_service(serve: Serve) -> None:
    """Messages of all workers stand in the metrics and in the status, with the rules and the last reload."""
    port = free_port()
    service = serve(RULES, milter={"metrics": port, "workers": 2})
    digest = hashlib.sha256(service.rules.read_bytes()).hexdigest()
    for number in range(6):
        peer = service.peer()
        peer.connect()
        peer.helo()
        peer.message(fields=[(b"Subject", [b"an offer", b"watched", b"plain"][number % 3])])
        peer.quit()
    service.wait(lambda: sum(service.status()["messages"].values()) == 6, "six messages to be counted")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        with held(service):
            connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        lines = answer.read().decode().splitlines()
    assert 'milterapp_messages_total{stage="headers",verdict="reject"} 2.0' in lines
    assert 'milterapp_messages_total{stage="",verdict="none"} 4.0' in lines
    assert 'milterapp_rule_matches_total{rule="refused"} 2.0' in lines
    assert 'milterapp_rule_would_have_total{rule="watched \\"one\\""} 2.0' in lines
    assert "milterapp_message_seconds_count 6.0" in lines
    assert "milterapp_workers 2.0" in lines
    status = service.status()
    assert status["messages"] == {"none": 4, "reject": 2}
    assert (status["pid"], status["rules"]["sha256"], status["reload"]) == (service.process.pid, digest, None)
    service.rules.write_text("rules: nothing\n")
    assert not ask(service.socket, "reload")["done"]
    status = service.status()
    assert (status["rules"]["sha256"], status["reload"]["done"]) == (digest, False)
    shown = "\n".join(text(status))
    assert "messages: 6 (none 4, reject 2)" in shown
    assert "refused, the rules from before stay\n  " in shown
    assert json.dumps(status)


def test_clients_of_the_metrics(serve: Serve) -> None:
    """Who asks for something else, says nothing or goes away gets nothing, and mail goes on."""
    port = free_port()
    service = serve(RULES, milter={"metrics": port})
    for said in (b"GET /etc/passwd HTTP/1.0\r\n\r\n", b"POST /metrics HTTP/1.0\r\n\r\n", b"\xff\xff\r\n\r\n", b""):
        with contextlib.ExitStack() as stack:
            with held(service):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(4096):
                got += piece
            assert got.startswith(b"HTTP/1.0 404 ")
    with socket.create_connection(("127.0.0.1", port), 10):
        peer = service.peer()
        peer.connect()
        assert peer.message().code == "a"
        assert service.status()["workers"]


def test_a_request_that_is_read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come whole is taken, also where it was us who were slow; what has not is not waited for."""
    monkeypatch.setattr(metrics, "_PATIENCE", -1.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert metrics._request(ours) == ["GET", "/metrics", "HTTP/1.0"]
        theirs.sendall(b"GET /metrics HTTP/1.0\r\n")
        with pytest.raises(TimeoutError):
            metrics._request(ours)
