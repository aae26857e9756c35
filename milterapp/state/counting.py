"""The three memories that `rate` and `duplicate` of a site may have: a file, this process, or a Redis server.

Must never: count one message twice, or take a memory that cannot be reached for an empty one.
"""

from __future__ import annotations

import os
import threading
from itertools import takewhile
from typing import Any, Protocol

from milterapp.state.database import StateError
from milterapp.state.rates import Rates, handle_of

__all__ = ["FILE", "MEMORY", "REDIS", "Counting", "Fleeting", "Shared", "opened"]

FILE = "rates.sqlite"
MEMORY = "memory"
REDIS = ("redis://", "rediss://", "unix://")
_PATIENCE = 2.0  # seconds; a step of an SMTP session has five
_MOST = 500_000  # messages that a process counts at once, all handles together: 225 MB, a handle each

# One message more under a handle, unless it is there: what is too old is dropped, and its place among the rest is the
# answer. The server's own clock, which all hosts share. Source: redis.io, "Scripting with Lua", ZADD.
_COUNT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2]) * 1000) + 1000)
return redis.call('ZRANK', KEYS[1], ARGV[1]) + 1
"""


class Counting(Protocol):
    """What counts messages. Methods and arguments are those of Rates; every one raises StateError."""

    def rate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> int:
        """Record the message; return how many there were within the time, this one included."""

    def duplicate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> bool:
        """Record the message; return whether another one of the same key was there within the time."""

    def expire(self, before: float) -> int:
        """Forget what counts no more since that time; return how many."""

    def close(self) -> None:
        """Let go of it."""


class Fleeting:
    """A memory of this process, which ends with it. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, list[tuple[float, str]]] = {}  # by handle: until when, which message
        self._total = 0

    def rate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> int:
        """Record the message; return how many there were within the time, this one included."""
        return self._record(handle_of("rate", rule, *key), message, now, within)

    def duplicate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> bool:
        """Record the message; return whether another one of the same key was there within the time."""
        return self._record(handle_of("duplicate", rule, *key), message, now, within) > 1

    def _record(self, handle: str, message: str, now: float, within: float) -> int:
        with self._lock:
            seen = self._seen.setdefault(handle, [])
            self._drop(seen, now)
            place = next((place for place, (_, one) in enumerate(seen) if one == message), None)
            if place is not None:
                return place + 1
            if self._total >= _MOST:
                raise StateError(f"more than {_MOST} messages to count in memory; use a file (milter.state)")
            seen.append((now + within, message))
            self._total += 1
            return len(seen)

    def _drop(self, seen: list[tuple[float, str]], before: float) -> int:
        gone = sum(1 for _ in takewhile(lambda one: one[0] <= before, seen))
        del seen[:gone]
        self._total -= gone
        return gone

    def expire(self, before: float) -> int:
        """Forget what counts no more since that time; return how many."""
        with self._lock:
            gone = sum(self._drop(seen, before) for seen in self._seen.values())
            self._seen = {handle: seen for handle, seen in self._seen.items() if seen}
            return gone

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._seen.clear()
            self._total = 0


class Shared:
    """A Redis server's memory, the same for every host that names it. url: as redis-py takes it."""

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise StateError(
                f"{_safe(url)}: the library redis is not installed (pip install 'milterapp[redis]')"
            ) from None
        self._name = _safe(url)
        self._faults: tuple[type[Exception], ...] = (redis.RedisError, OSError, ValueError)
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE, health_check_interval=30
            )
            self._count: Any = self._client.register_script(_COUNT)
        except self._faults as error:
            raise StateError(f"{self._name}: {error}") from error

    def rate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> int:
        """Record the message; return how many there were within the time, this one included."""
        del now  # the server's clock counts
        return self._record(handle_of("rate", rule, *key), message, within)

    def duplicate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> bool:
        """Record the message; return whether another one of the same key was there within the time."""
        del now
        return self._record(handle_of("duplicate", rule, *key), message, within) > 1

    def _record(self, handle: str, message: str, within: float) -> int:
        try:
            return int(self._count(keys=[f"milterapp:{handle}"], args=[message, within]))
        except self._faults as error:
            raise StateError(f"{self._name}: {error}") from error

    def expire(self, before: float) -> int:
        """Do nothing: the server forgets by itself."""
        del before
        return 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def opened(where: str) -> Counting:
    """Return the memory that a setting names: `memory`, a Redis URL, or a folder. Raises StateError."""
    if where == MEMORY:
        return Fleeting()
    if where.startswith(REDIS):
        return Shared(where)
    return Rates(os.path.join(where, FILE), durable=False, patience=_PATIENCE)


def _safe(url: str) -> str:
    """Return the URL as a log may show it, without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
