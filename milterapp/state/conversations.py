"""What scripts remember: states of senders, stored values, files still to be written; changed at once or not at all.

Must never: apply one message's changes twice, or a part of them; understand a value (scripts' own encoding has the mark
of what came from a message in it).

A message's changes are committed together with the record of what was decided about it: whoever finds the record knows
that they were made. Files wait in the same transaction until they are written, in the order of their messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from milterapp.state.database import BUSY, Database

__all__ = ["Change", "Conversations", "Kept", "Output"]

_SCHEMA = """
CREATE TABLE states (script TEXT NOT NULL, sender TEXT NOT NULL, per TEXT NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (script, sender, per)) WITHOUT ROWID;
CREATE TABLE stored (script TEXT NOT NULL, key TEXT NOT NULL, marked INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (script, key)) WITHOUT ROWID;
CREATE TABLE questions (script TEXT NOT NULL, digest TEXT NOT NULL, until INTEGER NOT NULL, answer TEXT NOT NULL,
    sender TEXT NOT NULL, original TEXT NOT NULL, message BLOB NOT NULL, PRIMARY KEY (script, digest)) WITHOUT ROWID;
CREATE INDEX questions_until ON questions (until);
CREATE TABLE outputs (number INTEGER PRIMARY KEY, script TEXT NOT NULL, path TEXT NOT NULL, text TEXT);
CREATE TABLE committed (message TEXT PRIMARY KEY, record TEXT NOT NULL, mails INTEGER NOT NULL, at INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE INDEX committed_at ON committed (at);
CREATE TABLE told (handle TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX told_at ON told (at)
"""
_VERSION = 1
_PUT = "INSERT OR REPLACE INTO {} VALUES ({})"


@dataclass(frozen=True, slots=True)
class Output:
    """A file still to be written below a script's output folder. text: None to remove it."""

    number: int
    script: str
    path: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that is kept until a question about it is answered. digest: of the token that answers it.

    answer: what the script wants to know again then; sender, original: of the envelope; until: seconds since 1970.
    """

    digest: str
    until: int
    answer: str
    sender: str
    original: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What one run of a script changes. state: the sender's next one, "" to leave it, None to have none.

    stores: keys, whether they came from a message, and values, None to forget. outputs: paths and texts, None to
    remove.
    """

    script: str
    sender: str = ""
    per: tuple[str, ...] = ()
    state: str | None = ""
    stores: tuple[tuple[str, bool, str | None], ...] = ()
    outputs: tuple[tuple[str, str | None], ...] = ()
    questions: tuple[Kept, ...] = ()
    answered: tuple[str, ...] = ()


class Conversations:
    """The memory of one user's scripts, in one file. Every method raises StateError where it cannot be read or written.

    message: a word that stands for a message and recipient. now, at: seconds since 1970. durable, patience: as in
    Database.
    """

    def __init__(self, path: str, *, durable: bool = True, patience: float = BUSY) -> None:
        self.database = Database(path, _SCHEMA, _VERSION, durable=durable, patience=patience)

    def state(self, script: str, sender: str, per: Sequence[str]) -> str:
        """Return a sender's state for these captures, "" where there is none."""
        with self.database.reading() as connection:
            row = connection.execute(
                "SELECT state FROM states WHERE script = ? AND sender = ? AND per = ?",
                (script, sender.lower(), _per(per)),
            ).fetchone()
        return "" if row is None else str(row[0])

    def states(self, script: str, sender: str, most: int) -> dict[tuple[str, ...], str] | None:
        """Return all states of a sender by their captures, None where they are more than so many."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT per, state FROM states WHERE script = ? AND sender = ? LIMIT ?",
                (script, sender.lower(), most + 1),
            ).fetchall()
        return {tuple(json.loads(per)): str(state) for per, state in rows} if len(rows) <= most else None

    def value(self, script: str, key: str) -> str | None:
        """Return what is stored under a key, None for nothing."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT value FROM stored WHERE script = ? AND key = ?", (script, key)).fetchone()
        return None if row is None else str(row[0])

    def keys(self, script: str, prefix: str, most: int) -> list[tuple[str, bool]]:
        """Return the first keys that begin so, in order, each with whether it came from a message."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT key, marked FROM stored WHERE script = ? AND key >= ? ORDER BY key LIMIT ?",
                (script, prefix, most),
            )
            return [(str(key), bool(marked)) for key, marked in takewhile(lambda row: row[0].startswith(prefix), rows)]

    def question(self, script: str, digest: str, now: int) -> Kept | None:
        """Return the message that a question is about, None where it was answered, or is too old."""
        with self.database.reading() as connection:
            row = connection.execute(
                "SELECT digest, until, answer, sender, original, message FROM questions"
                " WHERE script = ? AND digest = ? AND until > ?",
                (script, digest, now),
            ).fetchone()
        return None if row is None else Kept(*row)

    def mails_since(self, at: int) -> int:
        """Return how many mails messages since then have caused."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT COALESCE(SUM(mails), 0) FROM committed WHERE at > ?", (at,)).fetchone()
        return int(row[0])

    def committed(self, message: str) -> str | None:
        """Return the record with which a message's changes were made, None where none were; "" where it was let go."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT record FROM committed WHERE message = ?", (message,)).fetchone()
        return None if row is None else str(row[0])

    def commit(
        self, message: str, record: str, changes: Sequence[Change], *, mails: int, now: int, known: Iterable[str] = ()
    ) -> None:
        """Make a message's changes and keep its record, in one transaction; nothing where that was done before.

        mails: how many the message causes. known: messages whose record is safe elsewhere by now, and let go here.
        """
        with self.database.transaction() as connection:
            run = connection.execute
            cursor = run(
                "INSERT OR IGNORE INTO committed (message, record, mails, at) VALUES (?, ?, ?, ?)",
                (message, record, mails, now),
            )
            if cursor.rowcount != 1:
                return
            for one in changes:
                for key, marked, value in one.stores:
                    if value is None:
                        run("DELETE FROM stored WHERE script = ? AND key = ?", (one.script, key))
                    else:
                        run(_PUT.format("stored", "?, ?, ?, ?"), (one.script, key, marked, value))
                for kept in one.questions:
                    row = (one.script, kept.digest, kept.until, kept.answer, kept.sender, kept.original, kept.message)
                    run(_PUT.format("questions", "?, ?, ?, ?, ?, ?, ?"), row)
                for digest in one.answered:
                    run("DELETE FROM questions WHERE script = ? AND digest = ?", (one.script, digest))
                for path, text in one.outputs:
                    run("INSERT INTO outputs (script, path, text) VALUES (?, ?, ?)", (one.script, path, text))
                place = (one.script, one.sender.lower(), _per(one.per))
                if one.state is None:
                    run("DELETE FROM states WHERE script = ? AND sender = ? AND per = ?", place)
                elif one.state:
                    run(_PUT.format("states", "?, ?, ?, ?"), (*place, one.state))
            for other in known:
                run("UPDATE committed SET record = '' WHERE message = ?", (other,))

    def outputs(self, most: int = 100) -> list[Output]:
        """Return the first files that are still to be written, in order."""
        with self.database.reading() as connection:
            rows = connection.execute("SELECT number, script, path, text FROM outputs ORDER BY number LIMIT ?", (most,))
            return [Output(*row) for row in rows]

    def written(self, last: int) -> None:
        """Forget the files up to this number: they are on disk."""
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM outputs WHERE number <= ?", (last,))

    def was_told(self, handle: str) -> bool:
        """Return whether somebody was told this."""
        with self.database.reading() as connection:
            return connection.execute("SELECT 1 FROM told WHERE handle = ?", (handle,)).fetchone() is not None

    def tell(self, handle: str, now: int) -> None:
        """Remember that somebody was told this."""
        with self.database.transaction() as connection:
            connection.execute(_PUT.format("told", "?, ?"), (handle, now))

    def untell(self, handle: str) -> None:
        """Take it back: it did not get there."""
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM told WHERE handle = ?", (handle,))

    def expire(self, before: int, now: int, most: int = -1) -> int:
        """Forget records and what was told before then, and questions that were to be answered by now.

        States and values stay. Return how many rows that were. most: of each kind; -1 for all.
        """
        with self.database.transaction() as connection:
            return sum(
                connection.execute(
                    f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {old} LIMIT ?)",  # noqa: S608 - words of ours
                    (at, most),
                ).rowcount
                for table, key, old, at in (
                    ("committed", "message", "at < ?", before),
                    ("told", "handle", "at < ?", before),
                    ("questions", "script, digest", "until <= ?", now),
                )
            )

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def _per(captures: Sequence[str]) -> str:
    return json.dumps(list(captures), ensure_ascii=True)
