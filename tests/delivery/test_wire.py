"""Datagrams between our processes: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import wire

KNOWN = {"KIND": ("a", "b", "long_tag")}
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make two connected sockets."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


@given(st.dictionaries(st.sampled_from(KNOWN["KIND"]), st.binary(max_size=300)))
def test_what_is_encoded_is_decoded(fields: dict[str, bytes]) -> None:
    """Any bytes survive, newlines, colons and NUL included."""
    assert wire.decode(wire.encode("KIND", fields), KNOWN) == wire.Datagram("KIND", fields)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No datagram makes the reader do anything but return or raise WireError."""
    try:
        wire.decode(b"KIND\n" + data, KNOWN)
    except wire.WireError:
        pass


@given(st.text(st.characters(exclude_categories=())))
def test_text_comes_back_as_it_was(text: str) -> None:
    """A str is UTF-8; bytes of arguments that are none survive as surrogate escapes."""
    plain = text.encode("utf-8", "replace").decode()
    assert wire.decode(wire.encode("KIND", {"a": plain}), KNOWN).text("a") == plain
    escaped = b"\xff\x80".decode("utf-8", "surrogateescape")
    assert wire.decode(wire.encode("KIND", {"a": escaped}), KNOWN).fields["a"] == b"\xff\x80"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"OTHER\n", id="unknown kind"),
        pytest.param(b"KIND\nc:1:x\n", id="unknown tag"),
        pytest.param(b"KIND\na:1:x\na:1:y\n", id="tag twice"),
        pytest.param(b"KIND\na:5:x\n", id="length beyond the end"),
        pytest.param(b"KIND\na:0:x\n", id="length short of the value"),
        pytest.param(b"KIND\na:1:x", id="no newline"),
        pytest.param(b"KIND\na:-1:x\n", id="negative length"),
        pytest.param(b"KIND\na:1_0:xxxxxxxxxx\n", id="length with underscore"),
        pytest.param("KIND\na:\u0661:x\n".encode(), id="length in other digits"),
        pytest.param(b"KIND\na:9999999:x\n", id="length of seven digits"),
        pytest.param(b"KIND\n" + b"a:100000:" + b"x" * 100000 + b"\n", id="over the limit"),
    ],
)
def test_malformed_is_refused(data: bytes) -> None:
    """Anything but exactly the form is a WireError."""
    with pytest.raises(wire.WireError):
        wire.decode(data, KNOWN)


@pytest.mark.parametrize("value", [b"", b"-1", b"1.0", b"x", b"1" * 21, "\u0661".encode()])
def test_a_number_is_decimal_digits(value: bytes) -> None:
    """What is no number is a WireError, not a guess."""
    with pytest.raises(wire.WireError):
        wire.Datagram("KIND", {"a": value}).number("a")
    assert wire.Datagram("KIND", {"a": b"42"}).number("a") == 42


def test_too_long_is_not_sent(pair: Pair) -> None:
    """The sender raises WireError before a byte leaves."""
    with pytest.raises(wire.WireError):
        wire.send(pair[0], "KIND", {"a": b"x" * wire.LIMIT})
    pair[0].close()
    assert wire.receive(pair[1], KNOWN) is None


def descriptors() -> set[int]:
    """Return the open descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def test_descriptors_come_along_closed_on_exec(pair: Pair) -> None:
    """A descriptor that was sent is the receiver's, close-on-exec, until it closes the datagram."""
    with open(os.devnull) as null:
        wire.send(pair[0], "KIND", {}, (null.fileno(),))
    got = wire.receive(pair[1], KNOWN, descriptors=(1,))
    assert got is not None
    (fd,) = got.descriptors
    assert not os.get_inheritable(fd)
    got.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        pytest.param(b"KIND\n", 2, id="one too many"),
        pytest.param(b"KIND\n", 0, id="none where one is due"),
        pytest.param(b"KIND\n", 9, id="more than the room for them"),
        pytest.param(b"NONSENSE\n", 1, id="with a malformed datagram"),
        pytest.param(b"K" * (wire.LIMIT + 10), 1, id="with a datagram cut short"),
    ],
)
def test_unwanted_descriptors_are_closed(pair: Pair, data: bytes, count: int) -> None:
    """Where the datagram is refused no descriptor stays open."""
    before = descriptors()
    with open(os.devnull) as null:
        socket.send_fds(pair[0], [data], [null.fileno()] * count)
    with pytest.raises(wire.WireError):
        wire.receive(pair[1], KNOWN, descriptors=(1,))
    assert descriptors() <= before  # a thread of another test may close one yet


def test_the_kernel_vouches_for_the_peer(pair: Pair) -> None:
    """peer_uid is the uid of the process at the other end."""
    assert wire.peer_uid(pair[0]) == os.geteuid()
