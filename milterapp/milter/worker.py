"""One worker: the threads that serve connections, in a process of their own, until the supervisor says it is enough.

Must never: fork, end while it has a connection (unless killed), or outlive its supervisor by more than its connections.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from milterapp import log
from milterapp.milter.conversation import Context
from milterapp.milter.counters import Counters
from milterapp.milter.listening import Listening
from milterapp.milter.serving import Server
from milterapp.milter.session import Service

__all__ = ["LEFT", "READY", "run"]

READY, LEFT = b"r", b"l"
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h of the GNU C library
_LARGE = 128 * 1024  # bytes


def run(context: Context, listening: Listening, supervisor: socket.socket, report: socket.socket) -> NoReturn:
    """Serve until the supervisor closes its end, or SIGTERM comes. Never returns. report: where counts go."""
    code = os.EX_SOFTWARE
    try:
        _one_heap()
        gc.freeze()  # what was loaded before the fork stays shared memory
        os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to hear
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: supervisor.shutdown(socket.SHUT_RD))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listening.released()
        os.chdir("/")
        counters = Counters(report)
        counters.start()
        server = Server(listening.socket, Service(context, counters))
        server.start()
        supervisor.send(READY)
        _wait(supervisor)
        server.stop()
        context.recall.leave()
        with suppress(OSError):  # nobody waits for it
            supervisor.send(LEFT)
        server.finish()
        counters.flush()
        code = os.EX_OK
    except BaseException:  # noqa: BLE001 - the edge of the process, which must not run what its parent would run next
        log.get("milter").exception("worker failed", pid=os.getpid())
    finally:
        os._exit(code)


def _wait(supervisor: socket.socket) -> None:
    """Return when the supervisor has said that it is enough, or is gone, which says the same."""
    with suppress(OSError):
        while supervisor.recv(64):
            pass


def _one_heap() -> None:
    """Have the threads share one heap, and what is large go back when it is let go (mallopt(3)).

    Threads would have a heap each, as large as the largest message that each has seen; Python's lock lets one of them
    allocate at a time anyway. Where the C library is another one, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
