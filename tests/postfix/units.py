"""A real systemd for the units of packaging/systemd: the services run as an administrator's do, with all that hardens.

Must never: run outside the world of packaging/world, load a unit of the host's own, or leave its control groups behind.

systemd is the first process of a process namespace of its own, which the world's other processes see into.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ASKED", "Unit", "booted", "status"]

ASKED = "MILTERAPP_UNITS"  # set to the process that is systemd where services are to run as its units
SYSTEMD = next((one for one in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if os.path.exists(one)), "")
UNITS = Path("/run/milterapp-units")
PACKAGING = Path(__file__).parents[2] / "packaging"
_PROGRAM = "/opt/milterapp/.venv/bin/milterapp"
_TARGETS = ("basic", "sysinit", "shutdown", "sockets", "timers", "paths", "slices", "local-fs", "multi-user")
_GROUPS = [Path("/sys/fs/cgroup", one, "milterapp-units") for one in ("systemd", "unified", "")]
_PATIENCE = 30.0  # seconds


class Unit:
    """A service as systemd runs it, with as much of subprocess.Popen as the host of the tests asks for."""

    def __init__(self, name: str) -> None:
        self.name = f"milterapp-{name}.service"
        self.returncode: int | None = None
        systemctl("reset-failed", self.name, check=False)
        systemctl("start", self.name)
        self.pid = _outside(int(show(self.name)["MainPID"]))

    def poll(self) -> int | None:
        """Return the exit status where it has ended and is not being started again."""
        found = show(self.name)
        if found["ActiveState"] in ("inactive", "failed"):
            self.returncode = int(found["ExecMainStatus"])
        return self.returncode

    def terminate(self) -> None:
        """Stop it."""
        systemctl("stop", self.name)

    def kill(self) -> None:
        """Kill all of it, and keep it from being started again."""
        systemctl("kill", "--signal=KILL", self.name, check=False)
        systemctl("stop", self.name)

    def wait(self, patience: float = _PATIENCE) -> int:
        """Wait until it has ended."""
        end = time.monotonic() + patience
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.name, patience)
            time.sleep(0.05)
        return self.returncode or 0


def systemctl(*arguments: str, check: bool = True) -> str:
    """Ask systemd. Raises AssertionError with what the unit said."""
    command = ["nsenter", "-t", os.environ[ASKED], "-m", "-p", "-C", "systemctl", "--no-pager", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        name = arguments[-1]
        logged = Path(f"/var/log/{name.removesuffix('.service')}.log")
        text = logged.read_text(errors="replace")[-2000:] if logged.exists() else ""
        raise AssertionError(f"systemctl {' '.join(arguments)}: {done.stderr}\n{status(name)}\n{text}")
    return done.stdout


def show(name: str) -> dict[str, str]:
    """Return a unit's properties."""
    return dict(line.split("=", 1) for line in systemctl("show", name).splitlines() if "=" in line)


def status(name: str) -> str:
    """Return what `systemctl status` says."""
    return systemctl("status", name, check=False)


def _outside(pid: int) -> int:
    """Return the process that is that one for systemd."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found = re.search(r"^NSpid:\s(.*)$", (entry / "status").read_text(), re.MULTILINE)
                numbers = found[1].split() if found else []
                if len(numbers) > 1 and numbers[-1] == str(pid):
                    return int(entry.name)
    raise AssertionError(f"systemd has a process {pid} that is nowhere")


def _write_units() -> None:
    UNITS.mkdir()
    for name in _TARGETS:
        (UNITS / f"{name}.target").write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n")
    for unit in (PACKAGING / "systemd").glob("*.service"):
        text = unit.read_text().replace("/usr/bin/milterapp", _PROGRAM)  # where the world has it
        (UNITS / unit.name).write_text(text)
        drop = UNITS / f"{unit.name}.d"
        drop.mkdir()
        (drop / "log.conf").write_text(f"[Service]\nStandardError=append:/var/log/{unit.stem}.log\n")


@contextlib.contextmanager
def booted() -> Iterator[int]:
    """Boot systemd with our units, and end it and all it started. Raises AssertionError where it does not boot."""
    _write_units()
    subprocess.run(["systemd-tmpfiles", "--create", str(PACKAGING / "tmpfiles.d/milterapp.conf")], check=True)
    groups = [one for one in _GROUPS if (one.parent / "cgroup.procs").exists()]
    for group in groups:
        group.mkdir(exist_ok=True)
    enter = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in groups)
    inside = f"exec {SYSTEMD} --system --unit=multi-user.target --log-target=console --show-status=no"
    script = f"{enter}; exec unshare --pid --fork --kill-child --cgroup --mount --mount-proc sh -c '{inside}'"
    environment = {"PATH": os.defpath, "container": "milterapp-world", "SYSTEMD_UNIT_PATH": str(UNITS)}
    with open("/var/log/systemd.log", "wb") as log:
        outer = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        os.environ[ASKED] = str(_first(outer))
        end = time.monotonic() + _PATIENCE
        while "active" not in systemctl("is-active", "multi-user.target", check=False).split():
            assert time.monotonic() < end, Path("/var/log/systemd.log").read_text(errors="replace")[-3000:]
            time.sleep(0.1)
        yield int(os.environ[ASKED])
    finally:
        os.environ.pop(ASKED, None)
        outer.send_signal(signal.SIGKILL)  # its first process dies with it, and all others with that one
        outer.wait()
        time.sleep(0.5)
        for group in groups:
            _remove(group)
        shutil.rmtree(UNITS)


def _first(outer: subprocess.Popen[bytes]) -> int:
    """Return the child that is systemd."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and outer.poll() is None:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        time.sleep(0.05)
    raise AssertionError("systemd did not begin:\n" + Path("/var/log/systemd.log").read_text(errors="replace")[-3000:])


def _remove(group: Path) -> None:
    """Remove a control group and those below it, once their processes are gone."""
    for folder, _, _ in os.walk(group, topdown=False):
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.1)
