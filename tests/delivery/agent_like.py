"""A process as an agent is: the filters of the zygote, a person's ids, an agent's own filter; and what it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from milterapp.delivery import linux, sandbox, seccomp
from milterapp.delivery.zygote import LIMITS
from tests.delivery.inside import inside

__all__ = ["UID", "Run", "as_agent"]

UID = 20001


@dataclass(frozen=True)
class Run:
    """How one script process is run."""

    work: sandbox.Work
    folder: str | None = None
    bounds: sandbox.Bounds = field(default_factory=sandbox.Bounds)
    answer: sandbox.Ask | None = None
    floor: str = "good"


def as_agent(run: Run, *, before: Callable[[], object] = lambda: None, times: int = 1) -> Any:
    """Return [how, text] of the last of some runs from an agent: `answer`, or the reason of the SandboxError."""

    def agent() -> list[str]:
        seccomp.install(seccomp.service(1000, 1000))
        linux.become(UID, UID)
        linux.undumpable()
        linux.limit(LIMITS)
        seccomp.install(seccomp.agent())
        os.chdir("/")
        before()
        for _ in range(times):
            try:
                found = ["answer", sandbox.run(run.work, run.folder, run.bounds, run.answer, run.floor).decode()]
            except sandbox.SandboxError as error:
                found = [error.reason, str(error)]
        return found

    return inside(agent)
