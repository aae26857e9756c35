"""The agent without a monitor: what it takes from the MTA. What it does stands in tests/postfix/test_direct.py."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pwd
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from milterapp.delivery import agent, direct, fenced, linux, wire
from milterapp.delivery.requests import JOB
from milterapp.settings import DeliverySettings, Settings
from tests.delivery.inside import busy_with, error_of, inside
from tests.delivery.smtp_peer import SmtpPeer

COMMAND = (sys.executable, "-I", "-m", "milterapp.commands.direct")
GIVEN = {
    "SENDER": "a@x.org", "RECIPIENT": "bob+y@x.org", "ORIGINAL_RECIPIENT": "info@x.org", "EXTENSION": "y",
    "CLIENT_ADDRESS": "192.0.2.1",
}  # fmt: skip


def test_the_environment_of_local() -> None:
    """Each field comes from the variable that local(8) sets for it."""
    assert direct.envelope(GIVEN, b"Subject: x\n") == {
        "sender": "a@x.org", "recipient": "bob+y@x.org", "original": "info@x.org", "extension": "y",
        "client": "192.0.2.1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "head", "want"),
    [
        pytest.param({}, b"Return-Path: <b@x.org>\n", {"sender": "b@x.org"}, id="Return-Path"),
        pytest.param({}, b"Return-Path: <>\nX: y\n", {"sender": ""}, id="null Return-Path"),
        pytest.param({"SENDER": "MAILER-DAEMON"}, b"", {"sender": ""}, id="MAILER-DAEMON"),
        pytest.param({"SENDER": "MAILER-DAEMON@mx.example.org"}, b"", {"sender": ""}, id="with a domain"),
        pytest.param({"SENDER": "mailer-daemons@x.org"}, b"", {"sender": "mailer-daemons@x.org"}, id="almost"),
        pytest.param({}, b"Subject: x\nReturn-Path: <b@x.org>\n", {"sender": "a@x.org"}, id="not on top"),
        pytest.param({"ORIGINAL_RECIPIENT": ""}, b"", {"original": "bob+y@x.org"}, id="no original"),
        pytest.param({"EXTENSION": "", "EXT": "q"}, b"", {"extension": "q"}, id="qmail"),
        pytest.param({"CLIENT_ADDRESS": ""}, b"", {"client": "unknown"}, id="no client"),
    ],
)
def test_envelope(changes: Mapping[str, str], head: bytes, want: Mapping[str, str]) -> None:
    """A Return-Path on top is believed, the null sender is known by its names, what is missing has its place."""
    assert want.items() <= direct.envelope({**GIVEN, **changes}, head).items()


def test_what_cannot_be_loaded_is_temporary() -> None:
    """Where milterapp or the memory for it is missing, the installed command ends with 75 and one line that says so."""
    program = Path(sys.prefix) / "bin" / "milterapp-pipe"
    for command, why in (
        ((sys.executable, "-I", "-S", program), b"ModuleNotFoundError"),
        (("prlimit", "--as=16384000", sys.executable, "-I", program), b": "),
        ((sys.executable, "-I", program), b"`delivery.keep`"),
    ):
        done = subprocess.run([*command, "--direct"], input=b"", capture_output=True, timeout=60, check=False, env={})
        assert (done.returncode, done.stdout.count(b"\n")) == (75, 1), (done.stdout, done.stderr)
        assert done.stdout.startswith(b"4.3.0 ")
        assert why in done.stdout


def test_no_recipient() -> None:
    """Without a recipient it was not called by an MTA, and says so."""
    with pytest.raises(direct.Temporary, match="RECIPIENT"):
        direct.envelope({"SENDER": "a@x.org"}, b"")


@pytest.mark.parametrize(
    ("message", "want"),
    [
        pytest.param(b"From a@x Mon Jan  1 00:00:00 2024\nSubject: x\n\nhi\n", b"Subject: x\n\nhi\n", id="From line"),
        pytest.param(b"From: a@x\n\nFrom b\n", b"From: a@x\n\nFrom b\n", id="a From field"),
        pytest.param(b"From", b"From", id="no line"),
        pytest.param(b"", b"", id="nothing"),
        pytest.param(
            b"From " + b"x" * 200_000 + b"\nA: b\n", b"From " + b"x" * 200_000 + b"\nA: b\n", id="without end"
        ),
        pytest.param(b"From x\n" + b"y" * 500_000, b"y" * 500_000, id="large"),
    ],
)
def test_message(message: bytes, want: bytes) -> None:
    """The message is what came, without the line that only mailboxes need."""
    script = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        if len(message) < 60_000:
            cat.stdin.write(message)
            cat.stdin.close()
            assert b"".join(direct._message(cat.stdout.fileno(), os.getppid())) == want
    if len(message) >= 60_000:
        descriptor = os.memfd_create("x")
        os.write(descriptor, message)
        os.lseek(descriptor, 0, 0)
        assert b"".join(direct._message(descriptor, os.getppid())) == want
        os.close(descriptor)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--direct", "--confg", "x"], b"usage: ", id="unknown option"),
        pytest.param(["--direct", "--config", "/nonexistent"], b"/nonexistent", id="no configuration"),
        pytest.param(["--direct"], b"delivery.keep", id="keep is Postfix's"),
        pytest.param(["a", "b"], b"2 arguments, expected 5", id="the client"),
    ],
)
def test_whatever_is_wrong_is_temporary(arguments: list[str], says: bytes) -> None:
    """Every wrong call ends with 75 and one line that begins with 4.3.0."""
    done = subprocess.run([*COMMAND, *arguments], input=b"x: y\n\n", capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout[:6], done.stdout.count(b"\n"), done.stderr) == (75, b"4.3.0 ", 1, b"")
    assert says in done.stdout


@pytest.mark.root
def test_keep_over_lmtp() -> None:
    """With `keep: lmtp:…` the message goes there as it came; what that server refuses waits, in one line."""
    with tempfile.TemporaryDirectory(prefix="milterapp-direct-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "milterapp.yaml").write_text(f"delivery:\n  keep: lmtp:unix:{folder}/lmtp\n")
        (folder / "milterapp.yaml").chmod(0o644)
        keeper = SmtpPeer(str(folder / "lmtp"))
        (folder / "lmtp").chmod(0o666)

        def run() -> tuple[int, bytes, bytes]:
            done = subprocess.run(
                [*COMMAND, "--direct", "--config", str(folder / "milterapp.yaml")],
                input=b"Return-Path: <>\nSubject: x\n\n.hi\n", capture_output=True, check=False, timeout=30,
                user="nobody", group="nogroup", extra_groups=[], env=GIVEN, cwd="/",
            )  # fmt: skip
            return done.returncode, done.stdout, done.stderr

        try:
            assert run() == (0, b"", b"")
            (taken,) = keeper.taken
            assert (taken.mail, taken.rcpt) == ("MAIL FROM:<>", "RCPT TO:<bob+y@x.org>")
            assert taken.data == b"Return-Path: <>\r\nSubject: x\r\n\r\n.hi\r\n"
            keeper.refuse = "550 5.2.2 over quota"
            status, line, errors = run()
            assert (status, errors) == (75, b"")
            assert line.startswith(b"4.2.2 keep: ")
            assert b"550 5.2.2 over quota" in line
        finally:
            keeper.close()


RECEIVED = (
    b"Received: by mx.x.org (Postfix)\n\tid %s for <info@x.org>; Mon, 1 Jan 2024 00:00:00 +0000\nSubject: x\n\nhi\n"
)


@pytest.mark.root
@pytest.mark.parametrize(
    ("home", "ids", "taken"),
    [
        pytest.param("own", [b"4A", b"4A", b"4A"], 1, id="attempts"),
        pytest.param("own", [b"4A", b"4B", b"4A"], 2, id="another message between"),
        pytest.param("root's", [b"4A", b"4A"], 2, id="a home that its user may not write"),
        pytest.param("none", [b"4A", b"4A"], 2, id="no home"),
    ],
)
def test_without_rules_lmtp_has_a_message_once(home: str, ids: list[bytes], taken: int) -> None:
    """What Postfix delivers again, as to an alias's member, is found done, where there is a home to remember it in."""
    with tempfile.TemporaryDirectory(prefix="milterapp-direct-") as folder:
        os.chmod(folder, 0o755)
        place = f"{folder}/home" if home != "none" else "/nonexistent"
        os.mkdir(f"{folder}/home", 0o755)
        if home == "own":
            os.chown(place, 65534, 65534)
        keeper = SmtpPeer(f"{folder}/lmtp")
        os.chmod(keeper.address, 0o666)

        def run() -> list[object]:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            pwd.getpwuid = lambda uid: pwd.struct_passwd(("bob", "x", uid, uid, "", place, "/bin/sh"))
            settings = dataclasses.asdict(Settings(delivery=DeliverySettings(keep=f"lmtp:unix:{keeper.address}")))
            said: list[object] = []
            for one in ids:
                reader, writer = os.pipe()
                os.write(writer, RECEIVED % one)
                os.close(writer)
                status, line = direct.deliver(settings, GIVEN, reader)
                said.append((status, line.decode()))
            return said

        try:
            assert inside(run) == [[0, ""]] * len(ids)
        finally:
            keeper.close()
        assert len(keeper.taken) == taken
        assert os.path.exists(f"{folder}/home/.milterapp/journal.sqlite") is (home == "own")


