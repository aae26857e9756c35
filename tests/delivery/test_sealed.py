"""Sealed memfds: a message that cannot change while it is read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from milterapp.delivery import sealed


def test_a_sealed_message_cannot_change() -> None:
    """What was sealed is read back whole, and nobody can write, grow or cut it."""
    descriptor = sealed.seal([b"one\n", b"", b"two\n"])
    try:
        assert sealed.measure(descriptor, 8) == 8
        assert sealed.read(descriptor) == b"one\ntwo\n"
        assert sealed.read(descriptor, 5) == b"one\nt"
        assert hashlib.sha256(sealed.read(descriptor)).hexdigest() == hashlib.sha256(b"one\ntwo\n").hexdigest()
        for change in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 1)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(descriptor)


def test_a_long_message_is_read_in_pieces() -> None:
    """A message of more than one piece is whole again, and the shared file offset stays where it was."""
    message = os.urandom(700_001)
    descriptor = sealed.seal([message])
    try:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        assert [len(chunk) for chunk in sealed.chunks(descriptor)] == [262_144, 262_144, 175_713]
        assert sealed.read(descriptor) == message
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == before
    finally:
        os.close(descriptor)


def test_what_is_not_sealed_is_refused(tmp_path: Path) -> None:
    """A plain file, a memfd without seals and one that is too large are no messages."""
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    large = sealed.seal([b"123456789"])
    try:
        for descriptor, why in ((plain, "memfd|sealed"), (loose, "not sealed"), (large, "9 bytes, more than 8")):
            with pytest.raises(sealed.SealError, match=why):
                sealed.measure(descriptor, 8)
    finally:
        for descriptor in (plain, loose, large):
            os.close(descriptor)
