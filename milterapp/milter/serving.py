"""Connections of a worker: one thread waits for all of them and serves what comes, unless that takes its time.

Must never: decide or parse anything; hold more threads than `_MOST`; serve one connection in two threads; let what goes
wrong on one connection reach another.

Leader and followers: the thread that leads takes what has come, answers it and waits again, so that a message with
nothing but a header costs no change of threads and no wait for Python's lock. Before it does what may take long it
gives way: another leads from then on, and its own connection is not looked at until it has its answer.
"""

from __future__ import annotations

import select
import socket
import threading
import time

from milterapp import log
from milterapp.milter import protocol
from milterapp.milter.protocol import Incoming, ProtocolError
from milterapp.milter.session import Ended, Service, Session

__all__ = ["Server"]

_KEPT = 3  # threads that wait for their turn; beyond, one that is done ends
_MOST = 1000  # threads; where there are as many, the leader does not give way
_PIECE = 64 * 1024  # bytes
_SILENT = 7210  # seconds without a word, as with libmilter: two hours and ten seconds
_SLOW = 60  # seconds that the mail server may take to read an answer
_SWEEP = 60  # seconds between two looks at who is silent
_TIRED = 0.1  # seconds until accept(2) is tried again after it failed


class _Connection:
    """One connection. aside: its thread has given way, and nobody else is to look at it."""

    __slots__ = ("aside", "heard", "incoming", "session", "socket")

    def __init__(self, connection: socket.socket, service: Service, server: Server) -> None:
        self.socket = connection
        self.incoming = Incoming()
        self.heard = time.monotonic()
        self.aside = False
        self.session = Session(service, self._progress, lambda: server.give_way(self))

    def _progress(self) -> None:
        self.socket.send(protocol.PROGRESS, socket.MSG_DONTWAIT)


class Server:
    """Serves what comes to a listening socket that does not block."""

    def __init__(self, listener: socket.socket, service: Service) -> None:
        self._listener = listener
        self._service = service
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._gone = threading.Condition(self._lock)
        self._leader = 0  # the thread that leads
        self._threads = 0
        self._following = 0
        self._swept = time.monotonic()

    def start(self) -> None:
        """Begin to accept."""
        self._service.ticker.start()
        # Of the workers that share the socket, one that has nothing else to do is woken, not all.
        self._epoll.register(self._listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        with self._lock:
            self._add()

    def stop(self) -> None:
        """Accept nobody any more; those who wait, and those who come, are other workers'."""
        self._epoll.unregister(self._listener)
        self._listener.close()

    def finish(self) -> None:
        """After `stop`: return when the last connection has ended."""
        with self._lock:
            self._gone.wait_for(lambda: not self._connections)

    # -- threads -------------------------------------------------------------------------------------------------------

    def _add(self) -> bool:
        """Begin a thread; the lock is held."""
        self._threads += 1
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError:
            self._threads -= 1
            log.get("milter").warning("no thread", threads=self._threads)
            return False
        return True

    def _run(self) -> None:
        """Lead whenever nobody does, until there are enough who wait for that."""
        while True:
            with self._lock:
                if self._following >= _KEPT:
                    self._threads -= 1
                    return
                self._following += 1
                self._turn.wait_for(lambda: not self._leader)
                self._following -= 1
                self._leader = threading.get_ident()
            try:
                self._lead()
            except Exception:
                self._service.log.exception("fault", step="serving")
                with self._lock:
                    if self._leader == threading.get_ident():
                        self._leader = 0

    def give_way(self, connection: _Connection) -> None:
        """Have another thread lead, as what is next for this connection may take long."""
        if connection.aside:
            return
        with self._lock:
            if not self._following and (self._threads >= _MOST or not self._add()):
                return
            self._epoll.unregister(connection.socket)
            connection.aside = True
            self._leader = 0
            self._turn.notify()

    def _lead(self) -> None:
        """Serve what comes, until this thread has given way."""
        listener = self._listener.fileno()
        while True:
            for descriptor, _ in self._epoll.poll(_SWEEP):
                if descriptor == listener:
                    self._accept()
                    continue
                connection = self._connections.get(descriptor)
                if connection is None:
                    continue
                open_ = self._serve(connection)
                if connection.aside:  # what else has come is the next leader's
                    self._take_back(descriptor, connection, open_=open_)
                    return
                if not open_:
                    self._close(descriptor, connection)
            if time.monotonic() - self._swept > _SWEEP:
                self._sweep()

    # -- connections ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            one, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if self._listener.fileno() >= 0:  # else we have stopped
                log.get("milter").warning("accept", error=str(error))
                time.sleep(_TIRED)
            return
        one.setblocking(False)  # noqa: FBT003 - the name of the method says it
        self._epoll.register(one, select.EPOLLIN)
        self._connections[one.fileno()] = _Connection(one, self._service, self)

    def _take_back(self, descriptor: int, connection: _Connection, *, open_: bool) -> None:
        """Have the leader look at a connection again whose thread had given way, or close it."""
        connection.aside = False
        try:
            if open_:
                self._epoll.register(connection.socket, select.EPOLLIN)
        except OSError as error:
            log.get("milter").warning("connection lost", error=str(error))
            open_ = False
        if not open_:
            self._close(descriptor, connection)

    def _close(self, descriptor: int, connection: _Connection) -> None:
        connection.session.end()
        with self._lock:
            del self._connections[descriptor]
            connection.socket.close()
            if not self._connections:
                self._gone.notify_all()

    def _sweep(self) -> None:
        """Close what has been silent for too long."""
        self._swept = now = time.monotonic()
        for descriptor, one in list(self._connections.items()):
            if not one.aside and now - one.heard > _SILENT:
                self._close(descriptor, one)

    def _serve(self, connection: _Connection) -> bool:
        """Take what has come on a connection and answer it. False where it has ended."""
        try:
            piece = connection.socket.recv(_PIECE)
            if not piece:
                return False
            connection.heard = time.monotonic()
            some = connection.incoming.take(piece)
            if answer := connection.session.take(some):
                self._send(connection, answer)
        except BlockingIOError:
            return True  # nothing has come after all
        except Ended:
            return False
        except ProtocolError as error:
            talk = connection.session.conversation
            queue_id = (talk.queue_id if talk else "") or "NOQUEUE"
            self._service.log.warning("protocol", problem=str(error), queue_id=queue_id)
            return False
        except OSError:
            return False  # it is gone, or does not listen
        except Exception:
            self._service.log.exception("fault", step="session")
            return False
        return True

    def _send(self, connection: _Connection, answer: bytes) -> None:
        """Send an answer; where the socket has no room for all of it, as one of the followers."""
        try:
            sent = connection.socket.send(answer)
        except BlockingIOError:
            sent = 0
        if sent < len(answer):
            self.give_way(connection)
            connection.socket.settimeout(_SLOW)
            connection.socket.sendall(answer[sent:])
            connection.socket.setblocking(False)  # noqa: FBT003 - the name of the method says it
