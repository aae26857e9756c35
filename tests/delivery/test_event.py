"""The log lines of the privileged processes: one line, whatever is in them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp import log
from milterapp.delivery import event


@pytest.mark.parametrize("form", event.FORMATS)
@given(value=st.one_of(st.text(st.characters(exclude_categories=())), st.binary(), st.integers(), st.floats()))
def test_any_value_is_one_line(form: str, value: str | bytes | float) -> None:
    """No value ends the line or leaves ASCII."""
    said = event.line(form, 0.0, "info", "monitor", "delivery", {"recipient": value})
    assert said.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in said[:-1])


def test_a_line_is_bounded() -> None:
    """Values are cut; what an agent reports may be longer, and is cut too."""
    said = event.line("json", 0.0, "info", "monitor", "delivery", {"text": "x" * 99999, "decided": "y" * 99999})
    assert len(said) < 10_000


def test_what_an_agent_reports_is_one_quoted_text() -> None:
    """JSON of an agent is not parsed and cannot add a field."""
    forged = '","status":"ok","x":"'
    said = json.loads(event.line("json", 0.0, "info", "monitor", "delivery", {"decided": forged}))
    assert (said["decided"], "status" in said) == (forged, False)


def test_the_lines_are_those_of_the_other_services() -> None:
    """The same fields in the same order and form as milterapp.log writes."""
    fields: dict[str, event.Value] = {
        "queue_id": "4X",
        "text": "two words",
        "seconds": 0.25,
        "empty": "",
        "path": "/run/a b",
    }
    head = {"time": "1970-01-01T00:00:00.000Z", "level": "info", "service": "monitor", "event": "delivery"}
    for form in event.FORMATS:
        want = log.FORMATS[form]({**head, **fields})
        assert event.line(form, 0.0, "info", "monitor", "delivery", fields).decode() == f"{want}\n"


def test_none_is_left_out_and_nobody_reading_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    """A log writes what there is, and never fails."""
    event.Log("monitor")("info", "ready", uid=3, text=None)
    line = capfd.readouterr().err
    assert line.endswith("level=info service=monitor event=ready uid=3\n")
