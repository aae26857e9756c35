"""The submit service over its real sockets: who may ask, for what, and that nothing is sent twice."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import grp
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from milterapp.delivery import door, sealed, wire
from milterapp.delivery.event import Log
from milterapp.delivery.postman import Postman
from milterapp.delivery.requests import KEPT, RESPONSES
from milterapp.delivery.submit import Service
from milterapp.delivery.submit_policy import SubmitPolicy
from milterapp.settings import Settings
from tests.delivery.chain import wait_until
from tests.delivery.smtp_peer import SmtpPeer

MESSAGE = b"From: ann@example.org\nTo: bob@x.org\nSubject: hello\nMessage-ID: <m@example.org>\n\n.hi\n"
SERVICE = (sys.executable, "-I", "-m", "milterapp.delivery.submit")
ENVELOPE = {
    "sender": "ann@example.org", "recipient": "bob@x.org", "original": "info@x.org", "queue_id": "4A", "user": "bob",
}  # fmt: skip


@dataclass
class World:
    """A running service between an asker and a Postfix."""

    folder: Path
    monitor: int = field(default_factory=os.geteuid)
    policy: SubmitPolicy | None = None
    idle: float = 60

    def __post_init__(self) -> None:
        self.hand_back = SmtpPeer(str(self.folder / "back"), chunking=True)
        self.send = SmtpPeer(str(self.folder / "send"))
        state = self.folder / "state"
        self.policy = SubmitPolicy(str(state), self.hand_back.address, self.send.address, timeout=30)
        self._connections: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Start the service."""
        assert self.policy is not None
        self.postman = Postman(self.policy)
        self.listener = door.listen(str(self.folder / "submit"), 0o660)
        service = Service(self.postman, self.policy, self.monitor, Log("submit"), idle=self.idle)
        self._thread = threading.Thread(target=service.run, args=(self.listener,))
        self._thread.start()

    def stop(self) -> None:
        """Stop the service."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(40)
        self.listener.close()
        self.postman.close()

    def close(self) -> None:
        """End everything."""
        for connection in self._connections:
            connection.close()
        self.stop()
        self.hand_back.close()
        self.send.close()

    def connect(self) -> socket.socket:
        """Return a connection on which nothing was said."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(30)
        connection.connect(str(self.folder / "submit"))
        self._connections.append(connection)
        return connection

    def bound(self, message: bytes = MESSAGE, *, over: socket.socket | None = None, **other: str) -> socket.socket:
        """Return our end of a line that envelope and message were said of; over that connection, or one of its own."""
        connection = over or self.connect()
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.settimeout(30)
        self._connections.append(line)
        descriptor = sealed.seal([message])
        with theirs:
            wire.send(connection, "ENVELOPE", {**ENVELOPE, **other}, (descriptor, theirs.fileno()))
        os.close(descriptor)
        if over is None:
            connection.close()
        return line


