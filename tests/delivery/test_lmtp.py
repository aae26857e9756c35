"""The LMTP door on real sockets, before a monitor that says what the test tells it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milterapp.delivery import door, kinds, lmtp, sealed, wire
from milterapp.delivery.event import Log
from milterapp.delivery.lines import Lines
from milterapp.delivery.lmtp_session import Answer
from milterapp.delivery.tasks import alone
from milterapp.settings import Settings
from tests.delivery.chain import wait_until

SERVICE = (sys.executable, "-I", "-m", "milterapp.delivery.lmtp")
ANSWERS = {
    "ok@x.org": ("ok", ""),
    "back@x.org": ("ok", "handed back as 4XYZ"),
    "later@x.org": ("defer", "too many deliveries at once"),
    "later2@x.org": ("defer", "4.2.2 over quota"),
    "no@x.org": ("reject", "5.7.1 I do not read advertisements"),
    "odd@x.org": ("reject", "no status"),
    "word@x.org": ("maybe", "5.0.0 what"),
}
OPENING = b"LHLO mx\r\nXFORWARD IDENT=4A ADDR=192.0.2.1\r\n"


class Monitor(threading.Thread):
    """Answers each DELIVER by its recipient; keeps what came. gone@x.org is hung up on."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.jobs: list[tuple[dict[str, str], bytes]] = []
        self.kinds: list[str] = []
        self.gate: threading.Event | None = None
        self._listener = door.listen(path, 0o666)
        self.start()

    def run(self) -> None:
        """Serve until closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,)).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            job = wire.receive(connection, kinds.DELIVER, descriptors=(1,))
            if job is None:
                return
            sealed.measure(job.descriptors[0], 1 << 30)
            self.jobs.append(({tag: job.text(tag) for tag in job.fields}, sealed.read(job.descriptors[0])))
            self.kinds.append(job.kind)
            job.close()
            if self.gate is not None:
                self.gate.wait(10)
            recipient = job.text("recipient")
            if recipient != "gone@x.org":
                status, text = ANSWERS.get(recipient, ("ok", ""))
                try:
                    wire.send(connection, "ANSWER", {"status": status, "text": text})
                except OSError:
                    pass  # nobody waits any more

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._listener.close()


class World:
    """The door between a client and that monitor."""

    def __init__(self, folder: Path, connections: int = 10, *, begin: bool = True) -> None:
        """Listen; begin: and serve, which else begin() does."""
        self.monitor = Monitor(str(folder / "monitor"))
        self.address = str(folder / "lmtp")
        self._listeners = {
            kind: door.listen(self.address + end, 0o660, socket.SOCK_STREAM)
            for kind, end in (("DELIVER", ""), ("VIRTUAL", "-virtual"))
        }
        service = lmtp.Service(str(folder / "monitor"), Log("lmtp"), connections=connections)
        self.thread = threading.Thread(target=service.run, args=(self._listeners,))
        self.clients: list[Client] = []
        if begin:
            self.begin()

    def begin(self) -> None:
        """Serve whoever has connected, and whoever will."""
        self.thread.start()

    def client(self, end: str = "") -> Client:
        """Return a new client, greeted; end: `-virtual` for one at that socket."""
        self.clients.append(Client(self.address + end))
        return self.clients[-1]

    def stop(self) -> None:
        """Stop as SIGTERM does."""
        for one in self._listeners.values():
            one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        for client in self.clients:
            client.close()
        if self.thread.is_alive():
            self.stop()
        self.thread.join(20)
        for one in self._listeners.values():
            one.close()
        self.monitor.close()


class Client:
    """One connection."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(address)
        self._lines = self.socket.makefile("rb")
        assert self.reply() == "220 milterapp LMTP"

    def reply(self) -> str:
        """Return the last line of the next reply, "" at the end."""
        while (line := self._lines.readline().decode().rstrip("\r\n"))[3:4] == "-":
            pass
        return line

    def say(self, data: bytes, replies: int = 1) -> list[str]:
        """Send the bytes, return so many replies."""
        self.socket.sendall(data)
        return [self.reply() for _ in range(replies)]

    def deliver(self, *recipients: str, data: bytes = b"Subject: x\r\n\r\nhi\r\n") -> list[str]:
        """Send one message, in one go up to DATA (RFC 2920); return the answers after the dot."""
        to = b"".join(b"RCPT TO:<%s>\r\n" % one.encode() for one in recipients)
        said = self.say(OPENING + b"MAIL FROM:<a@example.org>\r\n" + to + b"DATA\r\n", 4 + len(recipients))
        assert [one[:3] for one in said] == ["250", "250", "250", *["250"] * len(recipients), "354"]
        return self.say(data + b".\r\n", len(recipients))

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self.socket.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Give a running door."""
    made = World(tmp_path)
    yield made
    made.close()


def test_one_message_for_one(world: World) -> None:
    """The monitor gets envelope and message as pipe(8) would give it: Return-Path on top, lines ending in LF."""
    assert world.client().deliver("ok@x.org", data=b"Subject: x\r\n\r\n..dot\r\n\xe9\r\n") == [
        "250 2.1.5 <ok@x.org> delivered"
    ]
    ((fields, message),) = world.monitor.jobs
    assert fields == {
        "sender": "a@example.org", "recipient": "ok@x.org", "original": "ok@x.org", "queue_id": "4A",
        "client": "192.0.2.1",
    }  # fmt: skip
    assert message == b"Return-Path: <a@example.org>\nSubject: x\n\n.dot\n\xe9\n"


def test_the_socket_says_which_kind_of_recipient_it_is(world: World) -> None:
    """Who comes by the socket for virtual domains names people of those; nothing said over a connection changes it."""
    assert world.client("-virtual").deliver("ok@x.org")[0].startswith("250")
    assert world.client().deliver("ok@x.org", "--virtual=/x@x.org", "VIRTUAL@x.org")[0].startswith("250")
    assert world.monitor.kinds == ["VIRTUAL", *["DELIVER"] * 3]


def test_one_place_is_enough_for_both_sockets(tmp_path: Path) -> None:
    """With one connection at a time neither socket keeps the other waiting."""
    world = World(tmp_path, connections=1)
    try:
        for end in ("", "-virtual", "", "-virtual"):
            client = world.client(end)
            assert client.deliver("ok@x.org")[0].startswith("250")
            assert client.say(b"QUIT\r\n")[0].startswith("221")
        assert world.monitor.kinds == ["DELIVER", "VIRTUAL"] * 2
    finally:
        world.close()


def test_each_recipient_has_its_answer(world: World) -> None:
    """After the dot there is one reply a recipient, in their order; whatever is not ok or a whole reject defers."""
    assert world.client().deliver(*ANSWERS, "gone@x.org") == [
        "250 2.1.5 <ok@x.org> delivered",
        "250 2.1.5 <back@x.org> handed back as 4XYZ",
        "451 4.3.0 too many deliveries at once",
        "451 4.2.2 over quota",
        "550 5.7.1 I do not read advertisements",
        "451 4.3.0 no status",
        "451 4.3.0 5.0.0 what",
        "451 4.3.0 the monitor gave up this message",
    ]
    assert len({message for _, message in world.monitor.jobs}) == 1


def test_several_messages_on_one_connection(world: World) -> None:
    """A connection takes any number of messages; the queue id and the client of one do not reach the next."""
    client = world.client()
    client.deliver("ok@x.org")
    opening = b"XFORWARD IDENT=4B ADDR=IPV6:2001:db8::1\r\nMAIL FROM:<>\r\n"
    said = client.say(opening + b"RCPT TO:<ok@x.org> ORCPT=rfc822;i+2Bx@x\r\nDATA\r\n", 4)
    assert said[-1].startswith("354")
    assert client.say(b"x: y\r\n.\r\n")[0].startswith("250")
    fields, message = world.monitor.jobs[-1]
    assert fields == {
        "sender": "", "recipient": "ok@x.org", "original": "rfc822;i+x@x", "queue_id": "4B", "client": "2001:db8::1",
    }  # fmt: skip
    assert message.startswith(b"Return-Path: <>\n")
    assert client.say(b"QUIT\r\n", 2) == ["221 2.0.0 Bye", ""]


@pytest.mark.parametrize("said", [b"", b"XFORWARD IDENT=[UNAVAILABLE]\r\n"], ids=["none", "unknown"])
def test_without_a_queue_id(world: World, said: bytes) -> None:
    """A message that comes without one, also on a connection that had one before, is named by its Received field."""
    client = world.client()
    client.deliver("ok@x.org")
    client.say(said + b"MAIL FROM:<>\r\nRCPT TO:<ok@x.org>\r\nDATA\r\n", 4 if said else 3)
    client.say(b"Received: by mx (Postfix, from userid 0)\r\n\tid 4B12; Mon\r\n\r\n.\r\n")
    fields = world.monitor.jobs[-1][0]
    assert (fields["queue_id"], fields["client"]) == ("4B12", "unknown")


@pytest.mark.parametrize(
    ("said", "replies"),
    [
        pytest.param(b"EHLO x\r\n", ["500"], id="EHLO"),
        pytest.param(b"HELO x\r\n", ["500"], id="HELO"),
        pytest.param(b"nonsense\r\n", ["500"], id="no command"),
        pytest.param(b"\r\n", ["500"], id="an empty line"),
        pytest.param(b"\xff\xfe\r\n", ["500"], id="no text"),
        pytest.param(b"MAIL FROM:<a>\r\n", ["503"], id="MAIL before LHLO"),
        pytest.param(b"DATA\r\n", ["503"], id="DATA before RCPT"),
        pytest.param(b"RCPT TO:<a>\r\n", ["503"], id="RCPT before MAIL"),
        pytest.param(OPENING + b"MAIL FROM:<a> X=1\r\n", ["250", "250", "555"], id="a foreign parameter"),
        pytest.param(OPENING + b"MAIL FROM:a\r\n", ["250", "250", "501"], id="no path"),
        pytest.param(OPENING + b"MAIL FROM:<a>\r\nMAIL FROM:<a>\r\n", ["250", "250", "250", "503"], id="two senders"),
        pytest.param(OPENING + b"MAIL FROM:<a>\r\nRCPT TO:<>\r\n", ["250", "250", "250", "501"], id="no recipient"),
        pytest.param(OPENING + b"MAIL FROM:<a>\r\nXFORWARD IDENT=4B\r\n", ["250", "250", "250", "503"], id="late"),
        pytest.param(OPENING + b"MAIL FROM:<a>\r\nRSET\r\nDATA\r\n", ["250", "250", "250", "250", "503"], id="RSET"),
        pytest.param(b"NOOP\r\nVRFY a\r\n", ["250", "252"], id="harmless"),
    ],
)
def test_what_is_said_wrong(world: World, said: bytes, replies: list[str]) -> None:
    """Each wrong command has its reply, the connection goes on, and the monitor hears nothing of it."""
    client = world.client()
    assert [one[:3] for one in client.say(said, len(replies))] == replies
    assert world.monitor.jobs == []
    assert client.deliver("ok@x.org") == ["250 2.1.5 <ok@x.org> delivered"]


def test_too_many_recipients(world: World) -> None:
    """The hundred and first recipient is asked to come again, the others are delivered."""
    client = world.client()
    to = b"".join(b"RCPT TO:<u%d@x.org>\r\n" % number for number in range(101))
    said = client.say(OPENING + b"MAIL FROM:<a>\r\n" + to + b"DATA\r\n", 105)
    assert [one[:3] for one in said[-3:]] == ["250", "452", "354"]
    assert {one[:3] for one in client.say(b"x: y\r\n.\r\n", 100)} == {"250"}


def test_a_command_without_end(world: World) -> None:
    """A line that does not end ends the connection, before it fills memory."""
    client = world.client()
    try:
        client.socket.sendall(b"x" * 200_000)
    except OSError:
        pass  # it was hung up on in the middle
    assert client.reply().startswith("421")


@pytest.mark.parametrize(
    "cut", [b"", b"Subject: x\r\n", b"Subject: x\r\n\r\nhi\r\n", b"x\r\n.", b"x\r\n.\r", b"x\n.\n"]
)
def test_a_message_that_is_not_whole_is_none(world: World, cut: bytes) -> None:
    """Where the client leaves before the end, in whatever place, the monitor hears nothing."""
    client = world.client()
    client.say(OPENING + b"MAIL FROM:<a>\r\nRCPT TO:<ok@x.org>\r\nDATA\r\n", 5)
    client.socket.sendall(cut)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.reply() == ""
    assert world.monitor.jobs == []


def test_a_large_message_with_long_lines(world: World) -> None:
    """Megabytes in one line pass whole."""
    data = b"x" * 5_000_000
    assert world.client().deliver("ok@x.org", data=data + b"\r\n")[0].startswith("250")
    assert world.monitor.jobs[0][1].partition(b"\n")[2] == data + b"\n"


def test_without_a_monitor_everything_waits(world: World, tmp_path: Path) -> None:
    """Where no monitor answers, each recipient is deferred and the reason named."""
    world.monitor.close()
    world.monitor.close = lambda: None  # type: ignore[method-assign]
    said = world.client().deliver("ok@x.org", "later@x.org")
    assert [re.sub(r":.*", "", one) for one in said] == ["451 4.3.0 the monitor does not answer"] * 2


def test_no_answer_in_time(world: World, tmp_path: Path) -> None:
    """A monitor that says nothing is a deferral of all, within one deadline."""
    world.monitor.gate = threading.Event()
    message = sealed.seal([b"x"])
    items = [{"sender": "", "recipient": "ok@x.org", "original": "", "queue_id": "4A", "client": ""}] * 3
    lines = Lines(str(tmp_path / "monitor"), 0.2)
    answers = alone(lmtp.ask(lines, items, message))
    assert answers == [Answer("defer", "4.3.0 no answer in time")] * 3
    os.close(message)
    world.monitor.gate.set()


def test_a_full_door_stops_too(tmp_path: Path) -> None:
    """With every place taken by clients that say nothing, a stop waits for none of them."""
    world = World(tmp_path, connections=1)
    try:
        world.client()
        world.stop()
        world.thread.join(10)
        assert not world.thread.is_alive()
    finally:
        world.close()


def test_a_stop_answers_what_is_under_way(world: World) -> None:
    """After SIGTERM a message under way is answered, another is not begun, and then all are hung up on."""
    world.monitor.gate = threading.Event()
    client, other = world.client(), world.client()
    client.say(OPENING + b"MAIL FROM:<a>\r\nRCPT TO:<ok@x.org>\r\nDATA\r\n", 5)
    client.socket.sendall(b"x: y\r\n.\r\n")
    wait_until(lambda: world.monitor.jobs, "the message to be handed over")
    world.stop()
    world.thread.join(0.2)  # with less it would only prove less
    assert world.thread.is_alive()
    assert other.say(b"NOOP\r\n", 2) == ["421 4.3.2 milterapp is stopping", ""]
    world.monitor.gate.set()
    assert client.reply().startswith("250")
    world.thread.join(10)
    assert not world.thread.is_alive()
    assert client.reply() == ""


@pytest.mark.parametrize(("argv", "code"), [([], 64), (["{}", "x"], 64)])
def test_usage(argv: list[str], code: int) -> None:
    """The service takes its settings as its one argument."""
    assert subprocess.run([*SERVICE, *argv], capture_output=True, check=False).returncode == code


@pytest.fixture
def settings() -> Iterator[Callable[..., str]]:
    """Give what makes settings as JSON, for a folder that every account can look into."""
    with tempfile.TemporaryDirectory(prefix="milterapp-lmtp-") as folder:
        os.chmod(folder, 0o755)

        def make(recipients: str = "", **accounts: str) -> str:
            made = dataclasses.asdict(Settings())
            made["accounts"] |= {"lmtp": "65532", "pipe": "65531", **accounts}
            made["delivery"]["recipients"] = recipients
            made["lmtp"] |= {"socket": f"{folder}/run/socket", "socket_group": "65530"}
            made["lmtp"]["virtual_socket"] = f"{folder}/virtual/socket"
            return json.dumps(made)

        yield make


@pytest.mark.root
@pytest.mark.parametrize("recipients", ["", "/etc/people"], ids=["accounts alone", "virtual domains too"])
def test_the_service_drops_and_stops_when_told(settings: Callable[..., str], recipients: str) -> None:
    """Started by root it makes its folders and becomes its account with the client's group alone; SIGTERM ends it.

    It listens for virtual domains only where the site has people there.
    """
    text = settings(recipients)
    own = json.loads(text)["lmtp"]
    places = [Path(own["socket"]), Path(own["virtual_socket"])][: 2 if recipients else 1]
    service = subprocess.Popen([*SERVICE, text], stderr=subprocess.PIPE)
    try:
        assert service.stderr is not None
        assert b"event=ready" in service.stderr.readline()
        status = Path(f"/proc/{service.pid}/status").read_text()
        ids = r"^Uid:\t65532\t65532\t65532\t65532\nGid:\t65532\t65532\t65532\t65532\n(?:.*\n)*?Groups:\t65531 $"
        assert re.search(ids, status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+\nCapBnd:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        for place in places:
            assert (stat.S_IMODE(place.parent.stat().st_mode), place.stat().st_gid) == (0o2750, 65530)
            assert stat.S_IMODE(place.stat().st_mode) == 0o660
        assert Path(own["virtual_socket"]).exists() == bool(recipients)
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    finally:
        service.kill()
        service.communicate()


@pytest.mark.root
@pytest.mark.parametrize("accounts", [{"lmtp": "no-such-account"}, {"pipe": "no-such-account"}, {"lmtp": "root"}])
def test_the_service_does_not_start_without_its_accounts(
    settings: Callable[..., str], accounts: dict[str, str]
) -> None:
    """An account that is missing, or root's, is a line that says so and 78."""
    ended = subprocess.run([*SERVICE, settings(**accounts)], capture_output=True, check=False, timeout=20)
    assert (ended.returncode, b"cannot start" in ended.stderr) == (78, True)
    assert next(iter(accounts.values())).encode() in ended.stderr


@pytest.mark.root
def test_what_may_pass_is_no_reason_to_stay_away(settings: Callable[..., str]) -> None:
    """A socket that cannot be made now ends with 75, after which the unit tries again."""
    text = settings()
    Path(json.loads(text)["lmtp"]["socket"]).parent.write_text("in the way")
    ended = subprocess.run([*SERVICE, text], capture_output=True, check=False, timeout=20)
    assert (ended.returncode, b"cannot start" in ended.stderr) == (75, True)
