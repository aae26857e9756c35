"""The runner with a real uid: what a program is given, how its end is told, and that nothing gets away from it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import landlock, linux, runner, sealed, seccomp, wire
from milterapp.delivery.programs import Programs, Ran
from milterapp.settings import Program
from tests.delivery.agent_process import Person
from tests.delivery.chain import wait_gone, wait_until, waits_in
from tests.delivery.test_seccomp import ABSENT, ALLOW, MACHINES, REFUSE, judge

UID = 20033  # of this file alone: the kernel counts what a uid runs across all process namespaces, bombs too
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
MESSAGE = b"Subject: hello\n\nhi\n"
GENEROUS = 60.0  # seconds; only programs that never end may meet a deadline
FOUND = linux.landlock_abi()
confined = pytest.mark.skipif(FOUND < 1, reason="this kernel has no Landlock")


@pytest.fixture
def person() -> Iterator[Person]:
    """Give the user of that uid, with an empty home."""
    made = Person(UID)
    yield made
    made.close()


def sh(script: str, **bounds: Any) -> Program:
    """Return a program of the site's that is a shell script; `$0` is its first argument."""
    return Program(("/bin/sh", "-c", script), **({"time": GENEROUS} | bounds))


def python(script: str, **bounds: Any) -> Program:
    """Return a program that is a Python script."""
    return Program((*PYTHON, script), **({"time": GENEROUS} | bounds))


class Runner:
    """A runner as uid UID, in place of an agent's; the agent it protects is a process that sleeps.

    hidden: where /proc shows a process those alone that it may trace, as the monitor's unit has it.
    """

    def __init__(self, person: Person, programs: dict[str, Program], *, hidden: bool = False) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(120)
        self._hidden = hidden
        self.agent = self._fork(self._sleep)
        wait_until(lambda: "nanosleep" in waits_in(self.agent), "the agent to be its user's")
        made = {name: runner.Bounds(**dataclasses.asdict(one)) for name, one in programs.items()}
        self.pid = self._fork(
            lambda: runner.serve(socket.socket(fileno=3), made, str(person.home), "bob", self.agent), theirs.fileno()
        )
        theirs.close()
        self.programs = Programs(mine)

    @staticmethod
    def _sleep() -> None:
        linux.undumpable()
        time.sleep(600)

    def _fork(self, work: Callable[[], object], descriptor: int = -1) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                if descriptor >= 0:
                    os.dup2(descriptor, 3)
                os.closerange(4 if descriptor >= 0 else 3, 1024)  # also another's connection, whatever its number
                os.setsid()
                if self._hidden:
                    _hide()
                linux.become(UID, UID)
                work()
            finally:
                os._exit(99)
        return pid

    def run(self, name: str = "it", *arguments: str, wanted: bool = False, message: bytes = MESSAGE) -> Ran:
        """Run one."""
        return self.programs.run(name, arguments, message, {"SENDER": "ann@example.org"}, wanted=wanted)

    def hang_up(self) -> None:
        """Leave, as an agent that was killed does."""
        assert self.programs.connection is not None
        self.programs.connection.close()

    def close(self) -> int:
        """Hang up; return the runner's exit status."""
        self.hang_up()
        os.kill(self.agent, signal.SIGKILL)
        os.waitpid(self.agent, 0)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _hide() -> None:
    """Mount /proc so that it shows nobody else's processes, for this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 18 | 16384), None) == 0
    assert libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), b"hidepid=invisible") == 0, ctypes.get_errno()


Start = Callable[..., Runner]


@pytest.fixture
def start(person: Person) -> Iterator[Start]:
    """Give what starts runners with programs; they are ended with the test, and must end well."""
    running: list[Runner] = []

    def started(program: Program | None = None, **programs: Program) -> Runner:
        running.append(Runner(person, programs | ({"it": program} if program else {})))
        return running[-1]

    yield started
    assert [one.close() for one in running] == [0] * len(running)


def pids(person: Person) -> list[int]:
    """Return the processes whose numbers a program wrote into its home."""
    return [int(word) for word in (person.home / "pids").read_text().split()]


pytestmark = pytest.mark.root


def test_what_a_program_is_given(person: Person, start: Start) -> None:
    """The message on standard input, its arguments as words, the home as its folder, and nothing of the agent's."""
    script = (
        'printf "%s|" "$@"; cat; env | sort; pwd; umask; id -u; id -g; id -G; ls /proc/self/fd | wc -l;'
        " awk '{print $19}' /proc/self/stat"
    )
    ran = start(sh(script)).run("it", "a b", "$(id)", "'\"", "*", wanted=True)
    assert (ran.how, ran.status, ran.said) == ("exit", 0, "")
    lines = ran.output.decode().splitlines()
    assert lines[0] == "$(id)|'\"|*|Subject: hello"
    assert [line for line in lines[3:] if not line.startswith(("_=", "OLDPWD=", "TZ="))] == [
        f"HOME={person.home}", "LANG=C.UTF-8", "LOGNAME=bob", "PATH=/usr/local/bin:/usr/bin:/bin", f"PWD={person.home}",
        "SENDER=ann@example.org", "SHELL=/bin/sh", "USER=bob", str(person.home), "0077", str(UID), str(UID), str(UID),
        "4", "10",
    ]  # fmt: skip


