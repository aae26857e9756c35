"""Edits of a message, and carrying them out to the byte: what no edit touched leaves as it came.

Must never: re-encode, refold or reorder a header or a part that no edit names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["AddHeader", "Edit", "PrefixSubject", "RemoveHeader", "SetHeader"]


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Append a header field at the end of the header. name: RFC 5322 field name; value: one line of text."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "add_header", "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class SetHeader:
    """Give the first field of that name this value and remove the others; without one, append it."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "set_header", "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class RemoveHeader:
    """Remove every field of that name."""

    name: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "remove_header", "name": self.name}


@dataclass(frozen=True, slots=True)
class PrefixSubject:
    """Put a text and a blank before the decoded subject, once: a subject that has it already is left alone."""

    prefix: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "prefix_subject", "prefix": self.prefix}


Edit = AddHeader | SetHeader | RemoveHeader | PrefixSubject
