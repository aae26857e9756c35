"""A hostile user: links that come and go in the home while an agent delivers there.

`python -m tests.soak.links` does so with ten thousand deliveries.
"""

from __future__ import annotations

import pytest

from tests.soak.links import soak


@pytest.mark.root
def test_nothing_outside_the_home_is_made_or_changed() -> None:
    """Five hundred deliveries while their user exchanges folders and files with links: outside nothing happens."""
    outcome = soak(500, seed=4)
    assert outcome.defects == []
    assert outcome.swaps > 40
    assert outcome.answers["ok"] > 0
    assert set(outcome.answers) <= {"ok", "defer"}
