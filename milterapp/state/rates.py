"""How many messages there were within a time, and whether one was there before: the memory of `rate` and `duplicate`.

Must never: count one message twice, or give a retry another answer than its first.
"""

from __future__ import annotations

import hashlib

from milterapp.state.database import BUSY, Database

__all__ = ["Rates", "handle_of"]

_SCHEMA = """
CREATE TABLE counted (
    handle TEXT NOT NULL, message TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL, answer INTEGER NOT NULL,
    PRIMARY KEY (handle, message)
) WITHOUT ROWID;
CREATE INDEX counted_at ON counted (handle, at);
CREATE INDEX counted_until ON counted (until)
"""
_VERSION = 1


class Rates:
    """The messages counted in one file. Every method raises StateError where it cannot be read or written.

    rule: the rule that asks; key: what it counts by; message: what tells this message, and this recipient of it, from
    others, and is the same when it is tried again. now: seconds since 1970; within: seconds. durable, patience: as in
    Database.
    """

    def __init__(self, path: str, *, durable: bool = True, patience: float = BUSY) -> None:
        self.database = Database(path, _SCHEMA, _VERSION, durable=durable, patience=patience)

    def rate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> int:
        """Record the message; return how many there were within the time, this one included."""
        return self._record("rate", rule, key, message, now, within)

    def duplicate(self, rule: str, key: tuple[str, ...], message: str, *, now: float, within: float) -> bool:
        """Record the message; return whether another one of the same key was there within the time."""
        return self._record("duplicate", rule, key, message, now, within) > 1

    def _record(self, kind: str, rule: str, key: tuple[str, ...], message: str, now: float, within: float) -> int:
        handle = handle_of(kind, rule, *key)
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT answer FROM counted WHERE handle = ? AND message = ?", (handle, message)
            ).fetchone()
            if row is not None:
                return int(row[0])
            before = connection.execute(
                "SELECT COUNT(*) FROM counted WHERE handle = ? AND at > ?", (handle, now - within)
            ).fetchone()[0]
            connection.execute(
                "INSERT INTO counted (handle, message, at, until, answer) VALUES (?, ?, ?, ?, ?)",
                (handle, message, now, now + within, before + 1),
            )
            return int(before) + 1

    def expire(self, before: float, most: int = -1) -> int:
        """Forget what counts no more since that time (seconds since 1970); return how many. most: -1 for all."""
        with self.database.transaction() as connection:
            return connection.execute(
                "DELETE FROM counted WHERE (handle, message) IN"
                " (SELECT handle, message FROM counted WHERE until < ? LIMIT ?)",
                (before, most),
            ).rowcount

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def handle_of(*parts: str) -> str:
    """Return a hash of what is counted by: who wrote to whom is not readable from the memory."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data) + data)
    return whole.hexdigest()
