"""`milterapp-pipe`: with `--direct` the agent as whoever calls it, else the client that pipe(8) runs.

Must never: end with a status that bounces mail for a fault of ours, or print more than one line.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from milterapp.delivery import client

__all__ = ["main"]

_USAGE = "milterapp-pipe --direct [--config FILE]"


def main() -> None:
    """Deliver, and end the process; whatever happens, nothing but 0 and 69 is not 75."""
    status, line = os.EX_TEMPFAIL, b"4.3.0 milterapp-pipe: a fault of ours"
    try:
        arguments = sys.argv[1:]
        if arguments[:1] != ["--direct"]:
            program = os.path.join(os.path.dirname(client.__file__), "pipe.py")
            os.execv(sys.executable, [sys.executable, "-I", "-S", program, *arguments])  # noqa: S606 - no shell
        status, line = _direct(arguments[1:])
    except BaseException as error:  # noqa: BLE001 - a traceback's status 1 would bounce the mail
        words = " ".join(str(error).split()) or type(error).__name__
        line = f"4.3.0 milterapp-pipe: {words}".encode("ascii", "backslashreplace")
    client.say(line)
    os._exit(status)


def _direct(arguments: Sequence[str]) -> tuple[int, bytes]:
    """Return exit status and line of output. Raises Failure, Temporary and others."""
    os.umask(0o077)
    from milterapp.commands import configuration
    from milterapp.delivery import direct

    if arguments and (len(arguments) != 2 or arguments[0] != "--config"):
        raise direct.Temporary(f"usage: {_USAGE}")
    settings = configuration.load(arguments[1] if arguments else None)
    return direct.deliver(dataclasses.asdict(settings), os.environ)


if __name__ == "__main__":
    main()
