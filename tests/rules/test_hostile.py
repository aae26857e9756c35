"""Hostile rule files and messages: each has a stated answer, in bounded time."""

from __future__ import annotations

import gc
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.rules.beside import run_tests
from milterapp.rules.decide import decide
from milterapp.rules.deliveries import File
from milterapp.rules.load import load
from tests.rules.helpers import facts_of, policy_of, rule_of

# Generous: other work may share the machine. What these hold off is hours, not tenths.
SECONDS = 5.0


def spent(begun: float) -> float:
    """Return the CPU time since."""
    return time.process_time() - begun


FILES = {
    "brackets": b"rules: " + b"[" * 100_000,
    "braces": b"rules: " + b"{a: " * 100_000,
    "items": b"- " * 100_000,
    "nots": b"rules:\n- name: a\n  if: " + b"{not: " * 1000 + b"x" + b"}" * 1000,
    "all the same key": b"a: b\n" * 100_000,
    "aliases": b"a: &a [x]\n" + b"b: [*a, *a, *a, *a]\n" * 20_000,
    "a long line": b"rules: " + b"x" * 3_000_000,
    "many values": b"rules: [" + b"a, " * 700_000 + b"a]",
    "many problems": b"rules:\n" + b"- nmae: x\n" * 50_000,
    "quotes": b"rules: '" + b"''" * 1_000_000,
    "colons": b"a: " * 500_000,
    "anchors": b"&a " * 100_000,
    "nothing": b"",
    "NULs": b"\0" * 1000,
    "binary": bytes(range(256)) * 100,
    "a long key": b"a" * 100_000 + b": b",
}


@pytest.mark.parametrize("source", FILES.values(), ids=FILES)
def test_a_hostile_rule_file_is_refused_in_time(source: bytes) -> None:
    """No rule file takes the loader down or holds it up; each is refused with a problem."""
    begun = time.process_time()
    policy, problems = load(source, "f", site=False)
    assert spent(begun) < SECONDS
    assert policy is None
    assert problems
    assert all(len(str(problem)) < 1500 for problem in problems)
    assert len(problems) < 200


def test_ten_thousand_rules() -> None:
    """Ten thousand rules load, and a message costs no more than with ten."""
    text = "rules:\n" + "".join(
        f"- name: rule {at}\n  if: {{subject: {{contains: word{at}z}}}}\n  then: {{file: F{at}}}\n"
        for at in range(10_000)
    )
    begun = time.process_time()
    policy = policy_of(text)
    assert spent(begun) < 4 * SECONDS
    gc.collect()  # else the ten thousand, and all else that the process holds, may be gone through below
    begun = time.process_time()
    decision = decide(policy, facts_of(b"Subject: a word9876z here\n\n"))
    assert spent(begun) < 0.2
    assert decision.deliveries == (File(("F9876",)),)


