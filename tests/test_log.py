"""Tests of milterapp.log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp import log

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(any_text, plain, max_size=5))
def test_one_line(fields: dict[str, Any]) -> None:
    """Whatever a field holds, an event is one line of printable text, and its JSON reads back."""
    event: Any = log.bounded(fields)
    for render in log.FORMATS.values():
        line = render(event)
        assert line.isprintable()
        assert len(line.splitlines()) <= 1
    assert json.loads(log.to_json(event)) == event


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param("4XYZ", "k=4XYZ", id="bare"),
        pytest.param("", 'k=""', id="empty"),
        pytest.param("two words", 'k="two words"', id="blank"),
        pytest.param('say "hi"', r'k="say \"hi\""', id="quote"),
        pytest.param("a\nlevel=error", r'k="a\nlevel=error"', id="newline"),
        pytest.param("a\x1b[2J", r'k="a\x1b[2J"', id="terminal escape"),
        pytest.param("\u202egpj.exe", r'k="\u202egpj.exe"', id="bidi override"),
        pytest.param("\udcff", r'k="\udcff"', id="surrogate"),
        pytest.param(True, "k=true", id="true"),
        pytest.param(None, "", id="absent"),
        pytest.param(["a@x", "b@x"], "k=a@x,b@x", id="list"),
        pytest.param(["a,b"], r'k="[\"a,b\"]"', id="list with a comma"),
    ],
)
def test_logfmt(value: Any, want: str) -> None:
    """A value is quoted where a reader of key=value would go astray, and nowhere else."""
    assert log.to_logfmt({"k": value}) == want


def test_bounds() -> None:
    """Long texts, long lists and deep nests are cut, and say by how much."""
    assert log.bounded("x" * 1100) == "x" * 1000 + "…(100 more)"
    assert log.bounded(list(range(102)))[-1] == "(2 more)"  # type: ignore[index]
    assert log.bounded([[[[[1, 2]]]]]) == [[[["(2 more)"]]]]
    assert log.bounded(b"\xff") == "\\xff"


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of Python that has `log`, for its standard error."""
    program = f"from milterapp import log\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60, check=True, **options
    )


def test_service_and_exception() -> None:
    """A line names its service and its event; an exception gives its type, words and places, no code."""
    done = run(
        "log.configure('json')\nlog.get('milter').info('message', queue_id='4X')\n"
        "try: 1/0\nexcept ZeroDivisionError: log.get('milter').exception('fault')"
    )
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert list(first) == ["time", "level", "service", "event", "queue_id"]
    assert (first["level"], first["service"], first["event"]) == ("info", "milter", "message")
    assert second["level"] == "error"
    assert second["error"].startswith("ZeroDivisionError: division by zero (at <string>:")


def test_long_event() -> None:
    """A line stays below 16 KiB however many long fields it has."""
    done = run("log.get('x').info('e', a=['y' * 900] * 90, b={str(i): ['z' * 999] * 99 for i in range(99)})")
    assert len(done.stderr) < 16 * 1024
    assert done.stderr.count("\n") == 1


def test_nobody_reads() -> None:
    """A standard error that is closed fails nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import os\nfrom milterapp import log\nos.close(2)\nlog.get('x').info('e')"],
        timeout=60,
        check=False,
        stderr=os.open(os.devnull, os.O_WRONLY),
    )
    assert done.returncode == 0


def test_unknown_format() -> None:
    """A format we do not write is refused by name."""
    with pytest.raises(ValueError, match="'xml', expected one of: logfmt, json"):
        log.configure("xml")
