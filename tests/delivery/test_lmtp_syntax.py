"""What an LMTP client says, as values: encoders and damage of every kind."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import lmtp_syntax as syntax
from milterapp.delivery import smtp


@pytest.mark.parametrize(
    ("said", "want"),
    [
        pytest.param("FROM:<>", ("", {}), id="null sender"),
        pytest.param("FROM:<a@example.org>", ("a@example.org", {}), id="plain"),
        pytest.param("from: <a@example.org>", ("a@example.org", {}), id="case and a blank"),
        pytest.param("FROM:<@x.org,@y.org:a@example.org>", ("a@example.org", {}), id="source route"),
        pytest.param('FROM:<"a b>\\" c"@example.org>', ('"a b>\\" c"@example.org', {}), id="quoted"),
        pytest.param("FROM:<jörg@example.org> SMTPUTF8", ("jörg@example.org", {"SMTPUTF8": ""}), id="utf-8"),
        pytest.param("FROM:<a> body=8BITMIME  size=12", ("a", {"BODY": "8BITMIME", "SIZE": "12"}), id="parameters"),
        pytest.param("FROM:<a> ENVID=a=b", ("a", {"ENVID": "a=b"}), id="a value with an equals sign"),
    ],
)
def test_path(said: str, want: object) -> None:
    """An address comes out as it stood between its brackets, parameters with their names in capitals."""
    assert syntax.path(said, "FROM") == want


@pytest.mark.parametrize(
    "said",
    ["", "FROM", "FROM:", "TO:<a>", "FROM:a", "FROM:<a", "FROM:<a>x", "FROM:<a> =b", "FROM:<a> A=1 a=2", "FROM:<a b>",
     "FROM:<<a>>", "FROM:<a\0>", 'FROM:<"a>', "FROM:<a>\rX"],
)  # fmt: skip
def test_no_path(said: str) -> None:
    """What is no path with parameters is a fault that names what was expected."""
    with pytest.raises(syntax.SyntaxFault, match=r"expected FROM|parameter"):
        syntax.path(said, "FROM")


@given(st.text(max_size=30), st.text(max_size=30))
def test_what_we_write_we_read(local: str, domain: str) -> None:
    """Every path that our own client writes is read as it was written."""
    try:
        written = smtp.path(f"{local}@{domain}")
    except smtp.AddressError:
        return
    said, _ = syntax.path("TO:" + written.decode("utf-8", "surrogateescape"), "TO")
    assert f"<{said}>".encode("utf-8", "surrogateescape") == written


@pytest.mark.parametrize(
    ("value", "want"),
    [("a+2Bb+3Dc", "a+b=c"), ("plain", "plain"), ("a+zz+2", "a+zz+2"), ("j+C3+B6rg", "jörg"), ("+FF", "\udcff")],
)
def test_xtext(value: str, want: str) -> None:
    """xtext stands for bytes; what is none stays as it is, and bytes that are not UTF-8 as surrogate escapes."""
    assert syntax.xtext(value) == want


@pytest.mark.parametrize(
    ("value", "want"),
    [("rfc822;info@example.org", "info@example.org"), ("utf-8;j+C3+B6rg@x", "jörg@x"), ("", ""), ("x", "")],
)
def test_original(value: str, want: str) -> None:
    """ORCPT names a type and an address."""
    assert syntax.original(value) == want


def test_attributes() -> None:
    """XFORWARD's attributes come decoded, unknown ones empty."""
    got = syntax.attributes("NAME=[UNAVAILABLE] addr=192.0.2.1 IDENT=4XyZ HELO=a+3Db")
    assert got == {"NAME": "", "ADDR": "192.0.2.1", "IDENT": "4XyZ", "HELO": "a=b"}
    with pytest.raises(syntax.SyntaxFault):
        syntax.attributes("IDENT")


def undotted(data: bytes, sizes: list[int]) -> tuple[bytes, bytes | None]:
    """Feed the data in pieces of these sizes, again and again; return the message and what came behind it."""
    reader, out, at = syntax.Undotted(), b"", 0
    while True:
        size = sizes[at % len(sizes)]
        at += 1
        piece, data = data[:size], data[size:]
        got, rest = reader.feed(piece)
        out += got
        if rest is not None:
            return out, rest + data
        if not data:
            return out, None


@given(
    st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"x", b"..", b"\r\n.", b"\xe9"])).map(b"".join),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_data_round_trip(message: bytes, sizes: list[int]) -> None:
    """What our client sends is read as the same message, in whatever pieces it comes, lines ending in LF."""
    wire = b"".join(smtp.wire_form([message]))
    got, rest = undotted(wire + b"QUIT\r\n", sizes)
    want = re.sub(rb"\r?\n", b"\n", message)
    if got != want:  # a line that was not ended is
        assert got.removesuffix(b"\n") == want
    assert rest == b"QUIT\r\n"


@pytest.mark.parametrize(
    "data", [b"x\n.\n", b"x\r\n.\n", b"x\n.\r\n", b"x\r.\r\n", b"x\r\n.\r", b"x\r\n", b"", b"x\r\n..\r\n"]
)
def test_only_crlf_dot_crlf_ends(data: bytes) -> None:
    """No other sequence ends a message, so nothing behind it can be taken for a command."""
    assert undotted(data, [1])[1] is None
    assert undotted(data, [100])[1] is None


def test_an_empty_message() -> None:
    """A lone dot ends an empty message."""
    assert undotted(b".\r\nRSET\r\n", [1]) == (b"", b"RSET\r\n")


@pytest.mark.parametrize(
    ("line", "want"),
    [(b"mail FROM:<a>", ("MAIL", "FROM:<a>")), (b"QUIT", ("QUIT", "")), (b"", ("", "")), (b"\xff x", ("\udcff", "x"))],
)
def test_command(line: bytes, want: tuple[str, str]) -> None:
    """A verb is read in any case, and no byte is an error."""
    assert syntax.command(line) == want
