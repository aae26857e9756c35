"""Opening what a user wrote: the home, the rule file, lists and scripts beside it, as that user, checked when open.

Must never: follow a link below the home, block on what is no file, or read a rule file that anybody but its user (or
root) could have written. Source: OpenSMTPD's secure_file(), sendmail's .forward checks.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from milterapp.rules.problem import Place, Problem

__all__ = [
    "Loaded",
    "RuleFile",
    "ScriptPlace",
    "Unavailable",
    "UnsafeError",
    "open_home",
    "plain_files",
    "plain_programs",
]

# Of milterapp.rules.reading.CAN, what the agent carries out.
_CAN = frozenset((
    "prepend_header", "banner", "footer", "drop_attachments", "replace_body", "vacation", "flag", "log", "rate",
    "duplicate", "pipe", "filter", "command", "script",
))  # fmt: skip
_LIMIT = 1024 * 1024  # bytes of a rule file, and of each list and script
_MOST_BESIDE = 100  # files beside a script that it may read
_BETWEEN = 1.0  # seconds in which an editor that moved the old file away writes the new one
_LATELY = 2.0  # seconds since a change of the folder in which that may be going on
_NO_HOME = frozenset({"", "/nonexistent", "/dev/null"})  # what passwd(5) writes for accounts without a home
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TEMPORARY = frozenset({
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.EINTR,
    errno.ETIMEDOUT, errno.ENODEV, errno.EHOSTDOWN, errno.ENOTCONN, errno.ECONNREFUSED, errno.EAGAIN,
    errno.ENOSPC, errno.EDQUOT,
})  # fmt: skip

_LINKS = {
    errno.ELOOP: "is a symbolic link, expected the file itself",
    errno.ENOTDIR: "lies below what is no folder, or a symbolic link",
    errno.ENXIO: "is no plain file",
}

Stamp = tuple[int, int, int, int, int]


class Unavailable(Exception):  # noqa: N818 - a state of the world, not an error of anybody
    """The home or the rules cannot be read now: temporary, whatever the rules may say. str() is for the log."""


class UnsafeError(Exception):
    """A file that must not be read as rules; str() says what was found and the remedy."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a user's rule file gave. policy None: no rule file (no problems), or one that cannot be used (problems).

    scripts: the source of each script that the rules name, by that name. site: the site's rules around them, if any.
    """

    policy: Policy | None
    problems: tuple[Problem, ...] = ()
    scripts: Mapping[str, bytes] = field(default_factory=dict)
    site: Policy | None = None

    @property
    def broken(self) -> bool:
        """Tell whether there are rules that cannot be used."""
        return self.policy is None and bool(self.problems)


@dataclass(frozen=True, slots=True)
class ScriptPlace:
    """Where a script lies. folder: a descriptor, None for nowhere. shared: the script may read all that is in it.

    readable: descriptors of what it may read where it may not read all, as the rules and what is remembered lie there.
    """

    folder: int | None = None
    shared: bool = True
    readable: tuple[int, ...] = ()


@contextmanager
def open_home(home: str, uid: int) -> Iterator[int | None]:
    """Give a descriptor of the home; None for an account that has none. Raises Unavailable."""
    if home in _NO_HOME:
        yield None
        return
    try:
        descriptor = os.open(home, _FOLDER)
    except OSError as error:
        raise Unavailable(f"home: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in (uid, 0):
            raise Unavailable("home: belongs to another user")
        if found.st_mode & stat.S_ISVTX:
            raise Unavailable("home: sticky, so its user is changing something (chmod -t when done)")
        yield descriptor
    finally:
        os.close(descriptor)


def plain_programs(programs: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the programs that rules may give no options. programs: as AgentSettings has them."""
    return tuple(name for name, one in programs.items() if not one["options"])


