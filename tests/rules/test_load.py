"""Tests of milterapp.rules.load."""

from __future__ import annotations

from milterapp.rules.load import load

RULES = rb"""
lists:
  family: [mum@example.org, .cousins.example]
rules:
  - name: spam
    if:
      - subject: {regex: '\bviagra\b'}
      - not: {from: {in: family}}
    then: reject
tests:
  - name: an advertisement
    message: |
      From: a@example.net
      Subject: viagra now

      hello
    expect: reject
"""


def test_a_policy_is_loaded_and_its_tests_pass() -> None:
    """A file without a slip gives a policy and no problem."""
    policy, problems = load(RULES, "rules.yaml", site=True)
    assert problems == ()
    assert policy is not None
    assert [rule.name for rule in policy.rules] == ["spam"]


def test_a_failing_test_refuses_the_file() -> None:
    """A test beside the rules that fails is a problem at its place, and there is no policy."""
    policy, problems = load(RULES.replace(b"expect: reject", b"expect: none"), "rules.yaml", site=True)
    assert policy is None
    assert [str(problem) for problem in problems] == [
        "rules.yaml:11:5: the test 'an advertisement' expected none, but it came to reject (550 5.7.1 Message refused)"
    ]