def ask(connection: socket.socket, kind: str, message: bytes | None = None, /, **fields: str) -> tuple[str, str]:
    """Ask for one thing; return the kind of the answer and its one field."""
    descriptors = () if message is None else (sealed.seal([message]),)
    wire.send(connection, kind, fields, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    answer = wire.receive(connection, RESPONSES)
    assert answer is not None
    return answer.kind, answer.text("queue_id") or answer.text("text")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Give a running service."""
    made = World(tmp_path)
    yield made
    made.close()


def test_keep_hands_the_message_back_as_it_came(world: World) -> None:
    """KEEP sends the message, to the byte, from the envelope's sender to its recipient, through the hand-back door."""
    assert ask(world.bound(), "KEEP") == ("DONE", "4Q0")
    (taken,) = world.hand_back.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<ann@example.org>", "RCPT TO:<bob@x.org>")
    assert taken.data == MESSAGE.replace(b"\n", b"\r\n")
    assert world.send.taken == []


def test_keep_takes_an_edited_message(world: World) -> None:
    """KEEP with a descriptor sends the edited message, to the same recipient."""
    assert ask(world.bound(), "KEEP", b"X: y\n" + MESSAGE) == ("DONE", "4Q0")
    assert world.hand_back.taken[0].data.startswith(b"X: y\r\nFrom: ")
    assert world.hand_back.taken[0].rcpt == "RCPT TO:<bob@x.org>"


def test_keep_over_lmtp(world: World) -> None:
    """With `keep: lmtp:…` an agent's KEEP goes there, once; the monitor's own, for nobody it knows, to Postfix."""
    assert world.policy is not None
    keeper = SmtpPeer(str(world.folder / "lmtp"))
    try:
        world.stop()
        world.policy = dataclasses.replace(world.policy, keep=f"lmtp:unix:{keeper.address}")
        world.start()
        assert [ask(world.bound(), "KEEP", b"X: y\n" + MESSAGE)[0] for _ in range(2)] == ["DONE", "DONE"]
        (taken,) = keeper.taken
        assert (taken.mail, taken.rcpt) == ("MAIL FROM:<ann@example.org>", "RCPT TO:<bob@x.org>")
        assert taken.data.startswith(b"X: y\r\nFrom: ")
        assert world.hand_back.taken == []
        keeper.refuse = "550 5.1.1 no such user"
        assert ask(world.bound(queue_id="4B"), "KEEP")[0] == "FAILED"
        assert ask(world.bound(user="", queue_id="4C"), "KEEP")[0] == "DONE"
        assert (len(world.hand_back.taken), len(keeper.taken)) == (1, 1)
    finally:
        keeper.close()


def tell(connection: socket.socket, number: str, *messages: bytes, **other: str) -> None:
    """Ask, as the monitor does for itself, to keep a message."""
    descriptors = [sealed.seal([one]) for one in messages or (MESSAGE,)]
    wire.send(connection, "ENVELOPE", {**ENVELOPE, "id": number, **other}, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def kept(connection: socket.socket) -> tuple[str, str, str]:
    """Return the next answer to that: a number, the kind of the answer and its one field."""
    answer = wire.receive(connection, KEPT)
    assert answer is not None
    return answer.text("id"), answer.kind, answer.text("queue_id") or answer.text("text")


def test_the_monitor_has_a_message_kept(world: World) -> None:
    """What the monitor itself asks to keep goes back as it came, or as edited, each once, with its own answer."""
    connection = world.connect()
    tell(connection, "7")
    assert kept(connection) == ("7", "DONE", "4Q0")
    tell(connection, "8", MESSAGE, b"X: y\n" + MESSAGE, queue_id="4B")
    assert kept(connection) == ("8", "DONE", "4Q1")
    tell(connection, "9")
    assert kept(connection) == ("9", "DONE", "4Q0")
    assert ask(world.bound(over=connection), "KEEP") == ("DONE", "4Q0")
    first, second = world.hand_back.taken
    assert (first.mail, first.rcpt) == ("MAIL FROM:<ann@example.org>", "RCPT TO:<bob@x.org>")
    assert first.data == MESSAGE.replace(b"\n", b"\r\n")
    assert second.data == b"X: y\r\n" + first.data


def test_the_monitor_is_answered_in_any_order(world: World) -> None:
    """A message that Postfix takes its time with holds up no other over the same connection."""
    assert world.policy is not None
    slow = SmtpPeer(str(world.folder / "lmtp"), silent=threading.Event())
    try:
        world.stop()
        world.policy = dataclasses.replace(world.policy, keep=f"lmtp:unix:{slow.address}")
        world.start()
        connection = world.connect()
        tell(connection, "1")
        tell(connection, "2", user="", queue_id="4B")
        assert kept(connection) == ("2", "DONE", "4Q0")
        assert slow.silent is not None
        slow.silent.set()
        assert kept(connection) == ("1", "DONE", "4Q0")
    finally:
        slow.close()


@pytest.mark.parametrize(
    ("refuse", "text"),
    [
        pytest.param("452 4.3.1 no room", "4.3.1 keep: the end of the data: 452 4.3.1 no room", id="4xx"),
        pytest.param("552 5.3.4 too big", "4.3.4 keep: the end of the data: 552 5.3.4 too big", id="5xx"),
        pytest.param("451 later", "keep: the end of the data: 451 later", id="without a status"),
    ],
)
def test_the_monitor_hears_why_not(world: World, refuse: str, text: str) -> None:
    """What is not taken is FAILED, behind the status that Postfix gave, of class 4; the next one goes on."""
    world.hand_back.refuse = refuse
    connection = world.connect()
    tell(connection, "1")
    assert kept(connection) == ("1", "FAILED", text)
    world.hand_back.refuse = ""
    tell(connection, "2")
    assert kept(connection) == ("2", "DONE", "4Q0")


@pytest.mark.parametrize("which", ["message", "edited"])
def test_what_the_monitor_hands_on_cannot_change(world: World, which: str) -> None:
    """A message that is not sealed is not kept, as it came or as edited."""
    connection, sound, loose = world.connect(), sealed.seal([MESSAGE]), _loose()
    messages = (loose,) if which == "message" else (sound, loose)
    wire.send(connection, "ENVELOPE", {**ENVELOPE, "id": "1"}, messages)
    os.close(sound)
    os.close(loose)
    assert kept(connection) == ("1", "FAILED", "keep: the message is not sealed")
    assert world.hand_back.taken == []


def test_a_monitor_that_hears_no_answer(world: World) -> None:
    """Where the asker is gone, or its number is none, what was asked for is done or not, and others are served."""
    world.hand_back.silent = threading.Event()
    connection = world.connect()
    tell(connection, "1")
    wait_until(lambda: world.postman._under_way, "the request to be under way")
    connection.close()
    other = world.connect()
    tell(other, "x")
    assert other.recv(1) == b""
    world.hand_back.silent.set()
    last = world.connect()
    tell(last, "2", queue_id="4B")
    assert kept(last)[:2] == ("2", "DONE")
    wait_until(lambda: len(world.hand_back.taken) >= 2, "the first one, which is sent all the same")
    assert len(world.hand_back.taken) == 2


def test_an_answer_that_cannot_be_given_ends_the_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that is not answered hears that at once, and asks over another connection: what was sent is known."""
    connection, send = world.connect(), wire.send

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    world.hand_back.silent = threading.Event()  # no answer before it cannot be given
    tell(connection, "1")
    monkeypatch.setattr("milterapp.delivery.submit.wire.send", fails)
    world.hand_back.silent.set()
    assert connection.recv(1) == b""
    monkeypatch.setattr("milterapp.delivery.submit.wire.send", send)
    other = world.connect()
    tell(other, "1")
    assert kept(other) == ("1", "DONE", "4Q0")
    assert len(world.hand_back.taken) == 1


def test_many_answers_wait_for_a_slow_monitor(world: World) -> None:
    """A monitor that asks on without reading has all its answers, once it reads."""
    connection = world.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(400):
        tell(connection, str(number), queue_id=f"4A{number % 40}")
    answers = [kept(connection) for _ in range(400)]
    assert {kind for _, kind, _ in answers} <= {"DONE", "FAILED"}  # of one message a second request may be under way
    assert sorted(int(number) for number, *_ in answers) == list(range(400))
    assert len(world.hand_back.taken) == 40


def test_a_null_sender_stays_null(world: World) -> None:
    """A bounce is handed back, and forwarded, as a bounce."""
    connection = world.bound(sender="")
    ask(connection, "KEEP")
    ask(connection, "FORWARD", to="c@example.org", step="0")
    assert world.hand_back.taken[0].mail == "MAIL FROM:<>"
    assert world.send.taken[0].mail == "MAIL FROM:<>"


@pytest.mark.parametrize(
    "refuse", ["501 5.1.7 Bad sender address syntax", "500 5.5.2 Error: bad UTF-8 syntax", "553 5.1.7 no"]
)
def test_a_sender_that_is_no_address_becomes_null(world: World, refuse: str) -> None:
    """What sendmail(1) took from a sender that smtpd(8) takes for none is kept and forwarded, from the null sender."""
    world.hand_back.refuse_sender = world.send.refuse_sender = refuse
    connection = world.bound(sender="-x@home.example")
    assert ask(connection, "KEEP")[0] == "DONE"
    assert ask(connection, "FORWARD", to="c@example.org", step="0")[0] == "DONE"
    assert [one.mail for one in world.hand_back.taken + world.send.taken] == ["MAIL FROM:<>"] * 2
    assert world.hand_back.taken[0].data == MESSAGE.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("refuse", ["451 4.3.0 later", "530 5.7.0 TLS", "552 5.3.4 too big"])
def test_another_refusal_at_the_sender_defers(world: World, refuse: str) -> None:
    """Where it is not the address that Postfix minds, the sender stays as it is, and the delivery waits."""
    world.hand_back.refuse_sender = refuse
    assert ask(world.bound(), "KEEP")[0] == "FAILED"
    assert world.hand_back.taken == []


def test_a_forward_carries_its_loop_mark(world: World) -> None:
    """FORWARD goes through the sending door with Delivered-To on top; the rest is the message as it came."""
    assert ask(world.bound(), "FORWARD", to="c@example.org", step="0") == ("DONE", "4Q0")
    (taken,) = world.send.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<ann@example.org>", "RCPT TO:<c@example.org>")
    assert taken.data == b"Delivered-To: bob@x.org\r\n" + MESSAGE.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("mark", "to"),
    [
        pytest.param(b"Delivered-To: bob@x.org\n", "c@example.org", id="second sight"),
        pytest.param(b"Received: x\nDELIVERED-TO: <z>\ndelivered-to:\n Bob@X.org\n", "c@example.org", id="folded"),
        pytest.param(b"", "Bob@x.org", id="to oneself"),
    ],
)
def test_a_loop_is_refused(world: World, mark: bytes, to: str) -> None:
    """A message that was here before, or would come back at once, is not forwarded, whatever the edited one says."""
    kind, text = ask(world.bound(mark + MESSAGE), "FORWARD", MESSAGE, to=to, step="0")
    assert (kind, "loop" in text) == ("REFUSED", True)
    assert world.send.taken == []


def test_a_likeness_of_a_loop_is_none(world: World) -> None:
    """Another's Delivered-To, or the mark in the body, refuses nothing."""
    message = b"Delivered-To: carol@x.org\n" + MESSAGE + b"Delivered-To: bob@x.org\n"
    assert ask(world.bound(message), "FORWARD", to="c@example.org", step="0")[0] == "DONE"


@pytest.mark.parametrize("to", ["", "bob", "@x.org", "a@", "a@x.org\nRCPT TO:<b@x.org>", "a@x.org> X"])
def test_a_bad_target_is_not_sent_to(world: World, to: str) -> None:
    """What is not one address with a domain is never sent to."""
    assert ask(world.bound(), "FORWARD", to=to, step="0")[0] in ("REFUSED", "FAILED")
    assert world.send.taken == []


def test_forwards_are_bounded(world: World) -> None:
    """No more forwards leave for one message and recipient than the site allows, also over several connections."""
    for number in range(4):
        assert ask(world.bound(), "FORWARD", to=f"c{number}@example.org", step=str(number))[0] == "DONE"
    assert ask(world.bound(), "FORWARD", to="c4@example.org", step="4")[0] == "REFUSED"
    assert ask(world.bound(), "FORWARD", to="c3@example.org", step="3") == ("DONE", "4Q3")
    assert ask(world.bound(queue_id="4B"), "FORWARD", to="c4@example.org", step="4")[0] == "DONE"
    assert len(world.send.taken) == 5


def test_the_site_may_name_the_recipient_as_sender(tmp_path: Path) -> None:
    """With forward_sender: recipient, forwards leave in the recipient's name; a null sender stays null."""
    world = World(tmp_path)
    try:
        world.stop()
        assert world.policy is not None
        world.policy = dataclasses.replace(world.policy, forward_sender="recipient")
        world.start()
        ask(world.bound(), "FORWARD", to="c@example.org", step="0")
        ask(world.bound(sender=""), "FORWARD", to="d@example.org", step="0")
        assert [taken.mail for taken in world.send.taken] == ["MAIL FROM:<bob@x.org>", "MAIL FROM:<>"]
    finally:
        world.close()


def test_a_reply_is_built_from_the_message_as_it_came(world: World) -> None:
    """REPLY goes from the null sender to the envelope sender alone, with the text asked for."""
    asked = ask(world.bound(), "REPLY", rule="away", subject="", text="I am away.", step="1")
    assert asked == ("DONE", "4Q0")
    (taken,) = world.send.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<>", "RCPT TO:<ann@example.org>")
    assert b"\r\nSubject: Re: hello\r\n" in taken.data
    assert b"\r\nAuto-Submitted: auto-replied\r\n" in taken.data
    assert taken.data.endswith(b"\r\n\r\nI am away.\r\n")


def test_the_guards_cannot_be_gone_round(world: World) -> None:
    """What must not be answered is refused whatever asks, since submit reads the message that the monitor sealed."""
    for number, (message, sender) in enumerate(
        (
            (b"List-Id: <a.b>\n" + MESSAGE, "ann@example.org"),
            (MESSAGE, ""),
            (MESSAGE.replace(b"bob@", b"c@"), "a@x.org"),
        )
    ):
        connection = world.bound(message, sender=sender, queue_id=f"4G{number}")
        assert ask(connection, "REPLY", rule="away", subject="", text="x", step="0")[0] == "REFUSED"
    assert world.send.taken == []


def test_one_reply_for_each_correspondent_and_interval(world: World) -> None:
    """A second message of the same correspondent is not answered by the same rule; a failed reply does not count."""
    say = {"rule": "away", "subject": "", "text": "x", "step": "0"}
    world.send.refuse = "451 4.3.0 later"
    assert ask(world.bound(), "REPLY", **say)[0] == "FAILED"
    world.send.refuse = ""
    assert ask(world.bound(queue_id="4B"), "REPLY", **say)[0] == "DONE"
    assert ask(world.bound(), "REPLY", **say)[0] == "REFUSED"
    assert ask(world.bound(queue_id="4C"), "REPLY", **{**say, "rule": "moved"})[0] == "DONE"
    assert ask(world.bound(queue_id="4D", sender="ed@example.org"), "REPLY", **say)[0] == "DONE"
    assert len(world.send.taken) == 3


TO_CAROL = MESSAGE.replace(b"bob@x.org", b"carol@x.org")
AWAY = {
    "rule": "away", "subject": "", "text": "Away.", "step": "0", "days": "3", "handle": "h", "from": "", "addresses": ""
}  # fmt: skip


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        pytest.param({}, (b"From: bob@x.org", b"Subject: Auto: hello"), id="as it is"),
        pytest.param({"subject": "Gone"}, (b"Subject: Gone",), id="subject"),
        pytest.param({"from": "info@x.org"}, (b"From: info@x.org",), id="from"),
        pytest.param({"from": "ceo@x.org", "addresses": "ceo@x.org"}, (b"From: bob@x.org",), id="from another"),
    ],
)
def test_a_vacation(world: World, other: dict[str, str], fields: tuple[bytes, ...]) -> None:
    """A vacation goes from the null sender to the envelope sender, in the name of nobody but its user."""
    assert ask(world.bound(), "REPLY", **{**AWAY, **other}) == ("DONE", "4Q0")
    (taken,) = world.send.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<>", "RCPT TO:<ann@example.org>")
    for field_ in (*fields, b"Auto-Submitted: auto-replied"):
        assert b"\r\n" + field_ + b"\r\n" in b"\r\n" + taken.data


