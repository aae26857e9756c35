"""A user's scripts: run in the sandbox for one message, their plans checked, their changes made once.

Must never: run two messages of a user's scripts at a time, make a change that was not decided, or let a script that
failed leave anything behind but the notice to its author.

From the first script of a message until the message is answered a lock on the user's memory is held, so that what a
script read there is still so when its changes are made. They are made in one transaction together with the record of
the decision, before anything else is done; the files that it asked for wait in the same transaction.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from milterapp.delivery import outputs, sandbox
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.remembering import Remembering
from milterapp.delivery.rulefile import Loaded, ScriptPlace, UnsafeError
from milterapp.delivery.ruleset import Ruleset
from milterapp.delivery.said import change_of, check_kept, said
from milterapp.delivery.sandbox_warm import Warm
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.rules.decision import Decision, Scripted
from milterapp.rules.deliveries import Forward, Send, SendReply
from milterapp.rules.membership import Membership
from milterapp.rules.truth import Failed
from milterapp.script import memory
from milterapp.script.memory import Memory
from milterapp.script.plan import Failure, Plan, PlanError, PlanLimits, decode
from milterapp.script.run import Job, serve, to_bytes, work
from milterapp.state.conversations import Conversations
from milterapp.state.database import StateError, exists

__all__ = [
    "MEMORY",
    "RefusedError",
    "Runner",
    "Scripts",
    "Told",
    "concerns_scripts",
    "last_line",
    "mails_of",
    "plan_limits",
    "run_script",
]

MEMORY = "scripts.sqlite"  # below the state folder, as the lock is
_LOCK = "scripts.lock"
_DAY = 86400
_MOST_STATES = 50  # of one sender that a script is given beforehand
_LET_GO = 20  # records that the journal has too are let go together
_LONGEST_WARM = 1 << 20  # bytes of a message that is given to a process which stays
_OURS = frozenset({"set-up"})  # reasons of a SandboxError that are no fault of a script's
_LATE = "the time for the message is over"


class RefusedError(Exception):
    """No script is run here, as this machine's sandbox is below the site's floor. str() says it for the log."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the author of a script that failed is to read. handle: of this failure of this very script.

    script: "" where the rules themselves cannot be used.
    quiet: nobody need be told, as a limit on reading the message was hit, which is no fault of theirs.
    answered: the script's ERROR has answered the message, which else waits.
    """

    script: str
    handle: str
    text: str
    quiet: bool = False
    answered: bool = False


def plan_limits(settings: AgentSettings) -> PlanLimits:
    """Return what one run may ask for at this site."""
    return PlanLimits(recipients=settings.script_recipients, folders=settings.script_folders)


class Runner:
    """Runs jobs, one script process for each; where it is warm, in one that stays for the same script's next message.

    Whatever fails in a process that did another message before is done again in a process of its own, so no failure
    has its cause in another message. until: when the time for the present message is over, by time.monotonic(); a run
    that this cuts short is no failure of the script's, which others kept from its time.
    """

    def __init__(self, settings: AgentSettings, *, warm: bool = False) -> None:
        self._floor = settings.sandbox
        self._bounds = sandbox.Bounds(wall=min(sandbox.Bounds().wall, settings.deadline / 3))
        self._warm = warm
        self.until = math.inf
        self._process: Warm | None = None
        self._made_of: object = None

    def run(self, job: Job, place: ScriptPlace, ask: sandbox.Ask) -> Plan | Failure:
        """Return the plan or the failure. Raises SandboxError, PlanError, OSError; TimeoutError where time is over."""
        if self._warm and len(job.raw) <= _LONGEST_WARM and self._left >= self._bounds.wall:
            process = self._process_for(job, place)
            fresh = process.jobs == 0
            try:
                found = decode(process.run(to_bytes(job), ask), job.plan_limits)
            except (sandbox.SandboxError, PlanError):
                self.end()
                if fresh:
                    raise
            else:
                if isinstance(found, Plan) and found.failed is None:
                    return found
                self.end()
                if fresh:
                    return found
        bounds = replace(self._bounds, wall=min(self._left, self._bounds.wall))
        if bounds.wall <= 0:
            raise TimeoutError(_LATE)
        try:
            answer = sandbox.run(
                work(job), place.folder, bounds, ask, self._floor, place.readable, shared=place.shared
            )  # fmt: skip
        except sandbox.SandboxError as error:
            if error.reason == "time" and bounds.wall < self._bounds.wall:
                raise TimeoutError(_LATE) from error
            raise
        return decode(answer, job.plan_limits)

    @property
    def _left(self) -> float:
        return self.until - time.monotonic()

    def end(self) -> None:
        """Let no process stay."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _process_for(self, job: Job, place: ScriptPlace) -> Warm:
        """Return the process that did the last message, where it is of the same script and folder; else a new one."""
        places = (*place.readable, *([] if place.folder is None else [place.folder]))
        made_of = (job.file, job.source, [(found.st_dev, found.st_ino) for found in map(os.fstat, places)])
        if self._process is None or self._process.worn or self._made_of != made_of:
            self.end()
            self._process = Warm(
                serve, place.folder, self._bounds, self._floor, place.readable, shared=place.shared
            )  # fmt: skip
            self._made_of = made_of
        return self._process


