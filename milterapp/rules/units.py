"""Texts as numbers: sizes, times, counts and yes or no, as rules and settings write them.

Must never: take a number for something it does not look like; what cannot be read is a ValueError that says how to.
"""

from __future__ import annotations

import math

__all__ = ["parse_bool", "parse_count", "parse_duration", "parse_number", "parse_size"]

SIZES = {"": 1, "b": 1, "byte": 1, "bytes": 1}
SIZES |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
SIZES |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}

DURATIONS = {
    word: seconds
    for words, seconds in (
        (("", "s", "second", "seconds"), 1),
        (("m", "min", "minute", "minutes"), 60),
        (("h", "hour", "hours"), 3600),
        (("d", "day", "days"), 86400),
        (("w", "week", "weeks"), 7 * 86400),
    )
    for word in words
}

BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def _split(text: str) -> tuple[float, str]:
    stripped = text.strip()
    digits = len(stripped)
    while digits and not stripped[digits - 1].isdigit():
        digits -= 1
    number, unit = stripped[:digits], stripped[digits:].strip().lower()
    if not number.isascii() or len(number) > 20 or any(char not in "0123456789." for char in number):
        raise ValueError
    return float(number), unit


def _with_unit(text: str, units: dict[str, int], expected: str) -> float:
    try:
        number, unit = _split(text)
        return number * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"found {text!r}, expected {expected}") from None


def parse_size(text: str) -> int:
    """Return bytes: `10 MB` is 10 000 000, `10 MiB` is 10 × 2²⁰, a bare number is bytes. Raises ValueError."""
    return int(_with_unit(text, SIZES, "a size such as 500 kB, 10 MB or 10 MiB"))


def parse_duration(text: str) -> float:
    """Return seconds: `2 days`, `1 hour`, `30 s`, a bare number is seconds. Raises ValueError."""
    return _with_unit(text, DURATIONS, "a time such as 30 s, 1 hour or 2 days")


def parse_count(text: str) -> int:
    """Return a whole number that is not negative. Raises ValueError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError(f"found {text!r}, expected a whole number")
    return int(text)


def parse_number(text: str) -> float:
    """Return any finite decimal number, a sign and a fraction allowed. Raises ValueError."""
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or len(text) > 40:
        raise ValueError(f"found {text!r}, expected a number")
    return number


def parse_bool(text: str) -> bool:
    """Return True for yes, true and on, False for no, false and off. Raises ValueError."""
    try:
        return BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"found {text!r}, expected yes or no") from None
