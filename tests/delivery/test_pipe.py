"""The pipe client, either of the two, as pipe(8) sees it: arguments, standard input, one line, one exit status."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import client, kinds, linux, pipe, syscalls, wire
from tests.delivery.chain import wait_until, waits_in
from tests.delivery.clients import PYTHON_CLIENT, SOURCE, Command, Peer, build, feed
from tests.delivery.inside import inside

PROGRAM = str(Path(pipe.__file__))
PYTHON = PYTHON_CLIENT[:3]
MESSAGE = b"From: a@example.org\n\nhello\n"
WHOLE = ("s@x", "r@x", "o@x", "4ABC", "192.0.2.1")


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Listen as the monitor does."""
    peer = Peer()
    yield peer
    peer.close()


def start(program: Command, arguments: tuple[str | bytes, ...]) -> subprocess.Popen[bytes]:
    """Start the client."""
    return subprocess.Popen([*program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run(
    program: Command,
    peer: Peer,
    arguments: tuple[str | bytes, ...] = WHOLE,
    message: bytes = MESSAGE,
    answer: bytes | None = None,
) -> tuple[int, bytes, wire.Datagram | None, bytes]:
    """Return exit status, output, and what the monitor got, envelope and message. answer None: hang up."""
    with start(program, (f"--socket={peer.path}", *arguments)) as process:
        assert process.stdout is not None
        feed(process, message)
        ready = select.select([peer.listener.fileno(), process.stdout.fileno()], [], [], 20)[0]
        datagram, got = None, b""
        if peer.listener.fileno() in ready:
            connection, datagram = peer.take()
            with connection:
                if datagram is not None:
                    fd = datagram.descriptors[0]
                    assert linux.is_sealed(fd)
                    got = os.pread(fd, len(message) + 1, 0)
                    datagram.close()
                if answer is not None:
                    connection.send(answer)
        output = process.stdout.read()
        return process.wait(20), output, datagram, got


def answer(status: str, text: str | bytes = b"") -> bytes:
    """Return an ANSWER."""
    return wire.encode("ANSWER", {"status": status, "text": text})


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param(answer("ok"), (0, b""), id="ok"),
        pytest.param(answer("ok", "handed back"), (0, b""), id="ok is silent"),
        pytest.param(answer("reject", "5.7.1 not for me"), (69, b"5.7.1 not for me\n"), id="reject"),
        pytest.param(answer("reject", "5.7.1 a\nb\r\x1b\x7f"), (69, b"5.7.1 a?b???\n"), id="reject is one line"),
        pytest.param(answer("reject", "5.7.1 " + "x" * 5000), (69, b"5.7.1 " + b"x" * 994 + b"\n"), id="bounded"),
        pytest.param(answer("defer", "busy"), (75, b"4.3.0 busy\n"), id="defer"),
        pytest.param(answer("defer", "4.2.2 full"), (75, b"4.2.2 full\n"), id="defer with its own status"),
        pytest.param(answer("defer", ""), (75, b"4.3.0 \n"), id="defer without a word"),
    ],
)
def test_the_answer_becomes_status_and_line(program: Command, peer: Peer, said: bytes, want: tuple[int, bytes]) -> None:
    """What the monitor answers becomes what pipe(8) understands, and the message and its envelope went there whole."""
    status, output, datagram, got = run(program, peer, answer=said)
    assert (status, output) == want
    assert datagram is not None
    assert tuple(datagram.text(tag) for tag in client.TAGS) == WHOLE
    assert got == MESSAGE


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(None, id="hangs up"),
        pytest.param(b"", id="empty"),
        pytest.param(b"OTHER\n", id="another kind"),
        pytest.param(b"ANSWER\n", id="no status"),
        pytest.param(b"ANSWER\nstatus:x:ok\n", id="no length"),
        pytest.param(answer("fine"), id="another status"),
        pytest.param(answer("reject", "not for me"), id="reject without an enhanced status"),
        pytest.param(answer("reject", "4.7.1 not now"), id="reject with a temporary status"),
    ],
)
def test_a_senseless_answer_is_a_deferral(program: Command, peer: Peer, said: bytes | None) -> None:
    """Whatever else comes is 75 and one line of 4.3.0."""
    status, output, _, _ = run(program, peer, answer=said)
    assert (status, output[:6], output.count(b"\n")) == (75, b"4.3.0 ", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((b"-x", b"--socket=/y", b"../../etc", b"$(id)", b"\x7f"), id="hostile"),
        pytest.param((b"", b"r@x", b"r@x", b"4ABC", b""), id="null sender"),
        pytest.param((b"\xff\xfe", "ü@x".encode(), b"a b", b"a\nb:3:", b"'\"`"), id="bytes"),
        pytest.param((b"--socket=x", b"r@x", b"r@x", b"4ABC", b""), id="sender like our option"),
        pytest.param((b"--socket=/tmp/y@x", b"r@x", b"r@x", b"4ABC", b""), id="sender like our whole option"),
        pytest.param((b"--virtual=/tmp/y@x", b"r@x", b"r@x", b"4ABC", b""), id="sender like our other option"),
        pytest.param((b"a" * 300, b"r@x", b"r@x", b"4ABC", b""), id="300 characters"),
    ],
)
def test_arguments_arrive_byte_for_byte(program: Command, peer: Peer, arguments: tuple[bytes, ...]) -> None:
    """No argument is an option, and no byte is changed on its way."""
    status, _, datagram, _ = run(program, peer, arguments, answer=answer("ok"))
    assert status == 0
    assert datagram is not None
    assert tuple(datagram.fields[tag] for tag in client.TAGS) == arguments


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="none"),
        pytest.param(WHOLE[:4], id="four, the option before them taken for the sender"),
        pytest.param((*WHOLE, "more"), id="six and the option"),
        pytest.param(("x" * 70_000, *WHOLE[1:]), id="longer than a datagram"),
    ],
)
def test_another_number_of_arguments_defers(program: Command, peer: Peer, arguments: tuple[str, ...]) -> None:
    """Where pipe(8) dropped an argument nobody else's place is taken by the next."""
    status, output, datagram, _ = run(program, peer, arguments)
    assert (status, output[:6], datagram) == (75, b"4.3.0 ", None)