def test_the_message_is_new_to_each(start: Start) -> None:
    """A program that reads half of it leaves the next one the whole."""
    programs = start(half=sh("head -c 5 >/dev/null"), whole=sh("cat"))
    assert programs.run("half").done
    assert programs.run("whole", wanted=True).output == MESSAGE


ENDS: dict[str, tuple[str, Ran]] = {
    "0": ("exit 0", Ran("it", "exit", 0)),
    "1": ("echo oh dear; exit 1", Ran("it", "exit", 1, "oh dear")),
    "75": ("exit 75", Ran("it", "exit", 75)),
    "127": ("exit 127", Ran("it", "exit", 127)),
    "killed": ("kill -9 $$", Ran("it", "signal", 9)),
    "said": ("printf 'a\\nb\\033[1m' >&2; exit 3", Ran("it", "exit", 3, "a b?[1m")),
    "unread": ("exec 0<&-; exit 0", Ran("it", "exit", 0)),
    "closed": ("exec 0<&- 1>&- 2>&-; exit 4", Ran("it", "exit", 4)),
}


@pytest.mark.parametrize(("script", "want"), ENDS.values(), ids=ENDS)
def test_how_it_ends_is_told(start: Start, script: str, want: Ran) -> None:
    """The status, the signal, and the first words that it said, as one line."""
    assert start(sh(script)).run() == want


STARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "missing": (("/nonexistent",), "No such file or directory"),
    "a folder": (("/etc",), "Permission denied"),
    "not executable": (("/etc/passwd",), "Permission denied"),
    "not a program": (("{home}/text",), "Exec format error"),
    "no interpreter": (("{home}/script",), "No such file or directory"),
}


@pytest.mark.parametrize(("run", "said"), STARTS.values(), ids=STARTS)
def test_what_cannot_be_started(person: Person, start: Start, run: tuple[str, ...], said: str) -> None:
    """The reason is the system's own, and the next program runs."""
    person.write("\x01\x02 nothing\n", "text").chmod(0o755)
    person.write("#!/nonexistent/interpreter\n", "script").chmod(0o755)
    one = start(Program(tuple(word.format(home=person.home) for word in run)), other=sh("exit 0"))
    assert one.run() == Ran("it", "start", 0, said)
    assert one.run("other").done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("-x",), "no options", id="an option"),
        pytest.param(("x" * 4097,), "too long", id="too long"),
        pytest.param(("x",) * 51, "too many", id="too many"),
    ],
)
def test_arguments_that_are_refused(start: Start, arguments: tuple[str, ...], said: str) -> None:
    """What the loader refuses, an agent that was taken over cannot have either; where the site lets it, it can."""
    one = start(sh("exit 0"), free=sh("exit 0", options=True))
    assert said in one.run("it", *arguments).said
    assert one.run("free", "-x").done
    assert one.run("other") == Ran("other", "start", 0, "the site does not allow it")


