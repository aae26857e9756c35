"""Finding the processes of the host by what they do, so that a test can end them.

Must never: signal anything by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["ROLES", "children", "is_running", "master", "of_role"]

# milter: the supervisor; client: what pipe(8) runs; the last five are Postfix's own. `lmtp` is known too.
ROLES = (
    "milter", "worker", "client", "monitor", "resolver", "zygote", "agent", "submit", "script",
    "master", "qmgr", "local", "pipe", "cleanup",
)  # fmt: skip


def master() -> int:
    """Return the process id of Postfix's master(8), 0 where it has none."""
    try:
        return int(Path("/var/spool/postfix/pid/master.pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    return pid > 0 and _state(pid) not in ("", "Z", "X")


def of_role(role: str, services: Mapping[str, int]) -> list[int]:
    """Return the processes of a role. services: process ids by name."""
    match role:
        case "milter" | "monitor" | "submit" | "lmtp" | "script":
            found = [services.get(role, 0)]
        case "worker":
            found = children(services.get("milter", 0))
        case "resolver" | "zygote":
            found = [pid for pid in children(services.get("monitor", 0)) if f"delivery.{role}" in _command(pid)]
        case "agent":
            found = [child for pid in of_role("zygote", services) for child in children(pid)]
        case "client":
            found = [pid for pid in _all() if _is_client(_command(pid))]
        case "master":
            found = [master()]
        case _:
            found = [pid for pid in children(master()) if _command(pid).split(" ")[0].endswith(role)]
    return [pid for pid in found if is_running(pid)]


def _is_client(command: str) -> bool:
    """Return whether it is a pipe client, Python's or a compiled one."""
    python = "-I -S" in command[:60] and "delivery/pipe.py" in command
    return python or command.split(" ")[0].endswith("/milterapp-client")


def _all() -> Iterator[int]:
    return (int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit())


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [one for one in _all() if pid and _parent(one) == pid]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) after the command name: state, parent, …; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    return "".join(_stat(pid)[:1])


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0
