"""What all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding, nothing is kept from run to run, and the same code has the same examples: what fails was
# changed. `--hypothesis-profile=search` takes new ones each time.
for name, same in (("milterapp", True), ("search", False)):
    settings.register_profile(
        name, deadline=None, database=None, derandomize=same, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("milterapp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none; `packaging/test` runs everything."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("postfix"):
            item.add_marker(pytest.mark.skip(reason="needs root: run packaging/test"))
