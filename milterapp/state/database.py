"""One SQLite file, opened so that a commit that returned is on disk (WAL, synchronous=FULL).

Must never: outlive the file it opened (a database that was moved or removed is opened anew), or read a newer schema.
Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Database", "StateError"]

_BUSY = 10.0  # seconds to wait for another process's transaction


class StateError(Exception):
    """The state cannot be read or written; str() names the file. Always temporary: nothing was decided by it."""


class Database:
    """A database and the one lock that its threads share.

    Raises StateError where the file or its folder belongs to somebody else, is open to others, or is no database.
    """

    def __init__(self, path: str, schema: str, version: int) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            _check(path)
            self._connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{path}: {error}") from error
        try:
            self._prepare(schema, version)
            self._identity = _identity(path)
        except (sqlite3.Error, OSError) as error:
            self._connection.close()
            raise StateError(f"{path}: {error}") from error
        except StateError:
            self._connection.close()
            raise

    def _prepare(self, schema: str, version: int) -> None:
        """Set the durability, and make the tables where the file is new."""
        run = self._connection.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        found = run("PRAGMA user_version").fetchone()[0]
        if found == version:
            return
        if found != 0:
            raise StateError(
                f"{self.path}: schema {found}, expected {version}; written by another version of milterapp"
            )
        with self.transaction() as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] == version:
                return  # another process was first
            for statement in schema.split(";"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={version:d}")
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the file's own name must be as durable as what it holds
        finally:
            os.close(folder)

    def still_there(self) -> bool:
        """Tell whether the path still names the file that was opened."""
        try:
            return _identity(self.path) == self._identity
        except OSError:
            return False

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a write transaction: committed, and on disk, at the end; else rolled back.

        Raises StateError for every fault of the database.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise StateError(f"{self.path}: {error}") from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for single reads. Raises StateError for every fault of the database."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise StateError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _check(path: str) -> None:
    """Refuse a state file that somebody else could have written: another owner, open modes, a link."""
    for name, wanted in ((os.path.dirname(path) or ".", stat.S_ISDIR), (path, stat.S_ISREG)):
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            if name == path:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                os.close(descriptor)
                return
            raise
        if not wanted(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise StateError(f"{name}: must be our own, with no write permission for others (chmod go-w)")
