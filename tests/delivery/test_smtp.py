"""Giving a message to Postfix over SMTP, against a peer on a real socket."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import smtp
from milterapp.delivery.smtp import AddressError, FinalError, SmtpError, Transaction, endpoint, path, send, wire_form
from milterapp.delivery.tasks import Task

GREETING = "220 mail.example.org ESMTP"
OFFER = "250-mail.example.org\r\n250-SIZE\r\n250-8BITMIME\r\n250 SMTPUTF8"
GOOD = [GREETING, OFFER, "250 2.1.0 Ok", "250 2.1.5 Ok", "354 go on", "250 2.0.0 Ok: queued as 4XyZ12abC"]


class Peer:
    """An SMTP server that says what it is told to, one reply a step, and keeps what it heard."""

    def __init__(self, folder: Path, replies: Sequence[str | None]) -> None:
        self.address = str(folder / "smtp")
        self.heard: list[bytes] = []
        self._replies = replies
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        # Who hangs up with something unread resets the connection.
        with suppress(ConnectionError), connection, connection.makefile("rb") as lines:
            for step, reply in enumerate(self._replies):
                if reply is None:
                    return
                connection.sendall(reply.encode() + b"\r\n")
                if step == len(self._replies) - 1:
                    break
                heard = lines.readline()
                if reply.startswith("354"):
                    while not heard.endswith(b"\r\n.\r\n") and heard != b".\r\n":
                        line = lines.readline()
                        if not line:
                            return
                        heard += line
                self.heard.append(heard)
            lines.read()

    def close(self) -> None:
        """Wait for its end."""
        self._thread.join(30)
        self._listener.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    """Collect the peers of a test, to end them."""
    collected: list[Peer] = []
    yield collected
    for peer in collected:
        peer.close()


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("/run/x:y", "/run/x:y"),
        ("lmtp:unix:/run/x:y", "/run/x:y"),
        ("lmtp:inet:mail.example.org:24", ("mail.example.org", 24)),
        ("lmtp:inet:[::1]:24", ("::1", 24)),
    ],
)
def test_endpoint(address: str, place: object) -> None:
    """A path, and the two forms of LMTP, say where to connect."""
    assert endpoint(address) == place


@pytest.mark.parametrize(
    "address",
    ["lmtp:", "lmtp:unix:", "lmtp:unix:run", "lmtp:inet:host", "lmtp:inet::24", "lmtp:inet:h:0", "lmtp:inet:h:65536",
     "lmtp:inet:h:x", "lmtp:/run/x"],
)  # fmt: skip
def test_no_endpoint(address: str) -> None:
    """Anything else that begins like LMTP is an error, and nobody is connected to."""
    with pytest.raises(ValueError, match="lmtp:unix:/PATH"):
        endpoint(address)
    with pytest.raises(SmtpError):
        send(address, Transaction("", "bob@example.org"), [b"x"], timeout=1)


def test_lmtp(tmp_path: Path, peers: list[Peer]) -> None:
    """To an LMTP server the greeting is LHLO; its reply for the one recipient ends the transaction."""
    peers.append(Peer(tmp_path, [*GOOD[:-1], "250 2.0.0 <bob@example.org> x+y Saved"]))
    transaction = Transaction("", "bob@example.org", eight_bit=False)
    assert send(f"lmtp:unix:{peers[0].address}", transaction, [b"x\n"], timeout=20) == ""
    assert peers[0].heard[:2] == [b"LHLO localhost\r\n", b"MAIL FROM:<>\r\n"]


def test_a_message_is_taken(tmp_path: Path, peers: list[Peer]) -> None:
    """A 250 at the end of the data is success, and its queue id is returned."""
    peers.append(Peer(tmp_path, GOOD))
    transaction = Transaction("a@example.org", "bob@example.org", eight_bit=True)
    assert send(peers[0].address, transaction, [b"Subject: x\n\n.dot\n"], timeout=20) == "4XyZ12abC"
    assert peers[0].heard == [
        b"EHLO localhost\r\n",
        b"MAIL FROM:<a@example.org> BODY=8BITMIME\r\n",
        b"RCPT TO:<bob@example.org>\r\n",
        b"DATA\r\n",
        b"Subject: x\r\n\r\n..dot\r\n.\r\n",
    ]


@pytest.mark.parametrize(
    ("sender", "recipient", "eight_bit", "offer", "mail"),
    [
        pytest.param("", "b@x.org", False, OFFER, b"MAIL FROM:<>\r\n", id="null sender"),
        pytest.param(
            "ä@x.org", "b@x.org", False, OFFER, "MAIL FROM:<ä@x.org> SMTPUTF8\r\n".encode(), id="utf-8 sender"
        ),
        pytest.param("a@x.org", "ü@x.org", False, OFFER, b"MAIL FROM:<a@x.org> SMTPUTF8\r\n", id="utf-8 recipient"),
        pytest.param("a@x.org", "b@x.org", True, "250 bare", b"MAIL FROM:<a@x.org>\r\n", id="nothing offered"),
    ],
)
def test_extensions_are_used_where_needed(
    tmp_path: Path, peers: list[Peer], sender: str, recipient: str, eight_bit: bool, offer: str, mail: bytes
) -> None:
    """8BITMIME and SMTPUTF8 are asked for where message or addresses need them and the server has them."""
    peers.append(Peer(tmp_path, [GREETING, offer, *GOOD[2:]]))
    send(peers[0].address, Transaction(sender, recipient, eight_bit=eight_bit), [b"x\n"], timeout=20)
    assert peers[0].heard[1] == mail


PIPELINING = OFFER.replace("250-SIZE", "250-PIPELINING")


def test_all_at_once_where_the_server_takes_it(tmp_path: Path) -> None:
    """A server that offers PIPELINING hears envelope and DATA in one packet, and the message with QUIT in another."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "smtp"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for replies in (GOOD[:1], [PIPELINING], GOOD[2:5], [GOOD[5], "221 Bye"]):
                    connection.sendall("".join(f"{one}\r\n" for one in replies).encode())
                    heard.append(connection.recv(65536))

        thread = threading.Thread(target=serve)
        thread.start()
        transaction = Transaction("a@x.org", "b@x.org", eight_bit=False)
        assert send(str(tmp_path / "smtp"), transaction, [b"x: y\n", b"\nz\n"], timeout=20) == "4XyZ12abC"
        thread.join(10)
    assert heard == [
        b"EHLO localhost\r\n",
        b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n",
        b"x: y\r\n\r\nz\r\n.\r\nQUIT\r\n",
        b"",
    ]


