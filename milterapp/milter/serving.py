"""Connections of a worker: threads that accept, each of which then serves what it has accepted.

Must never: decide or parse anything; hold more threads than `_MOST`; let what goes wrong on one connection reach
another.

Threads wait in accept(2) itself, one queue for those of all workers, so that connections come to each in turn and none
has to be handed over; the next waits by the time one is busy.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from contextlib import suppress

from milterapp import log
from milterapp.milter import protocol
from milterapp.milter.protocol import ProtocolError
from milterapp.milter.session import Ended, Service, Session

__all__ = ["LOOK", "Server", "timeout"]

LOOK = 0.25  # seconds after which a thread that waits in accept(2) sees that it is to stop
_SPARE = 2  # threads that wait for a connection
_KEPT = 4  # those that wait at most: beyond, one that is done ends
_MOST = 1000  # connections at a time; those beyond wait in the backlog
_PIECE = 64 * 1024  # bytes
_SILENT = 7210  # seconds without a word, as with libmilter: two hours and ten seconds
_SLOW = 60  # seconds that the mail server may take to read an answer
_TIRED = 0.1  # seconds until accept(2) is tried again after it failed


def timeout(seconds: float) -> bytes:
    """Return a `struct timeval` for SO_RCVTIMEO: the kernel keeps the time, without a call of poll(2)."""
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))


class Server:
    """Serves what comes to a listening socket that blocks, its SO_RCVTIMEO `LOOK`."""

    def __init__(self, listener: socket.socket, service: Service) -> None:
        self._listener = listener
        self._service = service
        self._change = threading.Condition()
        self._waiting = 0
        self._busy = 0
        self._stopping = False

    def start(self) -> None:
        """Begin to accept."""
        self._service.ticker.start()
        with self._change:
            for _ in range(_SPARE):
                self._add()

    def stop(self) -> None:
        """Accept nobody any more; return when no thread waits in accept(2)."""
        with self._change:
            self._stopping = True
            self._change.wait_for(lambda: not self._waiting)

    def finish(self) -> None:
        """After `stop`: return when the last connection has ended."""
        with self._change:
            self._change.wait_for(lambda: not self._busy)

    def _add(self) -> None:
        self._waiting += 1
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError:  # no more threads for us; those that there are go on
            self._waiting -= 1
            log.get("milter").warning("no thread", busy=self._busy)

    def _run(self) -> None:
        """Accept and serve until there are enough who wait, or this is to stop."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                    log.get("milter").warning("accept", error=str(error))
                    time.sleep(_TIRED)
                with self._change:
                    if self._stopping or self._waiting > _KEPT:
                        self._waiting -= 1
                        self._change.notify_all()
                        return
                continue
            with self._change:
                self._waiting -= 1
                self._busy += 1
                if not self._stopping and self._waiting < _SPARE and self._busy < _MOST:
                    self._add()
                self._change.notify_all()
            try:
                self._serve(connection)
            finally:
                with suppress(OSError):
                    connection.close()
                with self._change:
                    self._busy -= 1
                    stays = not self._stopping and self._waiting < _KEPT
                    self._waiting += stays
                    self._change.notify_all()
            if not stays:
                return

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout(_SILENT))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout(_SLOW))
            session = Session(self._service, lambda: connection.send(protocol.PROGRESS, socket.MSG_DONTWAIT))
        except Exception:
            self._service.log.exception("fault", step="connect")
            return
        try:
            for some in protocol.packets(lambda: connection.recv(_PIECE)):
                answers = [answer for code, data in some if (answer := session.take(code, data))]
                if answers:
                    connection.sendall(b"".join(answers))
        except Ended:
            pass
        except ProtocolError as error:
            self._service.log.warning(
                "protocol", problem=str(error), queue_id=session.conversation.queue_id or "NOQUEUE"
            )
        except OSError:
            pass  # it is gone, or silent for too long
        except Exception:
            self._service.log.exception("fault", step="session")
        finally:
            session.end()
