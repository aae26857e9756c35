"""Tests of what rules leave for the rules below them: scores, tags, and lines for the log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.envelope import Stage
from milterapp.rules.decide import decide
from milterapp.rules.decision import Verdict
from milterapp.rules.load import load
from tests.rules.helpers import decide_text, facts_of, policy_of

ADDED = """\
rules:
- name: one
  if: {subject: {contains: invoice}}
  then: {score: 2.5}
- name: other
  if: {from: {domain: example.org}}
  then: [{score: 3}, {tag: [known, by-Mail]}, {log: 'from ${from.domain}'}]
- name: less
  if: {kind: list}
  then: {score: -1}
- name: elsewhere
  if: {subject: nothing of it}
  then: {score: 100}
- name: watched
  observe: yes
  then: {score: 100}
"""


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("score: {over: 4}", True),
        ("score: {over: 4.5}", False),
        ("score: 4.5", True),
        ("score: {under: 4.5}", False),
        ("tag: known", True),
        ("tag: BY-MAIL", True),
        ("tag: [unknown, known]", True),
        ("tag: unknown", False),
        ("tag: {in: them}", True),
        ("not: {tag: known}", False),
        ("any: [{tag: unknown}, {score: {over: 4}}]", True),
    ],
)
def test_what_rules_above_left(condition: str, wanted: bool) -> None:
    """Scores of the rules above that hold add up, tags gather; rules that only observe leave nothing."""
    text = f"lists:\n  them: [known]\n{ADDED}- name: it\n  if:\n    {condition}\n  then: {{file: Found}}\n"
    decision = decide_text(text)
    assert ("it" in decision.matched) is wanted
    assert (decision.score, decision.tags) == (4.5, ("by-mail", "known"))
    assert decision.log == ("from example.org",)
    assert decision.to_json()["score"] == 4.5


def test_rules_below_leave_nothing_for_those_above() -> None:
    """A rule sees what stands above it, and so does its line of the trace."""
    decision = decide_text(
        "rules:\n- {name: above, if: {score: {over: 1}}, then: {file: A}}\n- {name: it, then: {score: 2}}\n"
        "- {name: below, if: {score: {over: 1}}, then: {file: B}}\n"
    )
    assert decision.matched == ("it", "below")
    assert [(one.matched, one.reason) for one in decision.rules] == [
        (False, "score over 1: 0"),
        (True, "no condition"),
        (True, "score over 1: 2"),
    ]


def test_marks_of_an_earlier_stage_count() -> None:
    """A personal rule begins with what the site's rules came to."""
    policy = policy_of("rules:\n- {name: it, if: {score: {over: 4}, tag: spam}, then: {file: Spam}}\n")
    facts = facts_of()
    assert decide(policy, facts).matched == ()
    assert decide(policy, replace(facts, score=5.0, tags=frozenset({"spam"}))).matched == ("it",)


SCORED = """\
rules:
- {name: edit, if: {body: {contains: x}}, then: {add_header: {X-A: b}}}
- {name: client, if: {client: 192.0.2.7}, then: {score: 5}}
- {name: subject, if: {subject: {contains: invoice}}, then: {score: 2}}
- {name: tagged, if: {helo: mx.example.org}, then: {tag: ours}}
- {name: no, if: {score: {over: LIMIT}}, then: reject}
- {name: ours, if: {tag: ours}, then: discard}
"""


def test_a_score_is_known_when_all_above_it_are() -> None:
    """A score is asked about at the first stage at which no rule above could change it, whatever else is open."""
    policy = policy_of(SCORED.replace("LIMIT", "6"), site=True)
    stages = {stage: decide(policy, facts_of(stage=stage)) for stage in Stage}
    assert [stage.word for stage, one in stages.items() if one.settled] == ["headers", "body"]
    assert stages[Stage.HEADERS].verdict is stages[Stage.BODY].verdict is Verdict.REJECT


def test_a_tag_that_is_there_stays() -> None:
    """A rule on a tag waits for no rule above it where the tag is there already."""
    policy = policy_of(SCORED.replace("- {name: no, if: {score: {over: LIMIT}}, then: reject}\n", ""), site=True)
    assert decide(policy, facts_of(stage=Stage.HELO)).verdict is Verdict.DISCARD
    assert not decide(policy, facts_of(stage=Stage.CONNECT)).settled


def test_what_could_not_be_told_leaves_the_score_open() -> None:
    """A rule above that ran into a limit could have scored: a rule on the score is not told either."""
    policy = policy_of(
        "rules:\n- {name: a, if: {raw: {contains: x}}, then: {score: 1}}\n"
        "- {name: b, if: {score: {over: 5}}, then: discard}\n"
    )
    mail = facts_of().message
    limited = facts_of(limits=replace(mail.limits, decoded_bytes=10))
    assert "more than 10 bytes" in decide(policy, limited).could_not_tell


def test_marks_for_one_recipient_come_before_the_header() -> None:
    """A site rule on one recipient cannot ask for a score that the header may change."""
    _, problems = load(
        b"rules:\n- {name: a, if: {subject: x}, then: {score: 1}}\n"
        b"- {name: b, if: {recipient: a@b.example, score: {over: 0}}, then: reject}\n",
        "f",
        site=True,
    )
    assert [str(one)[:70] for one in problems] == [
        "f:3:42: `score` in a rule on one `recipient`, but 'a' before it marks "
    ]
