"""Sessions with Postfix's own smtpd, kept for a while: the next message needs no connection, greeting and new process.

Must never: send a message twice (where a kept session fails before the server took the sender, nothing was sent), use
one for two messages at a time, or keep one after anything but success.

One is used for _AGE seconds and idle for _IDLE at most, so that a `postfix reload` counts soon and a stop waits for
nobody. Only sessions with Postfix: who keeps mail over LMTP may bound them otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from milterapp.delivery import smtp

__all__ = ["Sessions"]

_AGE, _IDLE = 10.0, 2.0  # seconds
_MOST = 8  # idle ones of each server
_SWEEP = 1.0  # seconds between two looks at them


@dataclass(slots=True, eq=False)
class _Session:
    dialogue: smtp.Dialogue
    since: float
    used: float


class Sessions:
    """The sessions, for any number of threads. timeout: seconds for each step."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Session]] = {}
        self._sweeping = False

    def send(self, address: str, transaction: smtp.Transaction, parts: Iterable[bytes]) -> str:
        """Send one message, as smtp.send() does."""
        if address.startswith(smtp.LMTP):
            return smtp.send(address, transaction, parts, timeout=self._timeout)
        sender, recipient = transaction.envelope()
        session = self._take(address)
        while True:
            kept = session is not None
            try:
                if session is None:
                    now = time.monotonic()
                    session = _Session(smtp.connect(address, self._timeout), now, now)
                found = session.dialogue.run(sender, recipient, parts, eight_bit=transaction.eight_bit, last=False)
            except BaseException as error:
                if session is not None:
                    session.dialogue.close()
                    ended = isinstance(error, (ConnectionError, smtp.SmtpError))  # silence is none
                    if kept and ended and not session.dialogue.accepted:
                        session = None
                        continue  # the server ended it meanwhile
                if isinstance(error, (OSError, ValueError)):
                    raise smtp.failure(address, error) from error
                raise
            self._keep(address, session)
            return found

    def close(self) -> None:
        """End them all."""
        with self._lock:
            ended = [one for some in self._idle.values() for one in some]
            self._idle.clear()
        for one in ended:
            one.dialogue.leave()

    def _take(self, address: str) -> _Session | None:
        now = time.monotonic()
        with self._lock:
            idle = self._idle.get(address, [])
            if idle and now - idle[-1].since < _AGE and now - idle[-1].used < _IDLE:
                return idle.pop()
        return None  # the rest is the sweeper's

    def _keep(self, address: str, session: _Session) -> None:
        session.used = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(address, [])
            keeps = len(idle) < _MOST and session.used - session.since < _AGE
            begins = keeps and not self._sweeping
            if keeps:
                idle.append(session)
                self._sweeping = True
        if not keeps:
            session.dialogue.leave()
        if begins:
            self._begin()

    def _begin(self) -> None:
        """Have a thread look at what is idle, for as long as anything is."""
        try:
            threading.Thread(target=self._sweep, daemon=True).start()
        except RuntimeError:  # no more threads: then nothing is kept
            self._sweeping = False
            self.close()

    def _sweep(self) -> None:
        while True:
            time.sleep(_SWEEP)
            now = time.monotonic()
            with self._lock:
                old = {
                    one
                    for some in self._idle.values()
                    for one in some
                    if now - one.used >= _IDLE or now - one.since >= _AGE
                }
                for address, some in self._idle.items():
                    self._idle[address] = [one for one in some if one not in old]
                self._sweeping = any(self._idle.values())
                ends = not self._sweeping
            for one in old:
                one.dialogue.leave()
            if ends:
                return
