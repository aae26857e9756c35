"""What was decided and done for one message and recipient, so that a retry repeats nothing and decides nothing anew.

Must never: change a prepared record, or report a step done before the mark is on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from milterapp.state.database import BUSY, Database, StateError

__all__ = ["Journal", "Key", "Prepared", "StateError"]

_SCHEMA = """
CREATE TABLE prepared (key TEXT PRIMARY KEY, queue_id TEXT NOT NULL, record TEXT NOT NULL, at INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE done (key TEXT NOT NULL, step TEXT NOT NULL, result TEXT NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (key, step)) WITHOUT ROWID
"""
_BY_TIME = "; CREATE INDEX prepared_at ON prepared (at); CREATE INDEX done_at ON done (at)"
_VERSION = 1
_MARK = "INSERT OR IGNORE INTO done (key, step, result, at) VALUES (?, ?, ?, ?)"
_EXPIRE = (
    "DELETE FROM prepared WHERE key IN (SELECT key FROM prepared WHERE at < ? LIMIT ?)",
    "DELETE FROM done WHERE (key, step) IN (SELECT key, step FROM done WHERE at < ? LIMIT ?)",
)


@dataclass(frozen=True)
class Key:
    """What makes two deliveries the same one: two aliases of one user differ in the original recipient alone.

    digest: SHA-256 of the message as it came, in hexadecimal.
    """

    queue_id: str
    recipient: str
    original: str
    digest: str

    @cached_property
    def word(self) -> str:
        """Return 32 hexadecimal digits that stand for the key, in file names and Message-IDs."""
        whole = b""
        for part in (self.queue_id, self.recipient, self.original, self.digest):
            data = part.encode("utf-8", "surrogatepass")
            whole += b"%d:%s" % (len(data), data)
        return hashlib.sha256(whole).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The record that stands for a key. at: seconds since 1970; fresh: written just now, so no step can be done."""

    record: str
    at: int
    fresh: bool


class Journal:
    """A journal in one file. Every method raises StateError where the file cannot be read or written.

    large: of many people's mail, where expire() must find the old without reading all; a new file then has an index
    more to be written with each record and mark. A file that is there is taken with the indexes that it has. durable,
    patience: as in Database.
    """

    def __init__(self, path: str, *, large: bool = False, durable: bool = True, patience: float = BUSY) -> None:
        schema = _SCHEMA + _BY_TIME if large else _SCHEMA
        self.database = Database(path, schema, _VERSION, durable=durable, patience=patience)

    def find(self, key: Key) -> Prepared | None:
        """Return the record prepared for the key, None where there is none."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT record, at FROM prepared WHERE key = ?", (key.word,)).fetchone()
        return None if row is None else Prepared(row[0], row[1], fresh=False)

    def prepare(self, key: Key, record: str, now: int) -> Prepared:
        """Write the record, unless one stands already; return the one that stands. now: seconds since 1970."""
        done = self.database.write(
            "INSERT OR IGNORE INTO prepared (key, queue_id, record, at) VALUES (?, ?, ?, ?)",
            (key.word, key.queue_id.encode("ascii", "replace").decode(), record, now),
        )
        if done == 1:
            return Prepared(record, now, fresh=True)
        found = self.find(key)
        if found is None:
            raise StateError(f"{self.database.path}: a record is there, and is not")
        return found

    def steps(self, key: Key) -> Mapping[str, str]:
        """Return the steps done under the key, each with its result."""
        with self.database.reading() as connection:
            rows = connection.execute("SELECT step, result FROM done WHERE key = ?", (key.word,)).fetchall()
        return dict(rows)

    def mark(self, key: Key, step: str, result: str, now: int) -> None:
        """Write that a step is done; the first result stands. now: seconds since 1970."""
        self.database.write(_MARK, (key.word, step, result, now))

    def mark_all(self, marks: Sequence[tuple[Key, str, str, int]]) -> None:
        """Write several marks at once, each as mark() has it: all of them are on disk, or none."""
        if len(marks) == 1:
            self.mark(*marks[0])
            return
        with self.database.transaction() as connection:
            connection.executemany(_MARK, [(key.word, *rest) for key, *rest in marks])

    def expire(self, before: int, most: int = -1) -> int:
        """Forget what was prepared or done before then (seconds since 1970); return how many rows that were.

        most: of each of the two; -1 for all.
        """
        with self.database.transaction() as connection:
            return sum(connection.execute(statement, (before, most)).rowcount for statement in _EXPIRE)

    def close(self) -> None:
        """Close the file."""
        self.database.close()
