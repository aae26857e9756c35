"""Address lists are taken apart as their readers take them apart, in linear time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.address import Address, Reader, parse
from milterapp.mail.limits import LimitHit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("a@b", [("", "a", "b")], id="bare"),
        pytest.param("<a@b>", [("", "a", "b")], id="brackets"),
        pytest.param("Al Bo <a@b>, c@d", [("Al Bo", "a", "b"), ("", "c", "d")], id="two"),
        pytest.param("John Q. Public <a@b>", [("John Q. Public", "a", "b")], id="dot-in-name"),
        pytest.param('"Bo, Al" <a@b>', [("Bo, Al", "a", "b")], id="quoted-comma"),
        pytest.param(r'"a\"b\\" <c@d>', [('a"b\\', "c", "d")], id="quoted-pairs"),
        pytest.param('"A" b "C" <a@b>', [("A b C", "a", "b")], id="mixed-phrase"),
        pytest.param("a@b (Al (the) Bo)", [("Al (the) Bo", "a", "b")], id="comment-as-name"),
        pytest.param("a(x)@(y)b.(z)c", [("x y z", "a", "b.c")], id="comments-anywhere"),
        pytest.param("a . b @ c . d", [("", "a.b", "c.d")], id="obsolete-blanks"),
        pytest.param('"a b"@c', [("", "a b", "c")], id="quoted-local-part"),
        pytest.param('"a"."b"@c', [("", "a.b", "c")], id="quoted-words"),
        pytest.param("a..b@c, d.@e", [("", "a..b", "c"), ("", "d.", "e")], id="dots-at-odd-places"),
        pytest.param("a@[192.0.2.1]", [("", "a", "[192.0.2.1]")], id="domain-literal"),
        pytest.param("<@x,@y:a@b>", [("", "a", "b")], id="route"),
        pytest.param("G: a@b, C <c@d>;, e@f", [("", "a", "b"), ("C", "c", "d"), ("", "e", "f")], id="group"),
        pytest.param("undisclosed-recipients:;", [], id="empty-group"),
        pytest.param(" , ,a@b,,", [("", "a", "b")], id="empty-members"),
        pytest.param("<>", [], id="null"),
        pytest.param("root", [("", "root", "")], id="local-part-alone"),
        pytest.param("Al Bo", [("Al Bo", "", "")], id="name-alone"),
        pytest.param("Al <root>", [("Al", "root", "")], id="name-and-local-part"),
        pytest.param("mailto:a@b", [("", "a", "b")], id="mailto"),
        pytest.param("=?utf-8?Q?J=C3=B6rg=2C_B?= <a@b>", [("Jörg, B", "a", "b")], id="encoded-comma"),
        pytest.param('"=?utf-8?Q?J=C3=B6rg?=" <a@b>', [("Jörg", "a", "b")], id="quoted-encoded-word"),
        pytest.param("Jörg <jörg@exämple.org>", [("Jörg", "jörg", "exämple.org")], id="utf8"),
    ],
)
def test_read(text: str, found: list[tuple[str, str, str]]) -> None:
    """RFC 5322 with its obsolete forms, and what mail has besides."""
    assert parse(text) == tuple(Address(*one) for one in found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("a@b c@d", ["c@d", "a@b"], id="comma-missing"),
        pytest.param("<a@b> <c@d>", ["a@b", "c@d"], id="two-brackets"),
        pytest.param("c@d <a@b>", ["a@b", "c@d"], id="address-as-name"),
        pytest.param('"c@d" <a@b>', ["a@b"], id="quoted-address-as-name"),
        pytest.param('"Al <a@b>', ["a@b"], id="quote-not-closed"),
        pytest.param("(Al <a@b>", ["a@b"], id="comment-not-closed"),
        pytest.param("Al <a@b", ["a@b"], id="bracket-not-closed"),
        pytest.param("Al <Bo a@b>", ["a@b"], id="name-inside-brackets"),
        pytest.param("=?utf-8?Q?Al_=3Ca=40b=3E?=", ["a@b"], id="inside-an-encoded-word"),
        pytest.param('x@y, "a\\" <a@b>, c@d', ["x@y", "a@b", "c@d"], id="quote-not-closed-later"),
    ],
)
def test_no_address_hides(text: str, found: list[str]) -> None:
    """Where readers disagree, every address that one of them finds is there."""
    assert [str(one) for one in parse(text) if one.domain] == found


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Address("Al", "a", "b"), "a@b"),
        (Address("", "a b", "c"), '"a b"@c'),
        (Address("", 'a"\\', "c"), r'"a\"\\"@c'),
        (Address("", "a..b", "c"), "a..b@c"),
        (Address("", "root", ""), "root"),
        (Address("Al", "", ""), ""),
    ],
    ids=str,
)
def test_address_text(one: Address, text: str) -> None:
    """An address reads `local@domain`, quoted only where it must be."""
    assert one.address == str(one) == text


@given(st.text(alphabet='ab@<>",;:()[]\\. \t=?\0é', max_size=60))
def test_no_text_raises(text: str) -> None:
    """Whatever stands in an address field gives addresses or none."""
    for one in parse(text):
        one.address.encode()


_ATOM = st.text(alphabet="abcxyz0123!#$%&'*+-/=^_`{|}~", min_size=1, max_size=8).filter(lambda text: "=?" not in text)
_DOTTED = st.lists(_ATOM, min_size=1, max_size=3).map(".".join)
_DISPLAY = st.text(alphabet='abc ,.;:<>()@"\\é', max_size=10).map(str.strip)


@given(st.lists(st.tuples(_DISPLAY, _DOTTED, _DOTTED), min_size=1, max_size=5))
def test_what_was_written_is_read(boxes: list[tuple[str, str, str]]) -> None:
    """A list written by the book is read to the same mailboxes."""
    quoted = [display.replace("\\", "\\\\").replace('"', '\\"') for display, _, _ in boxes]
    text = ", ".join(f'"{name}" <{local}@{domain}>' for name, (_, local, domain) in zip(quoted, boxes, strict=True))
    assert parse(text) == tuple(Address(*one) for one in boxes)


def test_one_reader_has_one_bound() -> None:
    """Over its bound a reader says so, and at once ever after."""
    reader = Reader(2)
    reader.read("a@b, c@d")
    with pytest.raises(LimitHit, match="more than 2 addresses"):
        reader.read("e@f")
    with pytest.raises(LimitHit, match="more than 2 addresses"):
        reader.read("")


@pytest.mark.parametrize("piece", ["(a)", "<", '"a"', "[", ": ", "@", "\\"])
def test_oddities_are_bounded_too(piece: str) -> None:
    """What makes no address costs time as well, and that has its bound."""
    with pytest.raises(LimitHit, match=r"more than \d+"):
        parse(piece * 1000, 10)
