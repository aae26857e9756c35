"""Starting a service: its settings are read by a child without privileges, and the service starts as a new process.

Must never: parse the configuration in the process that goes on, which may be root or hold capabilities.

SECURITY: the parent, with whatever privilege it was started, opens one file, forks, and reads bounded bytes from a pipe
that it passes on unread, as one argument. The child gives up ids, capabilities and the way to regain them, and only
then imports the YAML reader. The service begins with a fresh interpreter in isolated mode (`python -I`), so neither the
environment nor the current folder says what it imports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import NoReturn

from milterapp.commands.failure import Failure
from milterapp.commands.site_file import DEFAULT, bounded, open_file
from milterapp.delivery import linux

__all__ = ["settings_as_json", "start"]

_MOST = 96 * 1024  # bytes of JSON; Linux takes 128 KiB as one argument
_NOBODY = 65534  # the overflow id of every Linux: owns nothing, and is no service's


def start(module: str, config: str | None) -> NoReturn:
    """Become `python -I -m module SETTINGS`. Raises Failure 66, 70 or 78 where the settings cannot be read."""
    settings = settings_as_json(config)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-m", module, settings])  # noqa: S606 - no shell, fixed words


def settings_as_json(config: str | None) -> str:
    """Return the settings as one JSON object, made by a child without privileges. Raises Failure."""
    source = open_file(config)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _child(source, config or DEFAULT, writer)
    os.close(writer)
    if source is not None:
        os.close(source)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read(_MOST + 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        said = [] if code > 0 else [f"reading the configuration was ended by signal {-code}"]
        raise Failure(code if code > 0 else os.EX_SOFTWARE, *said)
    if len(answer) > _MOST:
        raise Failure(os.EX_CONFIG, f"{config or DEFAULT}: the settings are longer than {_MOST} bytes")
    return answer.decode("ascii")


def _child(source: int | None, path: str, writer: int) -> NoReturn:
    """Read the settings without privileges, write them as JSON, and end."""
    code = os.EX_SOFTWARE
    try:
        if os.geteuid() == 0:
            linux.become(_NOBODY, _NOBODY)
        else:
            linux.no_new_privileges()
            linux.drop_capabilities()
        from milterapp.commands import configuration

        settings = configuration.parse_settings(b"" if source is None else bounded(source, path), path)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(dataclasses.asdict(settings)).encode("ascii"))
        code = os.EX_OK
    except Failure as failure:
        failure.tell()
        code = failure.code
    except Exception as error:  # noqa: BLE001 - the edge of a process: whatever it was, the service does not start
        print(f"milterapp: {path}: cannot be read without privileges: {error!r}", file=sys.stderr)
    finally:
        os._exit(code)