@pytest.mark.root
def test_what_is_old_is_forgotten() -> None:
    """Once a day an agent that has answered has the time to forget what is old before it is ended."""
    with tempfile.TemporaryDirectory(prefix="milterapp-direct-") as folder:
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/home", 0o755)
        os.chown(f"{folder}/home", 65534, 65534)

        def run() -> list[object]:
            direct._LEAVE = 30.0  # a slow disk is no reason to end it before it has forgotten
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            pwd.getpwuid = lambda uid: pwd.struct_passwd(("bob", "x", uid, uid, "", f"{folder}/home", "/bin/sh"))
            settings = dataclasses.asdict(Settings(delivery=DeliverySettings(keep="maildir")))
            said: list[object] = []
            for one in (b"4A", b"4B", b"4C"):
                reader, writer = os.pipe()
                os.write(writer, RECEIVED % one)
                os.close(writer)
                said.append(direct.deliver(settings, GIVEN, reader)[0])
                with closing(sqlite3.connect(f"{folder}/home/.milterapp/journal.sqlite")) as journal, journal:
                    said.append(journal.execute("SELECT COUNT(*) FROM prepared").fetchone()[0])
                    if one == b"4A":
                        journal.execute("UPDATE prepared SET at = at - 100 * 86400")
            return said

        assert inside(run) == [0, 1, 0, 1, 0, 2]


