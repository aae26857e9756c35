"""What ends agents, and what they left behind: errands of the zygote, processes that take an agent's ids and kill.

Must never: kill with the zygote's own ids, or anything but an agent, what lost its parent below the zygote, and the
process groups of these; wait for an errand.

SECURITY: the zygote has no CAP_KILL. What an agent forks is in its group. A runner and each program have groups of
their own, which the runner ends; but a user may stop or kill the own runner, and then nobody would. So the zygote
adopts what has lost its parent: a child of it that is neither an agent nor an errand was left behind. Whose it is the
zygote does not see where /proc hides it, so it is killed with the ids of each agent that has ended lately, which reach
that user's processes alone. A program cannot leave its group (seccomp), so one kill(2) takes all that it forked.
A user can stop an errand too; it is killed by the next one.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn

from milterapp.delivery import linux

__all__ = ["Errands", "Ids"]

_LEAVE = 1.0  # seconds for a runner to end, and what it runs, once its agent has ended
_AGAIN = 2.0  # seconds after an errand until the next look; an errand takes a few milliseconds

Ids = tuple[int, int]  # uid, gid


class Errands:
    """Those under way, and whose processes may have been left. agents: the pids of the living ones."""

    def __init__(self, agents: Collection[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._agents, self._clock = agents, clock
        self._under_way: dict[int, tuple[Ids, float]] = {}  # by pid; until when it is left alone
        self._looks: dict[Ids, float] = {}  # whose agent has ended, or was to, and when to look for what is left
        self._killing: set[Ids] = set()  # those of them for whom an errand went

    def timeout(self) -> float | None:
        """Return the milliseconds until there is something to look at, None where nothing is expected."""
        return max(0.0, min(self._looks.values()) - self._clock()) * 1000 if self._looks else None

    def kill(self, ids: Ids, pids: Iterable[int]) -> None:
        """Kill these processes and groups, as kill(2) has them, with these ids; later, where nothing can be forked."""
        self._looks[ids] = self._clock() + _AGAIN
        self._killing.add(ids)
        try:
            errand = os.fork()
        except BlockingIOError:
            return
        if errand == 0:
            _kill(ids, pids)
        self._under_way[errand] = ids, self._looks[ids]

    def agent_ended(self, pid: int, ids: Ids) -> None:
        """Kill what is left in an agent's group now; look for its runner later, which may be ending what it runs.

        Nothing can have left that group (seccomp), and while somebody is in it, nobody has its number.
        """
        try:
            os.kill(-pid, 0)
        except PermissionError:
            self.kill(ids, (-pid,))
        except ProcessLookupError:
            pass
        self._looks[ids] = min(self._looks.get(ids, math.inf), self._clock() + _LEAVE)

    def ended(self, pid: int, status: int) -> None:
        """Take note that a process has ended that was no agent. status: 0 of an errand that found nothing to kill."""
        if pid not in self._under_way:  # it was left behind, and what it leaves is here now
            self._looks.update(dict.fromkeys(self._killing, self._clock()))
            return
        ids, when = self._under_way.pop(pid)
        if status == 0 and self._looks.get(ids) == when:
            self._forget(ids)

    def _forget(self, *all_of: Ids) -> None:
        for ids in all_of:
            self._looks.pop(ids, None)
            self._killing.discard(ids)

    def look(self, *, now: bool = False) -> None:
        """Kill what was left behind, where it is time to look, or now."""
        due = [ids for ids, when in self._looks.items() if now or when <= self._clock()]
        left = self.left() if due else set()
        if due and not left:
            self._forget(*list(self._looks))  # what an agent leaves is here as soon as that has ended
        groups = {_group(pid) for pid in left} - {0, os.getpgrp()}
        for ids in due if left else ():
            self.kill(ids, left | {-one for one in groups})

    def left(self) -> set[int]:
        """Return the children that were left behind."""
        kept = {pid for pid, (_, until) in self._under_way.items() if until > self._clock()}
        return {pid for pid in linux.children() if pid not in self._agents and pid not in kept}


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _kill(ids: Ids, pids: Iterable[int]) -> NoReturn:
    """Be an errand."""
    status = 0
    try:
        uid, gid = ids
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                status = 1
            except OSError:
                pass  # it has ended, is another's, or has not yet become that uid; then the monitor asks again
    finally:
        os._exit(status)
