"""Tests of milterapp.milter.supervisor, worker, listening and control: real processes on a real socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from milterapp.milter.control import ask, control_path
from tests.milter.conftest import Serve, Service
from tests.milter.peer import Gone

OLD = "rules:\n  - name: old\n    if: {helo: x}\n    then: {reject: '5.7.1 old'}\n"
NEW = OLD.replace("old", "new")
BROKEN = "rules:\n  - name: broken\n    iff: {helo: x}\n    then: accept\n"
UNMET = NEW + (
    "tests:\n  - name: refused\n    helo: y\n    message: |\n      From: a@example.org\n\n      x\n    expect: reject\n"
)


def listens(pid: int) -> bool:
    """Tell whether a process holds the listening socket of a milter, which is bound by its bare name (proc(5))."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    listening = {f"socket:[{one[6]}]" for one in sockets if one[3] == "00010000" and one[7:] == ["milter"]}
    held = set()
    with contextlib.suppress(FileNotFoundError):  # it has ended
        for one in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                held.add(os.readlink(f"/proc/{pid}/fd/{one}"))
    return bool(listening & held)


def says(service: Service) -> str:
    """Return what a new connection hears at HELO."""
    peer = service.peer()
    peer.connect()
    said = peer.helo(b"x").text
    peer.quit()
    return said


def test_files(serve: Serve) -> None:
    """The socket is for its group and the control socket for the milter alone; both are gone when it has stopped."""
    service = serve(OLD)
    modes = {name: stat.S_IMODE(os.stat(service.folder / "s" / name).st_mode) for name in ("milter", "milter.control")}
    assert modes == {"milter": 0o660, "milter.control": 0o600}
    assert service.stop() == 0
    assert os.listdir(service.folder / "s") == []


@pytest.mark.parametrize("how", ["control", "signal"])
def test_reload(serve: Serve, how: str) -> None:
    """New connections get the new rules, one that was there the rules it began with, and then the old worker ends."""
    service = serve(OLD, milter={"workers": 2})
    before = service.status()["workers"]
    assert all(listens(one) for one in before)
    peer = service.peer()
    peer.connect()
    service.rules.write_text(NEW)
    if how == "control":
        assert ask(service.socket, "reload") == {"done": True, "problems": []}
    else:
        service.process.send_signal(signal.SIGHUP)
        service.wait(lambda: service.events("reloaded"), "the reload")
    # The supervisor gives each a second for that, and goes on.
    service.wait(lambda: not any(listens(one) for one in before), "the old workers to take nobody new")
    for _ in range(10):
        assert says(service) == "550 5.7.1 new"
    assert not set(before) & set(service.status()["workers"])
    assert peer.helo(b"x").text == "550 5.7.1 old"
    assert service.status()["leaving"]
    peer.quit()
    service.wait(lambda: not service.status()["leaving"], "the old workers to end")
    assert len(service.status()["workers"]) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(BROKEN, "rules.yaml:3:5: ", id="broken"),
        pytest.param(UNMET, "the test 'refused' expected reject", id="test not met"),
        pytest.param(None, "No such file", id="gone"),
    ],
)
def test_reload_of_what_is_no_good(serve: Serve, text: str | None, problem: str) -> None:
    """Rules that are broken, or whose tests fail, change nothing; who asked and the log hear why, with the place."""
    service = serve(OLD)
    before = service.status()["workers"]
    if text is None:
        service.rules.unlink()
    else:
        service.rules.write_text(text)
    answer = ask(service.socket, "reload")
    assert answer["done"] is False
    assert any(problem in one for one in answer["problems"])
    assert any(problem in one["problem"] for one in service.events("rules refused"))
    assert service.status()["workers"] == before
    assert says(service) == "550 5.7.1 old"


