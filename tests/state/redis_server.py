"""A Redis server for tests, on a unix socket of its own, or none where the machine has no redis-server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PROGRAM", "redis_server"]

PROGRAM = shutil.which("redis-server")


@contextmanager
def redis_server() -> Iterator[str]:
    """Give the URL of an empty server that listens nowhere else; on a busy machine it may take its time."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:  # a short path: a socket's name has 107 bytes
        path = Path(folder) / "socket"
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(
                [PROGRAM, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "777", "--save", "",
                 "--appendonly", "no", "--dir", folder],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            Path(folder).chmod(0o755)
            _wait(path, server)
            yield f"unix://{path}?db=0&socket_timeout=30&socket_connect_timeout=30"
        finally:
            server.kill()
            server.wait()


def _wait(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                assert server.poll() is None, (path.parent / "log").read_text()
                assert time.monotonic() < deadline, "redis-server does not listen"
            else:
                return
        time.sleep(0.02)