def test_an_empty_message_defers(program: Command, peer: Peer) -> None:
    """pipe(8) always sends a header; nothing is not a message."""
    assert run(program, peer, message=b"")[:3] == (75, b"4.3.0 no message on standard input\n", None)


def test_a_large_message_arrives_whole(program: Command, peer: Peer) -> None:
    """Megabytes arrive byte for byte."""
    message = os.urandom(5_000_000)
    status, _, _, got = run(program, peer, message=message, answer=answer("ok"))
    assert (status, got == message) == (0, True)


def test_without_a_monitor_it_defers(program: Command) -> None:
    """No socket is 75 with what is the matter."""
    with start(program, ("--socket=/nonexistent/socket", *WHOLE)) as process:
        output, _ = process.communicate(MESSAGE, 20)
    assert (process.returncode, output) == (75, b"4.3.0 the monitor does not answer: No such file or directory\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_defers(program: Command, peer: Peer, number: signal.Signals) -> None:
    """Told to stop while it waits, it says so, 75."""
    with start(program, (f"--socket={peer.path}", *WHOLE)) as process:
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        connection, datagram = peer.take()
        with connection:
            assert datagram is not None
            datagram.close()
            wait_until(lambda: "skb" in waits_in(process.pid), "the client to wait")
            process.send_signal(number)
            assert process.stdout is not None
            assert (process.stdout.read(), process.wait(20)) == (b"4.3.0 milterapp-pipe: stopped\n", 75)


@pytest.fixture(params=["python", "compiled"])
def impatient(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """Give what starts a client whose deadline is a second."""
    if request.param == "python":
        source = Path(client.__file__).read_text().replace("DEADLINE = 600", "DEADLINE = 1")
        return (*PYTHON, "-c", f"{source}\nmain()")
    request.getfixturevalue("compiled")  # skips where there is no compiler
    return build(tmp_path / "client", source=SOURCE.read_text().replace("DEADLINE = 600", "DEADLINE = 1"))


def test_its_own_deadline_is_a_deferral(impatient: Command, peer: Peer) -> None:
    """An answer that does not come is 75 before pipe(8) loses patience and bounces."""
    with start(impatient, (f"--socket={peer.path}", *WHOLE)) as process:
        output, _ = process.communicate(MESSAGE, 20)
    assert (process.returncode, output) == (75, b"4.3.0 milterapp-pipe: no answer in time\n")


def without(descriptor: str, program: Command) -> Command:
    """Return what starts a client with standard input (`<`) or output (`>`) closed."""
    return ("/bin/sh", "-c", f'exec "$@" {descriptor}&-', "sh", *program)


@pytest.mark.parametrize(("said", "want"), [(answer("ok"), 0), (answer("defer", "x"), 75), (None, 75)])
def test_nobody_reading_the_output_changes_no_status(
    program: Command, peer: Peer, said: bytes | None, want: int
) -> None:
    """With standard output closed the status is what it was (an unflushed one would be 120, which bounces)."""
    with start(without(">", program), (f"--socket={peer.path}", *WHOLE)) as process:
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
        connection, datagram = peer.take()
        with connection:
            assert datagram is not None
            assert os.pread(datagram.descriptors[0], 100, 0) == MESSAGE  # which had the place of standard output
            datagram.close()
            if said is not None:
                connection.send(said)
        assert process.wait(20) == want


def test_an_output_that_nobody_reads_any_more_is_the_end(program: Command, peer: Peer) -> None:
    """Where the reader of its output has gone, pipe(8) has: nothing is sent, and it ends with 75, not of a signal."""
    with start(program, (f"--socket={peer.path}", *WHOLE)) as process:
        assert process.stdout is not None
        process.stdout.close()
        feed(process, MESSAGE)
        ended = os.pidfd_open(process.pid)
        select.select([peer.listener.fileno(), ended], [], [], 20)
        os.close(ended)
        assert peer.nobody_came()
        assert process.wait(20) == 75


def test_without_standard_input_it_defers(program: Command, peer: Peer) -> None:
    """With standard input closed there is no message, and nothing that took its place is read for one."""
    with start(without("<", program), (f"--socket={peer.path}", *WHOLE)) as process:
        assert process.stdout is not None
        assert (process.stdout.read(), process.wait(20)) == (b"4.3.0 no message on standard input\n", 75)
    assert peer.nobody_came()


@given(st.binary(max_size=300))
def test_no_answer_is_a_fault(data: bytes) -> None:
    """Any bytes are a status of the table or a ValueError."""
    try:
        status, _ = client.decode(b"ANSWER\n" + data)
    except ValueError:
        return
    assert status in (0, 69, 75)


@given(st.lists(st.binary(max_size=300), min_size=5, max_size=5))
def test_the_envelope_reads_as_a_datagram(values: list[bytes]) -> None:
    """What the client writes by hand is what `wire` reads."""
    datagram = wire.decode(client.encode(values), kinds.DELIVER)
    assert [datagram.fields[tag] for tag in client.TAGS] == values


def test_a_dying_parent_is_seen_before_it_is_gone() -> None:
    """A process that has ended but has not been waited for is exiting; one that lives is not; none is unknown."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    flags = client.flags_of(child)
    assert flags is not None
    assert flags & 4
    os.waitpid(child, 0)
    assert not (client.flags_of(os.getpid()) or 0) & 4
    assert client.flags_of(2**22 + 1) is None


def test_a_reader_that_is_gone_is_unfinished() -> None:
    """Where nobody reads our output any more pipe(8) is gone, whatever /proc says."""

    def ask() -> list[str]:  # in a child: the parent of the tests may be process 1, which no pipe(8) is
        reader, writer = os.pipe()
        client.finished(os.getppid(), writer)
        os.close(reader)
        try:
            client.finished(os.getppid(), writer)
        except client.Unfinished as error:
            return [str(error)]
        return []

    assert inside(ask) == ["pipe(8) did not finish the message"]


def abandon(program: Command, peer: Peer, size: int) -> int:
    """Play a pipe(8) that starts the client, writes a part of a message, and is killed; return the client's pid."""
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        status = 1
        try:
            os.setsid()
            process = subprocess.Popen(
                [*program, f"--socket={peer.path}", *WHOLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            os.write(tell, b"%d" % process.pid)
            assert process.stdin is not None
            process.stdin.write(b"Subject: x\n\n" + b"x" * size)
            process.stdin.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(status)
    os.close(tell)
    pid = int(os.read(told, 20))
    os.close(told)
    os.waitpid(parent, 0)
    return pid


def gone(pid: int) -> None:
    """Wait for a process that is nobody's child any more."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.002)
    raise AssertionError(f"{pid} still runs")


def test_a_message_that_pipe_did_not_finish_is_never_delivered(program: Command, peer: Peer) -> None:
    """Kill pipe(8) in the middle of a message, forty times: no part of it reaches the monitor."""
    for size in range(40):
        gone(abandon(program, peer, size * 997))
    assert peer.nobody_came()


HEADLESS = """
import ctypes, subprocess, sys, threading, time
def state():
    with open("/proc/%d/stat" % main) as file:
        return file.read().rpartition(") ")[2][0]
def client():
    while state() != "Z":
        time.sleep(0.01)
    done = subprocess.run(sys.argv[1:], input=b"Subject: x\\n\\n", stdout=subprocess.PIPE, timeout=20)
    print(done.returncode, done.stdout.decode(), flush=True)
main = threading.get_native_id()
threading.Thread(target=client).start()
ctypes.CDLL(None).syscall(int(sys.argv.pop(1)), 0)  # of the main thread alone
"""


def test_a_parent_that_is_exiting_has_not_finished(program: Command, peer: Peer) -> None:
    """A parent that is still everybody's parent, but whose flags say that it is exiting, counts as gone."""
    number = str(syscalls.number("exit"))
    command = ["/usr/bin/python3", "-I", "-c", HEADLESS, number, *program, f"--socket={peer.path}", *WHOLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        select.select([peer.listener.fileno(), process.stdout.fileno()], [], [], 20)
        assert peer.nobody_came()
        assert process.stdout.read() == b"75 4.3.0 pipe(8) did not finish the message\n\n"


HIDDEN = """
import os, signal, subprocess, sys
def client():
    return subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            user=20008, group=20008, extra_groups=[])
if sys.argv[1] == "whole":
    with client() as process:
        print(process.communicate(b"Subject: whole\\n\\n")[0].decode(), end="")
    look = subprocess.run(["/bin/cat", f"/proc/{os.getpid()}/stat"], user=20008, group=20008,
                          extra_groups=[], stderr=subprocess.DEVNULL)
    print("hidden" if look.returncode else "visible")
else:
    pids = []
    for size in range(20):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            process = client()
            os.write(writer, b"%d" % process.pid)
            process.stdin.write(b"Subject: part\\n\\n" + b"x" * size * 997)
            process.stdin.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        pids.append(int(os.read(reader, 20)))
        os.close(reader), os.close(writer)
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        try:
            os.waitpid(-1, 0)  # as process 1 of the namespace
        except ChildProcessError:
            pass
"""
NAMESPACE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
HIDE = "mount -t proc -o hidepid=invisible proc /proc && exec"


def hidden(program: Command, peer: Peer, what: str) -> subprocess.Popen[bytes]:
    """Play pipe(8) where /proc shows nobody else's processes."""
    os.chmod(peer.folder, 0o755)
    os.chmod(peer.path, 0o666)
    command = [*program, f"--socket={peer.path}", *WHOLE]
    outer = f'{HIDE} "$@"' if what == "parts" else f'{HIDE.removesuffix("exec")} "$@"; true'
    return subprocess.Popen(
        [*NAMESPACE, outer, "sh", "/usr/bin/python3", "-I", "-c", HIDDEN, what, *command], stdout=subprocess.PIPE
    )


@pytest.mark.root
def test_where_proc_hides_pipe_a_message_is_delivered(program: Command, peer: Peer) -> None:
    """Under hidepid the client cannot look at pipe(8), and takes its word by other signs."""
    with hidden(program, peer, "whole") as process:
        connection, datagram = peer.take()
        with connection:
            assert datagram is not None
            datagram.close()
            connection.send(answer("reject", "5.7.1 seen"))
        assert process.stdout is not None
        assert process.stdout.read() == b"5.7.1 seen\nhidden\n"


@pytest.mark.root
def test_where_proc_hides_pipe_a_part_is_not_delivered(program: Command, peer: Peer) -> None:
    """Under hidepid a pipe(8) killed in the middle of a message is noticed as well, twenty times of twenty."""
    with hidden(program, peer, "parts") as process:
        assert process.wait(60) == 0
    assert peer.nobody_came()


def test_the_client_imports_next_to_nothing() -> None:
    """What each message pays for: the interpreter, and modules that are part of it."""
    source = f"import sys; exec(open({client.__file__!r}).read()); print(*sorted(sys.modules))"
    plain = "import sys; print(*sorted(sys.modules))"
    have, had = (
        set(subprocess.run([*PYTHON, "-c", text], capture_output=True, text=True, check=True).stdout.split())
        for text in (source, plain)
    )
    assert have - had <= {"_socket", "fcntl", "select"}


def test_a_client_that_cannot_be_loaded_defers(tmp_path: Path) -> None:
    """An installation that is broken is 75, not the 1 of a traceback."""
    shutil.copy(PROGRAM, tmp_path / "pipe.py")
    for source in (None, "x ="):
        if source is not None:
            (tmp_path / "client.py").write_text(source)
        done = subprocess.run([*PYTHON, str(tmp_path / "pipe.py"), *WHOLE], input=MESSAGE, stderr=subprocess.PIPE)
        assert done.returncode == 75


def test_the_client_is_of_the_standard_library() -> None:
    """The client keeps to the modules of the interpreter, in its source as well."""
    names = set(re.findall(r"^\s*(?:import|from) (\w+)", Path(client.__file__).read_text(), re.MULTILINE))
    assert names <= set(sys.stdlib_module_names)
