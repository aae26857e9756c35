"""The bounds on reading one message, and the one exception reading knows: a bound of ours was hit.

Must never: be raised for what a message holds; damaged content is marked malformed, only our limits are LimitHit.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT", "LimitHit", "Limits"]


class LimitHit(Exception):  # noqa: N818 - it is no error of anybody: "could not tell", and `on_error` answers it
    """A limit of ours was hit: neither a match nor no match. str() names the limit and its value."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on reading one message; what is hit is "could not tell" and `on_error` answers it."""

    header_fields: int = 1000
    header_bytes: int = 512 * 1024
    addresses: int = 10_000
    mime_depth: int = 50
    mime_parts: int = 1000
    decoded_bytes: int = 64 * 1024 * 1024
    text_bytes: int = 16 * 1024 * 1024
    message_bytes: int = 128 * 1024 * 1024


DEFAULT = Limits()
