"""Tests of milterapp.milter.event: the fields of a message's event, which milterapp-milter(8) lists."""

from __future__ import annotations

from milterapp.mail.edits import AddHeader, Banner, PrefixSubject, RemoveHeader, ReplaceBody
from milterapp.mail.envelope import Stage
from milterapp.milter.event import Happening, fields_of
from milterapp.rules.decision import AddRecipient, Decision, RecipientDecision, Reply, SetSender, Transport, Verdict
from tests.test_man import section

OBSERVERS = {"watching": "reject, tag"}
SPENT = {"mail": 0.5, "eoh": 1.25, "header": 0.001}
DECISION = Decision(
    verdict=Verdict.HOLD,
    stage=Stage.HEADERS,
    reply=Reply(250, "2.0.0", "x"),
    matched=("first", "watching", "last"),
    edits=(
        AddHeader("X-A", "secret"),
        RemoveHeader("X-B"),
        PrefixSubject("secret"),
        Banner("secret"),
        ReplaceBody("secret"),
    ),
    envelope=(SetSender("a@b.example"), AddRecipient("c@d.example"), Transport("slow:")),
    recipients=(
        RecipientDecision("r@x.example", Verdict.REJECT, None, Stage.RCPT),
        RecipientDecision("d@x.example", Verdict.DISCARD, None, Stage.RCPT),
        RecipientDecision("a@x.example", Verdict.ACCEPT, None, Stage.RCPT),
    ),
    tags=("odd",),
    score=2.5,
    log=("a line",),
    hold_reason="looks odd",
)
WHOLE = Happening(
    queue_id="4cXyZ01",
    client="192.0.2.1",
    client_name="mail.example.net",
    helo="mail",
    login="bob",
    sender="",
    recipients=("r@x.example", "d@x.example", "a@x.example"),
    decision=DECISION,
    undone=("banner: signed",),
)


def test_every_field() -> None:
    """What there is to say of a message, and of edits what they concern, never what they write."""
    fields = fields_of(WHOLE, OBSERVERS, SPENT)
    assert {name: value for name, value in fields.items() if value is not None} == {
        "queue_id": "4cXyZ01",
        "client": "192.0.2.1",
        "client_name": "mail.example.net",
        "helo": "mail",
        "login": "bob",
        "sender": "<>",
        "recipients": ["r@x.example", "d@x.example", "a@x.example"],
        "verdict": "hold",
        "reply": "250 2.0.0 x",
        "stage": "headers",
        "rules": ["first", "last"],
        "would_have": ["watching: reject, tag"],
        "refused": ["r@x.example"],
        "removed": ["d@x.example"],
        "exempt": ["a@x.example"],
        "edits": [
            "add_header:X-A",
            "remove_header:X-B",
            "prefix_subject",
            "banner",
            "replace_body",
            "set_sender:a@b.example",
            "add_recipient:c@d.example",
            "transport:slow:",
        ],
        "undone": ["banner: signed"],
        "tags": ["odd"],
        "score": 2.5,
        "log": ["a line"],
        "hold": "looks odd",
        "ms": 1.75,
        "ms_by_step": {"mail": 0.5, "eoh": 1.25},
    }


def test_a_fault() -> None:
    """Where the rules did not decide, the verdict is what was answered, and the fault says why."""
    happened = Happening("", "", "", "", "", None, (), Decision(), "eoh: a limit", "accept")
    fields = fields_of(happened, {}, {})
    assert {name: value for name, value in fields.items() if value} == {
        "queue_id": "NOQUEUE",
        "client": "local",
        "verdict": "accept",
        "fault": "eoh: a limit",
    }


def test_the_manual_page() -> None:
    """milterapp-milter(8) names every field."""
    shown = section("milterapp-milter.8", "The log").replace('"', " ").replace(",", " ").split()
    assert [name for name in fields_of(WHOLE, OBSERVERS, SPENT) if name not in shown] == []