@pytest.mark.parametrize(
    ("message", "sender", "other", "why"),
    [
        pytest.param(MESSAGE, "", {}, "null", id="null sender"),
        pytest.param(b"List-Id: <a.b>\n" + MESSAGE, "ann@example.org", {}, "List-Id", id="list"),
        pytest.param(
            b"Auto-Submitted: auto-replied\n" + MESSAGE, "ann@example.org", {}, "auto-replied", id="automatic"
        ),
        pytest.param(MESSAGE.replace(b"bob@", b"c@"), "ann@example.org", {}, "no address", id="not addressed"),
        pytest.param(MESSAGE, "me@a.example", {"addresses": "me@a.example"}, "is the recipient", id="oneself"),
        pytest.param(MESSAGE, "ann@example.org", {"addresses": "a@b.c\n" * 20}, "20 addresses", id="many addresses"),
        pytest.param(MESSAGE, "ann@example.org", {"days": "0"}, "1 to 365", id="no day"),
        pytest.param(MESSAGE, "ann@example.org", {"days": "366"}, "1 to 365", id="too many days"),
        pytest.param(MESSAGE, "ann@example.org", {"days": "-3"}, "1 to 365", id="negative days"),
        pytest.param(MESSAGE, "ann@example.org", {"handle": ""}, "handle", id="no handle"),
    ],
)
def test_a_vacation_that_is_refused(world: World, message: bytes, sender: str, other: dict[str, str], why: str) -> None:
    """The guards hold for a vacation as for any reply, and what its user may not say is no reason to send."""
    kind, text = ask(world.bound(message, sender=sender), "REPLY", **{**AWAY, **other})
    assert (kind, why in text) == ("REFUSED", True), text
    assert world.send.taken == []


