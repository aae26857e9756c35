"""The pipe client for the command line: what starts it, and whether that can be run by its account and trusted.

Must never: run it; or take for fit a compiled one that others than root could put their own in place of.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import milterapp
from milterapp.rules.problem import Place, Problem
from milterapp.settings import DeliverySettings, Settings

__all__ = ["command", "examined", "faults"]

# e_machine of elf(5): what one kernel can run both of, 386 and x86-64, Arm and AArch64
_ALIKE = (frozenset({3, 62}), frozenset({40, 183}))


def command(settings: Settings, *, virtual: bool = False) -> tuple[str, ...]:
    """Return what argv= of the pipe service begins with: the compiled client where the site has one, else Python's."""
    place = settings.delivery.socket
    option = ("--virtual=" if virtual else "--socket=") + place
    given = (option,) if virtual or place != DeliverySettings().socket else ()
    return (*_program(settings), *given)


def _program(settings: Settings) -> tuple[str, ...]:
    if settings.delivery.client:
        return (settings.delivery.client,)
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return python, "-I", "-S", str(Path(milterapp.__file__).resolve().parent / "delivery" / "pipe.py")


def faults(settings: Settings) -> Iterator[str]:
    """Yield why the client could not be run by its account, or should not be."""
    if settings.delivery.client:
        yield from (f"delivery.client: {fault}" for fault in _compiled(settings.delivery.client))
        return
    user = settings.accounts.pipe
    for path in (one for one in _program(settings) if one.startswith("/")):
        if closed := _closed(Path(path)):
            yield f"{path}: {user} cannot read it ({closed}): install milterapp where every account may read"


def examined(settings: Settings, file: str) -> Iterator[Problem]:
    """Yield what is wrong with the compiled client that the site has set. file: where it is set."""
    if settings.delivery.client:
        yield from (Problem(Place(file), fault) for fault in faults(settings))


def _compiled(path: str) -> Iterator[str]:
    """Yield what is wrong with a compiled client."""
    try:
        place = Path(os.path.realpath(path, strict=True))
        found = place.stat()
    except OSError as error:
        remedy = ": make it with packaging/client" if isinstance(error, FileNotFoundError) else ""
        yield f"{path}: {error.strerror}{remedy}"
        return
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IXOTH:
        yield f"{path} is no file that every account may execute"
    elif closed := _closed(place, read=False):
        yield f"{path}: other accounts cannot execute it ({closed})"
    elif foreign := _foreign(place):
        yield f"{path} {foreign}: compile it here, with packaging/client"
    if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        yield f"{path} is setuid or setgid, which the client must not be"
    if found.st_uid != 0 or found.st_mode & 0o022:
        yield f"{path} can be changed by others than root"
    for folder in place.parents:
        around = folder.stat()
        if around.st_uid != 0 or (around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX):
            yield f"{path}: others than root may put another in its place ({folder})"


def _foreign(place: Path) -> str:
    """Return why this machine cannot start a program, by its head (elf(5)); "" where it can, or nobody may look."""
    try:
        theirs, ours = _head(place), _head(Path("/proc/self/exe"))
    except OSError:  # executed by all, read by root alone, and we are not root
        return ""
    if theirs.startswith(b"#!"):
        return ""
    wanted, found = _machine(theirs), _machine(ours)
    if wanted is None:
        return "is no program"
    if wanted == found or any({wanted, found} <= alike for alike in _ALIKE):
        return ""
    return f"is compiled for another kind of machine (ELF {wanted}, this one is {found})"


def _head(program: Path) -> bytes:
    """Raises OSError."""
    with program.open("rb") as file:
        return file.read(20)


def _machine(head: bytes) -> int | None:
    """Return e_machine of an ELF file, None of another."""
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    return int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")


def _closed(path: Path, *, read: bool = True) -> str:
    """Return what of a path an account that is nobody's friend may not enter or read, "" where it may."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return f"{folder} is closed to others"
    try:
        return "" if not read or path.stat().st_mode & stat.S_IROTH else "it is not readable by others"
    except FileNotFoundError:
        return "it is not there"
