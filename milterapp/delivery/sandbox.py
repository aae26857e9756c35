"""The script process: a fork that can compute, read a few folders, ask its parent, and answer it; nothing else.

Must never: begin the work before everything is taken away, take half an answer for a whole one, or wait past the
deadline; import rules or script (what it runs is handed in).

SECURITY: the child has its parent's ids and memory, and three walls around it. seccomp: an allow-list of system calls
without sockets, fork, exec, signals to others or opening for writing. Landlock: the files it may read. Resource
limits: memory, CPU, files. What it holds is two pipes to its parent and /dev/null; its parent keeps the deadline and
believes nothing it says. Not stopped: stat(2) of any path its uid can reach, and using the time it is given.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import select
import signal
import struct
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from milterapp.delivery import landlock, linux, seccomp
from milterapp.delivery.sandbox_filter import script_filter
from milterapp.delivery.sandbox_level import LEVELS, Level, probe

__all__ = ["LEVELS", "Ask", "Bounds", "Level", "SandboxError", "prepare", "probe", "run"]

Ask = Callable[[bytes], bytes]  # a question of the child, answered by its parent
Work = Callable[[Ask], bytes]  # what the child does, and its answer

_HEAD = struct.Struct("=cI")  # a frame of the child: `?` a question or `=` the answer, and its length
_LENGTH = struct.Struct("=I")  # of an answer to a question, and of a job
_OUT, _IN = 3, 4  # the child's descriptors
_QUESTION = 64 * 1024  # bytes
_NO_MEMORY, _FAULT, _NOT_SET_UP = 71, 70, 72  # exit statuses of the child


class SandboxError(Exception):
    """The script process gave no answer. reason: a word of REASONS; str() says it in a sentence, for the log."""

    REASONS = ("level", "set-up", "time", "cpu", "memory", "output", "protocol", "crashed")

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one run may use. memory: bytes beyond what the parent has; cpu, wall: seconds; output: bytes in all."""

    memory: int = 256 << 20
    cpu: int = 10
    wall: float = 30.0
    output: int = 8 << 20
    questions: int = 2000
    files: int = 32


@functools.cache
def _python() -> tuple[str, ...]:
    """Return what importing needs to read: Python's library, milterapp, the libraries their C parts are linked with."""
    machine = os.uname().machine
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [one for one in sys.path if one.endswith(("-packages", "lib-dynload"))]
    found.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found += [f"/lib/{machine}-linux-gnu", f"/usr/lib/{machine}-linux-gnu", "/lib64", "/usr/lib64"]
    found += ["/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"]
    return tuple(dict.fromkeys(found))


def prepare() -> None:
    """Find out once, before agents are forked, what every run needs to know."""
    probe()
    script_filter()
    _python()


def run(
    work: Work,
    folder: str | int | None = None,
    bounds: Bounds = Bounds(),
    answer: Ask | None = None,
    floor: str = "good",
    readable: Iterable[str | int] = (),
    *,
    shared: bool = True,
) -> bytes:
    """Do the work in a script process and return its answer. Raises SandboxError; OSError where fork(2) fails.

    folder: the script's own, a path or a descriptor; it is the working directory. answer: what the child may ask,
    called here; its errors end the run and are the caller's. floor: the least level, else nothing is started.
    readable: more that can be read, paths or descriptors. shared: False where the folder itself cannot be read. The
    caller has one thread.
    """
    grants = [*readable, *([] if folder is None or not shared else [folder])]
    pid, from_child, to_child = _fork(work, folder, grants, bounds, floor)
    try:
        return _Parent(pid, from_child, to_child, bounds, answer).run()
    finally:
        os.close(from_child)
        os.close(to_child)


def _fork(
    work: Work, folder: str | int | None, grants: Iterable[str | int], bounds: Bounds, floor: str
) -> tuple[int, int, int]:
    """Return the pid of a script process, and the descriptors to read from and to write to it."""
    level = probe()
    if not level.reaches(floor):
        raise SandboxError("level", f"this machine's {level} is below the site's floor ({floor})")
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    try:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _child(work, parent, (to_parent, from_parent), folder, [*_python(), *grants], bounds)
    except OSError:
        os.close(from_child)
        os.close(to_child)
        raise
    finally:
        os.close(to_parent)
        os.close(from_parent)
    return pid, from_child, to_child


# The child


def _child(
    work: Work, parent: int, pipes: tuple[int, int], folder: str | int | None, grants: list[str | int], bounds: Bounds
) -> NoReturn:
    """Take everything away, work, answer. Whatever happens, this process ends here, and cleans up nothing."""
    status = _NOT_SET_UP
    try:
        gc.freeze()  # the parent's objects: not ours to end, and to look through them would copy every page
        _confine(parent, pipes, folder, grants, bounds)
        status = _FAULT
        answer = work(_ask)
        _write(_HEAD.pack(b"=", len(answer)) + answer)
        status = 0
    except MemoryError:
        status = _NO_MEMORY
    except BaseException:  # noqa: BLE001, S110 - a forked child must not return into its parent; the status says it
        pass
    finally:
        os._exit(status)


def _confine(
    parent: int, pipes: tuple[int, int], folder: str | int | None, grants: list[str | int], bounds: Bounds
) -> None:
    linux.die_with_parent()
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")
    signal.set_wakeup_fd(-1)
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(one, signal.SIG_DFL)
    linux.no_new_privileges()
    linux.undumpable()
    os.chdir("/" if folder is None else folder)
    null = os.open(os.devnull, os.O_RDWR)
    ends = [os.dup(one) for one in pipes]  # both above the numbers that they are to have
    while min(ends) <= _IN:
        ends = [os.dup(one) for one in ends]
    limits = _limits(bounds)
    landlock.restrict(grants)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(ends[0], _OUT, inheritable=False)
    os.dup2(ends[1], _IN, inheritable=False)
    linux.close_from(_IN + 1)
    linux.limit(limits)
    if probe().seccomp:
        seccomp.install(script_filter())


