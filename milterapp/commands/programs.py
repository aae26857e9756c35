"""Programs for the command line: what the site allows looked at, and run for a dry run that asks for it.

Must never: run one unless it was asked for, or as root.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from milterapp.commands.failure import Failure, complain
from milterapp.commands.rule_files import User
from milterapp.delivery import linux, runner
from milterapp.delivery.carry_out import through
from milterapp.delivery.programs import Programs, environment
from milterapp.mail.envelope import Envelope
from milterapp.rules.decision import Decision
from milterapp.rules.problem import Place, Problem
from milterapp.settings import Settings

__all__ = ["examined", "filtered", "running"]


def examined(settings: Settings, file: str) -> Iterator[Problem]:
    """Yield what is wrong with the programs that the site allows. file: where it allows them."""
    for name, one in settings.programs.items():
        for warning, text in _faults(one.run[0]):
            yield Problem(Place(file), f"the program {name!r}: {text}", warning=warning)
    if settings.programs and linux.landlock_abi() < 1:
        text = "programs write wherever their user may: this kernel has no Landlock"
        yield Problem(Place(file), text, warning=True)


def _faults(path: str) -> Iterator[tuple[bool, str]]:
    """Yield what is wrong with a program, each with whether it runs all the same."""
    try:
        found = os.stat(path)
    except OSError as error:
        yield False, f"{path}: {error.strerror}"
        return
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        yield False, f"{path} is no file that can be executed"
        return
    if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        yield True, f"{path} is setuid or setgid, and runs without that: it will fail where it needs it"
    if found.st_mode & 0o022 or found.st_uid != 0:
        yield True, f"{path} can be changed by others than root"


@contextmanager
def running(settings: Settings, user: User | None, *, wanted: bool) -> Iterator[Programs | None]:
    """Give what runs programs as the agent does, where that is wanted. user: whose rules they are, None for the site's.

    Raises Failure 64 for root: a program runs as the person whose rules name it.
    """
    if not wanted or user is None:
        yield None
        return
    if os.geteuid() == 0:
        raise Failure(os.EX_USAGE, "--run-programs never runs one as root: name a user, or call it as one")
    programs = {name: dataclasses.asdict(one) for name, one in settings.programs.items()}
    highest = max(int(one) for one in os.listdir("/proc/self/fd"))
    connection = runner.beside(programs, user.home, user.name, keep=max(3, highest + 1))
    with socket.socket(fileno=connection) as opened:
        yield Programs(opened)


def filtered(programs: Programs, decision: Decision, message: bytes, envelope: Envelope, settings: Settings) -> bytes:
    """Return what the filters make of a message; one that fails changes nothing, and says so on standard error."""
    variables = environment(envelope, settings.delivery.recipient_delimiter)
    for one in decision.filters:
        written, fault = through(programs, one, message, variables)
        if fault:
            complain(f"filter: {fault}")
        message = written or message
    return message