def test_rules_that_others_can_write(serve: Serve) -> None:
    """Rules that anybody could have written are not taken."""
    service = serve(OLD)
    service.rules.chmod(0o666)
    (problem,) = ask(service.socket, "reload")["problems"]
    assert problem.endswith("expected: chmod go-w")


def test_dead_worker(serve: Serve) -> None:
    """A worker that is killed is replaced; the connections of the others do not notice."""
    service = serve(OLD, milter={"workers": 2})
    (first, second) = service.status()["workers"]
    peers = [service.peer() for _ in range(6)]
    os.kill(first, signal.SIGKILL)
    service.wait(lambda: first not in (now := service.status()["workers"]) and len(now) == 2, "another worker")
    assert second in service.status()["workers"]
    assert [one["status"] for one in service.events("worker died")] == [-signal.SIGKILL]
    heard = []
    for peer in peers:
        try:
            peer.connect()
            heard.append(peer.helo(b"x").text)
        except Gone:
            heard.append("")
    assert set(heard) <= {"", "550 5.7.1 old"}
    assert "550 5.7.1 old" in says(service)


def test_stop_waits_for_connections(serve: Serve) -> None:
    """Told to stop it takes nobody new, and ends when the last connection has."""
    service = serve(OLD)
    peer = service.peer()
    peer.connect()
    service.process.send_signal(signal.SIGTERM)
    service.wait(lambda: not os.path.exists(service.socket), "the socket to go")
    assert service.process.poll() is None
    with pytest.raises(OSError, match="No such file"):
        service.peer()
    assert peer.helo(b"x").text == "550 5.7.1 old"
    peer.quit()
    assert service.process.wait(30) == 0


def test_killed_supervisor(serve: Serve) -> None:
    """When the supervisor is killed its workers end with their connections, and another one can start at once."""
    service = serve(OLD)
    workers = service.status()["workers"]
    peer = service.peer()
    peer.connect()
    service.process.kill()
    service.process.wait()
    service._log.unlink()
    service.start()  # over the stale socket of the one that was killed
    assert peer.helo(b"x").text == "550 5.7.1 old"
    assert says(service) == "550 5.7.1 old"
    peer.quit()
    service.wait(lambda: not any(os.path.exists(f"/proc/{one}") for one in workers), "the old workers to end")


def run(service: Service) -> tuple[int, str]:
    """Start another one with the same settings; return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "milterapp.commands.milter", service._settings],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def test_second(serve: Serve) -> None:
    """A second one for the same socket ends with 75, and the first goes on."""
    service = serve(OLD)
    code, said = run(service)
    assert (code, "another milterapp milter serves it" in said) == (75, True)
    assert says(service) == "550 5.7.1 old"


def test_somebody_elses_socket(serve: Serve) -> None:
    """A socket that something else listens on is left alone, and so is a file that is no socket."""
    service = serve(OLD)
    service.stop()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(service.socket)
        os.chmod(service.socket, 0o666)
        other.listen(5)
        code, said = run(service)
        assert (code, "somebody else listens" in said) == (75, True)
        other.accept()[0].close()
    os.unlink(service.socket)
    Path(service.socket).write_text("dear diary")
    code, said = run(service)
    assert (code, "is no socket" in said) == (71, True)
    assert Path(service.socket).read_text() == "dear diary"


def test_rules_at_the_start(serve: Serve) -> None:
    """It does not start with rules that are broken or absent: 65 and 66, with the problem's place."""
    service = serve(OLD)
    service.stop()
    service.rules.write_text(BROKEN)
    code, said = run(service)
    assert code == 65
    assert f"{service.rules}:3:5: " in said
    service.rules.unlink()
    assert run(service)[0] == 66


def test_control_takes_known_words(serve: Serve) -> None:
    """The control socket refuses other words, and is not held up by a peer that says nothing."""
    service = serve(OLD)
    assert "no such word" in ask(service.socket, "shutdown")["error"]
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(control_path(service.socket))
        assert service.status()["rules"]["count"] == 1