def _limits(bounds: Bounds) -> Mapping[int, int]:
    return {
        resource.RLIMIT_AS: _address_space() + bounds.memory,
        resource.RLIMIT_CPU: bounds.cpu,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: max(bounds.files, 16),
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 0,
    }


def _address_space() -> int:
    """Return the bytes that this process has mapped already."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 512 << 20  # no /proc here: more than any agent


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(_OUT, rest) :]


def _read(size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = os.read(_IN, size - len(found))
        if not piece:
            raise EOFError("the parent has ended")
        found += piece
    return found


def _ask(question: bytes) -> bytes:
    """Ask the parent, from within the child."""
    if len(question) > _QUESTION:
        raise ValueError(f"a question of {len(question)} bytes, at most {_QUESTION} are possible")
    _write(_HEAD.pack(b"?", len(question)) + question)
    return _read(_LENGTH.unpack(_read(_LENGTH.size))[0])


# The parent


class _Parent:
    """The parent's side: reads frames, answers questions, keeps deadline and bounds, and leaves no child behind."""

    def __init__(
        self, pid: int, from_child: int, to_child: int, bounds: Bounds, answer: Ask | None, job: bytes = b""
    ) -> None:
        self._pid, self._from, self._to = pid, from_child, to_child
        self._bounds, self._answer = bounds, answer
        self._until = time.monotonic() + bounds.wall
        self._buffer = bytearray()
        self._pending = job
        self._heard = self._asked = 0
        self._found: bytes | None = None

    def run(self) -> bytes:
        """Return the child's answer, once it has ended well. Raises SandboxError."""
        try:
            self._listen()
            self._wait()
        finally:
            status, used = self._end()
        fault = self._fault(status, used)
        if fault is not None:
            raise fault
        if self._buffer:
            raise SandboxError("protocol", "the script process ended within its answer")
        if self._found is None:
            raise SandboxError("crashed", "the script process ended without an answer")
        return self._found

    def one(self, token: bytes) -> bytes:
        """Return the answer, behind its token, of a child that stays; without one it is ended. Raises SandboxError."""
        try:
            self._listen(stays=True)
            if self._buffer or (self._found is not None and not self._found.startswith(token)):
                raise SandboxError("protocol", "the script process spoke out of turn")
        except BaseException:
            self._end()
            raise
        if self._found is None:
            status, used = self._end()
            raise self._fault(status, used) or SandboxError("crashed", "the script process ended without an answer")
        return self._found.removeprefix(token)

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise SandboxError("time", f"the script took more than {self._bounds.wall:g} seconds")
        return left * 1000

    def _listen(self, *, stays: bool = False) -> None:
        """Serve the child until it closes its end, or, where it stays, has answered."""
        os.set_blocking(self._from, False)
        os.set_blocking(self._to, False)
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        while True:
            if self._pending:
                poll.register(self._to, select.POLLOUT)
            ready = dict(poll.poll(self._left()))
            if self._to in ready:
                try:
                    self._pending = self._pending[os.write(self._to, self._pending) :]
                except BrokenPipeError:
                    self._pending = b""
                if not self._pending:
                    poll.unregister(self._to)
            if self._from in ready:
                piece = os.read(self._from, 1 << 16)
                if not piece:
                    return
                self._hear(piece)
                if stays and self._found is not None:
                    return

    def _hear(self, piece: bytes) -> None:
        self._heard += len(piece)
        if self._heard > self._bounds.output + _HEAD.size:
            raise self._too_much()
        self._buffer += piece
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if self._found is not None or kind not in b"?=":
                raise SandboxError("protocol", "the script process spoke out of turn")
            if length > self._bounds.output:
                raise self._too_much()
            if len(self._buffer) < _HEAD.size + length:
                return
            body = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
            del self._buffer[: _HEAD.size + length]
            if kind == b"=":
                self._found = body
            else:
                self._reply(body)

    def _too_much(self) -> SandboxError:
        return SandboxError("output", f"the script gave more than {self._bounds.output} bytes")

    def _reply(self, question: bytes) -> None:
        self._asked += 1
        if self._answer is None or self._pending or len(question) > _QUESTION:
            raise SandboxError("protocol", "the script process asked what it may not")
        if self._asked > self._bounds.questions:
            raise SandboxError("output", f"the script asked more than {self._bounds.questions} questions")
        answer = self._answer(question)
        self._pending = _LENGTH.pack(len(answer)) + answer

    def _wait(self) -> None:
        """Wait for the end of a child that has said everything."""
        descriptor = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            while not poll.poll(self._left()):
                pass
        finally:
            os.close(descriptor)

    def _end(self) -> tuple[int, float]:
        """Kill the child where it lives, and return its exit code, as waitstatus_to_exitcode, with its CPU seconds."""
        os.kill(self._pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        _, status, usage = os.wait4(self._pid, 0)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime

    def _fault(self, status: int, used: float) -> SandboxError | None:
        """Return what the way it ended says, None where it ended well."""
        if status == 0:
            return None
        if status in (-signal.SIGXCPU, -signal.SIGKILL) and used > self._bounds.cpu - 0.5:
            return SandboxError("cpu", f"the script used more than {self._bounds.cpu} seconds of CPU")
        if status == _NO_MEMORY:
            return SandboxError("memory", f"the script used more than {self._bounds.memory >> 20} MiB of memory")
        if status == _NOT_SET_UP:
            return SandboxError("set-up", "the sandbox could not be set up")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return SandboxError("crashed", f"the script process ended with {how}")
