"""A process of milterapp, taken over: its own start and drop, and then, in place of its work, what it must never.

    taken_over.py ROLE FOLDER SETTINGS

ROLE: milter (the supervisor and a worker), submit, lmtp, client, spawner (and a script process of it), monitor (it
starts zygote, resolver and an agent; beside that a runner, which starts programs), and alice, what else runs with an
agent's ids.
FOLDER: where `targets.json` says whom and what to try, and where each role writes `ROLE.json`: the name of each try,
and `done` or the name of the error. SETTINGS: as JSON, with sockets of its own, so that the services still run.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["probe"]

_PTRACE_SEIZE = 0x4206
_NEWUSER = 0x10000000
_CALLS = {
    "x86_64": {"unshare": 272, "clone": 56, "ptrace": 101},
    "aarch64": {"unshare": 97, "clone": 220, "ptrace": 117},
}
_NUMBERS = _CALLS[os.uname().machine]
ALICE, BOB, CAROL = "alice", "bob", "carol"
AGENTS = ("agent", "program", "program with the network")  # what an agent tells of: itself, and what it starts


def word(act: Callable[[], object]) -> str:
    """Return what becomes of an act: `done`, or the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "done"


def call(name: str, *arguments: int) -> int:
    """Make a system call past the C library. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(_NUMBERS[name]), *map(ctypes.c_long, arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def namespace_by_clone() -> None:
    """Fork into a user namespace."""
    if call("clone", _NEWUSER | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def in_child(act: Callable[[], object]) -> str:
    """Return what becomes of an act that cannot be undone, in a child; `fork: …` where there is none."""
    try:
        reader, writer = os.pipe()
        pid = os.fork()
    except OSError as error:
        return f"fork: {errno.errorcode[error.errno or 0]}"
    if pid == 0:
        try:
            os.write(writer, word(act).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 100).decode()
    os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said or (f"status {code}" if code else "done")  # another program has nothing to say


def shadow_through_a_namespace() -> None:
    """Become root of a user namespace, and read /etc/shadow with that."""
    ids = os.geteuid(), os.getegid()
    call("unshare", _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with open("/etc/shadow"):
        pass


def shadow_through_setuid(program: str) -> None:
    """Have a setuid copy of head(1) open /etc/shadow."""
    if subprocess.run([program, "-c", "0", "/etc/shadow"], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        raise PermissionError(errno.EACCES, program)


def connect(kind: int, place: str | tuple[str, int]) -> None:
    """Connect to a socket."""
    with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET, kind) as connection:
        connection.settimeout(5)
        connection.connect(place)


def read(path: str) -> None:
    """Open a file to read."""
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def in_the_monitors_place() -> None:
    """Put something where clients look for the monitor, and take it away."""
    os.mkdir("/run/milterapp/monitor/another")
    os.rmdir("/run/milterapp/monitor/another")


def listen(path: str) -> None:
    """Listen on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.unlink(path)
        listener.listen()


