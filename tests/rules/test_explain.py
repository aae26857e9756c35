"""Tests of milterapp.rules.explain: why did it do that."""

from __future__ import annotations

import pytest

from milterapp.mail.envelope import Stage
from milterapp.rules.decide import decide
from milterapp.rules.explain import explain
from tests.rules.helpers import decide_text, facts_of, policy_of, rule_of

# name: (condition, matched, reason, column of the condition that settled it on line 4)
REASONS = {
    "matched": ("subject: {contains: invoice}", True, "subject contains 'invoice': saw 'Café invoice 2024'", 7),
    "not matched": ("subject: {contains: bill}", False, "subject contains 'bill': only 'Café invoice 2024'", 7),
    "none there": ("header: {X-None: x}", False, "header X-None is 'x': there is none", 16),
    "of several": ("header: {X-Tag: two}", True, "header X-Tag is 'two': saw 'two'", 16),
    "all of several": ("header: {X-Tag: three}", False, "header X-Tag is 'three': only 'one', 'two'", 16),
    "an address": (
        "from: {domain: .net}",
        False,
        "from domain is '.net': only 'Bob B <bob+news@example.org>'",
        7,
    ),
    "the one that failed": (
        "{kind: list, cc: dora@example.com, list_id: x}",
        False,
        "cc is 'dora@example.com': only 'carol@example.com'",
        20,
    ),
    "negated": ("not: {kind: list}", False, "not (kind is list: list)", 13),
    "a body is not shown": ("body: {contains: offer}", True, "body contains 'offer': saw '", 7),
    "several values": (
        "subject: {contains: [a, b, c, d]}",
        True,
        "subject contains 'a' or 'b' or 'c' …: saw 'Café invoice 2024'",
        7,
    ),
}


@pytest.mark.parametrize(("condition", "matched", "reason", "column"), REASONS.values(), ids=REASONS)
def test_the_condition_that_settled_a_rule(condition: str, matched: bool, reason: str, column: int) -> None:
    """Each rule's line says what was asked, what was seen, and where that stands."""
    (line,) = decide_text(rule_of(condition)).rules
    assert line.matched is matched
    assert line.reason.startswith(reason)
    assert str(line.place) == f"rules.yaml:4:{column}"


def test_what_was_not_reached_says_why() -> None:
    """A rule after the one that ended the rules is neither matched nor not."""
    decision = decide_text(rule_of("kind: list", "discard") + "  - name: later\n    then: stop\n")
    assert decision.rules[1].matched is None
    assert decision.rules[1].reason == "not reached: 'it' came first"


def test_what_is_not_known_says_what_it_needs() -> None:
    """An undecided rule names the stage it waits for."""
    policy = policy_of(rule_of("subject: x", "reject"), site=True)
    (line,) = decide(policy, facts_of(stage=Stage.HELO)).rules
    assert line.matched is None
    assert line.reason == "subject is 'x': not yet known: needs headers"


def test_a_value_is_bounded_and_escaped() -> None:
    """What a message holds cannot fill a trace or reach a terminal."""
    raw = b"Subject: =?utf-8?q?=1b[31m?= " + b"x" * 5000 + b"\n\n"
    (line,) = decide_text(rule_of("subject: {contains: x}"), raw).rules
    assert len(line.reason) < 200
    assert line.reason.isprintable()


def test_explaining_a_decision() -> None:
    """A decision is told rule by rule, then verdict, edits and deliveries."""
    text = rule_of("kind: list", "- add_header: {X-A: b}\n- file: Lists/Python")
    assert explain(decide_text(text)) == (
        "it: matched\n"
        "    kind is list: list [rules.yaml:4:7]\n"
        "\n"
        "verdict: none\n"
        "edit: add_header X-A: b\n"
        "delivery: file Lists/Python\n"
    )


def test_explaining_everything_else() -> None:
    """Edits, changes of the envelope, programs, answers, and what rules left are told as well."""
    site = "- banner: Mind the gap\n- set_sender: <>\n- transport: 'smtp:a'\n- tag: odd\n- score: 1.5\n- log: seen"
    assert explain(decide_text(rule_of("kind: list", site), site=True)).partition("\n\n")[2] == (
        "verdict: none\n"
        "edit: banner Mind the gap\n"
        "edit: set_sender <>\n"
        "edit: transport smtp:a\n"
        "score: 1.5\n"
        "tags: odd\n"
        "log: seen\n"
    )
    own = (
        "- filter: scan\n- vacation: Away\n- flag: seen\n- file: A\n- pipe: {program: spool, arguments: [x], copy: yes}"
    )
    assert explain(decide_text(rule_of("kind: list", own))).partition("\n\n")[2] == (
        "verdict: none\n"
        "edit: filter scan\n"
        "delivery: vacation (once in 7 days) 'Away'\n"
        "delivery: file A (seen)\n"
        "delivery: pipe spool x (copy)\n"
    )


def test_the_trace_is_a_sequence() -> None:
    """A trace has a line for each rule, can be compared, and is the same however often it is read."""
    trace = decide_text(rule_of("kind: list")).rules
    assert len(trace) == 1
    assert list(trace) == list(trace) == [trace[0]]
    assert trace == decide_text(rule_of("kind: list")).rules
    assert trace[0:1] == (trace[0],)