PATTERNS = {
    "nested stars": "(a*)*b",
    "nested plus": "(x+x+)+y",
    "alternation": "(a|aa)+$",
    "counted": "(a{1,30}){1,30}b",
    "dots": ".*.*.*.*.*.*.*=",
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_no_pattern_is_slow(pattern: str) -> None:
    """What takes a backtracking engine for ever is linear here."""
    policy = policy_of(rule_of(f"subject: {{regex: '{pattern}'}}"))
    begun = time.process_time()
    decide(policy, facts_of(b"Subject: " + b"a" * 20_000 + b"\n\n"))
    assert spent(begun) < SECONDS


ANY = """\
rules:
- name: all
  if:
    any:
    - from: {contains: x}
    - subject: {regex: 'x+'}
    - body: {contains: x}
    - html: {contains: x}
    - attachment: {name: {glob: '*x'}}
    - malformed: yes
    - header: {X-A: {over: 5}}
    - list_id: .x
    - kind: bounce
  then:
    file: 'A/${from.name}/${subject}'
- name: told
  then:
  - add_header: {X-Seen: '${subject} ${from.name} ${message_id}'}
  - reply: '${from.name}, ${subject}'
"""
POLICY = policy_of(ANY)

FIELDS = st.sampled_from(["From", "Subject", "List-Id", "Content-Type", "X-A", "Message-ID", "To"])
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(str.encode) | st.binary(max_size=30)
MAILS = st.builds(
    lambda fields, body: b"".join(name.encode() + b": " + value + b"\n" for name, value in fields) + b"\n" + body,
    st.lists(st.tuples(FIELDS, VALUES), max_size=6),
    st.binary(max_size=60),
)


@settings(max_examples=200, deadline=None)
@given(MAILS | st.binary(max_size=200))
def test_no_message_raises(raw: bytes) -> None:
    """Whatever a message holds, it is decided for, and what its values become is harmless."""
    decision = decide(POLICY, facts_of(raw))
    str(decision.to_json())
    for edit in decision.edits:
        assert str(edit.to_json()["value"]).isprintable()
    for delivery in decision.deliveries:
        if isinstance(delivery, File):
            assert len(delivery.folder) == 3
            assert not any("/" in level or level in ("", ".", "..") for level in delivery.folder)


def test_tests_beside_rules_are_bounded_by_their_file() -> None:
    """Running a policy's tests twice finds the same."""
    assert run_tests(POLICY) == run_tests(POLICY) == ()


LINES = st.sampled_from(
    [
        "rules:",
        "- name: a",
        "  if:",
        "    subject: x",
        "    not: {tls: yes}",
        "  then: stop",
        "  then:",
        "  - reject",
        "x: y",
        "lists:",
        "  a: [b]",
        "tests:",
        "- name: t",
        "  message: x",
        "  expect: none",
        "    from: {in: a}",
        "  observe: yes",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=12), st.booleans())
def test_no_rule_file_raises(lines: list[str], site: bool) -> None:
    """Whatever stands in a rule file, it is a policy without a problem or problems without a policy."""
    policy, problems = load("\n".join(lines).encode(), "f", site=site)
    assert (policy is None) is any(not problem.warning for problem in problems)


DEAR = {
    "dots in a row": "a..............................b{}",
    "a window": "a[ab]{{39}}c{}",
    "groups in a row": "(a|b)*a" + "(a|b)" * 20 + "c{}",
    "no text at all": "[ab]+[ba]+[a-c]+.?",
    "stars": "a.*b.*a.*{}",
}
LETTERS = "".join("ab"[(at * at + at // 7) % 2] for at in range(1000))


@pytest.mark.parametrize("pattern", DEAR.values(), ids=DEAR)
def test_a_thousand_dear_patterns_for_a_body(pattern: str) -> None:
    """Patterns made to have a state for every byte cost a megabyte no more than their time; then it is not told."""
    rules = "".join(
        f"- name: r{at}\n  if: {{body: {{regex: '{pattern.format(at)}'}}}}\n  then: {{add_header: {{X-A: b}}}}\n"
        for at in range(1000)
    )
    policy = policy_of("rules:\n" + rules, site=True)
    facts = facts_of(b"Subject: x\n\n" + LETTERS.encode() * 1000)
    assert len(facts.message.text) > 900_000
    begun = time.process_time()
    decision = decide(policy, facts)
    assert spent(begun) < SECONDS
    assert decision.could_not_tell == "" or "patterns that took more than" in decision.could_not_tell


@pytest.mark.parametrize("pattern", [r"(\w{1,20}\s?){20}x", "a[ab]{41}", "(ab?){0,50}"])
def test_a_pattern_too_dear_for_a_body(pattern: str) -> None:
    """A counted repetition that could cost seconds a message is refused for bodies, and taken for a subject."""
    policy, problems = load(rule_of(f"body: {{regex: '{pattern}'}}").encode(), "f", site=False)
    assert policy is None
    assert "is too dear for a whole body" in str(problems[0])
    policy_of(rule_of(f"subject: {{regex: '{pattern}'}}"))
