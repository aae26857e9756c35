"""The socket file: in a directory that only Postfix and we may enter, ours alone, and never somebody else's.

Must never: remove anything but a socket nobody listens on, or leave a socket that others than its group may reach.
"""

from __future__ import annotations

import array
import errno
import fcntl
import grp
import os
import socket
import stat
from types import TracebackType

__all__ = ["Busy", "Listening"]

_BACKLOG = 512
_MODE = 0o660


def _is_orphan(probe: socket.socket) -> bool:
    """Tell whether what listens at the other end is left of a supervisor of ours that was killed.

    Its workers take nobody new, but it is a moment until each of them has closed the socket.
    """
    pid, uid, _ = array.array("i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid == os.geteuid() and not os.path.exists(f"/proc/{pid}")


class Busy(Exception):  # noqa: N818 - it is no error of ours
    """Somebody else serves this socket."""


class Listening:
    """The listening socket, as this process and those it forks hold it.

    path: of the socket file; group: whose members may connect. Where the directory has the set-group-id bit the file
    gets its group from there, else we must be a member. Raises OSError, KeyError (no such group) and Busy.

    socket: it does not block, as one worker may come too late to a connection that another has taken.
    """

    def __init__(self, path: str, group: str) -> None:
        self.path = path
        self.directory, self.name = os.path.split(path)
        gid = grp.getgrnam(group).gr_gid if group else -1
        # Held for life, by this process alone: the one that holds it may take a stale socket's place.
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Busy(f"{path}: another milterapp milter serves it") from None
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        umask = os.umask(0o117)
        try:
            os.fchdir(self._lock)
            self._remove_stale()
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.setblocking(False)  # noqa: FBT003 - the name of the method says it
            self.socket.bind(self.name)
            self.socket.listen(_BACKLOG)
            self._give_to(gid, group)
        except BaseException:
            os.close(self._lock)
            raise
        finally:
            os.umask(umask)
            os.fchdir(before)
            os.close(before)

    def _remove_stale(self) -> None:
        try:
            found = os.stat(self.name, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, "is there and is no socket", self.path)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(self.name)
                stale = _is_orphan(probe)
            except ConnectionRefusedError:
                stale = True
            except FileNotFoundError:
                return
        if stale:
            os.unlink(self.name)
            return
        raise Busy(f"{self.path}: somebody else listens there")

    def _give_to(self, gid: int, group: str) -> None:
        found = os.stat(self.name, follow_symlinks=False)
        if gid not in (-1, found.st_gid):
            try:
                os.chown(self.name, -1, gid, follow_symlinks=False)
            except PermissionError as error:
                os.unlink(self.name)
                remedy = f"make it {group}'s with set-group-id: chgrp {group} and chmod 2750"
                raise PermissionError(
                    error.errno, f"the socket cannot be given to {group}; {remedy}", self.directory
                ) from None
        os.chmod(self.name, _MODE)

    def released(self) -> None:
        """In a worker, after the fork: let go of the lock, which is the supervisor's."""
        os.close(self._lock)

    def close(self) -> None:
        """In the supervisor, at the end: nobody finds the socket any more; what still waits there is let go."""
        try:
            os.unlink(self.name, dir_fd=self._lock)
        except OSError:
            pass  # gone already
        self.socket.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the socket file, and let go of the directory."""
        self.close()
        os.close(self._lock)
