"""The script process that stays for the next message of the same script: a fork and its pages, paid for once.

Must never: be asked again after it failed, take what it said before for the answer to this, outlive its agent.

SECURITY: the walls are those of `sandbox`. What one job may leave in the process, the same script could have stored;
who asks ends the process after a failure, and does that job again in a process of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from milterapp.delivery.sandbox import (  # its frames, and the two ends of its pipes
    _HEAD,
    _LENGTH,
    Ask,
    Bounds,
    _fork,
    _Parent,
    _read,
    _write,
)

__all__ = ["Serve", "Warm"]

Serve = Callable[[bytes, Ask], bytes]  # what it does with each job

_TOKEN = 8  # bytes before a job, and before its answer


class Warm:
    """A script process that does one job after the other. Arguments are those of sandbox.run(), and it raises as that
    does.
    """

    MOST, BUSY = 100, 1.0  # jobs, and seconds of work, after which it is worn

    def __init__(
        self,
        serve: Serve,
        folder: str | int | None,
        bounds: Bounds,
        floor: str = "good",
        readable: Iterable[str | int] = (),
        *,
        shared: bool = True,
    ) -> None:
        grants = [*readable, *([] if folder is None or not shared else [folder])]
        self._bounds = bounds
        self._pid, self._from, self._to = _fork(lambda ask: _serving(serve, ask), folder, grants, bounds, floor)
        self.jobs = 0
        self._busy = 0.0

    @property
    def worn(self) -> bool:
        """Whether the next job needs another process."""
        return self._pid == 0 or self.jobs >= self.MOST or self._busy > self.BUSY

    def run(self, job: bytes, answer: Ask | None) -> bytes:
        """Have it do one job. Raises SandboxError, after which it is gone."""
        self.jobs += 1
        begun = time.monotonic()
        token = os.urandom(_TOKEN)  # so that nothing it said before is the answer to this
        data = _LENGTH.pack(_TOKEN + len(job)) + token + job
        parent = _Parent(self._pid, self._from, self._to, self._bounds, answer, data)
        try:
            return parent.one(token)
        except BaseException:
            self._close()  # it was ended, and waited for
            raise
        finally:
            self._busy += time.monotonic() - begun

    def end(self) -> None:
        """End it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._close()

    def _close(self) -> None:
        self._pid = 0
        os.close(self._from)
        os.close(self._to)


def _serving(serve: Serve, ask: Ask) -> NoReturn:
    """Do one job after the other, in the child; it ends with its parent's end of the pipe, or is killed."""
    while True:
        job = _read(_LENGTH.unpack(_read(_LENGTH.size))[0])
        answer = job[:_TOKEN] + serve(job[_TOKEN:], ask)
        _write(_HEAD.pack(b"=", len(answer)) + answer)