DEADLINES: dict[str, str] = {
    "a loop": "while :; do :; done",
    "a sleep": "sleep 1000",
    "deaf": "trap '' TERM INT HUP XCPU; while :; do sleep 1; done",
    "stopped": "kill -STOP $$",
    "waiting for a child": "sleep 1000 & wait",
}


@pytest.mark.parametrize("script", DEADLINES.values(), ids=DEADLINES)
def test_a_deadline_is_kept(start: Start, script: str) -> None:
    """Whatever it does with its time, it ends with it, and the next one runs."""
    # 1.1 is followed by 3 seconds of processor time: the deadline comes first, however late the runner sees it.
    one = start(sh(script, time=1.1), other=sh("exit 0"))
    assert one.run().how == "time"
    assert processes_of(UID) == {one.pid, one.agent}
    assert one.run("other").done


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("script", ["while :; do echo flood; done", "while :; do echo flood >&2; done"])
def test_a_flood_is_ended(start: Start, script: str, wanted: bool) -> None:
    """More output than the site allows ends a program, on either descriptor; nothing of it is used."""
    ran = start(sh(script, output=100_000)).run(wanted=wanted)
    assert (ran.how, ran.output) == ("output", b"")


def test_all_that_it_wrote_is_read(start: Start) -> None:
    """A filter's output arrives whole, far more than a pipe holds, and what it says besides is no part of it."""
    ran = start(sh("cat; echo warned >&2")).run(wanted=True, message=MESSAGE * 100_000)
    assert (ran.output, ran.said) == (MESSAGE * 100_000, "warned")


def test_output_without_success_is_none(start: Start) -> None:
    """What a filter wrote before it failed is nobody's message."""
    assert start(sh("cat; exit 1")).run(wanted=True) == Ran("it", "exit", 1)


_DETACH = """
import os, sys, time
for _ in range(3):
    if os.fork():
        os._exit(0) if _ else os.wait()
        sys.exit(0)
    os.setsid()
    try:
        os.setpgid(0, 0)
    except OSError:
        pass
with open("pids", "w") as file:
    file.write(str(os.getpid()))
with open("ready", "w"):
    pass
time.sleep(1000)
"""
_WAIT = "while [ ! -e ready ]; do sleep 0.05; done"
ESCAPES: dict[str, Program] = {
    "in the background": sh("sleep 1000 & echo $! >pids"),
    "with setsid": sh("setsid sh -c 'echo $$ >pids; touch ready; sleep 1000' </dev/null & " + _WAIT),
    "with nohup": sh("nohup sleep 1000 >/dev/null 2>&1 & echo $! >pids"),
    "forked twice in sessions of their own": Program(
        ("/bin/sh", "-c", f'{" ".join(PYTHON[:-1])} -c "$1" & {_WAIT}', "sh", _DETACH), time=GENEROUS
    ),
    "by job control": sh("set -m; sleep 1000 & echo $! >pids; set +m"),
}


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES)
def test_nothing_gets_away(person: Person, start: Start, program: Program) -> None:
    """However it detached, what a program leaves running is dead when its end is told, open descriptors or not."""
    began = time.monotonic()
    assert start(program).run().done
    assert time.monotonic() - began < GENEROUS
    assert [os.path.exists(f"/proc/{pid}") for pid in pids(person)] == [False]


def test_a_fork_bomb(start: Start) -> None:
    """It comes to its bound of processes and no further, ends with its time, and others of its uid can still fork."""
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    one = start(python(bomb, time=2.0, processes=20), other=sh("exit 0"))
    assert one.run().how == "time"
    assert processes_of(UID) == {one.pid, one.agent}
    assert one.run("other").done


def test_where_proc_hides_processes(person: Person) -> None:
    """A program can fork all the same, though nobody can count what its user runs, and a bomb is bounded."""
    bomb = "import os\nwhile True:\n  try:\n    os.fork()\n  except OSError:\n    pass"
    three = "sleep 0.1 & sleep 0.1 & wait; ls /proc | grep -c '^[0-9]'"
    one = Runner(person, {"it": sh(three, processes=3), "bomb": python(bomb, time=2.0)}, hidden=True)
    try:
        ran = one.run(wanted=True)
        assert ran.done
        assert int(ran.output) < 10  # neither agent nor runner nor anybody else's
        assert one.run("bomb").how == "time"
        assert processes_of(UID) == {one.pid, one.agent}
    finally:
        assert one.close() == 0


