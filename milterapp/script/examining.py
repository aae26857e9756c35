"""Looking at a script without a message: what is wrong with it, and what of it answers where.

Must never: be called outside a script process for a script that the caller did not write; its top level runs here.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from milterapp.script import load as loading
from milterapp.script.routes import Application

__all__ = ["examine", "listed", "serve_examination", "to_examine"]


def examine(source: bytes, file: str, *, site: bool = False) -> bytes:
    """Return what is wrong with a script as a JSON list of [line, column, text]. Its top level runs here."""
    _, problems = loading.load(source, file, site=site)
    return json.dumps([[one.place.line, one.place.column, one.text] for one in problems]).encode("ascii")


def to_examine(source: bytes, file: str) -> bytes:
    """Return a site's script as a script process is given it to be examined: one line of JSON, the script."""
    return json.dumps(file, ensure_ascii=True).encode("ascii") + b"\n" + source


def serve_examination(data: bytes, _: Callable[[bytes], bytes]) -> bytes:
    """Do what `examine` does, with what to_examine wrote."""
    line, _newline, source = data.partition(b"\n")
    return examine(source, str(json.loads(line)), site=True)


def listed(source: bytes, file: str, address: str = "") -> bytes:
    """Return the routes of a script as JSON, those alone that match an address where one is given; or its problems."""
    script, problems = loading.load(source, file)
    if script is None:
        found = [[one.place.line, one.place.column, one.text] for one in problems]
        return json.dumps({"problems": found}).encode("ascii")
    made = script.application or Application((), ())
    routes = []
    for state, functions in ((False, made.stateless), (True, made.states)):
        for function, several in functions:
            for one in several:
                captures = one.match(address.lower()) if address else {}
                if captures is not None:
                    shown = {"function": function.__name__, "state": state, "route": one.text, "line": one.line}
                    routes.append(shown | {"per": list(one.per), "captures": captures})
    return json.dumps({"main": script.main is not None, "routes": routes}).encode("ascii")