@pytest.mark.parametrize("offer", [OFFER, PIPELINING], ids=["one by one", "all at once"])
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param("451 4.3.0 later", id="4xx"),
        pytest.param("550 5.1.1 never", id="5xx"),
        pytest.param("552 5.3.4 too big", id="size"),
        pytest.param("banana", id="no reply"),
        pytest.param(None, id="closed"),
    ],
)
def test_everything_else_is_a_fault(
    tmp_path: Path, peers: list[Peer], step: int, reply: str | None, offer: str
) -> None:
    """Any reply but the expected one, at any step, is a temporary fault that quotes it; never success."""
    peers.append(Peer(tmp_path, [*[GREETING, offer, *GOOD[2:]][:step], reply]))
    with pytest.raises(SmtpError) as raised:
        send(peers[0].address, Transaction("a@x.org", "b@x.org"), [b"x\n"], timeout=20)
    if reply and reply[0] in "45":
        assert reply in str(raised.value)


class _CloseFails(socket.socket):
    """A socket whose close(2) says that it failed, after the fact."""

    def close(self) -> None:
        super().close()
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("last", "taken"),
    [pytest.param(GOOD[-1], "4XyZ12abC", id="taken"), pytest.param("451 4.3.0 later", "", id="not taken")],
)
def test_what_is_taken_is_taken(
    tmp_path: Path, peers: list[Peer], monkeypatch: pytest.MonkeyPatch, last: str, taken: str
) -> None:
    """A connection that cannot be closed makes nothing that Postfix has taken be sent again, and nothing else taken."""

    def connect(address: str, _timeout: float) -> Task[socket.socket]:
        yield None
        connection = _CloseFails(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(address)
        connection.setblocking(False)
        return connection

    monkeypatch.setattr(smtp, "_connect", connect)
    peers.append(Peer(tmp_path, [*GOOD[:-1], last]))
    transaction = Transaction("ann@example.org", "bob@example.org")
    if taken:
        assert send(peers[0].address, transaction, [b"hello\n"], timeout=20) == taken
    else:
        with pytest.raises(SmtpError, match="451"):
            send(peers[0].address, transaction, [b"hello\n"], timeout=20)


def test_a_message_for_nobody_is_never_ended(tmp_path: Path, peers: list[Peer]) -> None:
    """A server that refuses the recipient and goes on to DATA all the same sees no end of the message."""
    peers.append(Peer(tmp_path, [GREETING, PIPELINING, "250 Ok", "550 5.1.1 nobody", "354 go on", "250 Ok"]))
    with pytest.raises(FinalError, match="nobody"):
        send(peers[0].address, Transaction("a@x.org", "b@x.org"), [b"x: y\n"], timeout=20)
    peers[0].close()
    assert peers[0].heard[-1] == b"DATA\r\n"


def test_nobody_listens(tmp_path: Path) -> None:
    """A Postfix that is not there is a fault that names the socket."""
    with pytest.raises(SmtpError, match="nowhere"):
        send(str(tmp_path / "nowhere"), Transaction("", "b@x.org"), [b"x\n"], timeout=20)


def test_silence_is_a_fault(tmp_path: Path) -> None:
    """A server that accepts and says nothing is given up after the timeout."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        with pytest.raises(SmtpError, match="timed out"):
            send(str(tmp_path / "mute"), Transaction("", "b@x.org"), [b"x\n"], timeout=0.05)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        pytest.param("bob@example.org", b"<bob@example.org>", id="plain"),
        pytest.param("root", b"<root>", id="no domain"),
        pytest.param("a.b+c@x.org", b"<a.b+c@x.org>", id="dots and extension"),
        pytest.param("-x@x.org", b"<-x@x.org>", id="leading dash"),
        pytest.param("a b@x.org", b'<"a b"@x.org>', id="blank"),
        pytest.param('"a b"@x.org', b'<"a b"@x.org>', id="quoted already"),
        pytest.param('a"b@x.org', b'<"a\\"b"@x.org>', id="quote"),
        pytest.param('"a\\"b"@x.org', b'<"a\\"b"@x.org>', id="quoted quote"),
        pytest.param("a, c@x.org", b'<"a, c"@x.org>', id="comma"),
        pytest.param("a@b@x.org", b'<"a@b"@x.org>', id="two ats"),
        pytest.param(".a@x.org", b'<".a"@x.org>', id="leading dot"),
        pytest.param("a..b@x.org", b'<"a..b"@x.org>', id="two dots"),
        pytest.param("$(id)@x.org", b'<"$(id)"@x.org>', id="shell"),
        pytest.param("a>b@x.org", b'<"a>b"@x.org>', id="bracket"),
        pytest.param("a\x7fb@x.org", b'<"a\\\x7fb"@x.org>', id="delete"),
        pytest.param("\udcff@x.org", b"<\xff@x.org>", id="no utf-8"),
        pytest.param("a@[127.0.0.1]", b"<a@[127.0.0.1]>", id="literal"),
        pytest.param("a@[IPv6:::1]", b"<a@[IPv6:::1]>", id="literal v6"),
    ],
)
def test_addresses_stay_in_their_brackets(address: str, wanted: bytes) -> None:
    """A local part is quoted where it must be, once; what is quoted already is left as it is."""
    assert path(address) == wanted


@pytest.mark.parametrize(
    "address",
    ["a\r\nRCPT TO:<c@x.org>@x.org", "a@x.org\r\nDATA", "a\n@x.org", "a\0@x.org", "a@x.org> NOTIFY=NEVER", "a" * 1001],
)
def test_what_ends_a_command_is_refused(address: str) -> None:
    """No line end, NUL or bracket of an address reaches the wire."""
    with pytest.raises(AddressError):
        path(address)


@given(st.text())
def test_no_address_ever_escapes(address: str) -> None:
    """Whatever the text, the path is one bracketed token without a line end, or an error."""
    try:
        found = path(address)
    except (AddressError, UnicodeEncodeError):
        return
    assert found.startswith(b"<")
    assert found.endswith(b">")
    assert not re.search(rb"[\r\n\0]", found)
    assert re.fullmatch(rb'<(?:"(?:[^"\\]|\\.)*"|[^">\s]*)(?:@[^<>\s]*)?>', found, re.DOTALL)


@given(st.lists(st.sampled_from([b"", b".", b"\r", b"\n", b"\r\n", b"a", b".\n", b"\xff", b"..\r\n."])))
def test_the_wire_form_is_independent_of_the_pieces(parts: list[bytes]) -> None:
    """However a message is cut into pieces, its lines end in CRLF, dots are doubled and one lone dot ends it."""
    whole = b"".join(parts)
    sent = b"".join(wire_form(parts))
    assert sent == b"".join(wire_form([whole]))
    assert sent == b".\r\n" or sent.endswith(b"\r\n.\r\n")
    body = sent.removesuffix(b".\r\n")
    assert b"\r\n.\r\n" not in b"\r\n" + body
    assert b"\n" not in body.replace(b"\r\n", b"")
    back = re.sub(rb"(?m)^\.", b"", body).replace(b"\r\n", b"\n")
    plain = whole.replace(b"\r\n", b"\n")
    assert back == (plain if plain.endswith(b"\n") or not plain else plain + b"\n")
    assert b"".join(wire_form(parts, dots=False)) == back.replace(b"\n", b"\r\n")
