"""The spawner as the service it is: who may ask, what it takes, what a script can reach, that nobody outlives it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import sealed, spawner_client, wire
from milterapp.delivery.requests import SCRIPT_ANSWERS
from milterapp.delivery.spawner_client import SiteScripts
from milterapp.mail.edits import AddHeader
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.rules.decision import Reply, Scripted, Verdict
from milterapp.rules.truth import Failed
from milterapp.script.run import Job, to_bytes
from milterapp.settings import Settings

pytestmark = pytest.mark.root

SCRIPT_UID, STRANGER = 65532, 65531
PATIENCE = 30.0  # seconds for a job that ends by itself
SECONDS = 8.0  # for one that does not
SLACK = 20.0  # seconds by which a busy machine may be late
ENVELOPE = Envelope(sender="ann@example.net", recipients=("bob@example.org",), queue_id="4A")
RAW = b"From: ann@example.net\r\nSubject: lottery\r\n\r\nhello\r\n"
GOOD = b"def main(mail):\n    mail.add_header('X-Seen', mail.subject)\n"
SEEN = Scripted(edits=(AddHeader("X-Seen", "lottery"),))
ENDLESS = b"def main(mail):\n    while True: pass\n"


class Running:
    """A running spawner; whoever runs the tests is the milter."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = str(folder / "socket")
        self._log = folder / "log"
        self._settings = json.dumps(settings)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "milterapp.delivery.spawner", self._settings], stderr=log, cwd="/"
            )
        self.wait(lambda: os.path.exists(self.path) and self._listens(), "it to listen")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.path) == 0

    def wait(self, done: Callable[[], object], what: str, deadline: float = SLACK) -> None:
        """Wait until something is so."""
        end = time.monotonic() + deadline
        while not done():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"waited for {what}\n{self.log()}"
            time.sleep(0.01)

    def log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text()

    def ask(self, source: bytes = GOOD, raw: bytes = RAW, seconds: float = PATIENCE) -> object:
        """Ask as the milter does."""
        return SiteScripts(self.path, Limits()).answer("f.py", source, ENVELOPE, raw, seconds)

    def connect(self) -> socket.socket:
        """Connect, and say nothing."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.settimeout(SLACK)
        made.connect(self.path)
        return made

    def family(self) -> list[int]:
        """Return its children and theirs."""
        return below(self.process.pid)

    def job(self) -> list[int]:
        """Wait for a child that has a script process; return both. Who only came to see whether it listens has none."""
        found: list[list[int]] = []

        def under_way() -> bool:
            found[:] = [[child, *below(child)] for child in self.family()]
            found[:] = [one for one in found if len(one) == 2]
            return bool(found)

        self.wait(under_way, "a child and its script process")
        return found[0]

    def stop(self) -> int:
        """End it as an init system does; return its exit code."""
        self.process.terminate()
        return self.process.wait(10)


def below(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    parents = {}
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                fields = (one / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parents[int(one.name)] = int(fields[1])
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def settings_for(folder: Path, seconds: float = PATIENCE, **script: Any) -> dict[str, Any]:
    """Return the settings of a site whose socket is in the folder. seconds: the most for one job."""
    given = dataclasses.asdict(Settings())
    given["accounts"] |= {"milter": str(os.geteuid()), "script": str(SCRIPT_UID)}
    given["script"] |= {"socket": str(folder / "socket"), **script}
    given["milter"]["message_time"] = 2 * seconds
    given["limits"]["message_bytes"] = 1 << 20
    return given


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the spawner's account, short enough for a socket, that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="milterapp-spawner-") as made:
        os.chown(made, SCRIPT_UID, 0)
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.fixture
def spawner(folder: Path) -> Iterator[Running]:
    """A spawner with room for two jobs."""
    running = Running(folder, settings_for(folder, processes=2))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def hasty(folder: Path) -> Iterator[Running]:
    """The same where no job has long."""
    running = Running(folder, settings_for(folder, SECONDS, processes=2))
    yield running
    running.process.kill()
    running.process.wait()


def give_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a job three of its asker's thirty seconds: however late the reason comes, it comes in time."""
    monkeypatch.setattr(spawner_client, "_SOONER", 0.1)


