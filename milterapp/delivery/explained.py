"""What an agent's answer says of a decision, for the log.

Must never: say more of the message than the rules log, or be longer than an answer may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from milterapp.rules.decision import Decision

__all__ = ["bounded", "explained"]

_EVENT = 7500  # characters of the event an answer carries; the log takes 8000
_LOGGED = 200  # characters of each text that a rule logs
_SHOWN = ("action", "folder", "flags", "to", "program", "copy", "implicit")  # of a delivery, in the event
_JSON = json.JSONEncoder(ensure_ascii=True)


def explained(decision: Decision) -> Mapping[str, Any]:
    """Return what the log says of a decision: the rules that matched, and of texts only those that rules log."""
    said: dict[str, Any] = {"verdict": decision.verdict.value, "rules": list(decision.matched)}
    if decision.edits:
        said["edits"] = len(decision.edits)
    if decision.filters:
        said["filters"] = [one.program for one in decision.filters]
    said["deliveries"] = [
        {name: value for name, value in one.to_json().items() if name in _SHOWN} for one in decision.deliveries
    ]
    if decision.problems:
        said["problems"] = [str(one) for one in decision.problems]
    if decision.log:
        said["log"] = [one[:_LOGGED] for one in decision.log]
    if decision.scripts:
        said["scripts"] = [f"{one.script} {one.state}".strip() for one in decision.scripts]
    said["could_not_tell"] = decision.could_not_tell
    return said


def bounded(event: Mapping[str, Any]) -> str:
    """Return the event as ASCII JSON of at most _EVENT characters, its lists cut short where it is longer."""
    said = {name: value for name, value in event.items() if value or value is None}
    for most in (100, 10, 3):
        shown = {name: value[:most] if isinstance(value, list) else value for name, value in said.items()}
        text = _JSON.encode(shown)
        if len(text) <= _EVENT:
            return text
    return _JSON.encode({"user": event.get("user", ""), "verdict": event.get("verdict", ""), "cut": True})