def run_script(
    job: Job, script: str, place: ScriptPlace, remembered: Memory, runner: Runner
) -> tuple[Scripted | None, Told | None]:
    """Return what a script says of a message, None where it failed, and what its author is to read, if anything.

    Raises RefusedError below the site's floor; SandboxError for faults of ours, StateError, OSError.
    """
    try:
        found = runner.run(job, place, partial(memory.answer, remembered))
        if isinstance(found, Failure):
            return None, _told(job, script, found)
        check_kept(found, len(job.raw))
        failed = None if found.failed is None else replace(_told(job, script, found.failed), answered=True)
        return said(found, script, job.envelope.sender, remembered), failed
    except sandbox.SandboxError as error:
        if error.reason == "level":
            raise RefusedError(str(error)) from error
        if error.reason in _OURS:
            raise
        return None, _told(job, script, Failure(error.reason, str(error)))
    except PlanError as error:
        return None, _told(job, script, Failure("Plan", str(error)))


def _told(job: Job, script: str, failure: Failure) -> Told:
    """Return what is to be told. Its handle has nothing in it of the message, or senders would choose how often."""
    whole = hashlib.sha256()
    for part in (script, failure.kind, failure.place):
        whole.update(part.encode("utf-8", "backslashreplace") + b"\0")
    whole.update(hashlib.sha256(job.source).digest())
    text = failure.trace or f"{failure.kind}: {failure.text}\n"
    return Told(script, whole.hexdigest(), text, quiet=failure.kind == "LimitHit")


def last_line(told: Told | None) -> str:
    """Return the line that says most of a failure."""
    return "" if told is None else told.text.strip().splitlines()[-1][:200]


def mails_of(decision: Decision) -> int:
    """Return how many mails of scripts a decision causes."""
    return sum(isinstance(one, Send | Forward | SendReply) and bool(one.script) for one in decision.deliveries)


def concerns_scripts(decision: Decision) -> bool:
    """Tell whether a decision changes what scripts remember: their state, or how many mails they caused."""
    return bool(decision.scripts) or mails_of(decision) > 0


