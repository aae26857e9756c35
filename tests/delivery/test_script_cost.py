"""The benchmark of scripts runs, and its bounds hold where they must by far."""

from __future__ import annotations

import pytest

from tests.benchmarks.script import measure

pytestmark = pytest.mark.root


def test_a_script_costs_no_fork_a_message() -> None:
    """A warm script costs a few times what a rule does, not the tens of a fork; and senders add nothing."""
    found = measure(count=20, rounds=2)
    cpu = {name: one for name, (one, _) in found.items()}
    assert cpu["script"] < 10 * cpu["rule"] + 0.006
    assert cpu["10,000 states"] < 3 * cpu["10 states"] + 0.006
