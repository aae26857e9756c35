"""Parameters of header fields are read with every reading there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.limits import LimitHit
from milterapp.mail.parameters import parse


@pytest.mark.parametrize(
    ("text", "word", "readings"),
    [
        ("Text/HTML", "text/html", {}),
        ("text/plain (a comment); charset=utf-8", "text/plain", {"charset": ("utf-8",)}),
        ('text/plain;charset="utf-8";x = y', "text/plain", {"charset": ("utf-8",), "x": ("y",)}),
        (r'a/b; name="a\"b;c"; d=e', "a/b", {"name": ('a"b;c',), "d": ("e",)}),
        (r'a/b; name="C:\dir\x.exe"', "a/b", {"name": (r"C:\dir\x.exe",)}),
        ('a/b; name="not closed; d=e', "a/b", {"name": ("not closed; d=e",)}),
        ("a/b; name=two words ; d=e", "a/b", {"name": ("two words",), "d": ("e",)}),
        ("a/b; =x; name; ;d=e", "a/b", {"d": ("e",)}),
        ("a/b; NAME=x; name=y", "a/b", {"name": ("x", "y")}),
        ("a/b; name*=utf-8''%C3%A4; name=a", "a/b", {"name": ("ä", "a")}),
        ("a/b; name*=%41'%", "a/b", {"name": ("A'%",)}),
        ("a/b; name*0=a; name*1=b; name*3=d", "a/b", {"name": ("abd",)}),
        ("a/b; name*1*=%42; name*0*=utf-8''%41", "a/b", {"name": ("AB",)}),
        ("a/b; name*0*=iso-8859-1''%E4; name*1=%E4", "a/b", {"name": ("ä%E4",)}),
        ("a/b; name==?utf-8?q?=C3=A4?=", "a/b", {"name": ("ä",)}),
    ],
)
def test_parse(text: str, word: str, readings: dict[str, tuple[str, ...]]) -> None:
    """RFC 2045 and RFC 2231, and what mail has besides."""
    value = parse(text)
    assert (value.word, value.readings) == (word, readings)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a/b; name=x; name=y", ("two values of name",)),
        ("a/b; name*=x; name=y", ("name and name* differ",)),
        ("a/b; name*0=x; name*0=y", ("two values of name*0",)),
        ("a/b; name=x; name=x", ()),
        ("a/b; name*=utf-8''x; name=x", ()),
    ],
)
def test_readings_that_differ_are_a_fault(text: str, faults: tuple[str, ...]) -> None:
    """Where readers would take different values, it says so."""
    assert parse(text).faults == faults


@given(st.text(alphabet=";=\"'*%01aA \\é?/()", max_size=60))
def test_no_text_raises(text: str) -> None:
    """Any value reads as something."""
    for name, readings in parse(text).readings.items():
        "".join((name, *readings)).encode()


def test_the_number_of_parameters_is_bounded() -> None:
    """A field of a thousand parameters is the longest that is read."""
    assert len(parse("a/b" + "".join(f"; n{n}=x" for n in range(1000))).readings) == 1000
    with pytest.raises(LimitHit, match="more than 1000 parameters"):
        parse("a/b" + "; n=x" * 1001)
