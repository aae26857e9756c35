"""The pytest plugin: `mailapp`, which gives applications to speak to (milterapp.testing).

Must never: cost a test run that does not use it anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from milterapp.testing import Application

__all__ = ["mailapp"]


@pytest.fixture
def mailapp() -> Iterator[Callable[..., Application]]:
    """Give what makes an application of a script: `mailapp("blog.py", user="blog@example.org")`."""
    from milterapp.testing import Application

    made: list[Application] = []

    def make(*arguments: str, **options: str) -> Application:
        made.append(Application(*arguments, **options))  # type: ignore[arg-type]  # handed on as they are
        return made[-1]

    yield make
    for one in made:
        one.close()
