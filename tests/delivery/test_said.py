"""A script's plan as rules know it, and its changes on their way through the journal into its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import record
from milterapp.delivery.said import change_of, said
from milterapp.mail.edits import AddHeader
from milterapp.mail.envelope import Envelope
from milterapp.rules import deliveries
from milterapp.rules.decision import Decision, Reply, Scripted, Verdict
from milterapp.script.actions import Action, Ask, Discard, Header, Keep, Output, Reject, Send, Store
from milterapp.script.actions import Reply as Answer
from milterapp.script.memory import Question, Remembered
from milterapp.script.plan import DEFAULT, Plan, PlanError, decode, encode
from tests.script.test_plan import EVERY

ABOUT = "a" * 64
MEMORY = Remembered(questions={ABOUT: Question("publish", (), "ann@example.org", "page@x.org", b"From: a\n\n\xff\0")})
ENVELOPE = Envelope(sender="ann@example.org", recipients=("bob@x.org",), original_recipient="page@x.org")


def scripted(*actions: Action, state: str = "", about: str = "") -> Scripted:
    """Return what a plan of these actions says."""
    plan = decode(encode(Plan(actions, state, ("dev",), about=about)))
    assert isinstance(plan, Plan)
    return said(plan, "a.py", ENVELOPE.sender, MEMORY)


@pytest.mark.parametrize("name", EVERY)
def test_every_action_becomes_something(name: str) -> None:
    """No action is lost on the way: each is a verdict, an edit, a delivery or a change."""
    found = scripted(EVERY[name])
    what = (found.verdict is not Verdict.NONE, bool(found.edits), bool(found.deliveries), found.run is not None)
    assert what.count(True) == 1


def test_what_rules_know() -> None:
    """Deliveries in their order, each recipient of a letter one of its own; edits; the reply to a refusal."""
    found = scripted(Header("add_header", "X-A", "b"), Send(("a@b.c", "d@e.f"), "s", "t"), Answer("r"), Keep())
    assert found.edits == (AddHeader("X-A", "b"),)
    assert found.deliveries == (
        deliveries.Send("a@b.c", "s", "t", "a.py"),
        deliveries.Send("d@e.f", "s", "t", "a.py"),
        deliveries.SendReply("r", script="a.py"),
        deliveries.Keep(),
    )
    refused = scripted(Reject("5.1.1", "No such page"))
    assert (refused.verdict, refused.reply) == (Verdict.REJECT, Reply(550, "5.1.1", "No such page"))
    assert scripted(Discard()).verdict is Verdict.DISCARD
    assert scripted(Keep()).run is None


def test_changes_come_through_the_journal() -> None:
    """What is kept of a run is its memory and files, not its mail; it comes back whole from the record."""
    actions = (Store("k", True, '["u","x"]'), Output("a.html", "<p>"), Answer("private"), Ask("d" * 64, "publish"))
    run = scripted(*actions, state="OPEN").run
    assert run is not None
    assert "private" not in run.plan
    whole = record.from_text(record.to_text(Decision(scripts=(run,), message="\xff\0")))
    assert (whole.scripts, whole.message) == ((run,), "\xff\0")
    change = change_of(whole.scripts[0], DEFAULT, ENVELOPE, b"raw", 1000)
    assert (change.script, change.sender, change.per, change.state) == ("a.py", "ann@example.org", ("dev",), "OPEN")
    assert change.stores == (("k", True, '["u","x"]'),)
    assert change.outputs == (("a.html", "<p>"),)
    (question,) = change.questions
    assert (question.until, question.original, question.message) == (1000 + 7 * 86400, "page@x.org", b"raw")


def test_about_another_message() -> None:
    """Edits and deliveries are of the message that memory keeps; where it keeps none there is no plan."""
    assert scripted(Keep(), about=ABOUT).message.encode("latin-1") == b"From: a\n\n\xff\0"
    with pytest.raises(PlanError, match="not kept any more"):
        scripted(Keep(), about="b" * 64)


REFUSED: dict[str, tuple[Action, ...]] = {
    "a long reply": (Answer("x" * 50_000),),
    "a long letter": (Send(("a@b.c",), "", "é" * 30_000),),
    "a file that is a folder": (Output("a", ""), Output("a/b", "")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_out(name: str) -> None:
    """It is an error of the plan, before anything is done."""
    with pytest.raises(PlanError):
        scripted(*REFUSED[name])


@given(st.lists(st.sampled_from(list(EVERY.values())), max_size=6), st.sampled_from(["", "START", "OPEN"]))
def test_any_plan(actions: list[Action], state: str) -> None:
    """Whatever stands together in a plan becomes a Scripted whose run can be read again, or is a PlanError."""
    try:
        found = scripted(*actions, state=state)
    except PlanError:
        return
    if found.run is not None:
        change_of(found.run, DEFAULT, ENVELOPE, b"", 0)
