"""`site`: the named lists of the site's rules, which a script asks about a value; the lists stay where they are.

Must never: give a script what a list holds but for the entry that is the value it asked about.
"""

from __future__ import annotations

from milterapp.script.context import ScriptError, current
from milterapp.script.memory import Memory
from milterapp.script.untrusted import Text, reveal
from milterapp.script.values import plain

__all__ = ["SiteList", "site"]

_LONGEST = 1000  # characters of a value that is asked about; no list holds a longer one


class SiteList:
    """One list. `value in site["a"]` asks it; `value.lookup(site["a"])` gives its own entry, which is plain str."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __contains__(self, value: Text) -> bool:
        return self._ask(value)[0]

    def get(self, value: Text) -> str | None:
        """Return the list's entry that is this very value, an address with any detail; None where it has none."""
        return self._ask(value)[1]

    def __repr__(self) -> str:
        return f"site[{self._name!a}]"

    def _ask(self, value: Text) -> tuple[bool, str | None]:
        text = reveal(value)
        if len(text) > _LONGEST or any("\ud800" <= one <= "\udfff" for one in text):
            return False, None
        return _memory().listed(self._name, text)


class _Site:
    """The site's lists by name."""

    def __getitem__(self, name: str) -> SiteList:
        """Return a list. Raises ScriptError where the site has none of that name."""
        known = _memory().lists()
        if plain(name, "the name of a list") not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise ScriptError(f"the site has no list {name!a:.100}; {there}")
        return SiteList(name)

    def __contains__(self, name: str) -> bool:
        return plain(name, "the name of a list") in _memory().lists()


def _memory() -> Memory:
    return current().memory_for("site")


site = _Site()
