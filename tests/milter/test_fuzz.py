"""Garbage on the milter socket: the service neither ends, nor hangs, nor leaks, nor forgets its rules."""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path

import pytest

from tests.milter.conftest import Serve, Service
from tests.milter.peer import ALL_ACTIONS, ALL_STEPS

RULES = """\
rules:
  - name: one
    if: {helo: evil}
    then: {reject: "5.7.1 no"}
  - name: two
    if: {recipient: bob@example.org}
    then: {reject: "5.7.1 no"}
  - name: three
    if: {subject: {contains: x}, body: {contains: y}}
    then: [{prefix_subject: "[x]"}, {remove_header: X-Y}]
"""
COMMANDS = "ABCDEHKLMNOQRTU\0\xff"
OPTIONS = struct.pack("!III", 6, ALL_ACTIONS, ALL_STEPS)
SANE = {
    "C": b"mail.example.net\0" + b"4" + struct.pack("!H", 25) + b"192.0.2.1\0",
    "H": b"mail.example.net\0",
    "M": b"<a@example.net>\0",
    "R": b"<bob@example.org>\0",
    "L": b"Subject\0x\0",
    "B": b"y\r\n",
    "D": b"Ci\0" + b"4X\0",
    "O": OPTIONS,
}


def conversation(chance: random.Random) -> bytes:
    """Return the bytes of a connection: sane packets, out of order, cut, grown, flipped."""
    out = []
    if chance.random() < 0.9:
        out.append(packet("O", OPTIONS))
    for _ in range(chance.randrange(1, 25)):
        command = chance.choice(COMMANDS)
        data = SANE.get(command, b"")
        what = chance.random()
        if what < 0.3:
            data = chance.randbytes(chance.randrange(60))
        elif what < 0.45:
            at = chance.randrange(len(data) + 1)
            data = data[:at] + chance.choice([b"\0", b"\xff", b"\r\n", b"%", b"<", b"\0\0\0\0"]) + data[at:]
        elif what < 0.55:
            data = data[: chance.randrange(len(data) + 1)]
        elif what < 0.6:
            data *= chance.randrange(2, 2000)
        if command == "D":
            data = macros(chance)
        out.append(packet(command, data))
    raw = b"".join(out)
    if chance.random() < 0.2:
        raw = raw[: chance.randrange(len(raw) + 1)]
    if chance.random() < 0.1:
        raw += struct.pack("!I", chance.choice([0, 1, 2**31, 2**32 - 1]))
    return raw


def macros(chance: random.Random) -> bytes:
    """Return macros for a step that may be none; in pairs or not."""
    words = [
        chance.choice([b"i", b"{auth_authen}", b"", b"\xff", b"%", b"x" * 3000]) for _ in range(chance.randrange(7))
    ]
    return chance.choice(COMMANDS).encode("latin-1") + b"".join(word + b"\0" for word in words)


def packet(command: str, data: bytes) -> bytes:
    """Return a packet."""
    return struct.pack("!I", len(data) + 1) + command.encode("latin-1") + data


def throw(service: Service, raw: bytes) -> None:
    """Send bytes, hear what there is to hear, and hang up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.02)
        sock.connect(service.socket)
        try:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(5)
            while sock.recv(65536):
                pass
        except (TimeoutError, ConnectionError):
            pass


def resident(pid: int) -> int:
    """Return the bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("seed", range(4))
def test_garbage(serve: Serve, seed: int) -> None:
    """After hundreds of broken conversations the same worker is there, holds nothing of them, and still refuses."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    chance = random.Random(seed)
    before = len(os.listdir(f"/proc/{worker}/fd"))
    for _ in range(50):
        throw(service, conversation(chance))
    size = resident(worker)
    for _ in range(100):
        throw(service, conversation(chance))
    assert resident(worker) - size < 16 * 2**20
    assert service.status()["workers"] == [worker]
    service.wait(lambda: len(os.listdir(f"/proc/{worker}/fd")) <= before + 4, "the connections to be closed")
    peer = service.peer()
    peer.connect()
    assert peer.helo(b"evil").text == "550 5.7.1 no"


@pytest.mark.parametrize("size", [2**32 - 1, 2**31, 2**20 + 1, 0])
def test_length(serve: Serve, size: int) -> None:
    """A packet that says it is huge, or empty, ends its connection, and takes no memory."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    throw(service, packet("O", OPTIONS) + struct.pack("!I", size) + b"C" * 100)
    assert resident(worker) < 100 * 2**20
    assert service.status()["workers"] == [worker]


def test_silent(serve: Serve) -> None:
    """Two hundred connections that say nothing keep nobody else from being served."""
    service = serve(RULES)
    silent = []
    for _ in range(200):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(service.socket)
    try:
        peer = service.peer()
        peer.connect()
        assert peer.helo(b"evil").text == "550 5.7.1 no"
    finally:
        for one in silent:
            one.close()


def test_half_a_packet(serve: Serve) -> None:
    """A connection that stops in the middle of a packet holds up its own thread alone."""
    service = serve(RULES)
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(service.socket)
        half.sendall(packet("O", OPTIONS) + struct.pack("!I", 20) + b"Cmail")
        for _ in range(5):
            peer = service.peer()
            peer.connect()
            assert peer.helo(b"evil").text == "550 5.7.1 no"


def test_two_negotiations(serve: Serve) -> None:
    """A server that negotiates twice on a connection is heard no more there; the worker goes on."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    peer = service.peer()
    peer.send("O", OPTIONS)
    throw(service, packet("O", OPTIONS) * 50)
    peer = service.peer()
    peer.connect()
    assert peer.helo(b"evil").text == "550 5.7.1 no"
    assert service.status()["workers"] == [worker]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(packet("D", b"Rx\0"), id="a macro without a value, which libmilter dies of"),
        pytest.param(packet("D", b"Ri\0" + b"4X"), id="a value without an end"),
        pytest.param(packet("C", b"mail\0" + b"4"), id="a client cut short"),
        pytest.param(packet("C", b"mail\0" + b"4" + b"\0\x19" + b"1.2.3\0"), id="an address that is none"),
        pytest.param(packet("C", b"mail\0" + b"9"), id="a family that is none"),
        pytest.param(packet("M", b""), id="no sender"),
        pytest.param(packet("M", b"<a@example.net>"), id="a sender without an end"),
        pytest.param(packet("R", SANE["R"]), id="a recipient before MAIL"),
        pytest.param(packet("L", SANE["L"]), id="a field before MAIL"),
        pytest.param(packet("E", b""), id="the end of no message"),
        pytest.param(packet("M", SANE["M"]) + packet("L", b"Subject\0x"), id="a field without an end"),
        pytest.param(packet("X", b""), id="a command that is none"),
        pytest.param(packet("O", OPTIONS), id="a second offer"),
    ],
)
def test_out_of_order(serve: Serve, raw: bytes) -> None:
    """What no mail server says ends its connection, the log says why, and the worker goes on; no message was one."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    throw(service, packet("O", OPTIONS) + raw)
    service.wait(lambda: service.events("protocol"), "the log to say it")
    assert not service.events("message")
    peer = service.peer()
    peer.connect()
    assert peer.helo(b"evil").text == "550 5.7.1 no"
    assert service.status()["workers"] == [worker]


def test_new_connection_without_negotiation(serve: Serve) -> None:
    """A server that ends one connection and begins the next on the same socket (Sendmail) is served by the rules."""
    peer = serve(RULES).peer()
    peer.connect()
    assert peer.message().code == "a"
    peer.send("K")
    peer.connect()
    assert peer.helo(b"evil").text == "550 5.7.1 no"