@pytest.mark.root
def test_the_rules_run_in_an_agents_sandbox() -> None:
    """Who takes over the child in which rules run finds no socket, no program, no other id, no descriptor, no file.

    No file outside of the home: what this uid may read and write besides is as far away as in any agent.
    """

    def probe(control: socket.socket, *_: object, **_more: object) -> None:
        job = wire.receive(control, JOB, descriptors=(2,))
        assert job is not None
        job.close()
        tries = {
            "socket": lambda: socket.socket(socket.AF_UNIX),
            "program": lambda: os.execv("/bin/true", ["true"]),
            "ids": lambda: os.setresuid(20001, 20001, 20001),
            "namespace": _user_namespace,
            "read": lambda: open(f"{outside}/file").close(),
            "make": lambda: open(f"{outside}/made", "w").close(),
        }
        said = [f"{name}:{error_of(act)}" for name, act in tries.items()]
        said += [f"dumpable:{linux.prctl(3)}", f"open:{len(os.listdir('/proc/self/fd')) - 1}"]
        wire.send(control, "ANSWER", {"status": "defer", "text": " ".join(said), "event": ""})

    def run() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        agent.serve = probe  # type: ignore[assignment]
        settings = dataclasses.asdict(Settings(delivery=DeliverySettings(keep="maildir")))
        reader, writer = os.pipe()
        os.write(writer, b"Subject: x\n\nhi\n")
        os.close(writer)
        return direct.deliver(settings, GIVEN, reader)[1].decode()

    with tempfile.TemporaryDirectory(prefix="milterapp-direct-") as outside:
        os.chmod(outside, 0o777)
        Path(outside, "file").touch()
        files = "read:0 make:0" if linux.landlock_abi() < fenced.LEAST else "read:13 make:13"
        assert inside(run) == f"4.3.0 socket:1 program:1 ids:1 namespace:1 {files} dumpable:0 open:4"


@pytest.mark.root
@pytest.mark.parametrize(("there", "least", "most"), [(0, 256, 256), (600, 600, 1024)])
def test_the_rules_of_a_busy_user_run(there: int, least: int, most: int) -> None:
    """The bound on an agent's processes is one beside those that its user runs already, threads too."""
    uid = 20032

    def run() -> int:
        linux.become(uid, uid)
        if (pid := direct._fork()) == 0:
            os._exit(resource.getrlimit(resource.RLIMIT_NPROC)[0] // 8)
        return 8 * os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    busy = busy_with(uid, there) if there else None
    try:
        assert least <= inside(run) <= most
    finally:
        if busy is not None:
            busy.kill()
            busy.communicate()


def _user_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


@pytest.mark.root
def test_never_as_root() -> None:
    """Root has no rules that could be run with root's ids: the mail waits."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(b"delivery:\n  keep: maildir\n")
        file.flush()
        done = subprocess.run(
            [*COMMAND, "--direct", "--config", file.name], input=b"x: y\n\n", capture_output=True, check=False,
            env=GIVEN, timeout=30,
        )  # fmt: skip
    assert (done.returncode, b"never to root" in done.stdout) == (75, True)
