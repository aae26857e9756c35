"""One SQLite file, opened so that a commit that returned is on disk (WAL, synchronous=FULL) unless told otherwise.

Must never: outlive the file it opened (a database that was moved or removed is opened anew), or read a newer schema.
Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType

__all__ = ["BUSY", "Database", "StateError", "exists"]

BUSY = 10.0  # seconds to wait for another process's transaction
_AGAIN = 0.01  # seconds until a new file is tried again that another process is preparing


class StateError(Exception):
    """The state cannot be read or written; str() names the file. Always temporary: nothing was decided by it."""


class Database:
    """A database and the one lock that its threads share.

    durable: whether a commit waits for the disk; without it the last ones may be lost with the machine (not with the
    process), and the file stays whole. patience: seconds to wait for other processes, and for other threads.
    Raises StateError where the file or its folder belongs to somebody else, is open to others, or is no database.
    """

    def __init__(self, path: str, schema: str, version: int, *, durable: bool = True, patience: float = BUSY) -> None:
        self.path = path
        self._schema, self._version, self._patience = schema, version, patience
        self._synchronous = "FULL" if durable else "NORMAL"
        self._lock = threading.RLock()  # _prepare begins a transaction, also where one found the file faulty
        self._faulty = False
        self._turn = _Turn(self)
        self._open()

    def _open(self) -> None:
        """Open the file. Raises StateError."""
        path = self.path
        try:
            _check(path)
            # mode=rw: what `_check` did not make is not there, even where its folder is another one by now
            uri = f"file:{path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=rw"
            self._connection = sqlite3.connect(
                uri, timeout=self._patience, isolation_level=None, check_same_thread=False, uri=True
            )
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{path}: {error}") from error
        try:
            self._prepare(self._schema, self._version)
            self._identity = _identity(path)
        except (sqlite3.Error, OSError) as error:
            self._connection.close()
            raise StateError(f"{path}: {error}") from error
        except StateError:
            self._connection.close()
            raise

    def _anew(self) -> sqlite3.Connection:
        """Return a new connection, after a fault.

        A lock that could not be given back (one failed fcntl(2)) stays with a connection for as long as it lives, and
        every later use of it fails. Raises StateError.
        """
        self._connection.close()
        self._faulty = False
        try:
            self._open()
        except StateError:
            self._faulty = True
            raise
        return self._connection

    def _prepare(self, schema: str, version: int) -> None:
        """Set the durability, and make the tables where the file is new."""
        run = self._connection.execute
        self._write_ahead()
        run(f"PRAGMA synchronous={self._synchronous}")
        run("PRAGMA temp_store=MEMORY")  # else SQLite would make files in /tmp, where an agent may not
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

    def _write_ahead(self) -> None:
        """Have the file use WAL; of two that do so to a new file at once, SQLite tells one at once that it is busy."""
        until = time.monotonic() + self._patience
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            else:
                return
            time.sleep(_AGAIN)

    def still_there(self) -> bool:
        """Tell whether the path still names the file that was opened. Raises StateError where that cannot be seen."""
        try:
            return _identity(self.path) == self._identity
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}") from error

    def begin(self) -> sqlite3.Connection:
        """Wait for the threads before us, who may each wait for another process; give the connection, until end().

        Raises StateError.
        """
        if not self._lock.acquire(timeout=self._patience):
            raise StateError(f"{self.path}: other threads have had it for {self._patience:g} s")
        if not self._faulty:
            return self._connection
        try:
            return self._anew()
        except BaseException as error:
            self.end(error)
            raise

    def end(self, error: BaseException | None) -> None:
        """Give the connection back. Raises StateError for a fault of the database."""
        try:
            if isinstance(error, sqlite3.Error):
                self._faulty = True
                with suppress(sqlite3.Error):  # closed before the next use, which ends what this does not
                    self._connection.rollback()  # so that other processes need not wait for that
                raise StateError(f"{self.path}: {error}") from error
        finally:
            self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a write transaction: committed, and on disk, at the end; else rolled back.

        Raises StateError for every fault of the database.
        """
        with self._turn as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def write(self, statement: str, values: Sequence[str | int | float | bytes | None]) -> int:
        """Run one statement as a transaction of its own, on disk when it returns; return how many rows it changed.

        Outside of a transaction SQLite commits each statement: a third of the calls that transaction() makes.
        Raises StateError for every fault of the database.
        """
        with self._turn as connection:
            return connection.execute(statement, values).rowcount

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Give the connection for single reads. Raises StateError for every fault of the database."""
        return self._turn

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


class _Turn(AbstractContextManager["sqlite3.Connection"]):
    """A thread's turn with the connection: one object, entered for each statement, as a generator would cost more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        return self._database.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.end(error)


def exists(path: str) -> bool:
    """Tell whether there is such a file. Raises StateError where that cannot be seen: then nothing follows from it.

    os.path.lexists would take an error for "no", and what was done for not done.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    return True


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _check(path: str) -> None:
    """Refuse a state file that somebody else could have written: another owner, open modes, a link. Make a missing one.

    No link is followed below the folder's parent, so nothing is made elsewhere.
    """
    parent, name = os.path.split(path)
    folder = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _ours(os.fstat(folder), stat.S_ISDIR, parent)
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=folder))
        else:
            _ours(found, stat.S_ISREG, path)
    finally:
        os.close(folder)


def _ours(found: os.stat_result, wanted: Callable[[int], bool], name: str) -> None:
    if not wanted(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StateError(f"{name}: must be our own, with no write permission for others (chmod go-w)")
