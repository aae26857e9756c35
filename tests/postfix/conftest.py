"""A real mail host for the tests in this folder, one for all of them, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postfix.harness import Site, in_world, running


@pytest.fixture(scope="session")
def host() -> Iterator[Site]:
    """A Postfix with milterapp attached and its services running."""
    if not in_world():
        pytest.fail("these tests change a whole mail host: run them through packaging/test", pytrace=False)
    with running() as site:
        yield site


@pytest.fixture
def site(host: Site) -> Site:
    """The host, with empty mailboxes, no rules, and everything running."""
    host.reset()
    return host