class Scripts:
    """The scripts of one user, for one message after the other. now: seconds since 1970."""

    def __init__(self, settings: AgentSettings, state: str, rules: Ruleset, make_state: Callable[[int], None]) -> None:
        self._settings = settings
        self._state = state  # the folder's path
        self._memory_path = os.path.join(state, MEMORY)
        self._rules = rules
        self._make_state = make_state
        self._limits = Limits(**settings.limits)
        self._plan_limits = plan_limits(settings)
        self._runner = Runner(settings, warm=True)
        self._lists = Membership({})
        self._kept: Conversations | None = None
        self._lock = -1
        self._committed = ""  # the last message whose changes were made
        self._known: set[str] = set()  # messages whose record the journal has
        self._good: set[bytes] = set()  # digests of sources that loaded without a problem
        self.told: list[Told] = []

    def begin(self, until: float) -> None:
        """Begin with a message. until: when its time is over, by time.monotonic()."""
        self.told = []
        self._runner.until = until

    def end(self) -> None:
        """Let others run scripts: the message is answered."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def answer(self, script: str, loaded: Loaded, envelope: Envelope, raw: bytes, home: int) -> Scripted | Failed:
        """Run a script for a message. Raises RefusedError."""
        source = loaded.scripts.get(script)
        if source is None:
            return Failed(f"{script}: it was not read with the rules")
        digest = hashlib.sha256(source).digest()
        sender, checked = _sender(envelope), digest in self._good
        try:
            self._hold(home)
            with self._rules.script_place(home, script) as place:
                kept = self._memory(home)
                states = {} if kept is None else kept.states(script, sender, _MOST_STATES)
                job = Job(
                    source, os.path.basename(script), raw, envelope, self._limits, self._plan_limits, checked, states
                )  # fmt: skip
                remembered = Remembering(kept, script, sender, self._lists_of(loaded), time.time)
                found, told = run_script(job, script, place, remembered, self._runner)
        except (StateError, UnsafeError, OSError, sandbox.SandboxError) as error:
            return Failed(f"{script}: {error}")
        self.told += [] if told is None or told.quiet else [told]
        if found is None:
            return Failed(f"{script}: {last_line(told)}")
        self._good.add(digest)
        return found

    def too_many(self, decision: Decision, now: int) -> str:
        """Return why a decision's mails are too many for today, "" where they are not. Raises StateError."""
        mails = mails_of(decision)
        if not mails:
            return ""
        before = 0 if self._kept is None else self._kept.mails_since(now - _DAY)
        most = self._settings.script_messages
        return f"scripts: more than {most} messages a day" if before + mails > most else ""

    def committed(self, home: int | None, message: str) -> str:
        """Return the record of a message whose changes were made, "" for none. Raises StateError, OSError."""
        if home is None or not exists(self._memory_path):
            return ""
        kept = self._memory(home)
        return (kept.committed(message) or "") if kept is not None else ""

    def commit(
        self, home: int, message: str, record: str, decision: Decision, envelope: Envelope, raw: bytes, now: int
    ) -> None:
        """Make the changes of a decision, once, and keep its record. raw: the message as it came.

        Raises StateError, OSError, PlanError.
        """
        self._hold(home)
        kept = self._memory(home, make=True)
        assert kept is not None  # noqa: S101 - it was to be made
        about = decision.message.encode("latin-1") or raw
        changes = [change_of(one, self._plan_limits, envelope, about, now) for one in decision.scripts]
        known = tuple(self._known) if len(self._known) >= _LET_GO else ()
        kept.commit(message, record, changes, mails=mails_of(decision), now=now, known=known)
        self._known -= set(known)
        self._committed = message

    def journalled(self, message: str) -> None:
        """Know that the journal has the record too, so that it need not be kept beside the changes."""
        if message == self._committed:
            self._known.add(message)

    def write(self, home: int) -> list[str]:
        """Write every file that scripts asked for; return what could not be written and never will be.

        Raises StateError or OSError: then it waits, as does the message.
        """
        self._hold(home)
        kept = self._memory(home)
        return [] if kept is None else outputs.write_all(kept, home, self._settings.script_output)

    def news(self, home: int) -> list[Told]:
        """Return what authors have not been told yet. Raises StateError, OSError."""
        kept = self._memory(home) if self.told else None
        return [one for one in self.told if kept is None or not kept.was_told(one.handle)]

    def tell(self, home: int, told: Told, now: int) -> None:
        """Remember that the author is told. Raises StateError, OSError."""
        kept = self._memory(home, make=True)
        assert kept is not None  # noqa: S101 - it was to be made
        kept.tell(told.handle, now)

    def untell(self, told: Told) -> None:
        """Take that back. Raises StateError."""
        if self._kept is not None:
            self._kept.untell(told.handle)

    def _lists_of(self, loaded: Loaded) -> Membership:
        """Return the site's lists as they stand now; those that are the same are not read anew."""
        lists = {} if loaded.site is None else loaded.site.lists
        if self._lists.lists != lists:
            self._lists = Membership(lists, self._settings.delimiter)
        return self._lists

    # the memory and its lock

    def _memory(self, home: int, *, make: bool = False) -> Conversations | None:
        """Return the memory, None where there is none yet and none is to be made. Raises StateError, OSError."""
        if self._kept is not None and not self._kept.database.still_there():
            self._kept.close()
            self._kept = None
        if self._kept is None and (make or exists(self._memory_path)):
            self._make_state(home)
            self._kept = Conversations(self._memory_path)
        return self._kept

    def _hold(self, home: int) -> None:
        """Wait until no other process runs this user's scripts. Raises OSError, TimeoutError after a while."""
        if self._lock >= 0:
            return
        self._make_state(home)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        lock = os.open(os.path.join(self._state, _LOCK), flags, 0o600)
        until = min(time.monotonic() + self._settings.deadline / 3, self._runner.until)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                os.close(lock)
                raise TimeoutError("another message of the recipient's scripts is still being handled") from None
            except OSError:
                os.close(lock)
                raise
            self._lock = lock
            return


def _sender(envelope: Envelope) -> str:
    """Return whose state it is, as the memory takes it."""
    return envelope.sender.encode("utf-8", "backslashreplace").decode()