def write(path: str) -> None:
    """Open a file to write, and make it where there is none."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def probe(targets: Mapping[str, Any]) -> dict[str, str]:
    """Return what becomes of each try. targets: `pids`, by role; `ids`, by account; `sockets`, by service."""
    ids, own = targets["ids"], os.getpid()
    found = {
        "become root": in_child(lambda: os.setresuid(0, 0, 0)),
        "root's group": in_child(lambda: os.setresgid(0, 0, 0)),
        "group disk": in_child(lambda: os.setgroups([6])),
        "group disk as its own": in_child(lambda: os.setresgid(6, 6, 6)),
        "group shadow": in_child(lambda: os.setresgid(42, 42, 42)),
        "become bob": in_child(lambda: os.setresuid(*[ids[BOB]] * 3)),
        "become submit": in_child(lambda: os.setresuid(*[ids["milterapp-submit"]] * 3)),
        "become nobody in particular": in_child(lambda: os.setresuid(2**32 - 2, -1, -1)),
        "/etc/shadow": word(lambda: read("/etc/shadow")),
        "/etc/shadow through a user namespace": in_child(shadow_through_a_namespace),
        "/etc/shadow through a setuid program": word(lambda: shadow_through_setuid(targets["setuid"])),
        "a user namespace by clone": in_child(namespace_by_clone),
        "alice's rules": word(lambda: read("/home/alice/.milterapp/rules.yaml")),
        "a file in alice's home": word(lambda: write(f"/home/alice/from-{own}")),
        "a file in bob's home": word(lambda: write(f"/home/bob/from-{own}")),
        "bob's mailbox": word(lambda: read("/var/mail/bob")),
        "the site's rules": word(lambda: write("/etc/milterapp/rules.yaml")),
        "what submit remembers": word(lambda: read("/var/lib/milterapp/submit/journal.sqlite")),
        "Postfix's queue": word(lambda: os.listdir("/var/spool/postfix/active")),
        "the place of the monitor's socket": word(in_the_monitors_place),
        "to listen": word(lambda: listen(f"/tmp/listen-{own}")),
        "a file in /tmp": word(lambda: write(f"/tmp/from-{own}")),
        "a file where programs may write": word(lambda: write(f"{targets['written']}/from-{own}")),
        "what all may read of bob": word(lambda: read("/home/bob/public")),
        "the network": word(lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", 25))),
        "a program": in_child(lambda: os.execv("/bin/true", ["true"])),
        "a new process": in_child(lambda: None),
    }
    for name, (kind, path) in targets["sockets"].items():
        found[f"the socket of {name}"] = word(lambda kind=kind, path=path: connect(kind, path))  # type: ignore[misc]
    for name, pid in targets["pids"].items():
        if pid != own:
            found[f"trace {name}"] = word(lambda pid=pid: call("ptrace", _PTRACE_SEIZE, pid, 0, 0))  # type: ignore[misc]
            found[f"memory of {name}"] = word(lambda pid=pid: read(f"/proc/{pid}/mem"))  # type: ignore[misc]
            found[f"kill {name}"] = word(lambda pid=pid: os.kill(pid, 0))  # type: ignore[misc]
    return found


class TakenOver:
    """The places of one run."""

    def __init__(self, folder: str, settings: str) -> None:
        self.folder, self.settings = folder, settings
        self.targets = json.loads(Path(folder, "targets.json").read_text())

    def tell(self, role: str, more: Mapping[str, str] | None = None) -> None:
        """Try everything, and write down what came of it."""
        self.write(role, {**probe(self.targets), **(more or {}), "capabilities": _capabilities()})

    def write(self, role: str, found: Mapping[str, str]) -> None:
        """Write down what came of it."""
        path = Path(self.folder, f"{role}.json")
        path.with_suffix(".part").write_text(json.dumps(found))
        path.with_suffix(".part").rename(path)

    def program(self, role: str) -> list[str]:
        """Return how to execute another role."""
        return [sys.executable, "-I", "-B", os.path.abspath(__file__), role, self.folder, self.settings]


def _capabilities() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("CapEff"))


def milter(run: TakenOver) -> int:
    """Be the supervisor, and one of its workers."""
    from milterapp.commands import milter as command
    from milterapp.milter import serving, supervisor

    def serve(self: supervisor.Supervisor, reading: int) -> None:
        del self, reading
        run.tell("supervisor")
        for _ in range(3000):
            if Path(run.folder, "worker.json").exists():
                break
            time.sleep(0.01)

    serving.Server.start = lambda *_: run.tell("worker")  # type: ignore[method-assign]
    supervisor.Supervisor._serve = serve  # type: ignore[method-assign]
    supervisor._START = 60.0  # a worker is ready once it has tried everything
    return command.main([run.settings])


def submit(run: TakenOver) -> int:
    """Be submit."""
    from milterapp.delivery import submit as service

    service.Service.run = lambda *_: run.tell("submit")  # type: ignore[method-assign]
    return service.main([run.settings])


def lmtp(run: TakenOver) -> int:
    """Be the LMTP door."""
    from milterapp.delivery import lmtp as service

    service.Service.run = lambda *_: run.tell("lmtp")  # type: ignore[method-assign]
    return service.main([run.settings])


def spawner(run: TakenOver) -> int:
    """Be the spawner, then have a script process; it can write nothing down, and tells the spawner."""
    from milterapp.delivery import sandbox
    from milterapp.delivery import spawner as service

    def take_over(self: service.Spawner) -> None:
        del self
        run.tell("spawner")
        told = sandbox.run(lambda _: json.dumps(probe(run.targets)).encode())
        run.write("site script", {**json.loads(told), "capabilities": "0" * 16})

    service.Spawner.run = take_over  # type: ignore[method-assign]
    return service.main([run.settings])


def client(run: TakenOver) -> int:
    """Be the pipe client: pipe(8) has set its ids before."""
    run.tell("client")
    return 0


def alice(run: TakenOver) -> int:
    """Be a program of alice's: its ids were set before."""
    run.tell("alice")
    return 0


