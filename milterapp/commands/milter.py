"""`milterapp milter`: the in-line milter, as a service: drops to its account, loads the rules, supervises its workers.

Must never: read the configuration with privileges (`handover` has a child do that), serve as root, or start without
rules that pass their own tests.

The service is this module as a program of its own, `python -I -m milterapp.commands.milter SETTINGS`.
"""

from __future__ import annotations

import argparse
import grp
import json
import os
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, NoReturn

from milterapp import log
from milterapp.commands import handover, site_file
from milterapp.commands.failure import Failure, reason
from milterapp.delivery import linux
from milterapp.mail.limits import Limits
from milterapp.settings import Accounts, MilterSettings

if TYPE_CHECKING:
    from milterapp.mail.envelope import Envelope
    from milterapp.milter.site_scripts import Scripts
    from milterapp.rules.truth import Value

__all__ = ["arguments", "main", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    site_file.argument(parser)


def run(options: argparse.Namespace) -> NoReturn:
    """Become the service. Raises Failure 66, 70 or 78."""
    handover.start("milterapp.commands.milter", options.config)


def main(argv: list[str]) -> int:
    """Serve with the settings of the one argument until told to stop; return an exit code of sysexits(3)."""
    try:
        given = json.loads(argv[0])
        settings = MilterSettings(**given["milter"])
        limits = Limits(**given["limits"])
        account = Accounts(**given["accounts"]).milter
        delimiter = str(given["delivery"]["recipient_delimiter"])
        authserv_ids = tuple(map(str, given["authserv_ids"]))
        spawner = str(given["script"]["socket"])
        log.configure(given["log"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Failure(os.EX_USAGE, f"expected the settings as JSON, made by `milterapp milter`: {error!r}") from None
    _drop(settings, account)
    return _serve(settings, limits, delimiter, authserv_ids, spawner)


def _drop(settings: MilterSettings, account: str) -> None:
    """Become the milter's account; as root, see to the socket's directory first. Raises Failure."""
    try:
        if os.geteuid() == 0:
            _directory(os.path.dirname(settings.socket), linux.account(account), settings.socket_group)
            if settings.state.startswith("/"):
                _state_folder(settings.state, linux.account(account))
        linux.drop_to_account(account)
    except linux.PrivilegeError as error:
        raise Failure(os.EX_NOPERM, str(error)) from error
    except OSError as error:
        raise Failure(os.EX_CONFIG, f"{error.filename or settings.socket}: {reason(error)}") from error
    if os.geteuid() == 0:
        raise Failure(os.EX_NOPERM, f"does not serve as root; start it as {account}, or set accounts.milter")


def _directory(path: str, account: linux.Account, group: str | None) -> None:
    """Make a directory where there is none: the account's, entered by the group, which its files inherit.

    One that is there is left as it is; it might be somebody else's. group: None for nobody else. Raises OSError.
    """
    try:
        gid = account.gid if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failure(os.EX_CONFIG, f"milter.socket_group: there is no group {group!r}") from None
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(directory, account.uid, gid)
        os.fchmod(directory, 0o700 if group is None else 0o2750)
    finally:
        os.close(directory)


def _state_folder(path: str, account: linux.Account) -> None:
    """Make the folder of the memory where there is none. Without it rates cannot be told; all other rules can."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _directory(path, account, None)
    except OSError as error:
        log.get("milter").warning("no memory", folder=path, reason=reason(error))


class _Scripts:
    """What runs the site's scripts: loaded with the first rules that have one, and before workers fork; else not."""

    def __init__(self, spawner: str, limits: Limits) -> None:
        self._spawner = spawner
        self._limits = limits

    @cached_property
    def _loaded(self) -> Scripts:
        from milterapp.delivery.spawner_client import SiteScripts

        return SiteScripts(self._spawner, self._limits)

    def answer(self, script: str, source: bytes, envelope: Envelope, raw: bytes, seconds: float) -> Value:
        """Do what Scripts does."""
        return self._loaded.answer(script, source, envelope, raw, seconds)

    def examine(self, file: str, source: bytes, seconds: float) -> Sequence[tuple[int, int, str]]:
        """Do what Scripts does."""
        return self._loaded.examine(file, source, seconds)


def _serve(
    settings: MilterSettings, limits: Limits, delimiter: str, authserv_ids: tuple[str, ...], spawner: str
) -> int:
    """Load the rules and serve. spawner: the socket of what runs the site's scripts. Raises Failure."""
    from milterapp.milter.entry import Trust
    from milterapp.milter.listening import Busy
    from milterapp.milter.site_rules import read_site_rules
    from milterapp.milter.supervisor import Supervisor

    os.umask(0o077)
    try:
        trust = Trust(authserv_ids, settings.results_from)
    except ValueError as error:
        raise Failure(os.EX_CONFIG, f"milter.results_from: {error}") from None
    scripts = _Scripts(spawner, limits)
    load = partial(
        read_site_rules,
        settings.rules,
        delimiter=delimiter,
        limits=limits,
        authserv_ids=authserv_ids,
        transports=settings.transports,
        examine=partial(scripts.examine, seconds=settings.script_time),
    )
    try:
        policy, problems = load()
    except OSError as error:
        raise Failure(
            os.EX_TEMPFAIL, f"{settings.rules}: not started, as its scripts were not examined: {error}"
        ) from error
    for one in problems:
        log.get("milter").warning("rules" if policy else "rules refused", problem=str(one))
    if policy is None:
        code = os.EX_DATAERR if os.path.exists(settings.rules) else os.EX_NOINPUT
        raise Failure(code, *problems, f"{settings.rules}: not started; `milterapp check --site` says the same")
    supervisor = Supervisor(settings, limits, load, policy, delimiter=delimiter, trust=trust, scripts=scripts)
    try:
        return supervisor.run()
    except Busy as error:
        raise Failure(os.EX_TEMPFAIL, str(error)) from error
    except KeyError:
        raise Failure(os.EX_CONFIG, f"milter.socket_group: there is no group {settings.socket_group!r}") from None
    except OSError as error:
        raise Failure(os.EX_OSERR, f"{error.filename or settings.socket}: {error.strerror or error}") from error


def _program() -> NoReturn:
    try:
        code = main(sys.argv[1:])
    except Failure as failure:
        failure.tell()
        code = failure.code
    sys.exit(code)


if __name__ == "__main__":
    _program()