class RuleFile:
    """The rules of one user, loaded again only when a file they were read from changed."""

    def __init__(
        self,
        path: str,
        uid: int,
        authserv_ids: Sequence[str] = (),
        programs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        flags_kept: bool = False,
        scripts: bool = True,
    ) -> None:
        """Take the path as settings.personal_rules gives it: below the home, or absolute.

        programs: the site's. flags_kept: `keep` files into the Maildir, where flags can be carried. scripts: whether
        the rules may have some.
        """
        self._flags_kept = flags_kept
        self._uid = uid
        self._can = _CAN if scripts else _CAN - {"script"}
        self._programs = programs or {}
        self._authserv_ids = tuple(authserv_ids)
        self._absolute = path.startswith("/")
        *self._folders, self._name = [name for name in path.split("/") if name not in ("", ".")]
        self.shown = path if self._absolute else f"~/{path}"
        self._stamps: dict[str, Stamp] = {}
        self._loaded: Loaded | None = None

    def load(self, home: int) -> Loaded:
        """Return the rules as they stand now. home: a descriptor. Raises Unavailable.

        Where those of the last time are gone just now, they may be about to be replaced: that is waited for.
        """
        had = self._loaded is not None
        if self._loaded is not None and self._same(home):
            return self._loaded
        found = self._load(home)
        until = time.monotonic() + _BETWEEN
        while had and found.policy is None and not found.problems and self._changing(home):
            if time.monotonic() > until:
                break
            time.sleep(_BETWEEN / 20)
            found = self._load(home)
        return found

    def _load(self, home: int) -> Loaded:
        """Return the rules, read again where a file has changed. Raises Unavailable."""
        loaded, self._loaded = self._loaded, None
        try:
            with self._folder(home) as (folder, fault):
                if loaded is None or fault or not self._unchanged(folder):
                    self._stamps = {}
                    source = self._read(folder, self._name)
                    if fault:
                        raise UnsafeError(fault)
                    scripts: dict[str, bytes] = {}
                    policy, problems = load(
                        source,
                        self.shown,
                        site=False,
                        read_list=self._lists(folder),
                        read_script=self._scripts(folder, scripts),
                        authserv_ids=self._authserv_ids,
                        programs=self._programs,
                        plain=plain_programs(self._programs),
                        flags_kept=self._flags_kept,
                        can=self._can,
                    )
                    loaded = Loaded(policy, problems, scripts)
        except FileNotFoundError:
            return Loaded(None)
        except UnsafeError as error:
            return self._unusable(str(error))
        except OSError as error:
            if error.errno in _TEMPORARY:
                raise Unavailable(f"{self.shown}: {error.strerror}") from error
            return self._unusable(_LINKS.get(error.errno or 0) or f"cannot be opened: {error.strerror}")
        if loaded.policy is not None:
            self._loaded = loaded
        return loaded

    @contextmanager
    def script_place(self, home: int, script: str) -> Iterator[ScriptPlace]:
        """Give the place of a script that the rules name. Raises UnsafeError or OSError.

        A folder below the rules' own is the script's; beside the rules it may read plain files that are not hidden.
        """
        with ExitStack() as stack:
            folder, fault = stack.enter_context(self._folder(home))
            own = stack.enter_context(self._below(folder, script))
            if fault:
                raise UnsafeError(fault)
            if "/" in script:
                yield ScriptPlace(own)
                return
            found: list[int] = []
            for name in plain_files(own):
                found.append(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=own))
                stack.callback(os.close, found[-1])
            yield ScriptPlace(own, shared=False, readable=tuple(found))

    @contextmanager
    def _below(self, folder: int, path: str) -> Iterator[int]:
        """Give the folder that a path from here lies in. Raises UnsafeError or OSError."""
        here = os.dup(folder)
        try:
            for name in path.split("/")[:-1]:
                there = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = there
                if fault := self._folder_fault(os.fstat(here), f"the folder {name!r}"):
                    raise UnsafeError(fault)
            yield here
        finally:
            os.close(here)

    def _unusable(self, text: str) -> Loaded:
        return Loaded(None, (Problem(Place(self.shown), text),))

    @contextmanager
    def _folder(self, home: int) -> Iterator[tuple[int, str]]:
        """Give the rule file's folder, and what is wrong with it or a folder above it, "" for nothing."""
        way = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # passed, not read: outside of the home an agent may not
        here = os.open("/", way) if self._absolute else os.dup(home)
        try:
            fault = self._folder_fault(os.fstat(here), "/" if self._absolute else "the home")
            for at, name in enumerate(self._folders, 1):
                flags = _FOLDER if at == len(self._folders) else way
                there = os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = there
                fault = fault or self._folder_fault(os.fstat(here), f"the folder {name!r}")
            yield here, fault
        finally:
            os.close(here)

    def _folder_fault(self, found: os.stat_result, name: str) -> str:
        if found.st_uid not in (self._uid, 0):
            return f"{name} belongs to another user"
        if found.st_mode & 0o022:
            return f"{name} can be written by others, expected: chmod go-w"
        return ""

    def _read(self, folder: int, name: str, path: str = "") -> bytes:
        """Return what a file holds, remembering its stamp under its path. Raises UnsafeError or OSError."""
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            found = os.fstat(descriptor)
            for fault, remedy in _FAULTS:
                if fault(found, self._uid):
                    raise UnsafeError(remedy)
            parts, size = [], 0
            while size <= _LIMIT and (chunk := os.read(descriptor, _LIMIT + 1 - size)):
                parts.append(chunk)
                size += len(chunk)
            if size > _LIMIT:
                raise UnsafeError(_TOO_LONG)
            self._stamps[path or name] = _stamp(found)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def _lists(self, folder: int) -> Callable[[str], bytes]:
        """Return what reads a list beside the rules, by its plain name; it raises OSError with the reason."""

        def read_list(name: str) -> bytes:
            if "/" in name or name in ("", ".", ".."):
                raise OSError(errno.EINVAL, "a list is a file beside the rules, its name without '/'")
            try:
                return self._read(folder, name)
            except UnsafeError as error:
                raise OSError(errno.EPERM, str(error)) from error
            except OSError as error:
                raise _beside(error, name) from error

        return read_list

    def _scripts(self, folder: int, found: dict[str, bytes]) -> Callable[[str], bytes]:
        """Return what reads a script by its path from the rules into `found`; it raises OSError with the reason."""

        def read_script(path: str) -> bytes:
            try:
                with self._below(folder, path) as own:
                    found[path] = self._read(own, path.rpartition("/")[2], path)
            except UnsafeError as error:
                raise OSError(errno.EPERM, str(error)) from error
            except OSError as error:
                raise _beside(error, path) from error
            return found[path]

        return read_script

    def _changing(self, home: int) -> bool:
        """Tell whether something came into the rule file's folder, or went, a moment ago."""
        try:
            with self._folder(home) as (folder, _):
                return abs(time.time() - os.stat(folder).st_mtime) < _LATELY
        except OSError:
            return False

    def _same(self, home: int) -> bool:
        """Tell whether the files are sure to be those that were read, without opening a folder.

        Where it cannot be told so simply, whatever is the matter, load() looks closer.
        """
        if self._absolute or len(self._folders) != 1:
            return False
        folder = self._folders[0]
        try:
            if self._folder_fault(os.fstat(home), "the home"):
                return False
            found = os.stat(folder, dir_fd=home, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode) or self._folder_fault(found, folder):
                return False
            return bool(self._stamps) and all(
                _stamp(os.stat(f"{folder}/{name}", dir_fd=home, follow_symlinks=False)) == stamp
                for name, stamp in self._stamps.items()
            )
        except OSError:
            return False

    def _unchanged(self, folder: int) -> bool:
        """Tell whether the files are those that were read. Where one cannot be seen, reading it says which and why."""
        try:
            return bool(self._stamps) and all(
                _stamp(os.stat(name, dir_fd=folder, follow_symlinks=False)) == stamp
                for name, stamp in self._stamps.items()
            )
        except OSError:
            return False


