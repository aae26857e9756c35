"""The fence around every agent: of all that its uid could open, it reaches its home and what deciding needs.

Must never: import anything but the standard library and its neighbours; take from a person's programs what they had;
keep an agent from running where this kernel has no Landlock that it could be made of.

SECURITY: libraries open files by name, SQLite its journal's companions among them, and a user can exchange a folder on
the way for a link at any moment. With Landlock such a link leads nowhere: the agent makes, changes, removes and reads
nothing but below its own home and the places that the site names for mail and for what scripts write; it reads Python,
milterapp, the site's rules and the system's folders. It is built before anything of the user's is read, and behind the
runner, whose programs have a wall of their own. Landlock holds the folders themselves, not their names: where another
stands in the place of one, the agent ends for one that reaches it (`moved`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from milterapp.delivery import landlock, linux, ways
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.confined import DEVICES, LEAST_ABI, SYSTEM, python

__all__ = ["LEAST", "Reach", "moved"]

LEAST = min(LEAST_ABI.values())  # ABI of Landlock
_HOME = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # O_DIRECTORY: what mounts homes on demand does so now

_Identity = tuple[int, int] | None  # of a folder that can be written; None where there is none


@dataclass(frozen=True, slots=True)
class Reach:
    """What the agents of a site reach beside their homes. readable: folders; places: absolute ones that they write.

    rules: the folder of people's rules, from the home, where it lies outside of that, else "".
    """

    readable: tuple[str, ...]
    places: tuple[str, ...] = ()
    rules: str = ""

    @classmethod
    def of(cls, settings: AgentSettings) -> Reach:
        """Return what the settings name."""
        own = settings.personal_rules
        folders = [os.path.dirname(one) for one in (own, settings.rules_before, settings.rules_after)]
        readable = _outermost([*SYSTEM, *python(), *(one for one in folders if one.startswith("/"))])
        places = tuple(one for one in (settings.maildir, settings.script_output) if one.startswith("/"))
        outside = not own.startswith("/") and ".." in own.split("/")
        return cls(readable, places, os.path.dirname(own) if outside else "")

    def fence(self, home: str) -> None:
        """Let this process, and all that come of it, open nothing else, for ever. Raises OSError: then it must end.

        Where this kernel's Landlock is too old, or turned off, nothing happens. Of a place that is not there yet the
        last folder on the way to it counts, where it could be made there.
        """
        global _built  # a process has one fence, and no way back
        if linux.landlock_abi() < LEAST:
            return
        with _writable(home, self.places) as (folders, identities):
            _built = (home, self.places, identities)
            rules = [os.path.join(home, self.rules)] if self.rules else []
            landlock.restrict((*self.readable, *rules), writable=(*folders, *DEVICES))


_built: tuple[str, Sequence[str], Sequence[_Identity]] | None = None  # this process's: home, places, what they were


def moved() -> bool:
    """Tell whether another folder is by now where this process's fence lets it write; False without a fence."""
    if _built is None:
        return False
    home, places, before = _built
    if not places:  # asked for each message; where a mount of the home has expired, this brings none back: it is gone
        try:
            found = os.stat(home)
        except OSError:
            return before != [None]
        return before != [(found.st_dev, found.st_ino)]
    with _writable(home, places) as (_, identities):
        return identities != before


@contextmanager
def _writable(home: str, places: Sequence[str]) -> Iterator[tuple[Sequence[int], Sequence[_Identity]]]:
    """Give descriptors of the folders to write in, and of home and each place what it is."""
    opened: list[int] = []
    folders: list[int] = []
    identities: list[_Identity] = []
    try:
        for descriptor in (_home(home), *map(_place, places)):
            if descriptor >= 0:
                opened.append(descriptor)
            identities.append(_identity(descriptor))
            if identities[-1] is not None:
                folders.append(descriptor)
        yield folders, identities
    finally:
        for one in opened:
            os.close(one)


def _home(path: str) -> int:
    """Return a descriptor of the home, -1 where it cannot be opened: the agent will say so itself."""
    try:
        return os.open(path, _HOME)
    except OSError:
        return -1


def _place(path: str) -> int:
    """Return a descriptor of a place, or of the folder in which it could be made; -1 for neither."""
    levels = ways.levels_of(path)
    try:
        here, there = ways.passed(levels)
    except OSError:
        return -1
    if there < len(levels) and not os.access(".", os.W_OK | os.X_OK, dir_fd=here):
        os.close(here)
        return -1
    return here


def _identity(descriptor: int) -> _Identity:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the real paths of these, without those that lie below another: each costs every agent four calls."""
    found: list[str] = []
    for one in sorted({os.path.realpath(path) for path in paths}):
        if not any(f"{one}/".startswith(f"{other.rstrip('/')}/") for other in found):
            found.append(one)
    return tuple(found)
