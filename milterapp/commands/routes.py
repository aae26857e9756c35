"""`milterapp routes FILE`: what of a script answers where, in the order in which it is asked.

Must never: run a script outside the sandbox, or call what it defines.
"""

from __future__ import annotations

import argparse
import json
import os

from milterapp.commands import configuration, site_file
from milterapp.commands.failure import Failure, cannot_read, complain
from milterapp.commands.scripts import beside
from milterapp.delivery import sandbox
from milterapp.rules.problem import Place, Problem
from milterapp.script.examining import listed

__all__ = ["arguments", "run"]

_MOST = 1024 * 1024  # bytes of a script, as the agent has it


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "Functions marked stateless answer first; of the others the one that is the sender's state does."
    parser.add_argument("file", metavar="FILE", help="the script")
    parser.add_argument("--address", metavar="ADDRESS", help="only what answers there, with its captures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    site_file.argument(parser)


def run(options: argparse.Namespace) -> int:
    """List the routes. Raises Failure 65 for a script with problems, 66, 69 below the site's floor."""
    settings = configuration.load(options.config)
    try:
        with open(options.file, "rb") as file:
            source = file.read(_MOST + 1)
    except OSError as error:
        raise cannot_read(options.file, error) from error
    if len(source) > _MOST:
        raise Failure(os.EX_DATAERR, f"{options.file}: larger than {_MOST} bytes")
    folder, name = os.path.split(options.file)
    try:
        with beside(folder, name) as place:
            said = sandbox.run(
                lambda _: listed(source, name, options.address or ""),
                place.folder,
                floor=settings.delivery.sandbox,
                readable=place.readable,
                shared=place.shared,
            )
    except sandbox.SandboxError as error:
        raise Failure(os.EX_UNAVAILABLE if error.reason == "level" else os.EX_DATAERR, str(error)) from error
    found = json.loads(said)
    if "problems" in found:
        complain(*(Problem(Place(options.file, *place), text) for *place, text in found["problems"]))
        return os.EX_DATAERR
    if options.json:
        print(json.dumps(found, indent=2))
        return os.EX_OK
    for one in found["routes"]:
        captures = " ".join(f"{key}={value}" for key, value in one.get("captures", {}).items())
        per = f" per {', '.join(one['per'])}" if one["per"] else ""
        kind = "" if one["state"] else " (stateless)"
        where = f"{options.file}:{one['line']}"
        print(f"{one['function']}{kind}{per}: {one['route']} [{where}] {captures}".rstrip())
    if not found["routes"]:
        print("main: every address" if found["main"] else "no route answers there")
    return os.EX_OK
