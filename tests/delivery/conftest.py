"""What tests of the agent share: a user with a home, and that user's agents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.delivery.agent_process import AgentProcess, Person, Start


@pytest.fixture
def person() -> Iterator[Person]:
    """Give a user with an empty home."""
    made = Person()
    yield made
    made.close()


@pytest.fixture
def start(person: Person) -> Iterator[Start]:
    """Give what starts agents of that user; they are ended with the test, and must end well."""
    running: list[AgentProcess] = []

    def started(**settings: Any) -> AgentProcess:
        running.append(AgentProcess(person, **settings))
        return running[-1]

    yield started
    assert [agent.close() for agent in running] == [0] * len(running)
