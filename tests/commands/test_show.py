"""What is printed can be read, and does nothing else to a terminal."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.commands import show

SHOWN = {
    "plain": ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
    "tab": ("a\tb", "a\tb"),
    "escape": ("\x1b[31m", "\\x1b[31m"),
    "c1-control": ("\x9b31m", "\\x9b31m"),
    "right-to-left": ("\u202egpj.exe", "\\u202egpj.exe"),
    "surrogate": ("\udcff", "\\udcff"),
    "line-end": ("a\r\nb", "a\\r\\nb"),
}


@pytest.mark.parametrize(("text", "want"), SHOWN.values(), ids=SHOWN)
def test_printable(text: str, want: str) -> None:
    """What can be read stays, everything else is its escape."""
    assert show.printable(text) == want


@given(st.text())
def test_printable_never_lets_a_control_through(text: str) -> None:
    """No control, format or surrogate character is left, whatever the text."""
    assert all(char == "\t" or unicodedata.category(char)[0] != "C" for char in show.printable(text))


def test_diff_of_nothing() -> None:
    """What did not change has no diff."""
    assert show.diff(b"a\n", b"a\n") == ""


def test_diff_of_a_long_message() -> None:
    """A long body that did not change costs next to nothing."""
    body = b"line of a body\n" * 300_000
    before = time.process_time()
    shown = show.diff(b"Subject: a\n\n" + body, b"Subject: b\n\n" + body)
    assert time.process_time() - before < 5
    assert shown.splitlines()[3:5] == ["-Subject: a", "+Subject: b"]


WANTED = {
    "terminal": (True, {"TERM": "xterm"}, True),
    "pipe": (False, {"TERM": "xterm"}, False),
    "no-color": (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
    "no-color-empty": (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
    "dumb": (True, {"TERM": "dumb"}, False),
    "no-term": (True, {}, False),
}


@pytest.mark.parametrize(("tty", "environment", "want"), WANTED.values(), ids=WANTED)
def test_colour(monkeypatch: pytest.MonkeyPatch, tty: bool, environment: dict[str, str], want: bool) -> None:
    """Only a terminal that shows colour gets it, and only where nobody asked for none."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty)
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert show.colour_wanted() is want
