"""What Postfix's log says became of a message: pure reading of lines.

Must never: guess; a line that is not understood says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Fate", "fates", "notices", "queue_ids", "under_way"]

_LINE = re.compile(r" (?P<service>postfix[\w./-]*|[\w-]+)\[\d+\]: (?P<queue_id>[0-9A-Za-z]{6,}): (?P<rest>.*)$")
_FATE = re.compile(
    r"to=<(?P<to>[^>]*)>, (?:orig_to=<(?P<original>[^>]*)>, )?relay=(?P<relay>[^,]*), (?:conn_use=\d+, )?delay=[^,]*, "
    r"delays=[^,]*, dsn=(?P<dsn>[\d.]+), status=(?P<status>\w+) \((?P<text>.*)\)$"
)
_NOTICE = re.compile(r"sender (?:non-delivery|delivery status|delay) notification: (?P<queue_id>\w+)$")


@dataclass(frozen=True, slots=True)
class Fate:
    """What one delivery agent did with one recipient of one queue file."""

    service: str
    queue_id: str
    to: str
    original: str
    relay: str
    dsn: str
    status: str
    text: str


def fates(lines: Iterable[str]) -> Iterator[Fate]:
    """Yield every delivery, deferral and bounce, in the order of the log."""
    for line in lines:
        head = _LINE.search(line)
        found = _FATE.match(head["rest"]) if head else None
        if head and found:
            yield Fate(
                head["service"].removeprefix("postfix/"),
                head["queue_id"],
                found["to"],
                found["original"] or found["to"],
                found["relay"],
                found["dsn"],
                found["status"],
                found["text"],
            )


def under_way(lines: Iterable[str]) -> set[str]:
    """Return the queue ids that qmgr(8) took up and has not logged as removed; what it logs comes after the fates."""
    found: set[str] = set()
    for line in lines:
        head = _LINE.search(line)
        if head and head["rest"].endswith("(queue active)"):
            found.add(head["queue_id"])
        elif head and head["rest"] == "removed":
            found.discard(head["queue_id"])
    return found


def queue_ids(lines: Iterable[str], message_id: str) -> list[str]:
    """Return the queue ids under which a message went, the first one first (cleanup(8) logs each Message-ID)."""
    found = []
    for line in lines:
        head = _LINE.search(line)
        if head and head["rest"] == f"message-id=<{message_id}>" and head["queue_id"] not in found:
            found.append(head["queue_id"])
    return found


def notices(lines: Iterable[str], queue_id: str) -> list[str]:
    """Return the queue ids of the notices that went to the sender of a message."""
    found = []
    for line in lines:
        head = _LINE.search(line)
        notice = _NOTICE.match(head["rest"]) if head and head["queue_id"] == queue_id else None
        if notice:
            found.append(notice["queue_id"])
    return found
