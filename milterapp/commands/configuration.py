"""Settings from the site's configuration file, milterapp.yaml(5), every problem with its place.

Must never: run in a process with privileges (`handover` reads the file for those in a child that has none), or start a
service with a setting that was misread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from milterapp.commands.failure import Failure
from milterapp.commands.site_file import DEFAULT, bounded, open_file
from milterapp.delivery import refusals, smtp
from milterapp.mail.limits import Limits
from milterapp.milter.entry import Trust
from milterapp.rules.document import decode, parse
from milterapp.rules.nodes import Mapping, Node
from milterapp.rules.problem import Problem, near_miss
from milterapp.settings import Accounts, Settings
from milterapp.state.counting import REDIS

__all__ = ["BOUNDS", "KEEP", "WORDS", "load", "parse_settings"]

_IDS = (1, 2**32 - 3)  # 0 is root, and 2**32 - 1 means "leave it" to setresuid(2)

WORDS: dict[str, tuple[str, ...]] = {
    "milter.on_error": ("accept", "defer"),
    "delivery.broken_rules": ("defer", "keep"),
    "delivery.reject": refusals.WORDS,
    "delivery.sandbox": ("full", "good", "basic"),
    "submit.forward_sender": ("envelope", "recipient"),
    "log": ("logfmt", "json"),
}

KEEP = ("postfix", "maildir")

# A transport and next hop (transport(5)), nothing that a table of Postfix would read as syntax.
_TRANSPORT = re.compile(r"[A-Za-z0-9_-]{1,100}:[A-Za-z0-9._:/\[\]-]{0,150}")

BOUNDS: dict[str, tuple[float, float]] = {
    **{f"limits.{one.name}": (1, 2**32) for one in fields(Limits)},
    "milter.workers": (0, 256),
    "milter.step_time": (0.1, 25),  # Postfix's milter_command_timeout is 30 seconds
    "milter.message_time": (0.1, 250),  # and its milter_content_timeout 300
    "milter.metrics": (0, 65535),
    "delivery.min_uid": _IDS,
    "delivery.min_gid": _IDS,
    "delivery.gids": _IDS,
    "delivery.agents": (1, 1000),
    "delivery.idle": (0, 86400),
    "delivery.deadline": (1, 3600),
    "delivery.wait": (0, 3600),
    "delivery.script_recipients": (0, 10_000),
    "delivery.script_folders": (0, 500),
    "delivery.script_messages": (0, 10**6),
    "lmtp.connections": (1, 1000),
    "script.processes": (1, 256),
    "submit.forwards": (0, 1000),
    "submit.script_replies": (0, 1000),
    "submit.daily_replies": (0, 10**6),
    "submit.reply_interval": (60, 10 * 365 * 86400),
    "submit.timeout": (1, 3600),
}

PROGRAM_BOUNDS: dict[str, tuple[float, float]] = {
    "time": (1, 3600),
    "memory": (64 << 20, 2 << 30),  # an agent's own limit, which they inherit
    "output": (1, 1 << 30),
    "processes": (1, 256),
}
_PROGRAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_LONGEST_RUN = 4096  # bytes

_FROM_ROOT = (
    "milter.socket",
    "milter.rules",
    "delivery.socket",
    "lmtp.socket",
    "lmtp.virtual_socket",
    "script.socket",
    "submit.socket",
    "submit.state",
    "submit.hand_back",
    "submit.hand_back_virtual",
    "submit.send",
)
_NOT_EMPTY = ("milter.socket_group", "lmtp.socket_group", "delivery.personal_rules", "delivery.maildir",
              "delivery.script_output")  # fmt: skip
_AROUND = ("delivery.rules_before", "delivery.rules_after", "delivery.recipients", "delivery.client")
_ACCOUNTS = tuple(f"accounts.{one.name}" for one in fields(Accounts))


def load(path: str | None) -> Settings:
    """Return the settings of a file, or of the default one, where there need be none. Raises Failure 66 or 78."""
    descriptor = open_file(path)
    name = path or DEFAULT
    return Settings() if descriptor is None else parse_settings(bounded(descriptor, name), name)


def parse_settings(source: bytes, file: str) -> Settings:
    """Return the settings that the bytes of a file hold. Raises Failure 78 with every problem."""
    node, problems = parse(source, file, allow_empty=True)
    settings = Settings()
    if node is not None:
        settings = decode(node, Settings, problems) or settings
        problems += _value_problems(node, settings)
        problems += _program_problems(node, settings)
    if any(not one.warning for one in problems):
        raise Failure(os.EX_CONFIG, *sorted(set(problems)))
    return settings


def _value_problems(root: Node, settings: Settings) -> Iterator[Problem]:
    """Say what the types could not: a word of a few, a number within bounds, a path from the root, an account."""
    for names, check in (
        (WORDS, _word),
        (BOUNDS, _bound),
        (_FROM_ROOT, lambda _, value: "" if value.startswith("/") else "a path from `/`"),
        (_AROUND, lambda _, value: "" if value.startswith("/") or not value else "a path from `/`"),
        (_NOT_EMPTY, lambda _, value: "" if value else "a value"),
        (("delivery.keep",), _keep),
        (("milter.results_from",), _client),
        (("milter.state",), _state),
        (("milter.transports",), lambda _, value: "" if _TRANSPORT.fullmatch(value) else "TRANSPORT:NEXTHOP"),
        (_ACCOUNTS, lambda _, value: "" if value not in ("", "root", "0") else "the account of a service"),
    ):
        for name in names:
            node, found = _find(root, settings, name)
            for value in found if isinstance(found, tuple) else (found,):
                if node is not None and (expected := check(name, value)):
                    yield Problem(node.place, f"found {value!r}, expected {expected}")


def _program_problems(root: Node, settings: Settings) -> Iterator[Problem]:
    """Say what is wrong with a program: its name, what is to be run, its bounds."""
    table = root.get("programs") if isinstance(root, Mapping) else None
    for name, node in table.pairs if isinstance(table, Mapping) else ():
        if not _PROGRAM.fullmatch(name.value):
            yield Problem(name.place, f"found {name.value!r}, expected a name of letters, digits and '.+-_'")
        made = settings.programs.get(name.value)
        if made is None or not isinstance(node, Mapping):
            continue
        places = {key.value: value.place for key, value in node.pairs}
        path = made.run[0] if made.run else ""
        if not path.startswith("/") or ".." in path.split("/"):
            yield Problem(places["run"], f"found {path!r}, expected the program's path from `/`, then its arguments")
        elif sum(len(os.fsencode(one)) for one in made.run) > _LONGEST_RUN or any("\0" in one for one in made.run):
            yield Problem(places["run"], f"more than {_LONGEST_RUN} bytes, or a NUL")
        for key in ("read", "write"):
            for folder in getattr(made, key):
                if not folder.startswith("/") or ".." in folder.split("/"):
                    yield Problem(places[key], f"found {folder!r}, expected a path from `/`")
        for key, (least, most) in PROGRAM_BOUNDS.items():
            value = getattr(made, key)
            if not least <= value <= most:
                yield Problem(places[key], f"found {value!r}, expected {least} to {most}")
        if made.time >= settings.delivery.deadline:
            place = places.get("time", name.place)
            yield Problem(place, f"{made.time:g} seconds, expected less than `delivery.deadline`, when the agent ends")


def _word(name: str, value: str) -> str:
    words = WORDS[name]
    return "" if value in words else f"{' or '.join(words)}{near_miss(value, words)}"


def _keep(_: str, value: str) -> str:
    """Return what was expected of `delivery.keep`, "" where it is that."""
    try:
        if value.startswith(smtp.LMTP):
            smtp.endpoint(value)
        elif value not in KEEP:
            return f"{' or '.join(KEEP)}, lmtp:unix:/PATH or lmtp:inet:HOST:PORT{near_miss(value, KEEP)}"
    except ValueError as error:
        return str(error)
    return ""


def _state(_: str, value: str) -> str:
    if value == "memory" or value.startswith(("/", *REDIS)):
        return ""
    return (
        f"a folder (a path from `/`), memory, or a Redis URL such as redis://127.0.0.1/0{near_miss(value, ('memory',))}"
    )


def _client(_: str, value: str) -> str:
    try:
        Trust((), (value,))
    except ValueError:
        return "`milters`, or the address or network of a mail server such as 192.0.2.0/24"
    return ""


def _bound(name: str, value: float) -> str:
    least, most = BOUNDS[name]
    return "" if least <= value <= most else f"{least} to {most}"


def _find(root: Node, settings: Settings, name: str) -> tuple[Node | None, Any]:
    """Return a setting's node, None where the file does not name it, and its value."""
    node: Node | None = root
    value: Any = settings
    for key in name.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
        value = getattr(value, key)
    return node, value
