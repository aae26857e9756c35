"""One worker: libmilter's threads in a process of their own, until the supervisor says that it is enough.

Must never: fork, end while it has a connection (unless killed), or outlive its supervisor by more than its connections.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import threading
import time
from typing import NoReturn

from milterapp import log
from milterapp.milter import session
from milterapp.milter.conversation import Context
from milterapp.milter.counters import Counters
from milterapp.milter.listening import Listening

__all__ = ["LEFT", "READY", "run"]

READY, LEFT = b"r", b"l"
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of the GNU C library
_LARGE = 128 * 1024  # bytes
_SETTLE = 0.05  # seconds between two looks at our connections; one may be between accept(2) and the list of descriptors


def run(context: Context, listening: Listening, supervisor: socket.socket, report: socket.socket) -> NoReturn:
    """Serve until the supervisor closes its end, or libmilter gives up. Never returns. report: where counts go."""
    code = os.EX_SOFTWARE
    try:
        _one_heap()
        gc.freeze()  # what was loaded before the fork stays shared memory
        os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to hear
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(one, signal.SIG_DFL)
        listening.released()
        os.chdir("/")
        ours = frozenset(_sockets())
        counters = Counters(report)
        counters.start()
        threading.Thread(target=_watch, args=(context, listening, supervisor, ours, counters), daemon=True).start()
        supervisor.send(READY)
        session.serve(context, counters)
        code = os.EX_TEMPFAIL  # somebody told libmilter to stop; its connections are lost, the supervisor replaces us
    except BaseException:  # noqa: BLE001 - the edge of the process, which must not run what its parent would run next
        log.get("milter").exception("worker failed", pid=os.getpid())
    finally:
        os._exit(code)


def _one_heap() -> None:
    """Have the threads share one heap, and what is large go back when it is let go (mallopt(3)).

    libmilter's threads would have a heap each, as large as the largest message that each has seen; Python's lock lets
    one of them allocate at a time anyway. Where the C library is another one, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _watch(
    context: Context, listening: Listening, supervisor: socket.socket, ours: frozenset[str], counters: Counters
) -> None:
    """Wait for the supervisor's word, or its end; stop listening, and end with the last connection."""
    try:
        while supervisor.recv(64):
            pass
    except OSError:
        pass  # it is gone, which says the same
    listening.stop()
    context.recall.leave()
    try:
        supervisor.send(LEFT)
    except OSError:
        pass  # nobody waits for it
    quiet = 0
    while quiet < 2:
        time.sleep(_SETTLE)
        quiet = 0 if any(one not in ours for one in _sockets()) else quiet + 1
    counters.flush()
    os._exit(os.EX_OK)


def _sockets() -> list[str]:
    """Return the sockets this process has open, as the kernel names them: `socket:[inode]`."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if name.startswith("socket:"):
            found.append(name)
    return found
