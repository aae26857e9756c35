"""The process beside an agent that starts people's programs: one at a time, bounded, and nothing of them left behind.

Must never: start what the site does not name, wait past a deadline, return before all that came of a program has
ended, or import rules (what it starts and with which bounds is the site's; the user gives arguments alone).

    zygote ─fork, drop─► agent ─fork─► runner ─fork, sandbox, exec─► program ─► whatever it forks
                           │  RUN: name, arguments, envelope, a sealed message ►│ standard input is the message,
                           │◄ ENDED: how, status, first words, what it wrote    │ standard output and error are pipes

SECURITY: an agent cannot execute anything, so what can is forked from it before its filter is installed, with the
recipient's ids already taken and verified: the monitor and the zygote say nothing new to anybody. A runner holds what
its user holds. It has a session of its own, so that the death of its agent is not its own: it sees the end of the
connection, kills what runs, and goes. Its user can stop or kill it: then the zygote ends it and what it began, once
the agent has ended (`errands`). A program has, on top of what its runner has: its own process group, which it
cannot leave (`seccomp.program`: a fork, setsid, and another fork change nothing), so that one kill(2) reaches all of
it at once; no new privileges, so setuid programs run without theirs; Landlock, where there is one, so that it writes
below the home and the site's folders alone, and signals nobody else; limits on memory, processor, processes, and files.
What it writes is read up to a bound. Everything else about it (does it start, how does it end, does it end) is an
answer to the agent, never a fault. Not stopped: reading what its user may read, and using up the time it is given.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from milterapp.delivery import landlock, linux, sealed, seccomp, wire

__all__ = ["ENDED", "RUN", "Bounds", "beside", "serve"]

RUN: Mapping[str, Collection[str]] = {"RUN": ("program", "arguments", "environment", "wanted", "milliseconds")}
ENDED: Mapping[str, Collection[str]] = {"ENDED": ("how", "status", "said")}
MOST_ARGUMENTS = 50
_LONGEST = 4096  # bytes of one argument
_SAID = 500  # bytes of what it said that are kept
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_NICE = 10
_ERRNO = struct.Struct("=i")
_HIDDEN = 128  # agents and runners of one uid that may be there unseen
_LEAVE = 10.0  # seconds for killed processes to be gone; the kernel may still be writing for one


@dataclass(frozen=True, slots=True)
class Bounds:
    """One of the site's programs, as settings.Program has it."""

    run: Sequence[str]
    options: bool
    time: float
    memory: int
    output: int
    processes: int
    read: Sequence[str]
    write: Sequence[str]
    network: bool


def beside(programs: Mapping[str, Mapping[str, Any]], home: str, user: str, *, keep: int) -> int:
    """Fork a runner; return the descriptor of the connection to it, for the agent that goes on here.

    The caller has its final ids, and no filter yet that refuses execve(2). keep: the descriptor below which the runner
    has nothing of the caller's but standard input and output, which are /dev/null. Raises OSError.
    """
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = os.getpid()
    if os.fork() == 0:
        try:
            os.setsid()
            mine.close()
            if theirs.fileno() != keep:
                os.dup2(theirs.fileno(), keep, inheritable=False)
            linux.close_from(keep + 1)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(keep):
                os.dup2(null, descriptor)
            os.close(null)
            gc.freeze()
            serve(
                socket.socket(fileno=keep), {name: Bounds(**one) for name, one in programs.items()}, home, user, agent
            )
        finally:
            os._exit(os.EX_OSERR)
    theirs.close()
    return mine.detach()