def test_other_addresses_count_where_the_message_names_them(world: World) -> None:
    """A message to another address of the user is answered where the rule names that address."""
    say = {**AWAY, "addresses": "x@a.example\nc@x.org"}
    assert ask(world.bound(MESSAGE.replace(b"bob@", b"c@")), "REPLY", **say)[0] == "DONE"


def test_a_vacation_is_said_once_in_its_days(world: World) -> None:
    """Remembered are user, correspondent and handle, for the days of the rule and whatever the rule is called."""
    assert ask(world.bound(), "REPLY", **AWAY)[0] == "DONE"
    assert ask(world.bound(queue_id="4B"), "REPLY", **{**AWAY, "rule": "other"})[0] == "REFUSED"
    assert ask(world.bound(queue_id="4C"), "REPLY", **{**AWAY, "handle": "i"})[0] == "DONE"
    assert ask(world.bound(queue_id="4D", sender="ed@example.org"), "REPLY", **AWAY)[0] == "DONE"
    with sqlite3.connect(world.folder / "state/replied.sqlite") as state:
        state.execute("UPDATE replied SET at = at - 2 * 86400")
    state.close()
    world.postman.sweep(int(time.time()))
    assert ask(world.bound(queue_id="4E"), "REPLY", **AWAY)[0] == "REFUSED"
    assert ask(world.bound(queue_id="4F"), "REPLY", **{**AWAY, "days": "2"})[0] == "DONE"
    with sqlite3.connect(world.folder / "state/replied.sqlite") as state:
        state.execute("UPDATE replied SET at = at - 364 * 86400")
    state.close()
    world.postman.sweep(int(time.time()))
    assert ask(world.bound(queue_id="4G"), "REPLY", **{**AWAY, "days": "365"})[0] == "REFUSED"


def test_a_message_is_answered_a_few_times_at_most(world: World) -> None:
    """However many rules reply to one message, its sender gets no more than four."""
    kinds = [ask(world.bound(), "REPLY", rule=f"r{n}", subject="", text="x", step=str(n))[0] for n in range(6)]
    assert kinds == ["DONE"] * 4 + ["REFUSED"] * 2


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("KEEP", {}),
        ("FORWARD", {"to": "c@example.org", "step": "0"}),
        ("REPLY", {"rule": "away", "subject": "", "text": "x", "step": "0"}),
    ],
)
def test_a_repeated_request_is_done_already(world: World, kind: str, fields: dict[str, str]) -> None:
    """Asked again, by any connection or after a restart, it answers the first queue id and sends nothing."""
    connection = world.bound()
    first = ask(connection, kind, **fields)
    assert first == ("DONE", "4Q0")
    assert ask(connection, kind, **fields) == first
    assert ask(world.bound(), kind, **fields) == first
    world.stop()
    world.start()
    assert ask(world.bound(), kind, **fields) == first
    assert len(world.send.taken) + len(world.hand_back.taken) == 1


