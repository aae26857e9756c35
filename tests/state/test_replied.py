"""Who was replied to, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.state.replied import Replied

WEEK = 7 * 86400


@pytest.fixture
def replied(tmp_path: Path) -> Iterator[Replied]:
    """Give an empty memory of replies."""
    tmp_path.chmod(0o700)
    memory = Replied(str(tmp_path / "replied.sqlite"))
    yield memory
    memory.close()


@pytest.mark.parametrize(
    ("second", "allowed"),
    [
        pytest.param(("bob", "a@example.org", "away", "m2", "0", 1000 + WEEK - 1), False, id="within the interval"),
        pytest.param(("bob", "a@example.org", "away", "m2", "0", 1000 + WEEK), True, id="after the interval"),
        pytest.param(("bob", "A@Example.ORG", "away", "m2", "0", 1001), False, id="another case"),
        pytest.param(("bob", "a@example.org", "away", "m1", "0", 1001), True, id="the same message again"),
        pytest.param(("bob", "b@example.org", "away", "m2", "0", 1001), True, id="another correspondent"),
        pytest.param(("bob", "a@example.org", "moved", "m2", "0", 1001), True, id="another rule"),
        pytest.param(("carol", "a@example.org", "away", "m2", "0", 1001), True, id="another user"),
    ],
)
def test_one_reply_for_each_interval(
    replied: Replied, second: tuple[str, str, str, str, str, int], allowed: bool
) -> None:
    """A rule of one user replies to one correspondent once in the interval; a retry of that reply is no second one."""
    assert replied.claim("bob", "a@example.org", "away", "m1", "0", 1000, WEEK)
    assert replied.claim(*second, WEEK) is allowed


def test_a_reply_that_did_not_leave_does_not_count(replied: Replied) -> None:
    """A claim given back lets the next message be answered; nobody can give back another message's claim."""
    assert replied.claim("bob", "a@example.org", "away", "m1", "0", 1000, WEEK)
    replied.release("bob", "a@example.org", "away", "m2", "0")
    assert not replied.claim("bob", "a@example.org", "away", "m3", "0", 1001, WEEK)
    replied.release("bob", "a@example.org", "away", "m1", "0")
    assert replied.claim("bob", "a@example.org", "away", "m3", "0", 1002, WEEK)


def test_a_step_gives_back_its_own_claim(replied: Replied) -> None:
    """Of two replies of one rule the second shares the first one's claim, and gives it not back for it."""
    assert replied.claim("bob", "a@example.org", "away", "m1", "0", 1000, WEEK)
    assert replied.claim("bob", "a@example.org", "away", "m1", "1", 1000, WEEK)
    replied.release("bob", "a@example.org", "away", "m1", "1")
    assert not replied.claim("bob", "a@example.org", "away", "m2", "0", 1001, WEEK)


def test_thousands_are_remembered(replied: Replied) -> None:
    """Two thousand correspondents are each remembered (RFC 5230 section 4.2 asks for a thousand)."""
    people = [f"{number}@example.org" for number in range(2000)]
    assert all(replied.claim("bob", one, "away", "m1", "0", 1000, WEEK) for one in people)
    assert not any(replied.claim("bob", one, "away", "m2", "0", 2000, WEEK) for one in people)


def test_old_claims_are_forgotten(replied: Replied) -> None:
    """Expiry takes the claims older than the date, and nothing else."""
    replied.claim("bob", "a@example.org", "away", "m1", "0", 1000, WEEK)
    replied.claim("bob", "b@example.org", "away", "m2", "0", 2000, WEEK)
    assert replied.expire(2000) == 1
    assert replied.claim("bob", "a@example.org", "away", "m3", "0", 2001, WEEK)
    assert not replied.claim("bob", "b@example.org", "away", "m3", "0", 2001, WEEK)