def test_a_chain_of_forks(start: Start) -> None:
    """Processes that live for a moment, each the child of one that has ended, are all caught."""
    chain = (
        "import os, time\nend = time.monotonic() + 1000\nwhile time.monotonic() < end:\n    os.fork() and os._exit(0)"
    )
    one = start(python(chain))
    assert one.run().done
    assert processes_of(UID) == {one.pid, one.agent}


def processes_of(uid: int) -> set[int]:
    """Return the processes of a uid that live; zombies have nobody but their parent to wait for."""
    found = set()
    for name in os.listdir("/proc"):
        try:
            text = Path(f"/proc/{name}/status").read_text() if name.isdigit() else ""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"\nUid:\t{uid}\t" in text and "\nState:\tZ" not in text:
            found.add(int(name))
    return found


def test_memory_is_bounded(start: Start) -> None:
    """More than the site allows it cannot have."""
    one = start(python("b'x' * (300 << 20)", memory=200 << 20), less=python("b'x' * (30 << 20)", memory=200 << 20))
    assert (one.run().status, one.run("less").status) == (1, 0)


SANDBOX: dict[str, tuple[str, str]] = {
    "write the home": ("open('x', 'w')", "done"),
    "write elsewhere": ("open(ELSEWHERE + '/x', 'w')", "EACCES"),
    "write where the site says": ("open(GRANTED + '/x', 'w')", "done"),
    "truncate elsewhere": ("os.truncate(ELSEWHERE + '/there', 0)", "EACCES"),
    "write the null device": ("open('/dev/null', 'w')", "done"),
    "read": ("open('/etc/passwd')", "done"),
    "signal the agent": ("os.kill(AGENT, 9)", "EPERM"),
    "signal its group": ("os.killpg(AGENT, 9)", "EPERM"),
    "signal the runner": ("os.kill(os.getppid(), 9)", "EPERM"),
    "signal all": ("os.kill(-1, 9)", "EPERM"),
    "signal by a descriptor": ("signal.pidfd_send_signal(os.open(f'/proc/{AGENT}', 0), 9)", "ENOSYS"),
    "signal by a file": ("fcntl.fcntl(0, 8, AGENT)", "EPERM"),
    "signal by a socket": ("fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', AGENT))", "EPERM"),
    "signal a group by a socket": ("fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack('i', -AGENT))", "EPERM"),
    "what a socket holds": ("fcntl.ioctl(socket.socketpair()[0], 0x541B, struct.pack('i', 0))", "done"),
    "limit the agent": ("resource.prlimit(AGENT, resource.RLIMIT_CPU, (0, 0))", "EPERM"),
    "limit itself": ("resource.setrlimit(resource.RLIMIT_CPU, (5, 5))", "done"),
    "trace": ("LIBC.ptrace(16, AGENT, 0, 0) and fail()", "EPERM"),
    "a namespace": ("LIBC.unshare(0x10000000) and fail()", "EPERM"),
    "the network": ("socket.socket(socket.AF_INET)", "EPERM"),
    "a unix socket": ("socket.socket(socket.AF_UNIX)", "done"),
    "its own child": ("os.kill(os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '9'), 9)", "done"),
}
_TRY = """
import ctypes, errno, fcntl, os, resource, signal, socket, struct, sys
AGENT, ELSEWHERE, GRANTED = int(sys.argv[1]), sys.argv[2], sys.argv[3]
LIBC = ctypes.CDLL(None, use_errno=True)
def fail():
    raise OSError(ctypes.get_errno(), "")
try:
    {act}
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


_BY_A_SOCKET = """
import fcntl, os, socket, struct, sys
one, other = socket.socketpair()
try:
    fcntl.ioctl(one, 0x8901, struct.pack("i", int(sys.argv[1]) or os.getppid()))
