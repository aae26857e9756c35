"""An LMTP session and its client: what comes in pieces, all at once, by many, too slowly, or makes no sense."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milterapp.delivery import lmtp, sealed
from milterapp.delivery.lmtp_session import Answer, Item, Session
from milterapp.delivery.tasks import Task, alone
from tests.delivery.test_lmtp import OPENING, World

MESSAGE = (
    OPENING + b"MAIL FROM:<a@x.org>\r\nRCPT TO:<ok@x.org>\r\nRCPT TO:<no@x.org>\r\nDATA\r\nx: y\r\n\r\n..\r\n.\r\n"
)
COMMANDS = (
    b"LHLO mx\r\n", b"XFORWARD IDENT=4A\r\n", b"MAIL FROM:<a@x.org>\r\n", b"MAIL FROM:<> BODY=8BITMIME\r\n",
    b"RCPT TO:<ok@x.org>\r\n", b"RCPT TO:<no@x.org> ORCPT=rfc822;i@x.org\r\n", b"RSET\r\n", b"NOOP\r\n", b"DATA\r\n",
    b"x: y\r\n\r\nhi\r\n", b".\r\n", b"..\r\n", b"\r\n", b"MAIL FROM:<a\r\n", b"QUIT\r\n", MESSAGE,
)  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """A door with room for three connections."""
    made = World(tmp_path, connections=3)
    yield made
    made.close()


def converse(pieces: Sequence[bytes]) -> tuple[bytes, list[tuple[list[str], bytes]]]:
    """Say the pieces to a session, one after the other; return what it said and what it handed over."""
    ours, theirs = socket.socketpair()
    handed: list[tuple[list[str], bytes]] = []

    def hand_over(items: Sequence[Item], message: int) -> Task[Sequence[Answer]]:
        yield None
        handed.append(([one["recipient"] for one in items], sealed.read(message)))
        return [Answer("reject", "5.7.1 no") if one["recipient"].startswith("no") else Answer("ok") for one in items]

    def serve() -> None:
        with theirs:
            alone(Session(theirs, hand_over, idle=30).run())

    def speak() -> None:
        try:
            for one in pieces:
                ours.sendall(one)
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was hung up on

    threads = [threading.Thread(target=serve), threading.Thread(target=speak)]
    said = b""
    with ours:
        ours.settimeout(30)
        for thread in threads:
            thread.start()
        try:
            while data := ours.recv(65536):
                said += data
        except ConnectionResetError:
            pass  # it left what was said after QUIT unread
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return said, handed


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(st.sampled_from(COMMANDS) | st.binary(max_size=30), max_size=12),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
@example(said=[MESSAGE, b"QUIT\r\n"], sizes=[1])
@example(said=[MESSAGE, MESSAGE], sizes=[7, 40])
def test_pieces_make_no_difference(said: list[bytes], sizes: list[int]) -> None:
    """Whatever is said, in one go or byte by byte, has the same replies, each of them one, and hands over the same."""
    whole = b"".join(said)
    pieces, at, turn = [], 0, 0
    while at < len(whole):
        pieces.append(whole[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    replies, handed = converse([whole] if whole else [])
    assert all(re.fullmatch(rb"[2345][0-9][0-9][ -][\x20-\x7e]*", one) for one in replies.split(b"\r\n")[:-1])
    assert replies.count(b"delivered") == sum(not to.startswith("no") for recipients, _ in handed for to in recipients)
    again, handed_again = converse(pieces)
    assert (again, handed_again) == (replies, handed)


def test_two_messages_at_once() -> None:
    """Two whole messages in one packet are two, each with one answer a recipient."""
    said, handed = converse([MESSAGE * 2 + b"QUIT\r\n"])
    answers = [line[:3] for line in said.split(b"\r\n") if b"delivered" in line or b"5.7.1" in line]
    assert answers == [b"250", b"550"] * 2
    assert handed == [(["ok@x.org", "no@x.org"], b"Return-Path: <a@x.org>\nx: y\n\n.\n")] * 2
    assert said.endswith(b"221 2.0.0 Bye\r\n")


def test_many_connections_take_turns(small: World) -> None:
    """Twelve clients at once, with room for three: every one is served, and gets the answers of its own messages."""
    found: dict[int, list[str]] = {}

    def send(number: int) -> None:
        client = small.client()
        found[number] = [client.deliver(f"u{number}@x.org", "no@x.org")[turn % 2] for turn in range(4)]
        client.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {
        number: [f"250 2.1.5 <u{number}@x.org> delivered", "550 5.7.1 I do not read advertisements"] * 2
        for number in range(12)
    }
    assert len(small.monitor.jobs) == 12 * 4 * 2


@pytest.mark.parametrize(
    "said", [b"", b"LHLO mx\r\n", MESSAGE[: MESSAGE.index(b"x: y")]], ids=["first", "idle", "data"]
)
def test_who_says_nothing_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """A client that falls silent, wherever, is hung up on after a while, and its place is another's."""
    monkeypatch.setattr(lmtp, "_IDLE", 0.3)
    world = World(tmp_path, connections=1, begin=False)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.settimeout(20)
            silent.connect(world.address)
            silent.sendall(said)  # before anybody counts its silence
            world.begin()
            with suppress(ConnectionResetError):  # a late server looks at the clock before it looks at what was said
                while silent.recv(65536):
                    pass
        monkeypatch.setattr(lmtp, "_IDLE", 30)
        assert world.client().deliver("ok@x.org") == ["250 2.1.5 <ok@x.org> delivered"]
        assert len(world.monitor.jobs) == 1
    finally:
        world.close()


def test_a_client_that_reads_nothing_is_no_hindrance(small: World) -> None:
    """Replies that nobody reads hold up that one connection; the others are served."""
    deaf = small.client()
    deaf.socket.setblocking(False)
    data = b"NOOP\r\n" * 100_000
    try:
        while data:
            data = data[deaf.socket.send(data) :]
    except BlockingIOError:
        pass  # neither side reads any more
    assert small.client().deliver("ok@x.org") == ["250 2.1.5 <ok@x.org> delivered"]