@pytest.mark.parametrize(
    ("kind", "fields"), [("KEEP", {}), ("FORWARD", {"to": "c@example.org", "step": "0"})], ids=["keep", "forward"]
)
def test_what_cannot_be_marked_is_not_sent_again(world: World, kind: str, fields: dict[str, str]) -> None:
    """While no mark can be written, what Postfix took once is FAILED and not sent again, and nothing else is sent."""
    with contextlib.closing(sqlite3.connect(world.folder / "state/journal.sqlite")) as disk:
        disk.execute("CREATE TRIGGER full BEFORE INSERT ON done BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        for _ in range(3):
            answer, text = ask(world.bound(), kind, **fields)
            assert (answer, "disk is full" in text) == ("FAILED", True)
        assert ask(world.bound(queue_id="4B"), kind, **fields)[0] == "FAILED"
        disk.execute("DROP TRIGGER full")
    assert ask(world.bound(), kind, **fields) == ("DONE", "4Q0")
    assert ask(world.bound(queue_id="4B"), kind, **fields) == ("DONE", "4Q1")
    assert len(world.send.taken) + len(world.hand_back.taken) == 2


SENT = {"to": "carol@example.org", "subject": "Grüße", "text": "Hallo\nCarol", "step": "0", "script": "list.py"}


def test_a_script_sends_as_the_recipient(world: World) -> None:
    """SEND writes a letter of its own, from the address that was written to, marked as a program's; once."""
    assert [ask(world.bound(), "SEND", **SENT) for _ in range(2)] == [("DONE", "4Q0")] * 2
    (taken,) = world.send.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<bob@x.org>", "RCPT TO:<carol@example.org>")
    head, _, body = taken.data.partition(b"\r\n\r\n")
    for line in (b"From: bob@x.org", b"To: carol@example.org", b"Auto-Submitted: auto-generated"):
        assert line in head.split(b"\r\n")
    assert b"\r\nIn-Reply-To" not in head
    assert body == b"Hallo\r\nCarol\r\n"


@pytest.mark.parametrize("to", ["carol", "@example.org", "a@b.example\r\nRCPT TO:<c@d.example>", ""])
def test_a_script_sends_to_addresses_only(world: World, to: str) -> None:
    """Whatever else stands there is refused for good, and reaches no SMTP command."""
    assert ask(world.bound(), "SEND", **{**SENT, "to": to})[0] == "REFUSED"
    assert world.send.taken == []


def test_what_a_script_sends_is_bounded(world: World) -> None:
    """One message makes a script send, and forward, as often as the site lets it; a rule forwards less."""
    connection = world.bound()
    for step in range(20):
        assert ask(connection, "SEND", **{**SENT, "step": str(step)})[0] == "DONE"
        assert ask(connection, "FORWARD", to=f"c{step}@d.example", step=str(step), script="list.py")[0] == "DONE"
    for kind in ("SEND", "FORWARD"):
        said = ask(connection, kind, to="a@b.example", step="20", script="list.py")
        assert said == ("REFUSED", "no more than 20 of these for one message")


MARK = b"Auto-Submitted: auto-replied\n"


@pytest.mark.parametrize(("sender", "mark"), [("", b""), ("ann@example.org", MARK)], ids=["bounce", "automatic"])
def test_scripts_do_not_write_to_each_other_for_ever(world: World, sender: str, mark: bytes) -> None:
    """Messages that nobody wrote make a script send to one address within a rate only; a person's are not counted."""
    ends = [
        ask(world.bound(mark + MESSAGE, sender=sender, queue_id=f"4L{number}", user=""), "SEND", **SENT)[0]
        for number in range(12)
    ]
    assert ends == ["DONE"] * 10 + ["REFUSED"] * 2
    assert {one.mail for one in world.send.taken} == {"MAIL FROM:<>"}  # no bounce of it comes back
    assert ask(world.bound(queue_id="4M", user=""), "SEND", **SENT)[0] == "DONE"
    assert world.send.taken[-1].mail == "MAIL FROM:<bob@x.org>"


def test_a_forward_as_another_address_gives_away_no_other(world: World) -> None:
    """Its loop mark is the address that the script writes as, and that is looked for too."""
    asked = {"to": "carol@example.org", "step": "0", "script": "a.py", "from": "info+x@x.org"}
    assert ask(world.bound(), "FORWARD", **asked)[0] == "DONE"
    (taken,) = world.send.taken
    assert taken.data.startswith(b"Delivered-To: info+x@x.org\r\n")
    assert b"bob@x.org" not in taken.data.partition(b"\r\nTo: ")[0]
    back = world.bound(b"Delivered-To: INFO+x@x.org\n" + MESSAGE, queue_id="4B")
    assert ask(back, "FORWARD", **asked) == ("REFUSED", "mail forwarding loop: the message was here before")


def test_a_bounce_is_forwarded_as_one(world: World) -> None:
    """Whatever address a script names, the null sender stays null."""
    asked = {"to": "carol@example.org", "step": "0", "script": "a.py", "from": "bob+x@x.org"}
    assert ask(world.bound(sender=""), "FORWARD", **asked)[0] == "DONE"
    assert world.send.taken[0].mail == "MAIL FROM:<>"


def test_a_script_answers_within_a_rate(world: World) -> None:
    """A script answers the same correspondent again, unlike a rule, but not without end; a retry counts once."""
    reply = {"rule": "", "subject": "", "text": "x", "step": "0", "script": "list.py"}
    messages = [MESSAGE.replace(b"<m@", b"<%d@" % number) for number in range(12)]
    ends = [
        ask(world.bound(messages[number], queue_id=f"4N{number}", user=""), "REPLY", **reply)
        for number in [0, 0, *range(12)]
    ]
    assert [kind for kind, _ in ends] == ["DONE"] * 12 + ["REFUSED"] * 2
    assert len(world.send.taken) == 10
    assert ends[-1][1] == "the script answered the same correspondent 10 times within an hour"


def test_a_day_has_a_budget_of_replies(world: World) -> None:
    """Whoever writes and whichever rule answers, over the day's budget nobody is; another recipient has its own."""
    say = {"rule": "away", "subject": "", "text": "x", "step": "0"}
    world.stop()
    assert world.policy is not None
    world.policy = dataclasses.replace(world.policy, daily_replies=2)
    world.start()
    numbers = (0, 1, 1, 2)
    ends = [ask(world.bound(queue_id=f"4P{at}", sender=f"ann{at}@example.org"), "REPLY", **say) for at in numbers]
    assert [kind for kind, _ in ends] == ["DONE", "DONE", "DONE", "REFUSED"]
    assert ends[-1][1] == "2 replies were sent within a day"
    other = world.bound(TO_CAROL, queue_id="4P9", sender="ann2@example.org", recipient="carol@x.org", user="carol")
    assert ask(other, "REPLY", **say)[0] == "DONE"
    assert len(world.send.taken) == 3


def test_a_script_answers_one_copy_of_a_message(world: World) -> None:
    """A second copy with the same Message-ID is not answered again, whatever queue file it is in; another message is.

    What did not leave does not count.
    """
    reply = {"rule": "", "subject": "", "text": "x", "step": "0", "script": "list.py"}
    one, two = (MESSAGE.replace(b"<m@", b"<%d@" % number) for number in (1, 2))
    without = MESSAGE.replace(b"Message-ID: <m@example.org>\n", b"")
    world.send.refuse = "451 4.3.0 later"
    assert ask(world.bound(one, queue_id="4N0"), "REPLY", **reply)[0] == "FAILED"
    world.send.refuse = ""
    said = [
        ask(world.bound(message, queue_id=queue_id), "REPLY", **{**reply, "step": step})
        for message, queue_id, step in (
            (one, "4N1", "0"), (one, "4N1", "1"), (one, "4N2", "0"), (two, "4N3", "0"), (without, "4N4", "0"),
            (without, "4N5", "0"),
        )
    ]  # fmt: skip
    assert [kind for kind, _ in said] == ["DONE", "DONE", "REFUSED", "DONE", "DONE", "DONE"]
    assert "the same Message-ID" in said[2][1]
    assert len(world.send.taken) == 5


def test_the_guards_hold_for_scripts_too(world: World) -> None:
    """A list, a bounce, another automatic answer: no script can answer them."""
    reply = {"rule": "", "subject": "", "text": "x", "step": "0", "script": "list.py"}
    listed = b"List-Id: <l.example.org>\n" + MESSAGE
    for message, sender in ((listed, "ann@example.org"), (MARK + MESSAGE, "ann@example.org"), (MESSAGE, "")):
        assert ask(world.bound(message, sender=sender), "REPLY", **reply)[0] == "REFUSED"
    assert world.send.taken == []


OWN = {
    "the one written to": ("info@x.org", True),
    "the user's": ("Bob@X.org", True),
    "an extension": ("bob+bounces@x.org", True),
    "an extension of the one written to": ("info+a@x.org", True),
    "somebody else's": ("carol@x.org", False),
    "one that begins alike": ("bobby@x.org", False),
    "another host's": ("bob@y.org", False),
    "no domain": ("bob", False),
    "a domain of applications": ("any@apps.example", False),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["FORWARD", "REPLY", "SEND"])
def test_whom_a_script_writes_as(world: World, kind: str, name: str) -> None:
    """An address of the recipient's own, and no other; a rule names none, it is not looked at."""
    address, may = OWN[name]
    asked = {"to": "carol@example.org", "subject": "", "text": "x", "step": "0", "script": "a.py", "from": address}
    fields = {tag: value for tag, value in asked.items() if tag != "to" or kind != "REPLY"}
    if kind == "FORWARD":
        fields = {tag: asked[tag] for tag in ("to", "step", "script", "from")}
    answer, text = ask(world.bound(), kind, **fields)
    assert answer == ("DONE" if may else "REFUSED")
    if not may:
        assert text == "a script can only write as an address of its user's"
        assert world.send.taken == []
        return
    (taken,) = world.send.taken
    assert taken.mail == f"MAIL FROM:<{address}>" if kind != "REPLY" else "MAIL FROM:<>"
    assert kind == "FORWARD" or f"\r\nFrom: {address}\r\n".encode() in b"\r\n" + taken.data


def test_a_domain_of_applications(tmp_path: Path) -> None:
    """Written to there, a script may write as any address there; written to elsewhere it may not."""
    world = World(tmp_path)
    try:
        assert world.policy is not None
        world.stop()
        world.policy = dataclasses.replace(world.policy, script_domains=("apps.example",))
        world.start()
        for original, want in (("dev-join@Apps.example", "DONE"), ("info@x.org", "REFUSED")):
            asked = {**SENT, "from": "dev-bounce@apps.example"}
            assert ask(world.bound(original=original), "SEND", **asked)[0] == want
    finally:
        world.close()


def test_a_notice_goes_to_the_mailbox(world: World) -> None:
    """NOTICE writes to the recipient alone, past the rules, from the null sender."""
    assert ask(world.bound(), "NOTICE", subject="It failed", text="Traceback", step="script") == ("DONE", "4Q0")
    (taken,) = world.hand_back.taken
    assert (taken.mail, taken.rcpt) == ("MAIL FROM:<>", "RCPT TO:<bob@x.org>")
    assert b"\r\nSubject: It failed\r\n" in taken.data
    assert taken.data.endswith(b"\r\n\r\nTraceback\r\n")
    assert ask(world.bound(), "KEEP") == ("DONE", "4Q1")  # the message itself is another thing
    assert world.send.taken == []


def test_of_each_failure_there_is_one_notice(world: World) -> None:
    """Another step is another letter, the same one is not sent again; one message causes twenty at most."""
    line, steps = world.bound(), [f"notice{number}" for number in range(21)]
    said = [ask(line, "NOTICE", subject="It failed", text="Traceback", step=step) for step in (*steps, "notice0")]
    assert said[:20] == [("DONE", f"4Q{number}") for number in range(20)]
    assert said[20:] == [("REFUSED", "no more than 20 of these for one message"), ("DONE", "4Q0")]
    assert len(world.hand_back.taken) == 20


def test_another_alias_is_another_copy(world: World) -> None:
    """The same message to the same user by another alias is kept a second time, as Postfix would."""
    assert ask(world.bound(), "KEEP") == ("DONE", "4Q0")
    assert ask(world.bound(original="sales@x.org"), "KEEP") == ("DONE", "4Q1")


@pytest.mark.parametrize("refuse", ["451 4.3.0 later", "550 5.1.1 unknown", "552 5.3.4 too big", "530 5.7.0 TLS"])
def test_no_refusal_of_postfix_is_final(world: World, refuse: str) -> None:
    """Whatever Postfix answers, it is FAILED, which defers; asked again it is sent."""
    world.hand_back.refuse = refuse
    kind, text = ask(world.bound(), "KEEP")
    assert (kind, refuse in text) == ("FAILED", True)
    world.hand_back.refuse = ""
    assert ask(world.bound(), "KEEP")[0] == "DONE"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("FORWARD", {"to": "c@example.org", "step": "0"}),
        ("REPLY", {"rule": "away", "subject": "", "text": "x", "step": "0"}),
    ],
    ids=["forward", "reply"],
)
@pytest.mark.parametrize(
    ("refuse", "said"), [("554 5.7.1 spam", "REFUSED"), ("451 4.7.1 greylisted", "FAILED")], ids=["5xx", "4xx"]
)
def test_what_may_not_leave_is_refused_for_good(
    world: World, kind: str, fields: dict[str, str], refuse: str, said: str
) -> None:
    """A forward or reply that Postfix refuses with 5xx is REFUSED, so that nothing waits for days; with 4xx FAILED."""
    world.send.refuse = refuse
    answer, text = ask(world.bound(), kind, **fields)
    assert (answer, refuse in text) == (said, True)
    assert world.send.taken == []