except PermissionError:
    sys.exit(7)
fcntl.ioctl(one, 0x5452, struct.pack("i", 1))  # FIOASYNC
other.send(b"x")
"""


@pytest.mark.parametrize("abi", [0, 2, 6])
@pytest.mark.parametrize("whom", ["agent", "runner"])
def test_no_program_ends_who_watches_it(
    person: Person, start: Start, monkeypatch: pytest.MonkeyPatch, abi: int, whom: str
) -> None:
    """No socket of its sends SIGIO to its runner or agent, where Landlock is too old to refuse signals either."""
    monkeypatch.setattr(linux, "landlock_abi", lambda: min(abi, FOUND))
    one = start(python(_BY_A_SOCKET), other=sh("exit 0"))
    assert one.run("it", str(one.agent) if whom == "agent" else "0") == Ran("it", "exit", 7)
    assert one.run("other").done
    assert Path(f"/proc/{one.agent}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@confined
@pytest.mark.parametrize(("act", "want"), SANDBOX.values(), ids=SANDBOX)
def test_the_sandbox(person: Person, start: Start, act: str, want: str) -> None:
    """It may use its home and the site's folders, and cannot touch agent, runner, namespaces or the network."""
    for name in ("elsewhere", "granted"):
        (person.base / name).mkdir()
        (person.base / name / "there").write_text("x")
        for path in (person.base / name, person.base / name / "there"):
            os.chown(path, UID, UID)
    granted = str(person.base / "granted")
    one = start(python(_TRY.format(act=act), write=(granted,)))
    ran = one.run("it", str(one.agent), str(person.base / "elsewhere"), granted, wanted=True)
    assert ran.output.decode().strip() == want, ran


@confined
def test_what_it_may_read(person: Person, start: Start) -> None:
    """Where the site names folders to read, a program reads those and its home, and nothing else."""
    person.write("mine", "there")
    system = ("/usr", "/bin", "/lib", "/lib64")
    one = start(sh("cat there; cat /etc/passwd", read=system), all=sh("cat /etc/passwd >/dev/null"))
    ran = one.run(wanted=True)
    assert (ran.output, ran.status) == (b"", 1)
    assert "Permission denied" in ran.said
    assert start(sh("cat there", read=system)).run(wanted=True).output == b"mine"
    assert one.run("all").done


def test_the_network_where_the_site_allows_it(start: Start) -> None:
    """A program that needs it may have it."""
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        port = listening.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 30)"
        one = start(python(script, network=True), without=python(script))
        assert (one.run().status, one.run("without").status) == (0, 1)


def test_a_setuid_program_gains_nothing(person: Person, start: Start) -> None:
    """A setuid program of root's runs as the user."""
    path = person.base / "id"
    shutil.copy("/usr/bin/id", path)
    path.chmod(0o4755)
    assert path.stat().st_mode & stat.S_ISUID
    assert start(Program((str(path), "-u"))).run(wanted=True).output == f"{UID}\n".encode()


def begin(one: Runner, person: Person) -> list[int]:
    """Have a program run that says when it is ready; return what it wrote to be running."""
    given = sealed.seal([MESSAGE])
    assert one.programs.connection is not None
    wire.send(one.programs.connection, "RUN", {"program": "it", "arguments": "", "environment": ""}, (given,))
    os.close(given)
    until = time.monotonic() + 30
    while not (person.home / "ready").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return pids(person)


def test_the_agent_that_hangs_up_takes_the_program_with_it(person: Person, start: Start) -> None:
    """When its agent is gone, the runner kills what runs and ends."""
    one = start(sh("echo $$ >pids; sleep 1000 & echo $! >>pids; touch ready; sleep 1000"))
    running = begin(one, person)
    one.hang_up()
    assert [wait_gone(pid, 30) for pid in (one.pid, *running)] == [True] * 3
    os.kill(one.agent, signal.SIGKILL)
    os.waitpid(one.agent, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1]) == os.EX_SOFTWARE
    one.close = lambda: 0  # type: ignore[method-assign] # it has ended


