"""Asking named lists about values for which no condition declared a type: what scripts do.

Must never: say that a list holds what a condition on that value would not find in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from milterapp.rules.folding import address_forms, fold
from milterapp.rules.lists import NamedList, TypedList, network_of

__all__ = ["Membership"]


class Membership:
    """Lists by name. delimiter: splits off an address's detail. A list is read as a type when that is first needed."""

    def __init__(self, lists: Mapping[str, NamedList], delimiter: str = "+") -> None:
        self.lists = lists
        self._delimiter = delimiter
        self._typed: dict[tuple[str, str], TypedList | None] = {}
        self._entries: dict[str, dict[str, str]] = {}

    def holds(self, name: str, value: str) -> bool:
        """Return whether a list holds a value: as an IP address or network where it is one; else as an address, as a
        domain, or as a word. Raises KeyError where there is no such list.
        """
        forms = self._forms(value)
        kinds = ("network",) if _is_network(value) else ("address", "text")
        return any(typed.holds(value, forms) for kind in kinds if (typed := self._as(name, kind)) is not None)

    def entry(self, name: str, value: str) -> str | None:
        """Return a list's own entry that is this very value, an address with any detail; None where it has none.

        Raises KeyError where there is no such list.
        """
        if name not in self._entries:
            self._entries[name] = {self._forms(one)[0]: one for one in reversed(self.lists[name].entries)}
        entries = self._entries[name]
        return next((entries[form] for form in self._forms(value) if form in entries), None)

    def _as(self, name: str, kind: str) -> TypedList | None:
        """Return a list read as a kind, None where an entry of it does not fit."""
        if (name, kind) not in self._typed:
            named = self.lists[name]
            made, problems = NamedList(named.name, named.file, named.entries, named.lines, named.columns).as_kind(kind)
            self._typed[name, kind] = None if problems else made
        return self._typed[name, kind]

    def _forms(self, value: str) -> tuple[str, ...]:
        return address_forms(value, self._delimiter) if "@" in value else (fold(value),)


def _is_network(value: str) -> bool:
    try:
        network_of(value)
    except ValueError:
        return False
    return True
