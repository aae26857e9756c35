"""Tests of milterapp.milter.reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.milter.reply import wire_reply
from milterapp.rules.decision import Reply, Verdict

REJECT, DEFER = Verdict.REJECT, Verdict.DEFER


@pytest.mark.parametrize(
    ("verdict", "reply", "want"),
    [
        pytest.param(REJECT, Reply(550, "5.7.1", "No."), ("550", "5.7.1", ("No.",)), id="as the rule says"),
        pytest.param(REJECT, Reply(554, "5.6.0", "a\nb"), ("554", "5.6.0", ("a", "b")), id="two lines"),
        pytest.param(REJECT, Reply(550, "5.7.1", "a\r\nb\rc"), ("550", "5.7.1", ("a", "b", "c")), id="every line end"),
        pytest.param(REJECT, Reply(550, "5.7.1", "100% sure"), ("550", "5.7.1", ("100%% sure",)), id="per cent"),
        pytest.param(REJECT, Reply(550, "5.7.1", "n\u00e4\x00\x1b"), ("550", "5.7.1", ("n???",)), id="no ASCII"),
        pytest.param(REJECT, Reply(450, "4.7.1", "No."), ("550", "5.7.1", ("No.",)), id="4xx with reject"),
        pytest.param(DEFER, Reply(550, "5.7.1", "No."), ("451", "4.7.1", ("No.",)), id="5xx with defer"),
        pytest.param(DEFER, Reply(421, "4.7.0", "Bye"), ("421", "4.7.0", ("Bye",)), id="421"),
        pytest.param(REJECT, Reply(999, "9.9.9", "No."), ("550", "5.7.1", ("No.",)), id="no such code"),
        pytest.param(
            REJECT, Reply(550, "5.7.1", " \n"), ("550", "5.7.1", ("Refused by a rule of this site",)), id="empty"
        ),
        pytest.param(DEFER, None, ("451", "4.7.1", ("Please try again later",)), id="none"),
    ],
)
def test_wire_reply(verdict: Verdict, reply: Reply | None, want: tuple[str, str, tuple[str, ...]]) -> None:
    """A rule's reply goes out as written where SMTP can carry it, and as the nearest thing where it cannot."""
    got = wire_reply(verdict, reply)
    assert (got.code, got.status, got.lines) == want


@given(st.integers(0, 999), st.text(max_size=9), st.text(max_size=6000), st.sampled_from([REJECT, DEFER]))
def test_always_fit_to_send(code: int, status: str, text: str, verdict: Verdict) -> None:
    """Whatever a rule makes of a message's values, milters may send the reply and Postfix takes it."""
    got = wire_reply(verdict, Reply(code, status, text))
    assert got.code[0] == got.status[0] == {REJECT: "5", DEFER: "4"}[verdict]
    assert 1 <= len(got.lines) <= 20
    for line in got.lines:
        assert line
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= 980
        assert "%" not in line.replace("%%", "")