def test_a_program_does_not_outlive_a_runner_that_is_killed(person: Person) -> None:
    """Nobody keeps its time then, nor kills its group."""
    one = Runner(person, {"it": sh("echo $$ >pids; touch ready; while :; do :; done")})
    (program,) = begin(one, person)
    assert not wait_gone(program, 0.1)
    os.kill(one.pid, signal.SIGKILL)
    assert wait_gone(program)
    assert one.close() == -signal.SIGKILL


def test_beside_an_agent(person: Person) -> None:
    """A runner that was forked from an agent's process serves it, holds none of its descriptors, and ends with it."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.become(UID, UID)
            programs = {"it": dataclasses.asdict(sh("ls -l /proc/$PPID/fd | wc -l; echo $PPID >pids"))}
            connection = runner.beside(programs, str(person.home), "bob", keep=5)
            seccomp.install(seccomp.agent())
            ran = Programs(socket.socket(fileno=connection)).run("it", (), MESSAGE, {}, wanted=True)
            os.write(theirs, f"{ran.how} {ran.status} {os.listdir('/proc/self/fd')!r}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read().startswith(b"exit 0 ")
    assert os.waitpid(pid, 0)[1] == 0
    assert [wait_gone(one, 30) for one in pids(person)] == [True]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_of_either_architecture(machine: str) -> None:
    """The process group cannot be left, protected processes get no signal, and namespaces are refused."""
    program = seccomp.program((4000, 4001), machine=machine)
    table: dict[tuple[str, int], int] = {
        ("setsid", 0): 0x50000, ("setpgid", 0): 0x50000, ("clone", 0x10000000): REFUSE, ("clone", 17): ALLOW,
        ("clone3", 0): ABSENT, ("kill", 4000): REFUSE, ("kill", 4001): REFUSE, ("kill", -4000): REFUSE,
        ("kill", -1): REFUSE, ("kill", 4002): ALLOW, ("kill", 0): ALLOW, ("tkill", 4001): REFUSE,
        ("tgkill", 4000): REFUSE, ("prlimit64", 0): ALLOW, ("prlimit64", 4002): REFUSE, ("socket", 1): ALLOW,
        ("socket", 2): REFUSE, ("socket", 16): REFUSE, ("ptrace", 0): REFUSE, ("execve", 0): ALLOW,
        ("unshare", 0): REFUSE, ("openat", 0): ALLOW,
    }  # fmt: skip
    got = {(call, value): judge(program, machine, call, value) for call, value in table}
    assert got == table
    owners: dict[tuple[str, int], int] = {
        ("fcntl", 4): ALLOW, ("fcntl", 8): REFUSE, ("fcntl", 9): ALLOW, ("fcntl", 10): REFUSE, ("fcntl", 15): REFUSE,
        ("ioctl", 0x8900): ALLOW, ("ioctl", 0x8901): REFUSE, ("ioctl", 0x8902): REFUSE, ("ioctl", 0x8903): ALLOW,
    }  # fmt: skip
    assert {(call, value): judge(program, machine, call, 3, value) for call, value in owners} == owners
    assert judge(seccomp.program(network=True, machine=machine), machine, "socket", 2) == ALLOW


def test_landlock_below_what_the_kernel_has(person: Person) -> None:
    """At every ABI a folder that was granted can be written, and another cannot."""
    from tests.delivery.inside import error_of, inside

    def tried(abi: int) -> list[int]:
        linux.become(UID, UID)
        landlock.restrict((), abi, executable=("/",), writable=(str(person.home),))
        acts: tuple[Callable[[], object], ...] = (
            lambda: open(f"{person.home}/x", "w").close(),
            lambda: os.mkdir(f"{person.home}/below{abi}"),
            lambda: open("/tmp/milterapp-x", "w").close(),
            lambda: os.execv("/bin/true", ["true"]) if os.fork() == 0 else None,
        )
        return [error_of(act) for act in acts]

    for abi in range(1, linux.landlock_abi() + 1):
        assert inside(lambda abi=abi: tried(abi)) == [0, 0, 13, 0], abi  # type: ignore[misc]
