"""The supervisor: holds the socket and the rules, forks the workers, replaces those that die, changes rules under way.

Must never: speak the milter protocol, start a thread (it forks), or give up rules that work for rules that do not.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from milterapp import log
from milterapp.mail.limits import Limits
from milterapp.milter import worker
from milterapp.milter.budget import Budget
from milterapp.milter.control import Control
from milterapp.milter.conversation import Context
from milterapp.milter.counters import Counts, read
from milterapp.milter.entry import Trust
from milterapp.milter.listening import Listening
from milterapp.milter.metrics import Metrics, render
from milterapp.milter.notify import notify
from milterapp.milter.plan import plan_for
from milterapp.milter.recall import Recall
from milterapp.milter.site_scripts import Scripts
from milterapp.rules.policy import Policy
from milterapp.rules.problem import Problem
from milterapp.settings import MilterSettings

__all__ = ["Load", "Supervisor"]

Load = Callable[[], tuple[Policy | None, Sequence[Problem]]]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_PATIENCE = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a worker's place is filled again, by failures in a row
_SHORT_LIFE = 5.0  # seconds; a worker that died younger is a failure in a row
_START = 10.0  # seconds a new worker has to say that it is ready
_LEAVE = 1.0  # seconds a worker has to stop listening
_STOP = 15.0  # seconds that connections have to end when we are to stop; Postfix answers the rest with 4xx


@dataclass
class _Worker:
    """One child. channel: its end of file tells the worker to finish its connections and end."""

    pid: int
    channel: socket.socket | None
    started: float = field(default_factory=time.monotonic)
    leaving: bool = False

    def leave(self) -> None:
        """Let it finish."""
        self.leaving = True
        if self.channel is not None:
            try:
                self.channel.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has died, and is about to be noticed

    def hear(self) -> None:
        """Take what it says by itself: it may have been told by another to take no new connection."""
        if self.channel is None:
            return
        try:
            said = self.channel.recv(64)
        except OSError:
            return  # it has died, and is about to be noticed
        if worker.LEFT in said:
            self.leaving = True
            self.channel.close()
            self.channel = None

    def has_left(self) -> None:
        """Wait until it takes no new connection, which is a matter of milliseconds."""
        if self.channel is not None:
            self.channel.settimeout(_LEAVE)
            try:
                self.channel.recv(1)
            except OSError:
                pass  # it will hear of it later
            self.channel.close()
            self.channel = None


def _leave(workers: Sequence[_Worker]) -> None:
    for one in workers:
        one.leave()
    for one in workers:
        one.has_left()


class Supervisor:
    """settings, limits: the site's. load: reads rules and runs their tests; (None, problems) where they are no good,
    OSError where that could not be found out. scripts: what runs the site's scripts.
    """

    def __init__(
        self,
        settings: MilterSettings,
        limits: Limits,
        load: Load,
        policy: Policy,
        *,
        delimiter: str = "+",
        trust: Trust | None = None,
        scripts: Scripts | None = None,
    ) -> None:
        self._log = log.get("milter")
        self._settings = settings
        self._load = load
        self._context = Context(
            policy,
            plan_for(policy),
            limits,
            settings.on_error,
            delimiter,
            trust or Trust(),
            Budget(settings.step_time, settings.message_time, settings.script_time),
            Recall(settings.state),
            scripts,
        )
        self._count = settings.workers or len(os.sched_getaffinity(0))
        self._workers: dict[int, _Worker] = {}
        self._failures = 0
        self._not_before = 0.0
        self._stopping = False
        self._began = self._loaded = time.time()
        self._digest = self._read_digest()
        self._reloaded: dict[str, object] | None = None
        self._counts: Counts = Counter()
        self._deaths = 0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return an exit code. Raises OSError, KeyError and Busy of Listening."""
        with Listening(self._settings.socket, self._settings.socket_group) as self._listening:
            reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            for one in _SIGNALS:
                signal.signal(one, lambda *_: None)
            self._metrics = Metrics(self._settings.metrics) if self._settings.metrics else None
            self._control = Control(self._listening.directory, self._listening.name)
            self._reports, self._reporting = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (self._reports, self._reporting):
                end.setblocking(False)  # noqa: FBT003 - the name of the method says it
            try:
                self._fill()
                if not self._are_ready(self._serving()):
                    self._log.error("no worker started")
                    return os.EX_SOFTWARE
                self._log.info("ready", workers=len(self._workers), socket=self._settings.socket)
                notify("READY=1")
                self._serve(reading)
            finally:
                self._control.close()
                if self._metrics is not None:
                    self._metrics.close()
                self._stop()
                self._reports.close()
                self._reporting.close()
        return os.EX_OK

    def _serve(self, reading: int) -> None:
        while not self._stopping:
            missing = self._count - len(self._serving())
            wait = max(0.0, self._not_before - time.monotonic()) if missing > 0 else None
            serving = {one.channel.fileno(): one for one in self._serving() if one.channel is not None}
            waiting = [reading, self._control.fileno(), self._reports.fileno(), *serving]
            if self._metrics is not None:
                waiting.append(self._metrics.fileno())
            ready, _, _ = select.select(waiting, [], [], wait)
            if self._reports.fileno() in ready:
                self._add_up()
            if self._metrics is not None and self._metrics.fileno() in ready:
                self._metrics.answer(render(self._counts, self._gauges()))
            for descriptor in serving.keys() & set(ready):
                serving[descriptor].hear()
            if reading in ready:
                self._hear(set(os.read(reading, 512)))
            if self._control.fileno() in ready:
                self._control.answer({"reload": self._reload, "status": self._status})
            self._reap()
            if not self._stopping:
                self._fill()

    def _hear(self, signals: set[int]) -> None:
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._stopping = True
        elif signal.SIGHUP in signals:
            self._reload()

    # -- workers -------------------------------------------------------------------------------------------------------

    def _serving(self) -> list[_Worker]:
        return [one for one in self._workers.values() if not one.leaving]

    def _fill(self) -> None:
        """Fork what is missing, unless workers just died young."""
        if time.monotonic() >= self._not_before:
            for _ in range(self._count - len(self._serving())):
                self._fork()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._control.let_go()
            self._reports.close()
            if self._metrics is not None:
                self._metrics.close()
            for other in self._workers.values():
                if other.channel is not None:
                    other.channel.close()  # or it would not hear when we are gone
            worker.run(self._context, self._listening, theirs, self._reporting)
        theirs.close()
        self._workers[pid] = _Worker(pid, ours)

    @staticmethod
    def _are_ready(workers: Sequence[_Worker]) -> bool:
        """Wait until these serve, who were just forked. False where one has died or is too slow."""
        deadline = time.monotonic() + _START
        for one in workers:
            assert one.channel is not None  # noqa: S101 - for the type; none of them is leaving
            one.channel.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                if one.channel.recv(1) != worker.READY:
                    return False
            except OSError:
                return False
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            dead = self._workers.pop(pid, None)
            if dead is None:
                continue
            if dead.channel is not None:
                dead.channel.close()
            if not dead.leaving:
                young = time.monotonic() - dead.started < _SHORT_LIFE
                self._failures = min(self._failures + 1, len(_PATIENCE) - 1) if young else 0
                self._not_before = time.monotonic() + _PATIENCE[self._failures]
                self._deaths += 1
                self._log.error("worker died", pid=pid, status=os.waitstatus_to_exitcode(status))

    def _stop(self) -> None:
        """Let the workers finish their connections, and end those that do not in time."""
        notify("STOPPING=1")
        self._listening.close()
        _leave(list(self._workers.values()))
        deadline = time.monotonic() + _STOP
        while self._workers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.05)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._log.info("stopped", cut_off=len(self._workers))

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _reload(self) -> dict[str, object]:
        """Take the rules as they are now, if they are good; return what the control socket answers."""
        answer = self._take_rules()
        self._reloaded = {"time": int(time.time()), **answer}
        return answer

    def _take_rules(self) -> dict[str, object]:
        notify("RELOADING=1")
        digest = self._read_digest()
        try:
            policy, problems = self._load()
            said = [str(problem) for problem in problems]
        except OSError as error:  # what looks at scripts cannot be asked
            policy, said = None, [str(error)]
        except Exception as error:  # noqa: BLE001 - whatever the new rules do to us, the old ones stay
            self._log.exception("rules not read")
            policy, said = None, [f"{type(error).__name__}: {error}"]
        for text in said:
            self._log.warning("rules" if policy else "rules refused", problem=text)
        if policy is None:
            self._log.error("the rules are no good, those from before stay", problems=len(said))
            notify("READY=1")
            return {"done": False, "problems": said}
        before, old = self._context, self._serving()
        self._context = replace(before, policy=policy, plan=plan_for(policy))
        for _ in range(self._count):
            self._fork()
        fresh = [one for one in self._serving() if one not in old]
        if not self._are_ready(fresh):
            self._context = before
            _leave(fresh)
            self._log.error("no worker started with the new rules, those from before stay")
            notify("READY=1")
            return {"done": False, "problems": [*said, "no worker started with the new rules"]}
        _leave(old)
        self._loaded = time.time()
        self._digest = digest if digest == self._read_digest() else ""
        self._log.info("reloaded", rules=len(policy.rules), workers=len(fresh))
        notify("READY=1")
        return {"done": True, "problems": said}

    def _read_digest(self) -> str:
        """Return the SHA-256 of the rule file as it is now, "" where it cannot be read."""
        try:
            with open(self._settings.rules, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest()
        except OSError:
            return ""

    # -- to be seen ----------------------------------------------------------------------------------------------------

    def _add_up(self) -> None:
        for some in read(self._reports):
            self._counts.update(some)

    def _gauges(self) -> dict[str, tuple[float, str]]:
        done = self._reloaded is None or bool(self._reloaded["done"])
        return {
            "milterapp_workers": (len(self._serving()), "Workers that take connections."),
            "milterapp_workers_died": (self._deaths, "Workers that died since the start."),
            "milterapp_rules": (len(self._context.policy.rules), "Rules in use."),
            "milterapp_rules_loaded_timestamp_seconds": (self._loaded, "When the rules in use were loaded."),
            "milterapp_last_reload_successful": (float(done), "Whether the last reload took the rules."),
        }

    def _status(self) -> dict[str, object]:
        """Return what `milterapp status` prints."""
        self._add_up()
        messages: Counter[str] = Counter()
        for key, number in self._counts.items():
            if key[0] == "messages":
                messages[key[1]] += number
        return {
            "pid": os.getpid(),
            "since": int(self._began),
            "workers": [one.pid for one in self._serving()],
            "leaving": [one.pid for one in self._workers.values() if one.leaving],
            "died": self._deaths,
            "messages": dict(messages),
            "faults": sum(number for key, number in self._counts.items() if key[0] == "faults"),
            "rules": {
                "file": self._settings.rules,
                "count": len(self._context.policy.rules),
                "sha256": self._digest,
                "loaded": int(self._loaded),
            },
            "reload": self._reloaded,
        }
