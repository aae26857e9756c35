"""The socket a service listens on, who comes there, and the folder that says who may come as far as it.

Must never: take a socket away from a service that still listens on it, or change a folder that is there.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import Callable

from milterapp.delivery.tasks import ENDED, Task, Wait, pause

__all__ = ["callers", "listen", "make_folder"]

_BACKLOG = 128
_FULL = 0.05  # seconds until room is looked for again
_FAULT = 0.5  # seconds until it is tried again where a connection could not be taken


def make_folder(path: str, uid: int, gid: int, mode: int) -> None:
    """Make a folder where it is missing and this process is root; one that exists is the site's own matter."""
    if os.geteuid() == 0 and not os.path.lexists(path):
        os.makedirs(path, 0o755)
        os.chown(path, uid, gid)
        os.chmod(path, mode)


def listen(path: str, mode: int, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    """Return a listening socket of that kind at the path, in place of one that a dead process left.

    Raises OSError: somebody listens there already, something else is at the path, or the folder refuses.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        _clear(path, kind)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def callers(
    listener: socket.socket, begin: Callable[[socket.socket], None], *, full: Callable[[], bool],
    fault: Callable[[str], None],
) -> Task[None]:  # fmt: skip
    """Take connections, each for begin(), until the listener is shut down. full: whether there is room for none now.

    fault: is told why one could not be taken, each time.
    """
    listener.setblocking(False)  # noqa: FBT003 - the name of the method says it
    while True:
        if full():
            yield from pause(_FULL)
            if _ended(listener):
                return
            continue
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            if (yield Wait(listener.fileno())) & ENDED:
                return
        except OSError as error:
            fault(str(error))
            yield from pause(_FAULT)
        else:
            begin(connection)


def _ended(listener: socket.socket) -> bool:
    """Tell whether a listener was shut down."""
    poll = select.poll()
    poll.register(listener, 0)
    return bool(poll.poll(0))


def _clear(path: str, kind: int) -> None:
    """Remove the socket of a process that is gone."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind says what is wrong
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another service listens there", path)
