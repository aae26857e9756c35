"""Sessions with Postfix that are kept: one message after the other, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from milterapp.delivery import smtp, smtp_sessions
from milterapp.delivery.smtp_sessions import Sessions
from milterapp.delivery.tasks import alone
from tests.delivery.smtp_peer import SmtpPeer

MAIL = smtp.Transaction("ann@example.org", "bob@x.org")


def sent(sessions: Sessions, address: str, transaction: smtp.Transaction, parts: Iterable[bytes]) -> str:
    """Send one message, with nothing else to do meanwhile."""
    return alone(sessions.send(address, transaction, parts))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    """Give sessions, ended afterwards; however late the next message is, none is too old for it."""
    for name in ("_AGE", "_IDLE"):
        monkeypatch.setattr(smtp_sessions, name, 3600.0)
    made = Sessions(30)
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["DATA", "BDAT"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmtpPeer]:
    """Give a server, one without and one with CHUNKING."""
    made = SmtpPeer(str(tmp_path / "smtp"), chunking=request.param)
    yield made
    made.close()


def test_one_session_for_several_messages(peer: SmtpPeer, sessions: Sessions) -> None:
    """Each message has its own queue id, and the server greets once."""
    assert [sent(sessions, peer.address, MAIL, [b"%d\n" % one]) for one in range(3)] == ["4Q0", "4Q1", "4Q2"]
    assert [one.data for one in peer.taken] == [b"0\r\n", b"1\r\n", b"2\r\n"]
    assert peer.sessions == 1


def test_a_session_that_the_server_ended(peer: SmtpPeer, sessions: Sessions) -> None:
    """What was to go over it goes over a new one, whole and once."""
    peer.once = True
    assert [sent(sessions, peer.address, MAIL, iter([b"%d\n" % one])) for one in range(3)] == ["4Q0", "4Q1", "4Q2"]
    assert [one.data for one in peer.taken] == [b"0\r\n", b"1\r\n", b"2\r\n"]
    assert peer.sessions == 3


@pytest.mark.parametrize(
    ("dies", "taken"),
    [pytest.param("unread", [b"0\r\n", b"1\r\n" * 9000], id="unread"), pytest.param("mute", [b"0\r\n"], id="read")],
)
def test_a_server_that_dies_with_a_message(tmp_path: Path, sessions: Sessions, dies: str, taken: list[bytes]) -> None:
    """What the end of a kept session left unread goes over a new one; what may have been taken goes by none."""
    peer = SmtpPeer(str(tmp_path / "smtp"), chunking=True)
    try:
        sent(sessions, peer.address, MAIL, [b"0\n"])
        peer.dies = dies
        if len(taken) == 2:
            assert sent(sessions, peer.address, MAIL, [b"1\n" * 9000]) == "4Q1"
        else:
            with pytest.raises(smtp.SmtpError, match="closed the connection"):
                sent(sessions, peer.address, MAIL, [b"1\n" * 9000])
        assert [one.data for one in peer.taken] == taken
    finally:
        peer.close()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
def test_a_message_of_any_size(peer: SmtpPeer, sessions: Sessions, size: int) -> None:
    """In one chunk or in many packets, a message arrives as it is, a line of a dot and all."""
    message = (b".\n..\nhello\r\n" * (size // 12 + 1))[:size]
    for _ in range(2):
        sent(sessions, peer.address, MAIL, [message[:100], message[100:]])
    wanted = message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    wanted += b"" if wanted.endswith(b"\r\n") or not wanted else b"\r\n"
    assert [one.data for one in peer.taken] == [wanted, wanted]
    assert peer.sessions == 1


def _refuse(peer: SmtpPeer) -> None:
    peer.refuse = "451 4.3.0 later"


def _refuse_sender(peer: SmtpPeer) -> None:
    peer.refuse_sender = "452 4.3.1 no room"


@pytest.mark.parametrize("refuse", [_refuse, _refuse_sender])
def test_a_refusal_is_told_and_ends_the_session(
    peer: SmtpPeer, sessions: Sessions, refuse: Callable[[SmtpPeer], None]
) -> None:
    """What the server says no to is not taken for sent, nor sent over what had said no."""
    assert sent(sessions, peer.address, MAIL, [b"0\n"]) == "4Q0"
    refuse(peer)
    with pytest.raises(smtp.SmtpError, match=r"45[12]"):
        sent(sessions, peer.address, MAIL, [b"1\n"])
    peer.refuse = peer.refuse_sender = ""
    before = peer.sessions
    assert sent(sessions, peer.address, MAIL, [b"2\n"]) == "4Q1"
    assert [one.data for one in peer.taken] == [b"0\r\n", b"2\r\n"]
    assert peer.sessions == before + 1


@pytest.mark.parametrize("what", ["_AGE", "_IDLE"])
def test_none_is_kept_for_long(peer: SmtpPeer, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """An old session, or one that nothing was sent over, is left, and no message goes over it."""
    monkeypatch.setattr(smtp_sessions, what, 0.05)
    assert sent(sessions, peer.address, MAIL, [b"0\n"]) == "4Q0"
    until = time.monotonic() + 20
    while peer.left == 0 and time.monotonic() < until:
        sessions.sweep()
        time.sleep(0.01)
    assert not sessions
    assert (peer.sessions, peer.left) == (1, 1)
    assert sent(sessions, peer.address, MAIL, [b"1\n"]) == "4Q1"
    assert peer.sessions == 2


def test_nobody_listens(tmp_path: Path, sessions: Sessions) -> None:
    """A server that is not there is a fault that names the socket; so is an address that is none."""
    for address in (str(tmp_path / "nowhere"), "lmtp:nowhere"):
        with pytest.raises(smtp.SmtpError, match="nowhere"):
            sent(sessions, address, MAIL, [b"0\n"])


def test_who_keeps_mail_has_a_session_for_each_message(peer: SmtpPeer, sessions: Sessions) -> None:
    """Over LMTP none is kept."""
    for number in range(2):
        assert sent(sessions, f"lmtp:unix:{peer.address}", MAIL, [b"x\n"]) == f"4Q{number}"
    assert peer.sessions == 2
