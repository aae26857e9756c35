"""`milterapp status`: how the running milter is doing.

Must never: touch the milter but over its control socket.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from milterapp.commands import handover, site_file
from milterapp.commands.reload import answer_of

__all__ = ["arguments", "run", "text"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    site_file.argument(parser)


def run(options: argparse.Namespace) -> int:
    """Ask, and print the answer. Raises Failure 69 where no milter runs, 75, 77."""
    path = json.loads(handover.settings_as_json(options.config))["milter"]["socket"]
    answer = answer_of(path, "status")
    print(json.dumps(answer) if options.json else "\n".join(text(answer)))
    return os.EX_OK


def text(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for people."""
    workers = " ".join(map(str, answer["workers"])) or "none"
    yield f"milter: pid {answer['pid']}, since {_time(answer['since'])}"
    yield f"workers: {workers}" + (f", leaving: {' '.join(map(str, answer['leaving']))}" if answer["leaving"] else "")
    if answer["died"]:
        yield f"workers that died: {answer['died']}"
    messages = answer["messages"]
    each = ", ".join(f"{verdict} {number}" for verdict, number in sorted(messages.items()))
    yield f"messages: {sum(messages.values())}" + (f" ({each})" if each else "")
    if answer["faults"]:
        yield f"could not be decided: {answer['faults']}"
    rules = answer["rules"]
    yield f"rules: {rules['count']} of {rules['file']}, loaded {_time(rules['loaded'])}"
    yield f"sha256: {rules['sha256'] or 'unknown: the file changed while it was read'}"
    last = answer["reload"]
    if last is not None:
        yield f"last reload: {_time(last['time'])}, " + (
            "done" if last["done"] else "refused, the rules from before stay"
        )
        yield from (f"  {one}" for one in last["problems"])


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
