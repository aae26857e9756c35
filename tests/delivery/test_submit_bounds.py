"""What one user's agent can take of submit, and what is left for everybody else."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery import postman, sealed, submit, wire
from milterapp.delivery.requests import RESPONSES
from milterapp.delivery.submit_policy import SubmitPolicy
from milterapp.mail.message import Mail
from milterapp.settings import Program, Settings
from tests.delivery.test_submit import ENVELOPE, MESSAGE, World, ask, ask_or_closed, kept, tell

REFUSED = {"rule": "away", "subject": "", "text": "x"}  # a reply to a list


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Give a running service."""
    made = World(tmp_path)
    yield made
    made.close()


def line(world: World, over: socket.socket, **other: str) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a line that envelope and message were said of, the agent's and the one the monitor keeps."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    message = sealed.seal([MESSAGE])
    wire.send(over, "ENVELOPE", {**ENVELOPE, **other}, (message, theirs.fileno()))
    os.close(message)
    world._connections += [ours, theirs]
    return ours, theirs


def test_a_line_takes_so_many_requests(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Beyond what the policy lets one message cause an agent is hung up on, which is logged once; not the next one."""
    assert world.policy is not None
    most = world.policy.requests
    assert most == 4 + 2 * 20 + 20
    ours, _ = line(world, monitor := world.connect())
    for _ in range(most):
        assert ask(ours, "FORWARD", to="c@example.org", step="no step")[0] == "REFUSED"
    assert ask(ours, "KEEP") == ("FAILED", f"'bob' asks more than {most} things of one message")
    assert ours.recv(1) == b""
    assert ask(line(world, monitor)[0], "KEEP")[0] == "DONE"
    said = capfd.readouterr().err
    assert said.count("result=refused") == most
    assert said.count('event="connection closed"') == said.count(f"more than {most} things") == 1


def test_the_header_is_read_once_a_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the guards are asked about a message, its header is parsed once; another line's is another's."""
    read: list[int] = []

    def counted(raw: bytes, *limits: object) -> Mail:
        read.append(len(raw))
        return Mail(raw, *limits)  # type: ignore[arg-type]

    monkeypatch.setattr(postman, "Mail", counted)
    listed = b"List-Id: <l.example.org>\n" + MESSAGE
    first = world.bound(listed)
    assert {ask(first, "REPLY", **REFUSED, step=str(step))[0] for step in range(5)} == {"REFUSED"}
    assert ask(first, "FORWARD", to="c@example.org", step="9")[0] == "DONE"
    assert read == [len(listed)]
    assert ask(world.bound(queue_id="4B"), "REPLY", **REFUSED, step="0")[0] == "DONE"
    assert read == [len(listed), len(MESSAGE)]


def test_a_line_does_not_last_for_ever(tmp_path: Path) -> None:
    """An agent that asks again and again is hung up on when no job can last any more, however little it pauses."""
    world = World(tmp_path, idle=4.0)
    try:
        begun, ours, asked = time.monotonic(), world.bound(), 0
        while asked < 60:
            wire.send(ours, "KEEP", {})
            if wire.receive(ours, RESPONSES) is None:
                break
            asked += 1
            time.sleep(0.2)
    except ConnectionError:
        pass  # hung up on between two of them, or before the last was read
    finally:
        world.close()
    assert 2 <= asked < 30
    assert time.monotonic() - begun >= 4.0


def test_the_monitor_ends_a_line(world: World) -> None:
    """A line that the monitor ends makes room for another of that user's, though its agent keeps its own end."""
    monitor = world.connect()
    kept = [line(world, monitor, queue_id=f"4H{number}") for number in range(8)]
    assert [ask(ours, "KEEP")[0] for ours, _ in kept] == ["DONE"] * 8
    assert line(world, monitor)[0].recv(6) == b"FAILED"
    for _, theirs in kept:
        theirs.shutdown(socket.SHUT_RDWR)
    until = time.monotonic() + 30
    while not ask_or_closed(line(world, monitor)[0]) and time.monotonic() < until:
        time.sleep(0.01)  # it has yet to see the end of the others
    assert ask(line(world, monitor)[0], "KEEP") == ("DONE", "4Q8")


def test_lines_leave_room_for_what_the_monitor_keeps(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Where agents hold as many lines as there are, the next agent is told so and waits; what is kept goes on."""
    monitor = world.connect()
    held = [line(world, monitor, user=f"u{at // 8}", queue_id=f"4H{at}") for at in range(100)]
    over = line(world, monitor, user="carol")[0]
    assert over.recv(1000) == b"FAILED\ntext:20:100 lines are in use\n"
    assert over.recv(1) == b""
    for number in range(20):
        tell(monitor, str(number), queue_id=f"4I{number}")
    assert [kept(monitor)[1] for _ in range(20)] == ["DONE"] * 20
    assert ask(held[99][0], "KEEP")[0] == "DONE"
    held[0][1].shutdown(socket.SHUT_RDWR)
    until = time.monotonic() + 30
    again = False
    while not again and time.monotonic() < until:
        again = ask_or_closed(line(world, monitor, user="carol")[0])
    assert again
    assert "100 lines are in use" in capfd.readouterr().err


def test_there_are_lines_for_all_agents() -> None:
    """A site with more agents than usual has a line for each."""
    settings = dataclasses.asdict(Settings())
    assert SubmitPolicy.from_site(settings).lines == 100
    settings["delivery"]["agents"] = 300
    assert SubmitPolicy.from_site(settings).lines == 300


LONG = MESSAGE + b"x\n" * 1000


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let edits make a message longer by less than usual, which the peer takes sooner."""
    monkeypatch.setattr(submit, "_GROWTH", 1000)
    return 1000


def test_what_edits_make_far_too_long_is_kept_as_it_came(
    world: World, short: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each attempt would have the same bytes, so nothing waits: it is kept, unedited, which is logged with its size."""
    assert ask(world.bound(), "KEEP", LONG) == ("DONE", "4Q0")
    monitor = world.connect()
    tell(monitor, "1", MESSAGE, LONG, queue_id="4B")
    assert kept(monitor) == ("1", "DONE", "4Q1")
    assert [taken.data for taken in world.hand_back.taken] == [MESSAGE.replace(b"\n", b"\r\n")] * 2
    why = f"the message as edited has {len(LONG)} bytes, more than {len(MESSAGE) + short}"
    said = capfd.readouterr().err
    assert said.count(why) == said.count('event="kept unedited"') == 2
    assert ask(world.bound(), "FORWARD", LONG, to="c@example.org", step="0") == ("REFUSED", why)
    assert world.send.taken == []


@pytest.mark.usefixtures("short")
def test_what_a_filter_may_write_is_taken(world: World) -> None:
    """A message may have as many bytes as the site lets a program write, however short it was before."""
    assert world.policy is not None
    world.stop()
    world.policy = dataclasses.replace(world.policy, output=len(LONG))
    world.start()
    assert ask(world.bound(), "KEEP", LONG) == ("DONE", "4Q0")
    monitor = world.connect()
    tell(monitor, "1", MESSAGE, LONG, queue_id="4B")
    assert kept(monitor) == ("1", "DONE", "4Q1")
    tell(monitor, "2", MESSAGE, LONG + b"y", queue_id="4C")
    assert kept(monitor) == ("2", "DONE", "4Q2")
    assert [len(taken.data) > len(LONG) for taken in world.hand_back.taken] == [True, True, False]


def test_the_longest_output_counts() -> None:
    """Of the programs that the site has, the one that may write most says how long a filtered message may be."""
    settings = Settings(programs={"a": Program(("/bin/cat",)), "b": Program(("/bin/cat",), output=1000)})
    assert SubmitPolicy.from_site(dataclasses.asdict(settings)).output == 64 << 20
    assert SubmitPolicy.from_site(dataclasses.asdict(Settings())).output == 0


def test_what_is_under_way_when_a_line_ends_is_marked(world: World) -> None:
    """A request that the end of its line overtakes is carried out once: the next attempt hears what became of it."""
    ours, theirs = line(world, monitor := world.connect())
    wire.send(ours, "KEEP", {})
    theirs.shutdown(socket.SHUT_RDWR)
    until = time.monotonic() + 30
    while (not world.hand_back.taken or world.postman._under_way) and time.monotonic() < until:
        time.sleep(0.01)
    assert ask(line(world, monitor)[0], "KEEP") == ("DONE", "4Q0")
    assert len(world.hand_back.taken) == 1
