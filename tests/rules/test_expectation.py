"""Tests of milterapp.rules.expectation and of the tests beside rules."""

from __future__ import annotations

import pytest

from milterapp.rules.beside import run_tests
from milterapp.rules.expectation import Expectation
from milterapp.rules.load import load
from tests.rules.helpers import decide_text, indent, rule_of

# name: (then, expectation, whether it is met)
WORDS = {
    "a verdict": ("reject", "reject", True),
    "another verdict": ("reject", "discard", False),
    "none": ("stop", "none", True),
    "keep is none with a delivery": ("stop", "keep", True),
    "file": ("file: Lists/Python", "file:Lists/Python", True),
    "file anywhere": ("file: Lists/Python", "file", True),
    "another folder": ("file: Lists/Python", "file:Lists", False),
    "filed is not kept": ("file: Lists/Python", "keep", False),
    "forward": ("forward: a@example.org", "forward:A@example.org", True),
    "another address": ("forward: a@example.org", "forward:b@example.org", False),
    "reply": ("reply: I am away", "reply", True),
    "vacation": ("vacation: I am away", "vacation", True),
    "no vacation": ("reply: I am away", "vacation", False),
    "pipe": ("pipe: spool", "pipe:spool", True),
    "pipe elsewhere": ("pipe: spool", "pipe:scan", False),
}


@pytest.mark.parametrize(("then", "word", "met"), WORDS.values(), ids=WORDS)
def test_a_word_of_expect(then: str, word: str, met: bool) -> None:
    """`--expect` takes a verdict, or a delivery with where it goes."""
    decision = decide_text(rule_of("kind: list", then))
    assert (Expectation.parse(word).unmet(decision) == "") is met


@pytest.mark.parametrize("word", ["rejct", "reject:5.7.1", "file:", ""], ids=["unknown", "argument", "colon", "empty"])
def test_a_wrong_word_of_expect(word: str) -> None:
    """A word that no decision can meet is refused, but for a delivery without its place."""
    if word == "file:":
        assert Expectation.parse(word) == Expectation("file")
        return
    with pytest.raises(ValueError, match="expected one of none, accept"):
        Expectation.parse(word)


MESSAGE = "From: a@example.org\nList-Id: <l.example.org>\n\nhello\n"

# name: (then, the rest of a test beside the rules, the problem or "")
CASES = {
    "a word": ("discard", "expect: discard", ""),
    "a mapping": ("file: A/B", "expect: {file: A/B}", ""),
    "a reply's text": ("reject: 5.7.1 Not here", "expect: {reject: Not here}", ""),
    "another reply": (
        "reject: 5.7.1 Not here",
        "expect: {reject: Nowhere}",
        "expected reject: Nowhere, but it came to reject",
    ),
    "an edit": ("add_header: {X-A: b}", "expect: {add_header: {X-A: b}}", ""),
    "another edit": ("add_header: {X-A: b}", "expect: {add_header: {X-A: c}}", "expected edit: add_header X-A: c, but"),
    "a removed header": ("remove_header: X-A", "expect: {remove_header: X-A}", ""),
    "a banner": ("banner: Mind what you open", "expect: {banner: Mind}", ""),
    "another banner": ("banner: Mind what you open", "expect: {banner: Care}", "expected banner: Care, but it came to"),
    "a footer is no banner": ("footer: Mind", "expect: {banner: Mind}", "none, keep, footer Mind"),
    "a new body": ("replace_body: gone", "expect: {replace_body: gone}", ""),
    "no attachment": ("drop_attachments", "expect: {drop_attachments: yes}", "expected drop_attachments: yes, but"),
    "a prepended header": ("prepend_header: {X-A: b}", "expect: {prepend_header: {X-A: b}}", ""),
    "a tag": ("tag: Odd", "expect: {tag: odd}", ""),
    "another tag": ("tag: odd", "expect: {tag: even}", "expected tag: even"),
    "a score": ("score: 2.5", "expect: {score: 2.5}", ""),
    "a line of the log": ("log: 'from ${from.address}'", "expect: {log: from a@example.org}", ""),
    "a prefix": ("prefix_subject: '[X]'", "expect: {prefix_subject: '[X]'}", ""),
    "a rule": ("stop", "expect: {rule: it}", ""),
    "no rule": ("stop", "expect: {no_rule: it}", "expected no_rule: it, but it came to none"),
    "several": ("- add_header: {X-A: b}\n- file: A", "expect: [{file: A}, {add_header: {X-A: b}}, {rule: it}]", ""),
    "the time": ("file: '${now.year}'", "now: 2031-01-01\nexpect: {file: '2031'}", ""),
    "the recipient": ("file: '${detail}'", "recipient: me+shop@example.org\nexpect: {file: shop}", ""),
}


@pytest.mark.parametrize(("then", "case", "wanted"), CASES.values(), ids=CASES)
def test_a_test_beside_the_rules(then: str, case: str, wanted: str) -> None:
    """A test says which message comes to what; one that fails says what it came to instead."""
    text = rule_of("kind: list", then)
    text += f"tests:\n  - name: t\n    message: |\n{indent(MESSAGE, 6)}\n{indent(case, 4)}\n"
    policy, problems = load(text.encode(), "f", site=False)
    assert (policy is None) is bool(wanted)
    assert all(wanted in str(problem) for problem in problems)
    assert bool(problems) is bool(wanted)
    unchecked, none = load(text.encode(), "f", site=False, tests=False)
    assert none == ()
    assert unchecked is not None
    assert run_tests(unchecked) == problems


def test_a_site_test_goes_stage_by_stage() -> None:
    """A test of site rules names envelope facts, and sees what each recipient got."""
    text = rule_of("recipient: b@example.com", "reject")
    text += "tests:\n  - name: one of two\n    recipient: [a@example.com, b@example.com]\n"
    text += "    message: x\n    expect: none\n"
    text += "  - name: the one\n    recipient: b@example.com\n    sender: <>\n    message: x\n    expect: reject\n"
    policy, problems = load(text.encode(), "f", site=True)
    assert policy is not None
    assert [str(problem) for problem in problems] == []
