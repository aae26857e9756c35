"""Asking the spawner, from the milter: one connection a job, a deadline for all of it, and nothing believed.

Must never: fork, keep a connection, or take silence for an answer.
"""

from __future__ import annotations

import json
import os
import socket
import time

from milterapp import log
from milterapp.delivery import sealed, wire
from milterapp.delivery.in_line import failed, understood
from milterapp.delivery.requests import SCRIPT_ANSWERS
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.rules.decision import Scripted
from milterapp.rules.truth import Failed
from milterapp.script.examining import to_examine
from milterapp.script.plan import DEFAULT, Failure, PlanLimits
from milterapp.script.run import Job, to_parts

__all__ = ["SiteScripts"]

_SOONER = 0.9  # of the time that is left, what the job has: an answer that names the reason comes in time
_PAUSE = 0.02  # seconds between two tries, where the spawner's backlog is full
_MOST_FOUND = 1 << 20  # bytes of what is wrong with a script
_SHOWN = 100  # problems of it
_OURS = frozenset({"set-up"})  # reasons of a failure that say nothing of the script


class _NoAnswerError(Exception):
    """The script process gave no answer. reason: as SandboxError has it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SiteScripts:
    """Has scripts of the site's rules run. path: the spawner's socket. Safe for threads."""

    def __init__(self, path: str, limits: Limits, plan_limits: PlanLimits = DEFAULT) -> None:
        self._path = path
        self._limits = limits
        self._plan_limits = plan_limits

    def answer(self, script: str, source: bytes, envelope: Envelope, raw: bytes, seconds: float) -> Scripted | Failed:
        """Return what a script says of a message within so many seconds; its failure is logged too."""
        job = Job(source, script, raw, envelope, self._limits, self._plan_limits, checked=True, site=True)
        try:
            said = self._ask("RUN", to_parts(job), 8 * self._plan_limits.total, seconds)
        except _NoAnswerError as error:
            found: Scripted | Failure = Failure(error.reason, str(error))
        except (wire.WireError, sealed.SealError, OSError) as error:
            log.get("milter").error("no script run", queue_id=envelope.queue_id, script=script, reason=_why(error))
            return Failed(f"{script}: milterapp script: {_why(error)}")
        else:
            found = understood(said, script, self._plan_limits)
        if isinstance(found, Scripted):
            return found
        trace = found.trace.strip() or f"{found.kind}: {found.text}"
        log.get("milter").error("script failed", queue_id=envelope.queue_id, script=script, trace=trace[-2000:])
        return failed(script, found)

    def examine(self, file: str, source: bytes, seconds: float) -> tuple[tuple[int, int, str], ...]:
        """Return line, column and text of what is wrong with a script. Raises OSError where nobody could look at it."""
        try:
            found = json.loads(self._ask("EXAMINE", (to_examine(source, file),), _MOST_FOUND, seconds))
            return tuple((int(line), int(column), str(text)[:500]) for line, column, text in found[:_SHOWN])
        except _NoAnswerError as error:
            if error.reason in _OURS:
                raise OSError(f"milterapp script: {error}") from error
            return ((1, 1, str(error)),)
        except (ValueError, TypeError, RecursionError):
            return ((1, 1, "its process did not say what is wrong with it"),)
        except (wire.WireError, sealed.SealError, OSError) as error:
            raise OSError(f"milterapp script: {_why(error)}") from error

    def _ask(self, kind: str, job: tuple[bytes, ...], most: int, seconds: float) -> bytes:
        """Return what a job's answer holds. Raises _NoAnswerError, WireError, SealError, OSError."""
        until = time.monotonic() + seconds
        memory = sealed.seal(job)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                _connect(connection, self._path, until)
                connection.settimeout(_left(until))
                wire.send(connection, kind, {"milliseconds": int(_left(until) * _SOONER * 1000)}, [memory])
                answer = wire.receive(connection, SCRIPT_ANSWERS, descriptors=(0, 1))
        finally:
            os.close(memory)
        if answer is None:
            raise ConnectionError("the connection ended without an answer")
        try:
            if answer.kind == "FAILED":
                raise _NoAnswerError(answer.text("reason"), answer.text("text"))
            if len(answer.descriptors) != 1:
                raise wire.WireError("an answer without what was answered")
            sealed.measure(answer.descriptors[0], most)
            return sealed.read(answer.descriptors[0])
        finally:
            answer.close()


def _connect(connection: socket.socket, path: str, until: float) -> None:
    """Connect, waiting for a place in the backlog. Raises OSError."""
    while True:
        connection.settimeout(_left(until))
        try:
            connection.connect(path)
        except BlockingIOError:
            time.sleep(min(_PAUSE, _left(until)))
        else:
            return


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time is left")
    return left


def _why(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
