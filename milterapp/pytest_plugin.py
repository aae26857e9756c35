"""The pytest plugin: `mailapp`, which gives applications to speak to (milterapp.testing).

With --mailapp-account=NAME they are spoken to through the real Postfix of this host (milterapp.testing_postfix).

Must never: cost a test run that does not use it anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from milterapp.testing import Application
    from milterapp.testing_postfix import Host

__all__ = ["mailapp"]

_PORT = 2525


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("milterapp", "scripts spoken to through Postfix: milterapp-script(7), section TESTING")
    group.addoption(
        "--mailapp-account", action="append", default=[], metavar="NAME",
        help="speak to mailapp through the Postfix of this host, as mail of this account (repeatable; needs root)",
    )  # fmt: skip
    group.addoption(
        "--mailapp-sink", type=int, default=_PORT, metavar="PORT",
        help=f"the port on 127.0.0.1 to which default_transport leads (default: {_PORT})",
    )  # fmt: skip


@pytest.fixture(scope="session")
def _mailapp_host(request: pytest.FixtureRequest) -> Iterator[Host | None]:
    """Give the host to speak to applications through, None where they run in this process."""
    accounts: list[str] = request.config.getoption("--mailapp-account")
    if not accounts:
        yield None
        return
    if os.geteuid() != 0:
        pytest.fail("--mailapp-account needs root: it puts scripts into that account's home", pytrace=False)
    from milterapp.testing_postfix import Host

    port = request.config.getoption("--mailapp-sink")
    try:
        host = Host(accounts, port)
    except (KeyError, OSError, RuntimeError) as error:
        pytest.fail(f"--mailapp-account={','.join(accounts)} --mailapp-sink={port}: {error}", pytrace=False)
    yield host
    host.close()


@pytest.fixture
def mailapp(_mailapp_host: Host | None) -> Iterator[Callable[..., Application]]:
    """Give what makes an application of a script: `mailapp("blog.py", user="blog@example.org")`."""
    made: list[Application] = []

    def make(*arguments: str, **options: str) -> Application:
        if _mailapp_host is None:
            from milterapp.testing import Application

            made.append(Application(*arguments, **options))  # type: ignore[arg-type]  # handed on as they are
        else:
            from milterapp.testing_postfix import PostfixApplication

            made.append(PostfixApplication(_mailapp_host, *arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()
