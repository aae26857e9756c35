"""Tests of milterapp.milter.protocol: bytes, without a connection; test_libmilter has its edits beside libmilter's."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.milter.protocol import (
    Client,
    Incoming,
    ProtocolError,
    agreement,
    client_of,
    edit,
    macros_of,
    offer_of,
    packet,
    strings,
)

PACKETS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=12)


def taken(pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """Return the packets that come in these pieces."""
    incoming = Incoming()
    return [one for piece in pieces for one in incoming.take(piece)]


@given(PACKETS, st.lists(st.integers(1, 400), max_size=40))
def test_packets_come_whole(said: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """However the bytes are cut on their way, the packets are those that were sent, in their order."""
    raw = b"".join(packet(bytes([code]), data) for code, data in said)
    pieces, at = [], 0
    for size in [*sizes, len(raw) or 1]:
        pieces.append(raw[at : at + size])
        at += size
    assert taken([one for one in pieces if one]) == said


@given(PACKETS, st.integers(1, 200))
def test_a_part_is_no_packet(said: list[tuple[int, bytes]], missing: int) -> None:
    """Bytes that end before their packet does are not taken for one."""
    raw = b"".join(packet(bytes([code]), data) for code, data in said)
    last = packet(b"L", b"x" * 300)
    assert taken([raw + last[:-missing]]) == said


@pytest.mark.parametrize("length", [0, 256 * 1024 + 1, 2**32 - 1], ids=["empty", "too long", "huge"])
def test_a_length_that_is_none(length: int) -> None:
    """A packet of no bytes, or of more than is taken, ends it before a byte of it is waited for."""
    with pytest.raises(ProtocolError, match=f"a packet of {length} bytes"):
        Incoming().take(struct.pack("!I", length))


@given(st.binary(max_size=80))
def test_whatever_comes(data: bytes) -> None:
    """Data that is rubbish is read, or refused as a fault of the other end, never another exception."""
    for read in (strings, offer_of, macros_of, client_of):
        try:
            read(data)
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    ("data", "client"),
    [
        (b"a.example\x004\x10\x00192.0.2.1\0", Client(b"a.example", "192.0.2.1", 4096)),
        (b"a.example\x006\x00\x19IPv6:2001:DB8::1\0", Client(b"a.example", "2001:db8::1", 25)),
        (b"a.example\x006\x00\x19fe80::1%eth0\0", Client(b"a.example", "fe80::1", 25)),
        (b"localhost\0L\0\0/run/socket\0", Client(b"localhost")),
        (b"unknown\0U", Client(b"unknown")),
    ],
    ids=["IPv4", "IPv6, as Postfix writes it", "a link-local one", "a socket", "nobody knows"],
)
def test_clients(data: bytes, client: Client) -> None:
    """Who connected, in each family; an address is written in one way."""
    assert client_of(data) == client


def test_macros() -> None:
    """Names come with braces or without, values stay bytes; a step that is none is told."""
    assert macros_of(b"M{auth_authen}\0\xff\0i\x004X\0") == ("mail", {b"auth_authen": b"\xff", b"i": b"4X"})
    assert macros_of(b"?i\x004X\0") == ("", {b"i": b"4X"})


@pytest.mark.parametrize(
    ("version", "actions", "want"),
    [(6, 0x1FF, (6, 0x17F)), (7, 0xFFFF, (6, 0x17F)), (2, 0x3F, (2, 0x3F))],
    ids=["Postfix", "newer than we", "older"],
)
def test_agreement(version: int, actions: int, want: tuple[int, int]) -> None:
    """Nothing is agreed on that was not offered; macros are asked for only of a server that can be asked."""
    offer = offer_of(struct.pack("!III", version, actions, 0xFFF))
    answer = agreement(offer, 0xFF0F, {"rcpt": "i"})
    assert answer[4:17] == b"O" + struct.pack("!III", *want, 0xF0F)
    assert answer[17:] == (struct.pack("!I", 3) + b"i\0" if actions & 0x100 else b"")


def test_an_offer_too_old() -> None:
    """A server from before there were any of today's steps is not served."""
    with pytest.raises(ProtocolError, match="version 1"):
        offer_of(struct.pack("!III", 1, 0, 0))


@pytest.mark.parametrize("arguments", [("X\0Y", " v"), ("X", " v\0"), ("X", " caf\u00e9")])
def test_an_edit_that_cannot_be_sent(arguments: tuple[str, str]) -> None:
    """A NUL, or what is no ASCII, is refused, not sent as something else."""
    with pytest.raises(ValueError, match=r"NUL|ascii"):
        edit("addheader", arguments)