def _beside(error: OSError, name: str) -> OSError | Unavailable:
    """Return what a file beside the rules that cannot be read is: a problem of them, or of the moment."""
    if error.errno in _TEMPORARY - {errno.EACCES, errno.EPERM}:
        return Unavailable(f"{name}: {error.strerror}")
    return error


def plain_files(folder: int) -> list[str]:
    """Return the plain files of a folder that a script beside the rules may read: none hidden, no database."""
    with os.scandir(folder) as entries:
        found = (one.name for one in entries if one.is_file(follow_symlinks=False))
        return sorted(one for one in found if not one.startswith(".") and ".sqlite" not in one)[:_MOST_BESIDE]


_TOO_LONG = f"the file is larger than {_LIMIT} bytes"
_FAULTS: tuple[tuple[Callable[[os.stat_result, int], bool], str], ...] = (
    (lambda found, _: not stat.S_ISREG(found.st_mode), "is no plain file"),
    (lambda found, uid: found.st_uid not in (uid, 0), "belongs to another user"),
    (lambda found, _: bool(found.st_mode & 0o022), "can be written by others, expected: chmod go-w"),
    (lambda found, _: found.st_nlink != 1, "has a second name (hard link), expected one"),
    (lambda found, _: found.st_size > _LIMIT, _TOO_LONG),
)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