def program(run: TakenOver) -> int:
    """Be a program of a rule's; it writes where its output goes. The last argument is its agent's process."""
    run.targets["pids"] |= {"its agent": int(sys.argv[-1]), "its runner": os.getppid()}
    print(json.dumps({**probe(run.targets), "capabilities": _capabilities()}))
    return 0


def monitor(run: TakenOver) -> int:
    """Be the monitor, then have a zygote, a resolver and an agent."""
    from milterapp.delivery import kinds, wire
    from milterapp.delivery import monitor as service
    from milterapp.delivery.children import Child

    def take_over(self: service.Monitor) -> None:
        run.tell("monitor")
        ids = run.targets["ids"]
        zygote = Child("zygote", run.program("zygote"), privileged=True, log=self._log)
        resolver = Child("resolver", run.program("resolver"), privileged=False, log=self._log)
        for child in (zygote, resolver):
            child.start()
            assert child.control is not None
            child.control.settimeout(60)
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked: dict[str, str] = {}
        tries = {"alice": (ids["alice"],) * 2, "root": (0, 0), "submit": (ids["milterapp-submit"],) * 2,
                 "alice in group disk": (ids["alice"], 6)}  # fmt: skip
        for number, (name, (uid, gid)) in enumerate(tries.items()):
            fields: dict[str, bytes | str | int] = {"id": number, "uid": uid, "gid": gid, "home": "/home/alice",
                                                    "name": "alice"}  # fmt: skip
            zygote.send("SPAWN", fields, (theirs.fileno(),))
            assert zygote.control is not None
            said = wire.receive(zygote.control, kinds.FROM_ZYGOTE)
            assert said is not None
            asked[name] = said.kind
        mine.settimeout(60)
        for _ in AGENTS:
            run.write(*json.loads(mine.recv(60_000)))
        run.write("asked", asked)
        assert resolver.control is not None
        run.write("resolver", json.loads(resolver.control.recv(60_000)))

    service.Monitor.run = take_over  # type: ignore[method-assign]
    return service.run(run.settings)


def zygote(run: TakenOver) -> int:
    """Be the zygote, and serve with an agent that was taken over, its runner too, and the programs that it starts."""
    from milterapp.delivery import runner
    from milterapp.delivery import zygote as service
    from milterapp.delivery.programs import Programs

    serve = runner.serve

    def load(_: Mapping[str, Any]) -> service.Serve:
        run.tell("zygote")
        return agent

    def taken(
        control: socket.socket, programs: Mapping[str, runner.Bounds], home: str, user: str, agent: int
    ) -> NoReturn:
        run.tell("runner")
        serve(control, programs, home, user, agent)

    def agent(control: socket.socket, home: str, user: str) -> None:
        def tell(role: str, found: Mapping[str, str]) -> None:
            control.send(json.dumps([role, found]).encode())  # it can write nothing down

        tell("agent", {**probe(run.targets), "home": home, "user": user, "capabilities": _capabilities()})
        beside = Programs(socket.socket(fileno=service.PROGRAMS))
        for name in AGENTS[1:]:
            ran = beside.run(name, [str(os.getpid())], b"\n", {}, wanted=True)
            tell(name, json.loads(ran.output) if ran.done else {"how": f"{ran}: {ran.said}"})
        os._exit(0)

    runner.serve = taken
    return service.start(["zygote", run.settings], load)


def resolver(run: TakenOver) -> int:
    """Be the resolver; it can write nothing down, and tells the monitor."""
    from milterapp.delivery import resolver as service

    def serve(control: socket.socket, *_: object, **__: object) -> None:
        control.send(json.dumps({**probe(run.targets), "capabilities": _capabilities()}).encode())

    service.serve = serve
    return service.main(["resolver", run.settings])


ROLES: Mapping[str, Callable[[TakenOver], int]] = {
    "milter": milter, "submit": submit, "lmtp": lmtp, "client": client, "alice": alice, "monitor": monitor,
    "zygote": zygote, "resolver": resolver, "spawner": spawner, "program": program,
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Be what argv[1] says."""
    return ROLES[argv[1]](TakenOver(argv[2], argv[3]))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