def serve(control: socket.socket, programs: Mapping[str, Bounds], home: str, user: str, agent: int) -> NoReturn:
    """Run what is asked for until the agent hangs up, then end. agent: its process, which no program may signal."""
    status = 0
    try:
        linux.undumpable()
        linux.adopt_orphans()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        while (request := wire.receive(control, RUN, descriptors=(1,))) is not None:
            try:
                ended = _Run(control, programs, request, home, user, agent).ended()
            finally:
                request.close()
            wire.send(control, "ENDED", ended.fields, ended.descriptors)
            for descriptor in ended.descriptors:
                os.close(descriptor)
    except BaseException:  # noqa: BLE001 - the process's edge: without an answer the agent defers
        status = os.EX_SOFTWARE
    os._exit(status)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How it ended: `exit` with a status, `signal` with its number, or in a word: start, time, output, left."""

    how: str
    status: int = 0
    said: bytes = b""
    descriptors: tuple[int, ...] = ()

    @property
    def fields(self) -> wire.Fields:
        return {"how": self.how, "status": self.status, "said": self.said}


class _Run:
    """One run of one program."""

    def __init__(
        self, control: socket.socket, programs: Mapping[str, Bounds], request: wire.Datagram, home: str, user: str,
        agent: int,
    ) -> None:  # fmt: skip
        self._control, self._agent = control, agent
        self._message = request.descriptors[0]
        self._bounds = programs.get(request.text("program"))
        self._arguments = request.fields.get("arguments", b"").split(b"\0")[:-1]
        given = (one.partition(b"=") for one in request.fields.get("environment", b"").split(b"\0")[:-1])
        self._environment = {
            **{name: value for name, _, value in given},
            b"PATH": _PATH.encode(), b"LANG": b"C.UTF-8", b"SHELL": b"/bin/sh",
            b"HOME": os.fsencode(home), b"USER": os.fsencode(user), b"LOGNAME": os.fsencode(user),
        }  # fmt: skip
        if "TZ" in os.environ:
            self._environment[b"TZ"] = os.fsencode(os.environ["TZ"])
        self._home = home
        self._wanted = bool(request.fields.get("wanted"))
        self._left = request.number("milliseconds") / 1000 if "milliseconds" in request.fields else math.inf
        self._said = bytearray()
        self._written = 0
        self._output = -1

    def ended(self) -> _Ended:
        """Run it and return how it ended, once nothing of it is left."""
        bounds = self._bounds
        if bounds is None:
            return _Ended("start", said=b"the site does not allow it")
        fault = self._fault(bounds)
        if fault:
            return _Ended("start", said=fault)
        until = time.monotonic() + min(bounds.time, self._left)
        pid, failure, pipes = self._start(bounds)
        try:
            how, status = self._watch(pid, failure, pipes, until, bounds)
        finally:
            _sweep(pid)
            for descriptor in (failure, *pipes):
                os.close(descriptor)
        if how == "gone":
            raise ConnectionError("the agent ended")
        descriptors: tuple[int, ...] = ()
        if self._output >= 0:
            output, self._output = self._output, -1
            if how == "exit" and status == 0:
                descriptors = (output,)
            else:
                os.close(output)
        return _Ended(how, status, bytes(self._said[:_SAID]), descriptors)

    def _fault(self, bounds: Bounds) -> bytes:
        """Return why it is not even started, b"" where it is."""
        if len(self._arguments) > MOST_ARGUMENTS or any(len(one) > _LONGEST for one in self._arguments):
            return b"too many arguments, or one that is too long"
        if not bounds.options and any(one.startswith(b"-") for one in self._arguments):
            return b"an argument that begins with `-`, and the site allows no options"
        sealed.measure(self._message, 1 << 31)
        return b""

    def _start(self, bounds: Bounds) -> tuple[int, int, tuple[int, ...]]:
        """Fork; return the process, where it says why it could not start, and where it writes."""
        os.lseek(self._message, 0, os.SEEK_SET)
        failure, fail = os.pipe()
        said, say = os.pipe()
        output, write = os.pipe() if self._wanted else (-1, -1)
        if self._wanted:
            self._output = os.memfd_create("filtered", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        runner = os.getpid()
        processes = _processes(self._agent) + bounds.processes
        pid = os.fork()
        if pid == 0:
            standard = (self._message, write if self._wanted else say, say)
            self._become(bounds, standard, fail, runner, processes)
        for descriptor in (fail, say, write):
            if descriptor >= 0:
                os.close(descriptor)
        with suppress(OSError):  # it does so itself as well: whoever comes first, it can be killed from now on
            os.setpgid(pid, pid)
        return pid, failure, tuple(one for one in (said, output) if one >= 0)

    def _become(
        self, bounds: Bounds, standard: tuple[int, int, int], fail: int, runner: int, processes: int
    ) -> NoReturn:
        """Give up what a program must not have, and become it. Whatever happens, this process ends here."""
        try:
            os.setpgid(0, 0)
            while min(standard) < 3 or fail < 3:
                standard, fail = tuple(os.dup(one) for one in standard), os.dup(fail)  # type: ignore[assignment]
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
            os.dup2(fail, 3, inheritable=False)
            linux.close_from(4)
            for number in range(1, signal.NSIG):
                if number not in (signal.SIGKILL, signal.SIGSTOP):
                    with suppress(OSError, ValueError):
                        signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            linux.die_with_parent()
            if os.getppid() != runner:
                raise ProcessLookupError("the runner has ended")
            os.umask(0o077)
            os.nice(_NICE)
            _die_first()
            os.chdir(self._home)
            landlock.restrict(
                (), executable=bounds.read, writable=(self._home, *bounds.write, *_DEVICES), tcp=bounds.network
            )
            seccomp.install(seccomp.program((runner, self._agent), network=bounds.network))
            linux.limit({
                resource.RLIMIT_AS: bounds.memory, resource.RLIMIT_CPU: math.ceil(bounds.time) + 1,
                resource.RLIMIT_NPROC: processes, resource.RLIMIT_CORE: 0,
            })  # fmt: skip
            os.execve(bounds.run[0], [os.fsencode(one) for one in bounds.run] + self._arguments, self._environment)  # noqa: S606 - what it is for
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent
            number = error.errno if isinstance(error, OSError) and error.errno else 0
            os.write(3, _ERRNO.pack(number))
        finally:
            os._exit(os.EX_OSERR)

    def _watch(self, pid: int, failure: int, pipes: Sequence[int], until: float, bounds: Bounds) -> tuple[str, int]:
        """Read what it writes until it ends, or must: at its deadline, past its bounds, without its agent."""
        ended = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        for pipe in pipes:
            os.set_blocking(pipe, False)
            poll.register(pipe, select.POLLIN)
        try:
            while True:
                left = until - time.monotonic()
                ready = {descriptor for descriptor, _ in poll.poll(max(0, left) * 1000)}
                if self._control.fileno() in ready:
                    return "gone", 0
                for pipe in ready.intersection(pipes):
                    if not self._read(pipe, pipes):
                        poll.unregister(pipe)
                if self._written > bounds.output:
                    return "output", 0
                if ended in ready:
                    return self._finish(pid, failure, pipes, bounds)
                if left <= 0:
                    return "time", 0
        finally:
            os.close(ended)

    def _finish(self, pid: int, failure: int, pipes: Sequence[int], bounds: Bounds) -> tuple[str, int]:
        """Return how a process ended that has, with what it wrote last. What it left running may write no more."""
        os.killpg(pid, signal.SIGKILL)  # the process itself, not yet waited for, keeps the number of its group
        for pipe in pipes:
            while self._written <= bounds.output and self._read(pipe, pipes):
                pass
        if self._written > bounds.output:
            return "output", 0
        why = os.read(failure, _ERRNO.size)
        if why:
            (number,) = _ERRNO.unpack(why)
            self._said[:] = (os.strerror(number) if number else "it could not be confined").encode()
            return "start", 0
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if info is None or info.si_code != os.CLD_EXITED:
            return "signal", info.si_status if info is not None else 0
        if self._output >= 0:
            sealed.fix(self._output)
        return "exit", info.si_status

    def _read(self, pipe: int, pipes: Sequence[int]) -> bool:
        """Take what a pipe holds now, to its place; False at its end, or where there is nothing."""
        try:
            piece = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return False
        self._written += len(piece)
        if pipe == pipes[0]:
            self._said += piece[: max(0, _SAID - len(self._said))]
        else:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._output, rest) :]
        return bool(piece)


def _sweep(pid: int) -> None:
    """End everything that came of a program, and wait for it. Raises TimeoutError: then nothing more can be run."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    until = time.monotonic() + _LEAVE
    while time.monotonic() < until:
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not found:
            time.sleep(0.005)
    raise TimeoutError("a process that was killed is still there")


def _processes(agent: int) -> int:
    """Return how many processes and threads this uid has; the kernel counts them against RLIMIT_NPROC.

    Where /proc hides the undumpable ones, agents, there may be more.
    """
    uid, found = os.getuid(), 0 if os.path.exists(f"/proc/{agent}") else _HIDDEN
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with suppress(OSError):
                    if entry.stat().st_uid in (uid, 0):
                        found += _threads(entry.path, uid)
    return found


def _threads(path: str, uid: int) -> int:
    """Return the threads of a process, 0 where it is another uid's (an undumpable one's folder belongs to root)."""
    with open(f"{path}/status", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file if line.startswith((b"Uid:", b"Threads:")))
    return int(fields[b"Threads"]) if int(fields[b"Uid"].split()[0]) == uid else 0


def _die_first() -> None:
    """Where memory runs out, this is what the kernel ends first."""
    linux.prctl(4, 1)  # PR_SET_DUMPABLE, as executing makes it: else the file is root's
    try:
        with open("/proc/self/oom_score_adj", "wb", 0) as file:
            file.write(b"1000")
    except OSError:
        pass  # no /proc, or a read-only one: the limits remain
