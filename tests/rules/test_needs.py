"""Tests of facts that deciding asks the edge for: rates, duplicates, programs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.envelope import Stage
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.load import load
from milterapp.rules.stages import SiteSession
from milterapp.rules.truth import Failed, Need, Value
from tests.rules.helpers import ENVELOPE, NOW, facts_of, policy_of

HOUR = 3600.0
RATE = "rules:\n- {name: it, if: {subject: {contains: invoice}, RATE}, then: {file: Many}}\n"


def asked(text: str, **known: str) -> Decision | Need:
    """Return what deciding comes to without an answer."""
    return decide(policy_of(text), facts_of(envelope=replace(ENVELOPE, **known)), {})  # type: ignore[arg-type]


NEEDS = {
    "by sender": ("rate: {by: sender, over: 3, within: 1 hour}", Need("rate", "it", ("bob@example.org",), HOUR)),
    "by domain": ("rate: {by: sender_domain, over: 3, within: 2}", Need("rate", "it", ("example.org",), 2.0)),
    "by two": (
        "rate: {by: [client, recipient], over: 3, within: 1 hour}",
        Need("rate", "it", ("192.0.2.7", "alice@example.com"), HOUR),
    ),
    "duplicate": ("duplicate: yes", Need("duplicate", "it", ("<1@example.org>",), 7 * 86400.0)),
    "duplicate within": ("duplicate: {within: 1 hour}", Need("duplicate", "it", ("<1@example.org>",), HOUR)),
    "command": ("command: {run: scan, arguments: [-q, x]}", Need("command", "it", ("scan", "-q", "x"))),
}


@pytest.mark.parametrize(("condition", "need"), NEEDS.values(), ids=NEEDS)
def test_a_fact_is_asked_for(condition: str, need: Need) -> None:
    """Deciding stops with what it lacks, and nothing else about the message."""
    assert asked(RATE.replace("RATE", condition)) == need


ANSWERS: dict[str, tuple[str, Value, bool | None]] = {
    "more": ("rate: {by: sender, over: 3, within: 1 hour}", 4, True),
    "no more": ("rate: {by: sender, over: 3, within: 1 hour}", 3, False),
    "a duplicate": ("duplicate: yes", True, True),
    "no duplicate": ("duplicate: yes", False, False),
    "status 0": ("command: scan", 0, True),
    "status 1": ("command: scan", 1, False),
    "status wanted": ("command: {run: scan, status: 1}", 1, True),
    "negated": ("not: {duplicate: yes}", False, True),
    "nobody could say": ("duplicate: yes", Failed("the state is locked"), None),
    "nobody could say, negated": ("not: {duplicate: yes}", Failed("the state is locked"), None),
}


@pytest.mark.parametrize(("condition", "answer", "wanted"), ANSWERS.values(), ids=ANSWERS)
def test_deciding_goes_on_with_the_answer(condition: str, answer: Value, wanted: bool | None) -> None:
    """With the answer the same rules come to a decision; a failure is "could not tell", under `not` too."""
    policy = policy_of(RATE.replace("RATE", condition))
    need = decide(policy, facts_of(), {})
    assert isinstance(need, Need)
    decision = decide(policy, facts_of(), {need: answer})
    assert isinstance(decision, Decision)
    assert (decision.could_not_tell != "") is (wanted is None)
    assert (decision.matched == ("it",)) is (wanted is True)


CLIENTS = {
    "IPv4": ("192.0.2.7", "192.0.2.7"),
    "IPv4 within IPv6": ("::ffff:192.0.2.7", "192.0.2.7"),
    "IPv6": ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    "its neighbour": ("2001:DB8:1:2::1", "2001:db8:1:2::/64"),
    "another network": ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
    "no address": ("unknown", "unknown"),
}


@pytest.mark.parametrize(("client", "counted"), CLIENTS.values(), ids=CLIENTS)
def test_what_a_client_is_counted_by(client: str, counted: str) -> None:
    """A host with IPv6 has 2 to the 64 addresses to send from, and one count."""
    need = asked(RATE.replace("RATE", "rate: {by: client, over: 3, within: 1 hour}"), client=client)
    assert need == Need("rate", "it", (counted,), HOUR)


NOTHING = {
    "the rule does not hold": "rules:\n- {name: it, if: {subject: other, duplicate: yes}, then: discard}\n",
    "an earlier rule ended": "rules:\n- {name: a, then: stop}\n- {name: it, if: {duplicate: yes}, then: discard}\n",
    "another of any holds": (
        "rules:\n- {name: it, if: {any: [{duplicate: yes}, {subject: {contains: invoice}}]}, then: {file: A}}\n"
    ),
    "a value is absent": "rules:\n- {name: it, if: {duplicate: yes}, then: {file: '${header.X-None}'}}\n",
    "no sender to count by": "rules:\n- {name: it, if: {rate: {by: sender, over: 1, within: 1 hour}}, then: stop}\n",
}


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_nothing_is_asked_in_vain(text: str) -> None:
    """What is recorded is recorded only where all else in the rule holds, and rules above have not ended them."""
    envelope = replace(ENVELOPE, sender="")
    assert isinstance(decide(policy_of(text), facts_of(envelope=envelope), {}), Decision)


def test_a_message_without_an_id_is_no_duplicate() -> None:
    """Without a Message-ID there is nothing to ask about."""
    policy = policy_of("rules:\n- {name: it, if: {duplicate: yes}, then: discard}\n")
    decision = decide(policy, facts_of(b"Subject: x\n\n"), {})
    assert isinstance(decision, Decision)
    assert decision.matched == ()


def test_a_dry_run_says_what_it_assumes() -> None:
    """Without answers nobody is asked: rates are 0, nothing is a duplicate, or as the facts say."""
    policy = policy_of(RATE.replace("RATE", "rate: {by: sender, over: 3, within: 1 hour}"))
    decision = decide(policy, facts_of())
    assert decision.matched == ()
    assert "nobody was asked, assumed 0" in decision.rules[0].reason
    assert decide(policy, replace(facts_of(), assumed=(("rate", 4),))).matched == ("it",)


SITE = """\
rules:
- {name: edit, if: {body: {contains: x}}, then: {add_header: {X-A: b}}}
- {name: many, if: {authenticated: no, rate: {by: client, over: 2, within: 1 hour}}, then: defer}
- {name: one, if: {rate: {by: recipient, over: 5, within: 1 hour}}, then: reject}
"""


def test_a_session_asks_once_a_message() -> None:
    """In-line each fact is asked for once, at the first stage at which the rest of the rule holds, and kept."""
    told: list[Need] = []

    def answer(need: Need) -> Value:
        told.append(need)
        return 9 if need.key == ("no@example.com",) else 1

    session = SiteSession(policy_of(SITE, site=True), answer=answer)
    session.connect("192.0.2.7", "", local=False)
    session.helo("x")
    assert told == []
    session.mail("bob@example.org", "", tls=False, now=NOW)
    assert session.rcpt("no@example.com").verdict is Verdict.REJECT
    assert session.rcpt("alice@example.com").verdict is Verdict.NONE
    mail = facts_of().message
    session.headers(mail)
    session.body(mail)
    assert session.decision().verdict is Verdict.NONE
    assert told == [
        Need("rate", "many", ("192.0.2.7",), HOUR),
        Need("rate", "one", ("no@example.com",), HOUR),
        Need("rate", "one", ("alice@example.com",), HOUR),
    ]
    session.reset()
    session.mail("bob@example.org", "", tls=False, now=NOW)
    assert len(told) == 4


PROBLEMS = {
    "duplicate rejects": ("duplicate: yes", "reject", True, "`reject` in a site rule on `duplicate`"),
    "duplicate scores": ("duplicate: yes", "{score: 1}", True, "`score` in a site rule on `duplicate`"),
    "duplicate: no": ("duplicate: no", "stop", False, "expected `not: {duplicate: yes}`"),
    "an unknown program": (
        "command: scn",
        "stop",
        False,
        "does not allow the program 'scn'; it allows scan, did you m",
    ),
    "a command in a site rule": ("command: scan", "stop", True, "the condition 'command' is not known in a site rule"),
    "no time": ("rate: {by: sender, over: 1, within: 0}", "stop", False, "a rate within no time"),
    "no bound": ("rate: {by: sender, within: 1 hour}", "stop", False, "the key 'over' is missing"),
    "by something else": (
        "rate: {by: subject, over: 1, within: 1 h}",
        "stop",
        False,
        "found 'subject', expected client",
    ),
    "by login": ("rate: {by: login, over: 1, within: 1 h}", "stop", False, "the login is not known in a personal rule"),
}


@pytest.mark.parametrize(("condition", "then", "site", "wanted"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_cannot_be_asked(condition: str, then: str, site: bool, wanted: str) -> None:
    """A condition on memory that could lose mail, or asks for nothing, is a problem."""
    text = f"rules:\n- name: it\n  if:\n    {condition}\n  then: {then}\n"
    policy, problems = load(text.encode(), "f", site=site, programs=("scan",))
    assert policy is None
    assert wanted in str(problems[0])


@pytest.mark.parametrize("word", ["rate: {by: sender, over: 1, within: 1 h}", "duplicate: yes"])
def test_an_edge_without_memory_refuses_the_rule(word: str) -> None:
    """What the edge cannot answer is a problem at its place, and never taken for false."""
    text = f"rules:\n- name: it\n  if:\n    {word}\n  then: stop\n"
    policy, problems = load(text.encode(), "f", site=False, can=())
    assert policy is None
    assert str(problems[0]) == f"f:4:5: the condition {word.partition(':')[0]!r} cannot be used here yet"


def test_each_stage_asks_no_more_than_it_knows() -> None:
    """A rate by client is asked when a message begins, not for a connection that brings none."""
    policy = policy_of(SITE, site=True)
    found = {stage: decide(policy, facts_of(stage=stage), {}) for stage in Stage}
    assert [stage.word for stage, one in found.items() if isinstance(one, Need)] == ["mail", "rcpt", "headers", "body"]
