"""Scripts for the command line: run for a dry run as agent or spawner run them, and loaded to be checked, sandboxed.

Must never: run a script outside the sandbox, or change what scripts remember.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from milterapp.commands.failure import complain
from milterapp.delivery import sandbox
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.in_line import failed, understood
from milterapp.delivery.remembering import Remembering
from milterapp.delivery.rulefile import ScriptPlace, UnsafeError, plain_files
from milterapp.delivery.scripts import MEMORY, Runner, last_line, plan_limits, run_script
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.rules.decision import Scripted
from milterapp.rules.lists import NamedList
from milterapp.rules.membership import Membership
from milterapp.rules.problem import Place, Problem
from milterapp.rules.truth import Failed
from milterapp.script.examining import examine
from milterapp.script.plan import Failure
from milterapp.script.run import Job, work
from milterapp.settings import Settings
from milterapp.state.conversations import Conversations
from milterapp.state.database import StateError

__all__ = ["NONE", "Sources", "beside", "examined"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAMED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def _nowhere(_: str) -> Iterator[ScriptPlace]:
    yield ScriptPlace()


@dataclass(frozen=True, slots=True)
class Sources:
    """The scripts that rules name. sources: by that name; place: gives where one lies; state: the folder of what they
    remember, "" for none; shown: the rules' folder, as problems name it. lists: the site's, which they may ask.
    """

    sources: Mapping[str, bytes] = field(default_factory=dict)
    place: Callable[[str], AbstractContextManager[ScriptPlace]] = _nowhere
    state: str = ""
    shown: str = ""
    lists: Mapping[str, NamedList] = field(default_factory=dict)

    def answer(self, script: str, envelope: Envelope, raw: bytes, settings: AgentSettings) -> Scripted | Failed:
        """Run one for a message. Its failure goes to standard error too. Raises scripts.RefusedError."""
        limits = Limits(**settings.limits)
        job = Job(self.sources[script], os.path.basename(script), raw, envelope, limits, plan_limits(settings))
        try:
            with self._memory() as kept, self.place(script) as place:
                lists = Membership(self.lists, settings.delimiter)
                remembered = Remembering(kept, script, envelope.sender, lists, time.time)
                found, told = run_script(job, script, place, remembered, Runner(settings))
        except (StateError, UnsafeError, OSError, sandbox.SandboxError) as error:
            return Failed(f"{script}: {error}")
        complain(*(told.text.splitlines() if told is not None else ()))
        return Failed(f"{script}: {last_line(told)}") if found is None else found

    def answer_in_line(self, script: str, envelope: Envelope, raw: bytes, settings: Settings) -> Scripted | Failed:
        """Run a site's script for a message. Its failure goes to standard error too."""
        job = Job(self.sources[script], script, raw, envelope, settings.limits, site=True)
        seconds = settings.milter.script_time
        bounds = sandbox.Bounds(cpu=math.ceil(seconds), wall=seconds, questions=0)
        try:
            found = understood(sandbox.run(work(job), None, bounds, None, settings.delivery.sandbox), script)
        except sandbox.SandboxError as error:
            found = Failure(error.reason, str(error))
        except OSError as error:
            return Failed(f"{script}: {error}")
        if isinstance(found, Scripted):
            return found
        complain(*(found.trace or f"{script}: {found.kind}: {found.text}").strip().splitlines())
        return failed(script, found)

    @contextmanager
    def _memory(self) -> Iterator[Conversations | None]:
        path = os.path.join(self.state, MEMORY)
        if not self.state or not os.path.exists(path):
            yield None
            return
        kept = Conversations(path)
        try:
            yield kept
        finally:
            kept.close()


NONE = Sources()


@contextmanager
def beside(folder: str, script: str) -> Iterator[ScriptPlace]:
    """Give the place of a script by its path from a folder that somebody named."""
    own = os.open(os.path.join(folder, os.path.dirname(script)) or ".", _FOLDER)
    found: list[int] = []
    try:
        if "/" not in script:
            for name in plain_files(own):
                found.append(os.open(name, _NAMED, dir_fd=own))  # noqa: PERF401 - closed below where one fails
        yield ScriptPlace(own, shared="/" in script, readable=tuple(found))
    finally:
        for one in (own, *found):
            os.close(one)


def examined(scripts: Sources, settings: Settings, *, site: bool) -> tuple[Problem, ...]:
    """Return what is wrong with each script: it is loaded, its functions and routes looked at, nothing called.

    site: they are the site's, and asked to do nothing that has no place in-line.
    """
    found: list[Problem] = []
    for script, source in scripts.sources.items():
        shown = os.path.join(scripts.shown, script)
        try:
            with _nowhere(script) if site else scripts.place(script) as place:
                said = sandbox.run(
                    lambda _, source=source, shown=shown: examine(source, shown, site=site),  # type: ignore[misc]
                    place.folder,
                    floor=settings.delivery.sandbox,
                    readable=place.readable,
                    shared=place.shared,
                )
            found += [Problem(Place(shown, line, column), text) for line, column, text in json.loads(said)]
        except sandbox.SandboxError as error:
            # A person's mail is kept then; the milter does not take site rules whose scripts cannot run.
            found.append(Problem(Place(shown), str(error), warning=error.reason == "level" and not site))
        except (UnsafeError, OSError) as error:
            found.append(Problem(Place(shown), f"cannot be looked at: {error}"))
    return tuple(found)