def test_a_request_under_way_is_not_begun_twice(world: World) -> None:
    """While a first request still waits for Postfix, the same message asked about again is FAILED, and sent once."""
    world.hand_back.silent = threading.Event()
    first = world.bound()
    wire.send(first, "KEEP", {})
    wait_until(lambda: world.postman._under_way, "the request to be under way")
    kind, text = ask(world.bound(), "KEEP")
    assert (kind, "under way" in text) == ("FAILED", True)
    world.hand_back.silent.set()
    answer = wire.receive(first, RESPONSES)
    assert answer is not None
    assert answer.kind == "DONE"
    assert len(world.hand_back.taken) == 1


@pytest.mark.parametrize("size", [1, 500_000], ids=["small", "large"])
def test_who_waits_for_postfix_holds_up_nobody(world: World, size: int) -> None:
    """While one message waits for Postfix to take it, however much of it is still to be sent, another goes through."""
    world.hand_back.silent = threading.Event()
    first = world.bound(b"x" * size)
    wire.send(first, "KEEP", {})
    wait_until(lambda: world.postman._under_way, "the request to be under way")
    assert ask(world.bound(queue_id="4B"), "FORWARD", to="c@example.org", step="0") == ("DONE", "4Q0")
    assert world.hand_back.taken == []
    first.close()
    world.hand_back.silent.set()


