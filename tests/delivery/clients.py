"""Both pipe clients, by what starts them, and the monitor's end of what they do.

Must never: compile in another way than packaging/client, which is what a site runs.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from milterapp.delivery import kinds, pipe, wire

__all__ = ["PYTHON_CLIENT", "SOURCE", "Command", "Peer", "build", "feed"]

Command = tuple[str, ...]

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "milterapp/delivery/client.c"
PYTHON_CLIENT: Command = ("/usr/bin/python3", "-I", "-S", str(Path(pipe.__file__)))


def build(program: Path, *options: str, source: str = "") -> Command:
    """Compile the client and return what starts it. options: more of them; source: in place of client.c.

    Raises subprocess.CalledProcessError, its stderr saying why.
    """
    packaging = ROOT / "packaging/client"
    with tempfile.TemporaryDirectory() as folder:
        if source:
            copy = Path(folder, "milterapp/delivery/client.c")
            copy.parent.mkdir(parents=True)
            copy.write_text(source)
            Path(folder, "packaging").mkdir()
            packaging = Path(shutil.copy(packaging, f"{folder}/packaging/client"))
        environment = {**os.environ, "CFLAGS": " ".join(("-Werror", *options))}
        subprocess.run([str(packaging), str(program)], env=environment, check=True, capture_output=True, text=True)
    return (str(program),)


def feed(process: subprocess.Popen[bytes], message: bytes) -> None:
    """Give a client all of its standard input; it may have ended without it."""
    assert process.stdin is not None
    try:
        process.stdin.write(message)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it did not wait for the message


class Peer:
    """The monitor's end: takes one delivery at a time and answers what it is told."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="milterapp-pipe-")
        self.path = f"{self.folder}/socket"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.listener.settimeout(20)

    def take(self) -> tuple[socket.socket, wire.Datagram | None]:
        """Return the next connection and its datagram, None where it closed without one."""
        connection, _ = self.listener.accept()
        connection.settimeout(20)
        return connection, wire.receive(connection, kinds.DELIVER, descriptors=(1,))

    def nobody_came(self) -> bool:
        """Return whether no delivery came, now that every client has ended."""
        while select.select([self.listener], [], [], 0)[0]:
            connection, datagram = self.take()
            connection.close()
            if datagram is not None:
                datagram.close()
                return False
        return True

    def close(self) -> None:
        """Leave nothing."""
        self.listener.close()
        shutil.rmtree(self.folder)
