"""Programs that stand at the other ends of the monitor in its tests: real processes that speak the same datagrams.

`standin.py SETTINGS ROLE`: monitor (the real one, told to execute these; `monitor real` has real agents), zygote (the
real one, with an agent that does what the queue id says), resolver (`u20001@…` is uid 20001; more in `special`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from milterapp.delivery import kinds, linux, monitor, sealed, wire, zygote
from milterapp.delivery.requests import JOB


def attempt(act: Callable[[], object]) -> str:
    """Return what becomes of an act: `done`, or the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "done"


def raw(number: int, *arguments: int) -> None:
    """Make a system call. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "syscall")


def inside() -> dict[str, Any]:
    """Return what a process says of itself, and what becomes of it when it tries what it must never do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    descriptors = [fd for fd in range(64) if attempt(lambda fd=fd: os.fstat(fd)) == "done"]  # type: ignore[misc]
    return {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": os.getgroups(),
        "capabilities": linux.capabilities(),
        "ambient": int(status["CapAmb"], 16),
        "bounding": int(status["CapBnd"], 16),
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "dumpable": linux.prctl(3),
        "descriptors": descriptors,
        "session": os.getsid(0) == os.getpid(),
        "cwd": os.getcwd(),
        "environment": sorted(os.environ),
        "root": attempt(lambda: os.setresuid(0, 0, 0)),
        "root group": attempt(lambda: os.setresgid(0, 0, 0)),
        "disk": attempt(lambda: os.setresgid(6, 6, 6)),
        "groups again": attempt(lambda: os.setgroups([6])),
        "another user": attempt(lambda: os.setresuid(20002, 20002, 20002)),
        "shadow": attempt(lambda: open("/etc/shadow")),
        "user namespace": attempt(lambda: raw(272, 0x10000000)),
        "clone user namespace": attempt(lambda: raw(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)),
        "clone3": attempt(lambda: raw(435, 0, 0)),
        "ptrace": attempt(lambda: raw(101, 16, os.getppid(), 0, 0)),
        "kill parent": attempt(lambda: os.kill(os.getppid(), 0)),
        "execute": attempt(lambda: os.execv("/bin/true", ["true"])),
        "socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
        "fork": attempt(lambda: os.fork() or os._exit(0)),
        "session of its own": attempt(os.setsid),
        "group of its own": attempt(lambda: os.setpgid(0, 0)),
        "memory": attempt(lambda: open(f"/proc/{os.getppid()}/mem")),
    }


# by queue id: to keep is all that is to be done, with these as what was edited
EDITED: Mapping[str, tuple[str, ...]] = {"KEEP": (), "EDITED": ("sealed",), "UNSEALED": ("loose",)}
_served: list[str] = []  # queue ids that this process has answered


_line: list[int] = []  # to submit, which no job has used yet
_hoarded: list[int] = []  # those that an agent does not let go of


def ask() -> str:
    """Have submit keep the message; return what the monitor is told."""
    with socket.socket(fileno=_line.pop()) as submit:
        wire.send(submit, "KEEP", {})
        answer = wire.receive(submit, {"DONE": ("queue_id",), "FAILED": ("text",)})
    return "ok" if answer is not None and answer.kind == "DONE" else "defer"


def act(job: wire.Datagram, home: str, user: str) -> tuple[str, str, str]:
    """Return status, text and event for a job, or never: its queue id says which."""
    message = job.descriptors[0]
    what = job.text("queue_id")
    if what == "CRASH":
        os._exit(3)
    elif what == "HANG":
        time.sleep(600)
    elif what == "STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "SLOW":
        time.sleep(1.5)
    elif what == "FORK":
        if os.fork() == 0:
            time.sleep(600)
        time.sleep(600)
    elif what == "STOPPED TREE":
        for act in (os.setsid, lambda: os.setpgid(0, 0), lambda: None):
            if os.fork() == 0:
                attempt(act)
                os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "ORPHAN":
        if os.fork() == 0:
            attempt(os.setsid)
            time.sleep(600)
        os._exit(3)
    elif what == "ALWAYS AGAIN" or (what == "AGAIN" and _served):
        return "again", "another home", ""
    elif what == "REJECT":
        return "reject", "5.7.1 not for me\nreally", ""
    elif what == "PROBE":
        return "ok", "", json.dumps(inside())
    elif what == "ASK":
        return ask(), "", ""
    elif what == "HOARD":
        _hoarded.append(os.dup(_line[-1]))
        return ask(), "", ""
    elif what in EDITED:
        return "keep", "", json.dumps({"rules": [what]})
    size = os.fstat(message).st_size
    return "ok", "", json.dumps({"pid": os.getpid(), "size": size, "home": home, "user": user, "uid": os.getuid()})


def serve(control: socket.socket, home: str, user: str) -> None:
    """Be an agent."""
    while (job := wire.receive(control, JOB, descriptors=(1, 2))) is not None:
        _line.extend(job.descriptors[1:])
        if job.text("queue_id") == "GARBAGE":
            control.send(b"SOMETHING\nelse:3:abc\n")
            continue
        what = job.text("queue_id")
        status, text, event = act(job, home, user)
        _served.append(what)
        edited = [sealed.seal([b"edited"]) if one == "sealed" else os.memfd_create(one) for one in EDITED.get(what, ())]
        wire.send(control, "ANSWER", {"status": status, "text": text, "event": event}, edited)
        for one in (job.descriptors[0], *edited):
            os.close(one)
    os._exit(0)


def resolver(folder: str) -> int:
    """Be a resolver that needs no accounts; homes are below the folder."""
    linux.drop_capabilities()
    special: Mapping[str, tuple[int, int]] = {"root": (0, 0), "low": (999, 20001), "disk": (20001, 6)}
    control = socket.socket(fileno=3)
    while (datagram := wire.receive(control, kinds.TO_RESOLVER)) is not None:
        number, local = datagram.number("id"), datagram.text("recipient").partition("@")[0]
        name, _, extension = local.partition("+")
        if local == "die":
            os._exit(1)
        elif local == "nss":
            wire.send(control, "FAILED", {"id": number, "text": "getpwnam: Connection refused"})
        elif local == "probe":
            wire.send(control, "FAILED", {"id": number, "text": json.dumps(inside())[:60000]})
        elif name in special or name[1:].isdigit():
            uid, gid = special.get(name) or (int(name[1:]),) * 2
            user: dict[str, str | int] = {
                "name": name,
                "uid": uid,
                "gid": gid,
                "home": f"{folder}/home/{name}",
                "extension": extension,
            }
            wire.send(control, "USER", {**user, "id": number, "extension": extension})
        else:
            wire.send(control, "UNKNOWN", {"id": number})
    return 0


def main(argv: list[str]) -> int:
    """Be what argv[2] says."""
    if argv[2] == "monitor":
        own = [sys.executable, "-I", os.path.abspath(__file__), argv[1]]
        real = argv[3:] == ["real"]
        return monitor.run(argv[1], zygote=() if real else [*own, "zygote"], resolver=[*own, "resolver"])
    if argv[2] == "zygote":
        return zygote.start(argv, lambda _: serve)
    return resolver(os.path.dirname(os.path.dirname(json.loads(argv[1])["delivery"]["socket"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