def test_one_user_cannot_hold_all_lines(world: World) -> None:
    """A taken-over agent that keeps its lines loses further ones itself; other people's mail goes on."""
    kept = [world.bound(queue_id=f"4H{number}") for number in range(8)]
    assert [ask(one, "KEEP")[0] for one in kept] == ["DONE"] * 8
    over = world.bound(queue_id="4I")
    assert over.recv(1000) == b"FAILED\ntext:19:'bob' holds 8 lines\n"
    assert over.recv(1) == b""
    assert ask(world.bound(user="carol"), "KEEP")[0] == "DONE"
    assert ask(world.bound(user="", queue_id="4J"), "KEEP")[0] == "DONE"
    kept[0].close()
    wait_until(lambda: ask_or_closed(world.bound(queue_id="4I")), "the end of the first one to be seen")


def ask_or_closed(connection: socket.socket) -> bool:
    """Ask to keep; False where the connection is closed instead."""
    try:
        wire.send(connection, "KEEP", {})
        answer = wire.receive(connection, RESPONSES)
    except OSError:
        return False
    return answer is not None and answer.kind == "DONE"


def test_without_a_free_descriptor_it_waits_for_one(world: World) -> None:
    """Where no connection can be taken for a moment, the service goes on after it."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(caller.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        caller.connect(str(world.folder / "submit"))
        time.sleep(0.2)  # time to fail; with less it would only prove less
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        caller.close()
    assert ask(world.bound(), "KEEP")[0] == "DONE"


def test_only_the_monitor_may_ask(tmp_path: Path) -> None:
    """A peer of any other uid is hung up on before a word of it is read."""
    world = World(tmp_path, monitor=os.geteuid() + 1)
    try:
        connection = world.connect()
        assert connection.recv(1) == b""
    finally:
        world.close()


def _loose() -> int:
    descriptor = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.write(descriptor, MESSAGE)
    return descriptor


@pytest.mark.parametrize("first", ["KEEP", "rubbish", "no message", "no line"])
def test_nothing_before_the_envelope(world: World, first: str) -> None:
    """A connection that does not begin with an envelope, a message and a line is closed."""
    connection, descriptor = world.connect(), sealed.seal([MESSAGE])
    if first == "KEEP":
        wire.send(connection, "KEEP", {})
    elif first == "rubbish":
        connection.send(b"\0" * 100)
    else:
        wire.send(connection, "ENVELOPE", ENVELOPE, [descriptor] if first == "no line" else [])
    os.close(descriptor)
    assert connection.recv(1) == b""


def test_a_line_that_is_no_socket(world: World, tmp_path: Path) -> None:
    """What is passed on in a line's place and is none ends nothing but itself, and no descriptor stays open."""
    connection = world.connect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        descriptor, line = sealed.seal([MESSAGE]), os.open(tmp_path, os.O_RDONLY)
        wire.send(connection, "ENVELOPE", ENVELOPE, (descriptor, line))
        os.close(descriptor)
        os.close(line)
    line_after = world.bound(over=connection)
    assert ask(line_after, "KEEP")[0] == "DONE"
    assert len(os.listdir("/proc/self/fd")) < before + 10


@pytest.mark.parametrize("message", ["not sealed", "a file"])
def test_a_message_that_could_change(world: World, message: str, tmp_path: Path) -> None:
    """The line of a message that is not sealed is closed, and the connection serves other envelopes."""
    connection = world.connect()
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = _loose() if message == "not sealed" else os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with line:
        line.settimeout(30)
        with theirs:
            wire.send(connection, "ENVELOPE", ENVELOPE, (descriptor, theirs.fileno()))
        os.close(descriptor)
        assert line.recv(1) == b""
    assert ask(world.bound(over=connection), "KEEP")[0] == "DONE"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("KEEP", {"to": "c@example.org"}, id="keep for another"),
        pytest.param("FORWARD", {"to": "c@example.org", "step": "0", "sender": "x@y.org"}, id="forged sender"),
        pytest.param("ENVELOPE", ENVELOPE, id="a second envelope"),
        pytest.param("RELAY", {}, id="unknown"),
    ],
)
def test_nothing_beyond_the_requests(world: World, kind: str, fields: dict[str, str]) -> None:
    """A sender, a second envelope or a recipient for keep cannot even be said: the connection is closed."""
    connection = world.bound()
    wire.send(connection, kind, fields)
    assert connection.recv(1) == b""
    assert world.send.taken == world.hand_back.taken == []


def test_one_connection_for_many_envelopes(world: World) -> None:
    """Each line has the envelope it came with, whatever was said before or after it, and outlives the connection."""
    connection = world.connect()
    lines = [world.bound(over=connection, queue_id=f"4A{number}", recipient=f"u{number}@x.org") for number in range(3)]
    assert ask(lines[1], "KEEP")[0] == "DONE"
    connection.close()
    assert [ask(lines[number], "KEEP")[0] for number in (2, 0)] == ["DONE", "DONE"]
    assert [one.rcpt for one in world.hand_back.taken] == [f"RCPT TO:<u{number}@x.org>" for number in (1, 2, 0)]


