"""The run that is under way: what a script has asked for so far, and `store` and `output`, through which it asks.

Must never: do anything; everything is collected, and carried out after the script has ended well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from milterapp.script import stored
from milterapp.script.actions import IN_LINE, NO_PLACE, Action, Output, Store
from milterapp.script.memory import Memory
from milterapp.script.plan import DEFAULT, PlanLimits, texts_of
from milterapp.script.untrusted import Text, Untrusted, refusal, reveal
from milterapp.script.values import Rendered, plain

__all__ = ["Collected", "ScriptError", "current", "running"]


class ScriptError(Exception):
    """A script asks for what cannot be had; its author reads it."""


class Collected:
    """What one run has asked for. stores: what it has stored so far, which it reads back before the memory.

    now: seconds since 1970. folder: where the script's templates are, "" for the working directory. functions: the
    script's own, by name. asked: the message itself was taken, until its sender answers. site: it is the site's, run
    in-line, where nothing is remembered and little can be asked for.
    """

    def __init__(
        self,
        memory: Memory,
        limits: PlanLimits = DEFAULT,
        *,
        now: float = 0.0,
        folder: str = "",
        functions: Mapping[str, Callable[..., Any]] | None = None,
        site: bool = False,
    ) -> None:
        self._memory = memory
        self.now = now
        self.folder = folder
        self.functions = functions or {}
        self.per: tuple[str, ...] = ()
        self.asked = False
        self.about = ""  # the digest of the question whose message edits and deliveries are of
        self.actions: list[Action] = []
        self.stores: dict[str, tuple[bool, str | None]] = {}
        self._limits = limits
        self._site = site
        self._size = 0

    @property
    def memory(self) -> Memory:
        """What the script remembers. Raises ScriptError for a site's, which remembers nothing."""
        return self.memory_for("store")

    def memory_for(self, word: str) -> Memory:
        """Return what is asked where a script uses this word. Raises ScriptError for a site's script."""
        if self._site:
            raise ScriptError(f"`{word}` {NO_PLACE}")
        return self._memory

    def add(self, action: Action) -> None:
        """Collect one action. Raises ScriptError past a limit, so that an endless loop is told where it is, and for
        what has no place in-line.
        """
        if self._site and not isinstance(action, IN_LINE):
            raise ScriptError(f"`{action.word}` {NO_PLACE}")
        self._size += sum(map(len, texts_of(action)))
        if len(self.actions) >= self._limits.actions:
            raise ScriptError(f"more than {self._limits.actions} actions")
        if self._size > self._limits.total:
            raise ScriptError(f"more text than {self._limits.total} characters in all")
        self.actions.append(action)


_current: Collected | None = None


def current() -> Collected:
    """Return the run under way. Raises ScriptError where none is: while a script is being loaded."""
    if _current is None:
        raise ScriptError("there is a message only while main or a route's function is called, not while it is loaded")
    return _current


@contextmanager
def running(collected: Collected) -> Iterator[Collected]:
    """Make this the run under way."""
    global _current
    before, _current = _current, collected
    try:
        yield collected
    finally:
        _current = before


class _Store:
    """The script's own memory: texts, numbers, lists and tables under a text; what came from a message stays marked."""

    def __getitem__(self, key: Text) -> Any:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return stored.from_text(found)

    def __setitem__(self, key: Text, value: object) -> None:
        self._change(key, stored.to_text(value))

    def __delitem__(self, key: Text) -> None:
        if self._find(key) is None:
            raise KeyError(key)
        self._change(key, None)

    def __contains__(self, key: Text) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[Text]:
        return iter(self.keys())

    def get(self, key: Text, default: Any = None) -> Any:
        """Return what is stored, or the default."""
        found = self._find(key)
        return default if found is None else stored.from_text(found)

    def keys(self, prefix: Text = "") -> list[Text]:
        """Return the keys that begin so, in order; Untrusted where they were stored under Untrusted text."""
        run = current()
        found = dict(run.memory.keys(reveal(prefix)))
        for key, (marked, value) in run.stores.items():
            if key.startswith(reveal(prefix)):
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = marked
        return [Untrusted(key) if found[key] else key for key in sorted(found)]

    def _find(self, key: Text) -> str | None:
        run, text = current(), reveal(key)
        return run.stores[text][1] if text in run.stores else run.memory.value(text)

    def _change(self, key: Text, value: str | None) -> None:
        run, text, marked = current(), reveal(key), isinstance(key, Untrusted)
        run.add(Store(text, marked, value))
        run.stores[text] = marked, value


class _Output:
    """Files below the script's output folder, for pages and archives."""

    def __setitem__(self, path: str, text: str | Rendered) -> None:
        given: object = text
        if isinstance(given, Untrusted):
            raise refusal(given, "written to a file as it is")
        written = text.text if isinstance(text, Rendered) else plain(text, "a file's text")
        current().add(Output(plain(path, "a file's name"), written))

    def __delitem__(self, path: str) -> None:
        current().add(Output(plain(path, "a file's name"), None))


store = _Store()
output = _Output()
