"""What all tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import turns
from tests.delivery.clients import PYTHON_CLIENT, Command, build

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


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what this run takes of the tests, where packaging/everything has started several."""
    return turns.run(session) if turns.FOLDER in os.environ and not session.config.option.collectonly else None


@pytest.fixture(scope="session")
def compiled() -> Iterator[Command]:
    """Compile the pipe client, once, where every account may run it."""
    if os.geteuid() != 0 or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs root and a C compiler: run packaging/test")
    folder = Path(tempfile.mkdtemp(prefix="milterapp-client-"))
    folder.chmod(0o755)
    yield build(folder / "milterapp-client")
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=["python", "compiled"])
def program(request: pytest.FixtureRequest) -> Command:
    """Give what starts a pipe client: first the one that Python runs, then the compiled one."""
    if request.param == "python":
        return PYTHON_CLIENT
    found: Command = request.getfixturevalue("compiled")
    return found
