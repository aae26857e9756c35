"""Run a function in a process of its own, for what cannot be undone (drops, filters, limits); or just keep one busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["busy_with", "error_of", "inside"]


def inside(function: Callable[[], Any]) -> Any:
    """Return what the function returns in a forked child, as JSON has it; `signal N` or `status N` where it died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            said = json.dumps(function()).encode()
            os.write(writer, said)
            status = 0
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into pytest
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        return f"signal {-code}" if code < 0 else f"status {code}"
    return json.loads(said)


def error_of(act: Callable[[], object]) -> int:
    """Return the errno of an act, 0 where it works."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def busy_with(uid: int, count: int) -> subprocess.Popen[bytes]:
    """Start a process of a uid with so many threads."""
    code = (
        "import signal, sys, threading\nthreading.stack_size(65536)\n"
        "for _ in range(int(sys.argv[1]) - 1):\n    threading.Thread(target=signal.pause, daemon=True).start()\n"
        "print(flush=True)\nsignal.pause()"
    )
    busy = subprocess.Popen(
        [sys.executable, "-I", "-c", code, str(count)], user=uid, group=uid, extra_groups=[], stdout=subprocess.PIPE
    )
    assert busy.stdout is not None
    assert busy.stdout.read(1) == b"\n"
    return busy
