"""Values that a script stores, as one JSON text and back; what came from a message comes back Untrusted.

Must never: build anything but texts, numbers, lists and tables, or lose a mark.

A scalar stands for itself; ["u", text] is Untrusted, ["l", …] a list, ["d", [key, value], …] a table.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from milterapp.script.untrusted import Untrusted, reveal
from milterapp.script.values import plain

__all__ = ["from_text", "to_text"]

_DEPTH = 20


def to_text(value: object) -> str:
    """Return a value as ASCII JSON. Raises TypeError or ValueError for what cannot be stored."""
    return json.dumps(_encode(value, 0), ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _encode(value: object, depth: int) -> Any:
    if depth > _DEPTH:
        raise ValueError(f"lists and tables nested deeper than {_DEPTH} cannot be stored")
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be stored")
        return value
    if isinstance(value, str):
        return reveal(Untrusted(value))  # without lone surrogates
    if isinstance(value, Untrusted):
        return ["u", reveal(value)]
    if isinstance(value, (list, tuple)):
        return ["l", *(_encode(one, depth + 1) for one in value)]
    if isinstance(value, dict):
        return ["d", *([plain(key, "a key"), _encode(one, depth + 1)] for key, one in value.items())]
    raise TypeError(f"a {type(value).__name__} cannot be stored; texts, numbers, lists and tables of them can")


def from_text(text: str) -> Any:
    """Return the value that to_text wrote. Raises ValueError for any other text."""
    try:
        return _decode(json.loads(text, parse_constant=_no_constant))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no value")


def _decode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return reveal(Untrusted(value))
    if isinstance(value, list) and value:
        kind, *rest = value
        if kind == "u" and len(rest) == 1 and isinstance(rest[0], str):
            return Untrusted(rest[0])
        if kind == "l":
            return [_decode(one) for one in rest]
        if kind == "d" and all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in rest):
            return {key: _decode(one) for key, one in rest}
    raise ValueError("no stored value")
