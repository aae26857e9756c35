"""What a site's script says, read from what its process sent: nothing of it is believed."""

from __future__ import annotations

import pytest

from milterapp.delivery.in_line import failed, understood
from milterapp.mail.edits import AddHeader
from milterapp.rules.decision import Reply, Scripted, Verdict
from milterapp.script import actions
from milterapp.script.plan import Failure, Plan, encode

NO, WAIT = Reply(550, "5.7.1", "No"), Reply(450, "4.7.1", "Wait")
SAID = {
    "nothing": (Plan(), Scripted()),
    "reject": (Plan((actions.Reject("5.7.1", "No"),)), Scripted(verdict=Verdict.REJECT, reply=NO)),
    "defer": (Plan((actions.Defer("4.7.1", "Wait"),)), Scripted(verdict=Verdict.DEFER, reply=WAIT)),
    "discard": (Plan((actions.Discard(),)), Scripted(verdict=Verdict.DISCARD)),
    "an edit": (Plan((actions.Header("add_header", "X-A", "b"),)), Scripted(edits=(AddHeader("X-A", "b"),))),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_it_may_say(name: str) -> None:
    """Its verdict and its edits become those of a rule."""
    plan, wanted = SAID[name]
    assert understood(encode(plan), "f.py") == wanted


NOT_SAID = {
    "keep": encode(Plan((actions.Keep(),))),
    "reply": encode(Plan((actions.Reply("hi"),))),
    "forward": encode(Plan((actions.Forward("a@b.example"),))),
    "file": encode(Plan((actions.File(("A",)),))),
    "store": encode(Plan((actions.Store("a", False, "1"),))),
    "output": encode(Plan((actions.Output("a.html", "x"),))),
    "a state": encode(Plan(state="POSTING")),
    "another message": encode(Plan(about="a" * 64)),
    "not routed": encode(Plan(routed=False)),
    "cut short": encode(Plan((actions.Discard(),)))[:-4],
    "empty": b"",
    "no plan": b"\x00" * 4096,
    "a header of two lines": encode(Plan((actions.Header("add_header", "X-A", "b"),))).replace(b'"b"', b'"b\\nX: y"'),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SAID)
def test_what_it_may_not_say(name: str) -> None:
    """Whatever else comes from its process is a failure, never half a plan."""
    found = understood(NOT_SAID[name], "f.py")
    assert isinstance(found, Failure)
    assert found.kind == "Plan"


TRACE = 'Traceback\n  File "f.py", line 3, in main\n  File "f.py", line 9, in helper\nValueError: x\n'
FAILURES = {
    "it raised": (Failure("ValueError", "x", TRACE), "f.py:9: ValueError: x"),
    "no traceback": (Failure("time", "the script took more than 10 seconds"), "f.py: time: the script took more"),
    "a problem": (Failure("Problem", "f.py:2:1: no Python"), "f.py:2:1: no Python"),
    "lines": (Failure("ValueError", "a\nb\x00"), "f.py: ValueError: a b"),
    "long": (Failure("ValueError", "a" * 4000), "f.py: ValueError: aaa"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_in_a_line(name: str) -> None:
    """It names the last line of the script that it passed through, in one bounded line."""
    failure, begins = FAILURES[name]
    assert isinstance(understood(encode(failure), "f.py"), Failure)
    reason = failed("f.py", failure).reason
    assert reason.startswith(begins)
    assert len(reason) <= 300
    assert "\n" not in reason
