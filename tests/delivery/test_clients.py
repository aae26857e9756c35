"""The two pipe clients do the same: datagrams, lines and statuses, in one order, whatever befalls them."""

from __future__ import annotations

import array
import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milterapp.delivery import client, linux, wire
from tests.delivery.clients import PYTHON_CLIENT, SOURCE, Command, Peer, build, feed

MESSAGE = b"From: a@example.org\n\nhello\n"
WHOLE = (b"s@x", b"r@x", b"o@x", b"4ABC", b"192.0.2.1")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client did. datagram: None where none came; message: what its descriptor held, sealed."""

    status: int
    output: bytes
    datagram: bytes | None
    message: bytes


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """Listen as the monitor does."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def sanitized(compiled: Command, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Compile the client so that it dies of each access out of bounds and of each undefined operation."""
    try:
        built = build(tmp_path_factory.mktemp("sanitized") / "client", *SANITIZERS)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this compiler has no sanitizers: {error.stderr}")
    # That of gcc 12 does not start in every layout that the kernel chooses.
    plain = subprocess.run(["setarch", "-R", "true"], check=False, capture_output=True).returncode == 0
    return (*(("setarch", "-R") if plain else ()), *built)


def seen(
    command: Sequence[str], peer: Peer, arguments: Sequence[bytes], answer: bytes | None, message: bytes = MESSAGE
) -> Seen:
    """Run a client and play the monitor. answer: None to hang up; arguments: PEER stands for the monitor's socket."""
    given = [long(one).replace(b"PEER", peer.path.encode()) for one in arguments]
    with subprocess.Popen([*command, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        feed(process, message)
        listener = peer.listener.fileno()
        ready, _, _ = select.select([listener, process.stdout.fileno()], [], [], 20)
        datagram, got = (None, b"") if listener not in ready else serve(peer, None if answer is None else long(answer))
        output = process.stdout.read()
        return Seen(process.wait(20), output, datagram, got)


def long(value: bytes) -> bytes:
    """Return it with `LONG7` as seven letters: what hypothesis shows stays short."""
    return re.sub(rb"LONG(\d+)", lambda found: b"x" * int(found[1]), value)


def serve(peer: Peer, answer: bytes | None) -> tuple[bytes | None, bytes]:
    """Take one datagram; return it and what its one descriptor holds."""
    connection, _ = peer.listener.accept()
    with connection:
        connection.settimeout(20)
        data, ancillary, flags, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(64))
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload)
        assert flags & ~socket.MSG_EOR == 0
        assert len(fds) == (1 if data else 0)
        got = b""
        for fd in fds:
            assert linux.is_sealed(fd)
            got = os.pread(fd, 1 << 20, 0)
            os.close(fd)
        if answer is not None and data:
            try:
                connection.send(answer)
            except BrokenPipeError:
                pass  # what it read with has failed
        return data or None, got


# -- what differs, for any arguments and answers -----------------------------------------------------------------------

ARGUMENT = st.one_of(
    st.sampled_from([
        b"", b"a@x", b"--socket=PEER", b"--virtual=PEER", b"--socket=", b"--socket", b"--virtual=/nonexistent", b"-x",
        b"--socket=/y@x", b"--virtual=x", b"--socket=x=/y", b"--socket=" + b"/y" * 53 + b"z", b"--socket=" + b"y" * 108,
    ]),
    st.binary(max_size=40).map(lambda value: value.replace(b"\0", b"")),
    st.integers(65_300, 65_560).map(lambda size: b"LONG%d" % size),
)  # fmt: skip
ARGUMENTS = st.one_of(
    st.tuples(ARGUMENT, ARGUMENT, ARGUMENT, ARGUMENT, ARGUMENT).map(lambda five: (b"--socket=PEER", *five)),
    st.tuples(st.sampled_from([b"--socket=PEER", b"--virtual=PEER"])).map(lambda option: (*option, *WHOLE)),
    st.lists(ARGUMENT, max_size=7).map(tuple),
)
TEXT = st.one_of(
    st.binary(max_size=60), st.builds(lambda head, text: head + text, st.sampled_from([b"5.7.1 ", b"4.2.2 "]),
                                      st.binary(max_size=60)),
    st.integers(980, 1010).map(lambda size: b"5.7.1 " + b"\x80" * size),
)  # fmt: skip
FIELD = st.tuples(
    st.sampled_from([b"status", b"status", b"text", b"text", b"other", b""]),
    st.one_of(st.sampled_from([b"ok", b"reject", b"defer", b"Ok", b"ok\n"]), TEXT),
)


