"""The control socket beside the milter's: `milterapp reload` asks there, and gets the problems of the new rules.

Must never: take a word from anybody but root and the milter's own account, or wait for one.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Control", "ask", "control_path"]

_WORD = 64  # bytes of a request
_PATIENCE = 2.0  # seconds that a peer has to say its word and to take the answer
_ANSWER = 1024 * 1024  # bytes


def control_path(path: str) -> str:
    """Return the control socket's path for a milter socket's."""
    return f"{path}.control"


class Control:
    """The supervisor's end, in the directory of the milter's socket."""

    def __init__(self, directory: str, name: str) -> None:
        self._path = control_path(os.path.join(directory, name))
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        umask = os.umask(0o177)
        try:
            os.chdir(directory)  # a path longer than sun_path would not bind
            try:
                os.unlink(control_path(name))  # the directory is locked: nobody else's
            except FileNotFoundError:
                pass
            self._socket.bind(control_path(name))
        finally:
            os.umask(umask)
            os.fchdir(before)
            os.close(before)
        self._socket.listen(4)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def answer(self, words: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Take one request and answer it."""
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        with peer:
            peer.settimeout(_PATIENCE)
            try:
                uid = array.array("i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
                word = peer.recv(_WORD).decode("ascii", "replace").strip()
                if uid not in (0, os.geteuid()) or word not in words:
                    said: Mapping[str, Any] = {"error": f"not for you, or no such word: {word!r}"}
                else:
                    said = words[word]()
                peer.sendall(json.dumps(said).encode()[:_ANSWER])
                peer.shutdown(socket.SHUT_RDWR)  # workers forked meanwhile have it open as well
            except OSError:
                pass  # it did not wait for the answer; what it asked for is done

    def let_go(self) -> None:
        """In a worker, after the fork: it is the supervisor's."""
        self._socket.close()

    def close(self) -> None:
        """Stop answering."""
        self._socket.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # gone already


def ask(path: str, word: str, patience: float = 120.0) -> dict[str, Any]:
    """Ask the milter whose socket is `path`. Raises OSError, and ValueError where the answer is none."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience)
        sock.connect(control_path(path))
        sock.sendall(word.encode() + b"\n")
        pieces = []
        while piece := sock.recv(65536):
            pieces.append(piece)
    answer = json.loads(b"".join(pieces))
    if not isinstance(answer, dict):
        raise ValueError("no answer")  # noqa: TRY004 - what the peer said is no value of the caller's
    return answer
