"""What is counted, and what was there before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.state.database import StateError
from milterapp.state.rates import Rates

HOUR = 3600.0
KEY = ("bob@example.org",)


@pytest.fixture
def rates(tmp_path: Path) -> Iterator[Rates]:
    """Give an empty memory."""
    tmp_path.chmod(0o700)
    memory = Rates(str(tmp_path / "rates.sqlite"), patience=60)  # threads that wait for one another
    yield memory
    memory.close()


def test_threads_wait_for_one_another_no_longer_than_for_others(tmp_path: Path) -> None:
    """Behind a thread that waits for somebody else's transaction, the others wait as long as it does, not in turn."""
    tmp_path.chmod(0o700)
    memory = Rates(str(tmp_path / "rates.sqlite"), patience=0.05)
    failed: list[str] = []

    def count() -> None:
        try:
            memory.rate("r", KEY, "m", now=1000.0, within=HOUR)
        except StateError as error:
            failed.append(str(error))

    with memory.database.transaction():
        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        thread.join(60)
    assert not thread.is_alive()
    assert [one.rpartition(": ")[2] for one in failed] == ["other threads have had it for 0.05 s"]
    assert memory.rate("r", KEY, "m", now=1000.0, within=HOUR) == 1
    memory.close()


def test_messages_within_the_time_are_counted(rates: Rates) -> None:
    """Each message counts once, itself included, as long as the time lasts."""
    counts = [rates.rate("r", KEY, f"m{at}", now=1000.0 + at, within=HOUR) for at in range(3)]
    assert counts == [1, 2, 3]
    assert rates.rate("r", KEY, "later", now=1000.0 + HOUR, within=HOUR) == 3
    assert rates.rate("r", KEY, "much later", now=1000.0 + 3 * HOUR, within=HOUR) == 1


def test_a_retry_has_its_first_answer(rates: Rates) -> None:
    """A message that is tried again is not counted again, however many came in between."""
    assert rates.rate("r", KEY, "m1", now=1000.0, within=HOUR) == 1
    assert rates.rate("r", KEY, "m2", now=1001.0, within=HOUR) == 2
    assert rates.rate("r", KEY, "m1", now=1002.0, within=HOUR) == 1
    assert not rates.duplicate("r", KEY, "m1", now=1000.0, within=HOUR)
    assert not rates.duplicate("r", KEY, "m1", now=1001.0, within=HOUR)


@pytest.mark.parametrize(
    ("rule", "key", "wanted"),
    [("r", KEY, 2), ("s", KEY, 1), ("r", ("dora@example.org",), 1), ("r", ("bob@", "example.org"), 1)],
    ids=["the same", "another rule", "another key", "the key in two"],
)
def test_each_rule_counts_for_itself(rates: Rates, rule: str, key: tuple[str, ...], wanted: int) -> None:
    """What one rule counts by one key is nobody else's."""
    rates.rate("r", KEY, "m1", now=1000.0, within=HOUR)
    assert rates.rate(rule, key, "m2", now=1001.0, within=HOUR) == wanted


@pytest.mark.parametrize(("now", "wanted"), [(1001.0, True), (1000.0 + HOUR, False)], ids=["within", "after"])
def test_a_duplicate(rates: Rates, now: float, wanted: bool) -> None:
    """A key that was there within the time is a duplicate, for another message only."""
    assert not rates.duplicate("r", KEY, "m1", now=1000.0, within=HOUR)
    assert rates.duplicate("r", KEY, "m2", now=now, within=HOUR) is wanted


def test_what_counts_no_more_is_forgotten(rates: Rates) -> None:
    """Only what can still make a difference is kept."""
    rates.rate("r", KEY, "m1", now=1000.0, within=10.0)
    rates.rate("r", KEY, "m2", now=1000.0, within=HOUR)
    rates.rate("r", KEY, "m3", now=1000.0, within=10.0)
    assert rates.expire(1011.0, 1) == 1
    assert rates.expire(1011.0) == 1
    assert rates.expire(1011.0) == 0


def test_no_two_get_the_same_number(rates: Rates) -> None:
    """Asked by several threads at once, each message has a number of its own."""
    found: list[int] = []

    def count(name: str) -> None:
        found.extend(rates.rate("r", KEY, f"{name}{at}", now=1000.0, within=HOUR) for at in range(10))

    threads = [threading.Thread(target=count, args=(name,)) for name in "abcd"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(found) == list(range(1, 41))
