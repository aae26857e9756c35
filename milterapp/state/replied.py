"""To whom each rule has replied and when, so that nobody is answered twice within the interval (RFC 3834 section 2).

Must never: let two messages claim the same correspondent at once, or keep a claim whose reply did not leave.
"""

from __future__ import annotations

import hashlib

from milterapp.state.database import Database

__all__ = ["Replied"]

_SCHEMA = """
CREATE TABLE replied (handle TEXT PRIMARY KEY, message TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX replied_at ON replied (at)
"""
_VERSION = 1


class Replied:
    """The claims in one file. Every method raises StateError where the file cannot be read or written."""

    def __init__(self, path: str) -> None:
        self.database = Database(path, _SCHEMA, _VERSION)

    def claim(self, user: str, correspondent: str, rule: str, message: str, step: str, now: int, interval: int) -> bool:
        """Take the right to reply; False where another message replied within the interval (seconds).

        The same message may claim again: its reply did not get as far as being marked done, or it is another step's.
        """
        handle = _handle(user, correspondent, rule)
        with self.database.transaction() as connection:
            row = connection.execute("SELECT message, at FROM replied WHERE handle = ?", (handle,)).fetchone()
            if row is not None and abs(now - row[1]) < interval:
                return bool(row[0].partition(" ")[0] == message)
            connection.execute(
                "INSERT OR REPLACE INTO replied (handle, message, at) VALUES (?, ?, ?)",
                (handle, f"{message} {step}", now),
            )
            return True

    def release(self, user: str, correspondent: str, rule: str, message: str, step: str) -> None:
        """Give a claim back: the reply did not leave. One that another step of the message took stays."""
        with self.database.transaction() as connection:
            connection.execute(
                "DELETE FROM replied WHERE handle = ? AND message = ?",
                (_handle(user, correspondent, rule), f"{message} {step}"),
            )

    def expire(self, before: int) -> int:
        """Forget the claims older than that (seconds since 1970); return how many."""
        with self.database.transaction() as connection:
            return connection.execute("DELETE FROM replied WHERE at < ?", (before,)).rowcount

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def _handle(*parts: str) -> str:
    """Return a hash of the parts without regard to case: who wrote to whom is not readable from the file."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.casefold().encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data) + data)
    return whole.hexdigest()
