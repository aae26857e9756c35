"""A Decision as one JSON text, and back: what the journal's prepared record holds.

Must never: leave out what has an effect, or build anything but the classes named here, whatever the text says.

What a field is by default is left out too: so a default of these classes stays what it is, or old records would say
something else. The trace stays out: it explains, is for the log of the first attempt, and is made when it is read.
"""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Any, get_args

from milterapp.mail import edits
from milterapp.mail.envelope import Stage
from milterapp.rules import decision, deliveries, problem

__all__ = ["RecordError", "from_text", "is_left", "to_text"]


class RecordError(Exception):
    """A text that is no record of a Decision this version can read; the delivery waits for one that can."""


_VALUES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        decision.Decision,
        decision.RecipientDecision,
        decision.Reply,
        problem.Place,
        problem.Problem,
        decision.Filter,
        decision.ScriptRun,
        *get_args(deliveries.Delivery),
        *get_args(decision.EnvelopeEdit),
        *get_args(edits.Edit),
    )
}
_TRACE = "rules"
_LEFT = "left"  # beside the fields of the Decision
_FIELDS = {  # of each kind: name and default
    name: tuple((one.name, one.default) for one in dataclasses.fields(kind) if one.name != _TRACE)
    for name, kind in _VALUES.items()
}
_JSON = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
_PLAIN = frozenset({str, bool, int, float})
_WORDS: dict[str, type[Enum]] = {kind.__name__: kind for kind in (decision.Verdict, Stage)}


def to_text(whole: decision.Decision, *, left: bool = False) -> str:
    """Return the decision as ASCII JSON, without its trace. Raises RecordError for a value of a kind not known here.

    left: keeping is left to submit, which alone remembers that it is done.
    """
    found = _encode(whole)
    if left:
        found[_LEFT] = True
    return _JSON.encode(found)


def is_left(text: str) -> bool:
    """Tell whether keeping is left to submit. text: what from_text takes."""
    return json.loads(text).get(_LEFT, False) is True


def from_text(text: str) -> decision.Decision:
    """Return the decision that to_text wrote. Raises RecordError."""
    try:
        fields = json.loads(text)
        fields.pop(_LEFT, None)
        found = _decode(fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecordError(f"not a record: {error}") from error
    if not isinstance(found, decision.Decision):
        raise RecordError("not a record of a decision")
    return found


def _encode(value: object) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        return {"": type(value).__name__, "word": value.name}
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, tuple):
        return [_encode(one) for one in value]
    name = type(value).__name__
    if _VALUES.get(name) is not type(value):
        raise RecordError(f"cannot record a {name}")
    found: dict[str, Any] = {"": name}
    for field, default in _FIELDS[name]:
        given = getattr(value, field)
        if given is not default:
            found[field] = _encode(given)
    return found


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(one) for one in value)
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    name = fields.pop("")
    if name in _WORDS:
        return _WORDS[name][fields["word"]]
    return _VALUES[name](**{key: _decode(one) for key, one in fields.items()})
