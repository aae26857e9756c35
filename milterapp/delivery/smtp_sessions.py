"""Sessions with Postfix's own smtpd, kept for a while: the next message needs no connection, greeting and new process.

Must never: send a message twice (a kept session that fails is given up for a new one only where the server had not
taken the sender, and cannot have taken the message), use one for two messages at a time, or keep one after anything but
success.

One is used for _AGE seconds and idle for _IDLE at most, so that a `postfix reload` counts soon and a stop waits for
nobody. Only sessions with Postfix: who keeps mail over LMTP may bound them otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from milterapp.delivery import smtp
from milterapp.delivery.tasks import Task, elsewhere

__all__ = ["Sessions"]

_AGE, _IDLE = 10.0, 2.0  # seconds
_MOST = 8  # idle ones of each server


@dataclass(slots=True, eq=False)
class _Session:
    dialogue: smtp.Dialogue
    since: float
    used: float


class Sessions:
    """The sessions, for any number of tasks of one thread. timeout: seconds for each step."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._idle: dict[str, list[_Session]] = {}

    def send(self, address: str, transaction: smtp.Transaction, parts: Iterable[bytes]) -> Task[str]:
        """Send one message, as smtp.send() does."""
        if address.startswith(smtp.LMTP):  # a host's name may have to be asked for, which blocks
            return (yield from elsewhere(partial(smtp.send, address, transaction, parts, timeout=self._timeout)))
        sender, recipient = transaction.envelope()
        message = smtp.gathered(parts)
        session = self._take(address)
        while True:
            kept = session is not None
            try:
                if session is None:
                    dialogue = yield from smtp.connect(address, self._timeout)
                    now = time.monotonic()
                    session = _Session(dialogue, now, now)
                found = yield from session.dialogue.run(sender, recipient, message, transaction, last=False)
            except BaseException as error:
                if session is not None:
                    session.dialogue.close()
                    ended = isinstance(error, (ConnectionError, smtp.SmtpError))  # silence is none
                    if kept and ended and not (session.dialogue.accepted or session.dialogue.uncertain):
                        session = None
                        continue  # the server ended it meanwhile
                if isinstance(error, (OSError, ValueError)):
                    raise smtp.failure(address, error) from error
                raise
            self._keep(address, session)
            return found

    def __bool__(self) -> bool:
        """Tell whether any is kept."""
        return any(self._idle.values())

    def sweep(self) -> None:
        """Leave those that were kept for long enough; whoever keeps some calls this each second."""
        now = time.monotonic()
        for address, some in self._idle.items():
            old = [one for one in some if now - one.used >= _IDLE or now - one.since >= _AGE]
            self._idle[address] = [one for one in some if one not in old]
            for one in old:
                one.dialogue.leave()

    def close(self) -> None:
        """End them all."""
        ended = [one for some in self._idle.values() for one in some]
        self._idle.clear()
        for one in ended:
            one.dialogue.leave()

    def _take(self, address: str) -> _Session | None:
        now = time.monotonic()
        idle = self._idle.get(address, [])
        if idle and now - idle[-1].since < _AGE and now - idle[-1].used < _IDLE:
            return idle.pop()
        return None  # the rest is the sweeper's

    def _keep(self, address: str, session: _Session) -> None:
        session.used = time.monotonic()
        idle = self._idle.setdefault(address, [])
        if len(idle) < _MOST and session.used - session.since < _AGE:
            idle.append(session)
        else:
            session.dialogue.leave()
