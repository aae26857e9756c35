"""A milter of our own for the tests in this folder: the real service, its socket in a folder nobody else knows."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from milterapp.milter.control import ask
from milterapp.settings import Settings
from tests.milter.peer import Peer

NOBODY = 65534  # the service does not serve as root: a test that is root has it drop to this
MILTER = ("-m", "milterapp.commands.milter")
# As much as a site may say: a busy machine is no late step.
UNHURRIED = {"step_time": 25.0, "message_time": 250.0}


class Service:
    """A running `milterapp milter`. rules: its rule file; settings: what differs from the defaults, by section.

    program: what Python runs.
    """

    def __init__(self, folder: Path, rules: str, settings: dict[str, Any], program: Sequence[str] = MILTER) -> None:
        self.folder = folder
        self._program = program
        self.socket = str(folder / "s" / "milter")
        self.rules = folder / "rules.yaml"
        self.rules.write_text(rules)
        uid = os.geteuid() or NOBODY
        gid = os.getegid() or NOBODY
        (folder / "s").mkdir()
        os.chown(folder / "s", uid, gid)
        given = dataclasses.asdict(Settings())
        given["accounts"]["milter"] = f"{uid}:{gid}"
        given["milter"] |= {
            "socket": self.socket,
            "socket_group": grp.getgrgid(gid).gr_name,
            "rules": str(self.rules),
            "workers": 1,
            **UNHURRIED,
        }
        given["log"] = "json"
        for section, values in settings.items():
            given[section] = {**given[section], **values} if isinstance(values, dict) else values
        self._settings = json.dumps(given)
        self._log = folder / "log"
        self._peers: list[Peer] = []
        self.start()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", *self._program, self._settings],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.wait(lambda: self.events("ready") or self.process.poll() is not None, "the milter to serve")
        assert self.process.poll() is None, self._log.read_text()

    def wait(self, done: Callable[[], Any], what: str, deadline: float = 30) -> None:
        """Wait until something is so."""
        end = time.monotonic() + deadline
        while not done():
            assert time.monotonic() < end, f"waited {deadline} s for {what}\n{self._log.read_text()}"
            time.sleep(0.01)

    def lines(self) -> list[dict[str, str]]:
        """Return the events so far, in a form that is easy to compare: their fields as JSON types."""
        lines = self._log.read_text().splitlines(keepends=True)  # the last may be half-written: of more than one page
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name."""
        return [one for one in self.lines() if one["event"] == name]

    def message_event(self) -> dict[str, Any]:
        """Wait for the one event of a message, and return it without its times."""
        self.wait(lambda: self.events("message"), "a message's event")
        (event,) = self.events("message")
        return {key: value for key, value in event.items() if key not in ("time", "ms", "ms_by_step", "service")}

    def status(self) -> dict[str, Any]:
        """Ask the supervisor."""
        return ask(self.socket, "status")

    def peer(self, **options: Any) -> Peer:
        """Connect as a mail server."""
        self._peers.append(Peer(self.socket, **options))
        return self._peers[-1]

    def stop(self) -> int:
        """Stop it as an administrator does, its connections closed; return its exit code."""
        for peer in self._peers:
            peer.sock.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a milter with these rules and settings."""
    with contextlib.ExitStack() as stack:

        def start(rules: str, program: Sequence[str] = MILTER, **settings: Any) -> Service:
            folder = Path(tempfile.mkdtemp(prefix="milterapp-test-"))
            stack.callback(shutil.rmtree, folder)
            folder.chmod(0o755)
            service = Service(folder, rules, {**settings, "milter": settings.get("milter", {})}, program)
            stack.callback(service.stop)
            return service

        yield start
