"""Tests of milterapp.milter.conversation: what a fault becomes, at whichever step it strikes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.limits import Limits
from milterapp.milter.conversation import Context, Conversation
from milterapp.milter.plan import plan_for
from milterapp.milter.reply import FAULT
from milterapp.milter.saying import Said, Say
from milterapp.rules.load import load

RULES = b"""\
rules:
  - name: every step
    if:
      any:
        - {helo: evil}
        - {sender: evil@example.net}
        - {recipient: evil@example.org}
    then: {reject: "5.7.1 no"}
  - name: the rest
    if:
      any:
        - {subject: evil}
        - {body: {contains: evil}}
    then: {reject: "5.7.1 no"}
"""
STEPS = ("connect", "helo", "mail", "rcpt", "data", "eoh", "body", "eom")


@pytest.fixture
def context() -> Context:
    """Rules that read every step."""
    policy, problems = load(RULES, "rules.yaml", site=True)
    assert policy is not None, problems
    return Context(policy, plan_for(policy), Limits())


def walk(talk: Conversation, fault_at: str = "", error: Exception | None = None) -> tuple[str, Said]:
    """Go through a message as Postfix does, with a fault at one step; return where it ended, and how."""
    steps = {
        "connect": lambda: talk.connect("", "192.0.2.1", local=False, smtp=True),
        "helo": lambda: talk.helo("x"),
        "mail": lambda: talk.mail("a@example.net", "", tls=False),
        "rcpt": lambda: talk.rcpt("alice@example.org", "<alice@example.org>"),
        "data": talk.data,
        "eoh": talk.end_of_header,
        "body": lambda: talk.body(b"x"),
        "eom": talk.end_of_message,
    }
    said = Said(Say.CONTINUE)
    for step in STEPS:
        if step in ("data", "eoh", "eom"):
            talk.queue_id = "4X"
        said = steps[step]()
        if step == fault_at:
            said = talk.fault(step, error or ValueError("oops"))
        if said.say not in (Say.CONTINUE, Say.SKIP):
            return step, said
    return "eom", said


def test_no_fault(context: Context) -> None:
    """A message that no rule matches is accepted at its end."""
    assert walk(Conversation(context, context.plan.answers)) == ("eom", Said(Say.ACCEPT))


@pytest.mark.parametrize(
    ("step", "heard_at"),
    [(step, {"connect": "mail"}.get(step, step)) for step in STEPS if step != "eom"],
    ids=[step for step in STEPS if step != "eom"],
)
@pytest.mark.parametrize("on_error", ["defer", "accept"])
def test_fault(context: Context, step: str, heard_at: str, on_error: str) -> None:
    """A fault is answered as on_error says: `defer` at once, `accept` once the header is known; and logged once."""
    talk = Conversation(replace(context, on_error=on_error), context.plan.answers)
    ended, said = walk(talk, step)
    if on_error == "defer":
        assert (ended, said) == (heard_at, Said(Say.DEFER, FAULT))
        talk.end()
    else:
        assert (ended, said) == ("eom" if step == "body" else "eoh", Said(Say.ACCEPT))
    (happened,) = talk.happened
    assert happened.fault == f"{step}: ValueError: oops"
    assert happened.answer == on_error
    assert on_error == "defer" or happened.queue_id == "4X"


def test_fault_for_one_recipient(context: Context) -> None:
    """After a fault at one recipient no other recipient, and no message, gets by without its rules."""
    talk = Conversation(context, context.plan.answers)
    talk.connect("", "192.0.2.1", local=False, smtp=True)
    talk.mail("a@example.net", "", tls=False)
    talk.rcpt("alice@example.org", "<alice@example.org>")
    assert talk.fault("rcpt", ValueError("oops")).say is Say.DEFER
    assert talk.rcpt("bob@example.org", "<bob@example.org>").say is Say.DEFER
    assert talk.data().say is Say.DEFER
    assert talk.end_of_message().say is Say.DEFER
    assert talk.mail("a@example.net", "", tls=False).say is Say.CONTINUE


def test_fault_without_smtp(context: Context) -> None:
    """A fault at a recipient of mail that did not come over SMTP waits for DATA; no recipient is refused."""
    talk = Conversation(context, context.plan.answers)
    talk.connect("", "", local=True, smtp=False)
    talk.mail("a@example.net", "", tls=False)
    assert talk.fault("rcpt", ValueError("oops")).say is Say.CONTINUE
    assert talk.data() == Said(Say.DEFER, FAULT)


@pytest.mark.parametrize("step", STEPS)
def test_fault_that_nobody_hears(context: Context, step: str) -> None:
    """A fault at a step that is not answered is answered at the next that is, the end at the latest."""
    talk = Conversation(context, frozenset())
    talk.connect("", "192.0.2.1", local=False, smtp=True)
    if step in ("connect", "helo"):
        talk.note_fault(step, ValueError("oops"))
    talk.mail("a@example.net", "", tls=False)
    talk.rcpt("alice@example.org", "<alice@example.org>")
    if step not in ("connect", "helo"):
        talk.note_fault(step, ValueError("oops"))
    assert talk.data().say is Say.CONTINUE
    assert talk.end_of_header().say is Say.CONTINUE
    assert talk.end_of_message() == Said(Say.DEFER, FAULT)


def test_fault_at_connect_lasts(context: Context) -> None:
    """What was not understood of the connection holds for every message on it; what was of a message, for that one."""
    talk = Conversation(context, context.plan.answers)
    talk.note_fault("connect", ValueError("oops"))
    for _ in range(2):
        assert talk.mail("a@example.net", "", tls=False).say is Say.DEFER


def test_edits_that_fail(context: Context) -> None:
    """Edits that fail when half of them are done are deferred whatever on_error says, and logged as that alone."""
    talk = Conversation(replace(context, on_error="accept"), context.plan.answers)
    assert walk(talk) == ("eom", Said(Say.ACCEPT))
    assert talk.fault("eom", OSError("gone")) == Said(Say.DEFER, FAULT)
    (happened,) = talk.happened
    assert (happened.fault, happened.answer) == ("edits: gone", "defer")


@pytest.mark.parametrize("smtp", [True, False], ids=["SMTP", "sendmail(1)"])
def test_nothing_is_said_at_connect(context: Context, *, smtp: bool) -> None:
    """A client that rules are against hears it at HELO or MAIL, in the rule's words."""
    policy, _ = load(b"rules:\n  - name: all\n    then: {reject: '5.7.1 closed'}\n", "rules.yaml", site=True)
    assert policy is not None
    context = replace(context, policy=policy, plan=plan_for(policy))
    talk = Conversation(context, context.plan.answers)
    assert talk.connect("", "192.0.2.1", local=False, smtp=smtp).say is Say.CONTINUE
    assert talk.helo("x").say is Say.REJECT
    assert talk.mail("a@example.net", "", tls=False).say is Say.REJECT