def test_an_agent_may_ask_before_submit_is_told(world: World) -> None:
    """What was asked over a line before its envelope came is answered when it has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection, message = world.connect(), sealed.seal([MESSAGE])
    with ours:
        ours.settimeout(30)
        wire.send(ours, "KEEP", {})
        with theirs:
            wire.send(connection, "ENVELOPE", ENVELOPE, (message, theirs.fileno()))
        os.close(message)
        answer = wire.receive(ours, RESPONSES)
        assert answer is not None
        assert answer.kind == "DONE"
        assert ask(ours, "KEEP") == ("DONE", answer.text("queue_id"))
    assert len(world.hand_back.taken) == 1


def test_who_says_nothing_is_hung_up_on(tmp_path: Path) -> None:
    """A line whose agent asks nothing ends after a while, a connection without an envelope too; a monitor's stays."""
    world = World(tmp_path, idle=4.0)  # in which the monitor has said something
    try:
        silent, monitor = world.connect(), world.connect()
        line = world.bound(over=monitor)
        assert (silent.recv(1), line.recv(1)) == (b"", b"")
        assert ask(world.bound(over=monitor), "KEEP")[0] == "DONE"
    finally:
        world.close()


@pytest.mark.parametrize("step", ["", "a b", "x" * 33, "0\n"])
def test_a_step_is_a_short_word(world: World, step: str) -> None:
    """A step that could blur one request with another is refused."""
    assert ask(world.bound(), "FORWARD", to="c@example.org", step=step)[0] == "REFUSED"


@pytest.mark.parametrize(("kind", "fields"), [("KEEP", {}), ("FORWARD", {"to": "c@example.org", "step": "0"})])
def test_an_edited_message_is_sealed(world: World, kind: str, fields: dict[str, str]) -> None:
    """An edited message that could still change is not sent anywhere, and the agent hears why."""
    connection, descriptor = world.bound(), _loose()
    wire.send(connection, kind, fields, (descriptor,))
    os.close(descriptor)
    answer = wire.receive(connection, RESPONSES)
    assert answer is not None
    assert (answer.kind, answer.text("text")) == ("FAILED", "the message is not sealed")
    assert world.hand_back.taken == world.send.taken == []


def test_the_socket_is_for_its_group(world: World) -> None:
    """The socket can be connected to by its owner and its folder's group, and what a dead service left is replaced."""
    assert os.stat(world.folder / "submit").st_mode & 0o777 == 0o660
    world.stop()
    world.start()
    assert ask(world.bound(), "KEEP")[0] == "DONE"


def test_what_is_not_stale_stays(world: World, tmp_path: Path) -> None:
    """A socket that somebody listens on, or a file that is no socket, is never taken away."""
    with pytest.raises(OSError, match="listens there"):
        door.listen(str(world.folder / "submit"), 0o660)
    assert ask(world.bound(), "KEEP")[0] == "DONE"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="in use"):
        door.listen(str(tmp_path / "file"), 0o660)
    assert (tmp_path / "file").read_text() == "x"


def test_one_line_a_request(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Each request is logged once with old and new queue id and the result, never with a text of the message."""
    ask(world.bound(), "KEEP")
    world.stop()
    world.start()
    lines = [line for line in capfd.readouterr().err.splitlines() if "queue_id=4A" in line]
    assert len(lines) == 1
    assert re.search(r"event=keep .*queue_id=4A recipient=bob@x.org result=done new_queue_id=4Q0", lines[0])


@pytest.mark.parametrize(("argv", "code"), [([], 64), (["{}", "x"], 64)])
def test_usage(argv: list[str], code: int) -> None:
    """The service takes its settings as its one argument."""
    assert subprocess.run([*SERVICE, *argv], capture_output=True, check=False).returncode == code


def _settings(folder: Path, **accounts: str) -> str:
    settings = dataclasses.asdict(Settings())
    settings["accounts"] |= {"monitor": "65533", "submit": "65532", **accounts}
    settings["submit"] |= {"socket": str(folder / "run/socket"), "state": str(folder / "state")}
    return json.dumps(settings)


@pytest.fixture
def passable() -> Iterator[Path]:
    """Give a folder that every account can look into."""
    with tempfile.TemporaryDirectory(prefix="milterapp-submit-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.root
def test_the_service_drops_and_stops_when_told(passable: Path) -> None:
    """Started by root it makes its folders, becomes its account with group postdrop, and SIGTERM ends it with 0."""
    service = subprocess.Popen([*SERVICE, _settings(passable)], stderr=subprocess.PIPE)
    try:
        assert service.stderr is not None
        assert b"event=ready" in service.stderr.readline()
        status = Path(f"/proc/{service.pid}/status").read_text()
        groups = str(grp.getgrnam("postdrop").gr_gid)
        assert re.search(
            rf"^Uid:\t65532\t65532\t65532\t65532\nGid:\t65532.*\n(?:.*\n)*?Groups:\t{groups} $", status, re.MULTILINE
        )
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert stat.S_IMODE((passable / "run").stat().st_mode) == 0o2750
        assert (passable / "run/socket").stat().st_gid == 65533
        assert stat.S_IMODE((passable / "state").stat().st_mode) == 0o700
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    finally:
        service.kill()
        service.communicate()


@pytest.mark.root
@pytest.mark.parametrize(
    "accounts", [{"monitor": "no-such-account"}, {"submit": "no-such-account"}, {"submit": "root"}]
)
def test_the_service_does_not_start_without_its_accounts(passable: Path, accounts: dict[str, str]) -> None:
    """An account that is missing, or root's, is a line that says so and 78."""
    ended = subprocess.run([*SERVICE, _settings(passable, **accounts)], capture_output=True, check=False, timeout=20)
    assert ended.returncode == 78
    assert b"cannot start" in ended.stderr
    assert next(iter(accounts.values())).encode() in ended.stderr


@pytest.mark.root
def test_what_may_pass_is_no_reason_to_stay_away(passable: Path) -> None:
    """A state that cannot be opened now, on a full disk say, ends with 75, after which the unit tries again."""
    (passable / "state").write_text("in the way")
    ended = subprocess.run([*SERVICE, _settings(passable)], capture_output=True, check=False, timeout=20)
    assert (ended.returncode, b"cannot start" in ended.stderr) == (75, True)
