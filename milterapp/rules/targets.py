"""An address that mail is sent to.

Must never: be one that the message chose, unless a list of the rule's own holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from milterapp.rules.placeholders import Template

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """An address to send to: text of the rule's own, or a value that must be in one of the rule's own lists."""

    address: Template