def field(tag: bytes, value: bytes) -> bytes:
    """Return a field of a datagram."""
    return b"%s:%d:%s\n" % (tag, len(value), value)


SOUND = st.builds(
    lambda status, text: b"ANSWER\n" + field(b"status", status) + field(b"text", text),
    st.sampled_from([b"ok", b"reject", b"defer"]),
    TEXT,
)
ANSWER = st.one_of(
    st.none(),
    SOUND,
    st.lists(FIELD, max_size=4).map(lambda fields: b"ANSWER\n" + b"".join(field(*one) for one in fields)),
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda rest: b"ANSWER\n" + rest),
    st.tuples(SOUND, st.integers(0, 100), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
    ),
)


@given(ARGUMENTS, ANSWER)
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:2:ok")
@example((b"--socket=PEER", *WHOLE), b"ANSWER")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:0000002:ok\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:+2:ok\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:-1:ok\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:5:defer\ntext:3:a\0b\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:5:defer\nstatus:2:ok\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:2:ok\ntext:70000:LONG70000\n")
@example((b"--socket=PEER", *WHOLE), b"ANSWER\nstatus:2:ok\ntext:65508:LONG65508\n")
@example((b"--socket=PEER", b"LONG100000", *WHOLE[1:]), None)
@settings(max_examples=300)
def test_they_do_the_same(compiled: Command, sanitized: Command, peer: Peer, arguments: tuple[bytes, ...],
                          answer: bytes | None) -> None:  # fmt: skip
    """For any arguments and any answer: one datagram to the byte, one status of three, one line, and no fault in C."""
    python = seen(PYTHON_CLIENT, peer, arguments, answer)
    assert python.status in (0, 69, 75)
    assert seen(compiled, peer, arguments, answer) == python
    assert seen(sanitized, peer, arguments, answer) == python


def test_the_largest_datagram_passes_and_one_byte_more_does_not(compiled: Command, peer: Peer) -> None:
    """The bound is the wire's, to the byte, in both."""
    rest = len(client.encode([b"", *WHOLE[1:]])) + 4  # the sender's length takes five digits, not one
    for command in (PYTHON_CLIENT, compiled):
        ok = seen(command, peer, (b"--socket=PEER", b"a" * (wire.LIMIT - rest), *WHOLE[1:]), field(b"", b""))
        assert ok.datagram is not None
        assert len(ok.datagram) == wire.LIMIT
        more = seen(command, peer, (b"--socket=PEER", b"a" * (wire.LIMIT - rest + 1), *WHOLE[1:]), None)
        assert (more.datagram, more.status) == (None, 75)
        assert more.output == b"4.3.0 milterapp-pipe: an envelope of 65537 bytes, more than 65536\n"


def test_their_numbers_are_the_same() -> None:
    """Socket, deadline, limits, tags and statuses stand in both sources alike."""
    source = SOURCE.read_text()

    def number(name: str) -> int:
        found = re.search(rf"\b{name} = (\d+)", source)
        assert found, name
        return int(found[1])

    numbers = {name: number(name) for name in ("DEADLINE", "CHUNK", "LIMIT", "LINE", "EXITING", "HIDDEN")}
    assert numbers == {
        "DEADLINE": client.DEADLINE, "CHUNK": client._CHUNK, "LIMIT": wire.LIMIT, "LINE": client._LINE,
        "EXITING": client._EXITING, "HIDDEN": round(1000 * client._HIDDEN),
    }  # fmt: skip
    assert client._LIMIT == wire.LIMIT
    assert {number("DELIVERED"), number("REJECTED"), number("AGAIN")} == set(client.STATUSES.values())
    assert f'#define SOCKET "{client.SOCKET}"' in source
    assert tuple(re.findall(r'"(\w+)"', source.partition("TAGS[] = {")[2].partition("}")[0])) == client.TAGS