VERDICTS = {
    "an edit": (GOOD, SEEN),
    "a refusal": (
        b"def main(mail):\n    if 'lott' in mail.subject: mail.reject('5.7.1 No')\n",
        Scripted(verdict=Verdict.REJECT, reply=Reply(550, "5.7.1", "No")),
    ),
    "nothing": (b"def main(mail): pass\n", Scripted()),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_a_script_says(spawner: Running, name: str) -> None:
    """The milter gets the script's verdict and edits, again and again."""
    source, wanted = VERDICTS[name]
    assert [spawner.ask(source) for _ in range(3)] == [wanted] * 3
    spawner.wait(lambda: not spawner.family(), "its children to end")


def test_an_answer_longer_than_a_datagram(spawner: Running) -> None:
    """A plan of more than 64 KiB comes through whole, as does a long message."""
    source = b"def main(mail):\n    for n in range(200): mail.add_header(f'X-{n}', 'a' * 900)\n"
    found = spawner.ask(source, RAW + b"a\r\n" * 300_000)
    assert isinstance(found, Scripted)
    assert len(found.edits) == 200


FAILING = {
    "it raises": (b"def main(mail):\n    x = 1\n    raise ValueError('oops')\n", "f.py:3: ValueError: oops"),
    "a reply": (b"def main(mail):\n    mail.reply(text='x')\n", "f.py:2: ScriptError: `reply` has no place"),
    "no Python": (b"def main(mail)\n", "f.py:1:15: no Python"),
    "endless": (ENDLESS, "f.py: time: the script took more than"),
    "much memory": (b"def main(mail):\n    x = 'a' * (1 << 30)\n", "f.py"),
    "it ends its process": (b"import random\ndef main(mail):\n    random._os._exit(0)\n", "f.py: crashed: "),
    "it speaks out of turn": (b"import random\ndef main(_):\n    random._os.write(3, b'x' * 99)\n", "f.py: protocol: "),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_a_script_that_fails(spawner: Running, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever a script does, the milter could not tell, in time, and the next message is asked about as ever."""
    source, begins = FAILING[name]
    with monkeypatch.context() as little:
        if name == "endless":
            give_little(little)
        begun = time.monotonic()
        found = spawner.ask(source)
    assert isinstance(found, Failed)
    assert found.reason.startswith(begins)
    assert time.monotonic() - begun < PATIENCE + SLACK
    assert spawner.ask() == SEEN
    spawner.wait(lambda: not spawner.family(), "its children to end")


TRIES = {
    "the shadow file": "os.open('/etc/shadow', 0)",
    "the accounts": "os.open('/etc/passwd', 0)",
    "another file": f"os.open({os.path.abspath(__file__)!r}, 0)",
    "a folder": "os.listdir('/etc')",
    "writing": "os.open('/tmp/milterapp-written', os.O_CREAT | os.O_WRONLY)",
    "the network": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "the sockets of services": "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "a pair": "socket.socketpair()",
    "a fork": "os.fork()",
    "a program": "os.execv('/bin/true', ['true'])",
    "its parent": "os.kill(os.getppid(), 9)",
    "other ids": "os.setresuid(0, 0, 0)",
    "its parent's memory": "os.open(f'/proc/{os.getppid()}/mem', 0)",
}


@pytest.mark.parametrize("name", TRIES)
def test_what_a_script_cannot_reach(spawner: Running, name: str) -> None:
    """No file beyond Python, no socket, no process: each try ends in an error at the script's own line."""
    source = (
        f"import random\nos = random._os\nsocket = os.sys.modules['socket']\ndef main(mail):\n"
        f"    mail.add_header('X-Ids', f'{{os.getuid()}} {{os.getgid()}} {{os.getgroups()}}')\n"
        f"    try:\n        {TRIES[name]}\n    except OSError as error:\n"
        f"        mail.add_header('X-Tried', type(error).__name__)\n"
    ).encode()
    found = spawner.ask(source)
    ids = AddHeader("X-Ids", f"{SCRIPT_UID} {SCRIPT_UID} []")
    assert found in [
        Scripted(edits=(ids, AddHeader("X-Tried", error))) for error in ("PermissionError", "BlockingIOError")
    ]


def test_only_the_milter_may_ask(spawner: Running) -> None:
    """Another uid that reaches the socket hears nothing, and its job is not taken; the milter's is."""
    os.chmod(spawner.path, 0o666)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(30); s.connect(sys.argv[1])\n"
        "try: print(s.recv(100))\n"
        "except ConnectionResetError: print(b'')\n"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", code, spawner.path], user=STRANGER, group=STRANGER, extra_groups=[], check=True,
        capture_output=True,
    )  # fmt: skip
    assert said.stdout == b"b''\n"
    assert f"uid {STRANGER} is not the milter" in spawner.log()
    assert spawner.ask() == SEEN


def job(source: bytes = GOOD) -> bytes:
    """Return a job as the milter sends it."""
    return to_bytes(Job(source, "f.py", RAW, ENVELOPE, site=True))


def unsealed(data: bytes) -> int:
    """Return a memfd that can still be changed."""
    made = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(made, data)
    return made


RUN = wire.encode("RUN", {"milliseconds": 1000})
HOSTILE: dict[str, tuple[bytes, Callable[[], list[int]]]] = {
    "nothing with it": (RUN, list),
    "two with it": (RUN, lambda: [sealed.seal([job()]), sealed.seal([job()])]),
    "not sealed": (RUN, lambda: [unsealed(job())]),
    "no memory": (RUN, lambda: [os.open("/dev/null", os.O_RDONLY)]),
    "too much memory": (RUN, lambda: [sealed.seal([bytes(6 << 20)])]),
    "noise": (os.urandom(1000), lambda: [sealed.seal([job()])]),
    "an unknown kind": (b"KEEP\n", lambda: [sealed.seal([job()])]),
    "an unknown field": (RUN + b"uid:1:0\n", lambda: [sealed.seal([job()])]),
    "no time": (b"RUN\n", lambda: [sealed.seal([job()])]),
    "no time left": (wire.encode("RUN", {"milliseconds": 0}), lambda: [sealed.seal([job()])]),
    "too long": (RUN + b"a" * 70_000, lambda: [sealed.seal([job()])]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_it_does_not_take(spawner: Running, name: str) -> None:
    """A datagram that is none of its requests, or comes with anything but one sealed memfd, ends its connection."""
    data, make = HOSTILE[name]
    with spawner.connect() as connection:
        descriptors = make()
        socket.send_fds(connection, [data], descriptors)
        for one in descriptors:
            os.close(one)
        try:
            assert wire.receive(connection, SCRIPT_ANSWERS, descriptors=(0, 1)) is None
        except ConnectionResetError:  # it was not even read
            pass
    assert spawner.ask() == SEEN


JOBS = {
    "empty": b"",
    "no JSON": b"\x00" * 100,
    "a table": b"{}\n",
    "deep": b"[" * 100_000 + b"\n",
    "no line": b"[1, 2]",
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_none(spawner: Running, name: str) -> None:
    """What a memfd holds is read in the script process, which fails alone."""
    with spawner.connect() as connection:
        memory = sealed.seal([JOBS[name]])
        wire.send(connection, "RUN", {"milliseconds": int(PATIENCE * 1000)}, [memory])
        os.close(memory)
        answer = wire.receive(connection, SCRIPT_ANSWERS, descriptors=(0, 1))
    assert answer is not None
    assert (answer.kind, answer.text("reason")) == ("FAILED", "crashed")
    assert spawner.ask() == SEEN


def test_so_many_at_once(spawner: Running) -> None:
    """Of five who come at once and say nothing two have a child; the others wait, and all have room in the end."""
    assert spawner.ask() == SEEN  # who came before, to see whether it listens, has had his child as well
    spawner.wait(lambda: not spawner.family(), "their children to end")
    with contextlib.ExitStack() as several:
        for _ in range(5):
            several.enter_context(spawner.connect())
        spawner.wait(lambda: len(spawner.family()) == 2, "two children")
        for _ in range(20):
            assert len(spawner.family()) == 2
            time.sleep(0.01)
        found = spawner.ask(seconds=0.3)
        assert isinstance(found, Failed)
    assert spawner.ask() == SEEN


def test_who_says_nothing_is_sent_away(hasty: Running) -> None:
    """A connection on which no job comes ends within the time of one."""
    with hasty.connect() as connection:
        begun = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - begun < SECONDS + SLACK
    hasty.wait(lambda: not hasty.family(), "its child to end")


def test_a_child_that_does_not_end_is_killed(hasty: Running) -> None:
    """A child that is stopped past its deadline is killed, its script process with it; the milter has not waited."""
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(hasty.ask(ENDLESS, seconds=SECONDS)))
    asking.start()
    family = hasty.job()
    os.kill(family[0], signal.SIGSTOP)
    asking.join(SECONDS + SLACK)
    assert isinstance(answers[0], Failed)
    hasty.wait(lambda: not {*family} & {*hasty.family()}, "both to be gone")
    hasty.wait(lambda: "killed past its deadline" in hasty.log(), "a line about it")
    hasty.wait(lambda: not {*family} & {*below(1)}, "none of them to live on below another")
    assert hasty.ask() == SEEN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_outlives_it(spawner: Running, number: int) -> None:
    """However it ends, its children and their script processes end with it; started again it serves."""
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(spawner.ask(ENDLESS)))
    asking.start()
    family = spawner.job()
    os.kill(spawner.process.pid, number)
    assert spawner.process.wait(SLACK) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    asking.join(SLACK)
    assert isinstance(answers[0], Failed)
    end = time.monotonic() + SLACK
    while any(os.path.exists(f"/proc/{pid}") and pid in below(1) for pid in family):
        assert time.monotonic() < end, family
        time.sleep(0.01)
    assert isinstance(spawner.ask(), Failed)
    spawner.start()
    assert spawner.ask() == SEEN


def test_what_it_is(spawner: Running) -> None:
    """It has its account's ids, no group, no capability, one thread, and no way to new privileges."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{spawner.process.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == [str(SCRIPT_UID)] * 4
    assert (status["Groups"].split(), status["Threads"], status["NoNewPrivs"]) == ([], "1", "1")
    assert {int(status[one], 16) for one in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


EXAMINED = {
    "all well": (GOOD, ()),
    "a route": (b"def main(mail):\n    mail.file('A')\n", ((2, 5, "`mail.file` has no place in a site script"),)),
    "its top level raises": (b"1/0\ndef main(mail): ...\n", ((1, 1, "ZeroDivisionError: division by zero"),)),
    "its top level does not end": (b"while True: pass\n", ((1, 1, "the script took more than"),)),
}


@pytest.mark.parametrize("name", EXAMINED)
def test_examining(spawner: Running, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is wrong with a script is told with its place, and found out in the sandbox."""
    source, wanted = EXAMINED[name]
    if name == "its top level does not end":
        give_little(monkeypatch)
    found = SiteScripts(spawner.path, Limits()).examine("f.py", source, PATIENCE)
    assert [(line, column) for line, column, _ in found] == [(line, column) for line, column, _ in wanted]
    assert all(text.startswith(begins) for (_, _, text), (_, _, begins) in zip(found, wanted, strict=True))


def test_examining_where_nobody_listens(folder: Path) -> None:
    """Without a spawner nothing is said of a script, and a message could not be told."""
    scripts = SiteScripts(str(folder / "socket"), Limits())
    with pytest.raises(OSError, match="milterapp script: No such file"):
        scripts.examine("f.py", GOOD, SECONDS)
    assert scripts.answer("f.py", GOOD, ENVELOPE, RAW, SECONDS) == Failed(
        "f.py: milterapp script: No such file or directory"
    )


@pytest.mark.parametrize(
    ("accounts", "code"),
    [
        pytest.param({"script": "no-such-account"}, os.EX_CONFIG, id="no account"),
        pytest.param({"script": "0"}, os.EX_CONFIG, id="root"),
        pytest.param({"script": str(STRANGER), "milter": str(STRANGER)}, os.EX_CONFIG, id="the milter's"),
    ],
)
def test_accounts_that_cannot_be(folder: Path, accounts: dict[str, str], code: int) -> None:
    """It does not run as root, nor as the milter."""
    settings = settings_for(folder)
    settings["accounts"] |= accounts
    done = subprocess.run(
        [sys.executable, "-I", "-m", "milterapp.delivery.spawner", json.dumps(settings)], check=False, timeout=20,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, b"cannot start" in done.stderr) == (code, True)
