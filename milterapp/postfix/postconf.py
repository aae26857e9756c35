"""Read and edit main.cf and master.cf through postconf(1), which knows their syntax and writes them atomically.

Must never: interpret a value, or write a file by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Configuration",
    "NoPostfix",
    "PostfixError",
    "Service",
    "is_running",
    "postfix",
    "read",
    "write_main",
    "write_services",
]

_ADMINISTRATION = "/usr/sbin:/usr/local/sbin:/sbin"  # where postconf(1) is, also for a PATH without it


class PostfixError(Exception):
    """A command of Postfix failed; the text is what it said."""


class NoPostfix(PostfixError):  # noqa: N818 - it says what is missing, as FileNotFoundError would of a file
    """postconf(1) is not installed."""


@dataclass(frozen=True, slots=True)
class Service:
    """One line of master.cf (master(5)): its columns as they stand there, `-` for a default.

    command: the program and its arguments, on one line.
    """

    name: str
    kind: str
    private: str
    unprivileged: str
    chroot: str
    wakeup: str
    limit: str
    command: str

    @property
    def key(self) -> str:
        """Return `name/type`, as postconf -M names a service."""
        return f"{self.name}/{self.kind}"

    def line(self) -> str:
        """Return the entry as one line of master.cf."""
        columns = (self.name, self.kind, self.private, self.unprivileged, self.chroot, self.wakeup, self.limit)
        return " ".join((*columns, self.command))


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a Postfix instance is configured to do.

    main: what main.cf sets, unexpanded; services: master.cf by key; known: every parameter this version has.
    """

    directory: str
    queue: str
    version: str
    main: Mapping[str, str]
    services: Mapping[str, Service]
    known: frozenset[str]
    tables: frozenset[str]


def read(directory: str | None = None) -> Configuration:
    """Return the configuration of an instance, by default the main one. Raises NoPostfix, PostfixError."""
    where = [] if directory is None else ["-c", directory]
    names = ("config_directory", "queue_directory", "mail_version")
    config, queue, version = _run([*where, "-h", *names]).splitlines()
    services = [Service(*_columns(line)) for line in _run([*where, "-M"]).splitlines() if line.strip()]
    return Configuration(
        directory=directory or config,
        queue=queue,
        version=version,
        main=_settings(_run([*where, "-n"])),
        services={one.key: one for one in services},
        known=frozenset(_settings(_run(["-d", *([] if directory is None else where)]))),
        tables=frozenset(_run(["-m"]).split()),
    )


def write_main(directory: str, settings: Mapping[str, str | None]) -> None:
    """Set parameters of main.cf; None takes one out. Raises PostfixError, ValueError (a value of several lines)."""
    for name, value in settings.items():
        if value is not None and "\n" in value:
            raise ValueError(f"{name}: a value of several lines")
    gone = [name for name, value in settings.items() if value is None]
    given = [f"{name}={value}" for name, value in settings.items() if value is not None]
    if given:
        _run(["-c", directory, "-e", *given])
    if gone:
        _run(["-c", directory, "-X", *gone])


def write_services(directory: str, given: Iterable[Service], gone: Iterable[str] = ()) -> None:
    """Set services of master.cf, and take out those named `name/type`. Raises PostfixError."""
    entries = [f"{one.key}={one.line()}" for one in given]
    if entries:
        _run(["-c", directory, "-M", "-e", *entries])
    keys = list(gone)
    if keys:
        _run(["-c", directory, "-M", "-X", *keys])


def postfix(directory: str, *command: str) -> tuple[int, str]:
    """Run postfix(1), such as `check` or `reload`; return its exit status and what it said. Raises NoPostfix.

    It says why only to a terminal (postlog(1)), so it gets one.
    """
    terminal, other_end = os.openpty()
    try:
        process = subprocess.Popen(
            [_program("postfix"), "-c", directory, *command],
            stdin=subprocess.DEVNULL,
            stdout=other_end,
            stderr=other_end,
            env=_environment(),
        )
    finally:
        os.close(other_end)
    said = b""
    try:
        while chunk := os.read(terminal, 4096):
            said += chunk
    except OSError:  # EIO: the last holder of the other end is gone
        pass
    finally:
        os.close(terminal)
    return process.wait(), said.decode("utf-8", "replace").replace("\r\n", "\n").strip()


def is_running(queue: str) -> bool:
    """Return whether the Postfix of a queue directory runs: its master(8) writes its process id there."""
    try:
        with open(os.path.join(queue, "pid/master.pid"), encoding="ascii") as file:
            pid = int(file.read(32))
        with open(f"/proc/{pid}/comm", encoding="ascii") as file:
            return file.read().strip() == "master"
    except (OSError, ValueError):
        return False


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run(
        [_program("postconf"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=_environment(),
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise PostfixError(done.stderr.strip() or f"postconf {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout


def _program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=_ADMINISTRATION)
    if path is None:
        raise NoPostfix(f"no Postfix here: {name}(1) is neither on PATH nor in {_ADMINISTRATION}")
    return path


def _environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "MAIL_CONFIG"}, "LC_ALL": "C"}


def _settings(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _columns(line: str) -> list[str]:
    columns = line.split(None, 7)
    if len(columns) != 8:
        raise PostfixError(f"postconf -M printed a line that is no service: {line!r}")
    return columns