# -- in which order, and where a call fails ----------------------------------------------------------------------------

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*?)\) += (?P<result>-?\d+|\?)")
# What is done, by the call that does it, in words that are the same for both.
STEPS = (
    ("memfd_create", r'"message", MFD_CLOEXEC\|MFD_ALLOW_SEALING', "make the memfd"),
    ("read", r"0, ", "read standard input"),
    ("write", r"3, ", "write the memfd"),
    ("open|openat", r'.*"/proc/\d+/stat"', "look at the parent"),
    ("poll", r"\[\{fd=1, events=0\}\], 1, 0", "look at the output's reader"),
    ("getppid", r"", "ask for the parent"),
    ("fstat|newfstatat", r"3, ", "look at the size"),
    ("fcntl", r"3, F_ADD_SEALS, F_SEAL_SEAL\|F_SEAL_SHRINK\|F_SEAL_GROW\|F_SEAL_WRITE", "seal"),
    ("socket", r"AF_UNIX, SOCK_SEQPACKET\|SOCK_CLOEXEC, 0", "make a socket"),
    ("connect", r"4, \{sa_family=AF_UNIX, ", "connect"),
    ("sendmsg", r"4, .*SCM_RIGHTS.*MSG_NOSIGNAL", "hand over"),
    ("recvfrom|recv", r"4, ", "hear"),
    ("write", r"1, ", "answer"),
    ("exit_group", r"", "end"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One of STEPS, and the call that it was: the number-th of its name."""

    what: str
    name: str
    number: int


def steps(command: Command, peer: Peer, folder: Path) -> list[Step]:
    """Return what a client does from the memfd on, for a message that is refused."""
    trace = folder / "trace"
    answer = b"ANSWER\n" + field(b"status", b"reject") + field(b"text", b"5.7.1 no")
    done = seen(("strace", "-o", str(trace), *command), peer, (b"--socket=PEER", *WHOLE), answer)
    assert (done.status, done.output) == (69, b"5.7.1 no\n")
    counts: dict[str, int] = {}
    found: list[Step] = []
    for line in trace.read_text(errors="replace").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        name = match["name"]
        counts[name] = counts.get(name, 0) + 1
        for names, arguments, what in STEPS:
            if re.fullmatch(names, name) and re.match(arguments, match["arguments"]) and (found or "memfd" in what):
                found.append(Step(what, name, counts[name]))
    return found


ORDER = [
    "make the memfd", "read standard input", "write the memfd", "read standard input",
    "look at the parent", "look at the output's reader", "ask for the parent",
    "look at the size", "seal", "make a socket", "connect",
    "look at the parent", "look at the output's reader", "ask for the parent",
    "hand over", "hear", "answer", "end",
]  # fmt: skip


@needs_strace
def test_they_keep_one_order(program: Command, peer: Peer, tmp_path: Path) -> None:
    """Whether the message is whole is asked before it is sealed, and again after connecting, before it is sent."""
    assert [one.what for one in steps(program, peer, tmp_path)] == ORDER


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EACCES", "EMFILE", "EPIPE"])
def test_a_call_that_fails_is_said_alike(compiled: Command, peer: Peer, tmp_path: Path, error: str) -> None:
    """Each step failing: both send nothing or the same, and give the same status and the same words."""
    both = [(command, steps(command, peer, tmp_path)) for command in (PYTHON_CLIENT, compiled)]
    for at, what in enumerate(ORDER[:-1]):
        if what == "ask for the parent":
            continue  # it cannot fail
        got: list[Seen] = []
        for command, found in both:
            step = found[at]
            fault = ("-e", f"trace={step.name}", "-e", f"inject={step.name}:error={error}:when={step.number}")
            strace = ("strace", "-o", "/dev/null", *fault, *command)
            begun = time.monotonic()
            got.append(seen(strace, peer, (b"--socket=PEER", *WHOLE), b"ANSWER\n" + field(b"status", b"ok")))
            assert what != "look at the parent" or time.monotonic() - begun >= client._HIDDEN
        assert got[0] == got[1], what
        hidden = what in ("look at the parent", "answer")
        assert got[0].status == (0 if hidden else 75), what
