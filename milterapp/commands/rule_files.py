"""Rule files for the command line: those that are named, one's own with the agent's checks, and the site's.

Must never: use a file that the agent would not use as somebody's own rules, or take a file it cannot read for no rules.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from milterapp.commands.failure import Failure, cannot_read
from milterapp.commands.scripts import NONE, Sources, beside
from milterapp.delivery import linux
from milterapp.delivery.agent import STATE
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.rulefile import ScriptPlace, Unavailable, open_home, plain_programs
from milterapp.delivery.ruleset import Ruleset
from milterapp.milter.site_rules import read_site_rules
from milterapp.rules.beside import run_tests
from milterapp.rules.lists import NamedList
from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from milterapp.rules.problem import Place, Problem
from milterapp.settings import Settings

__all__ = ["Rules", "User", "below", "is_site_file", "named", "own", "site", "user_of"]

_MOST = 4 * 1024 * 1024  # bytes of a rule file or a list
NOT_RULES = "messages.yaml"  # beside example rules: messages, and what becomes of each


@dataclass(frozen=True, slots=True)
class Rules:
    """One policy out of one file or several. policy None: a problem that is no warning was found.

    failed: the tests beside the rules that were not met; no service takes such rules either. scripts: those they name.
    """

    policy: Policy | None
    problems: tuple[Problem, ...] = ()
    failed: tuple[Problem, ...] = ()
    scripts: Sources = NONE

    @property
    def found(self) -> tuple[Problem, ...]:
        """Everything that was found."""
        return (*self.problems, *self.failed)


@dataclass(frozen=True, slots=True)
class User:
    """Whose rules they are."""

    name: str
    uid: int
    gid: int
    home: str


def user_of(name: str | None) -> User:
    """Return an account, or the caller's own. Raises Failure 64 where there is none of that name."""
    try:
        found = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        if name:
            raise Failure(os.EX_USAGE, f"there is no user {name!r}") from None
        return User(str(os.geteuid()), os.geteuid(), os.getegid(), os.environ.get("HOME", ""))
    home = found.pw_dir if name else os.environ.get("HOME", found.pw_dir)
    return User(found.pw_name, found.pw_uid, found.pw_gid, home)


def own(user: User, settings: Settings) -> Rules:
    """Return a user's own rules, read with the ids of that user.

    SECURITY: called by root for somebody else, this process becomes that user first, and stays so.
    Raises Failure 66 where there are none, or the home cannot be read.
    """
    path = settings.delivery.personal_rules
    folder = os.path.dirname(os.path.join(user.home, path))
    if os.geteuid() == 0 and user.uid != 0:
        linux.become(user.uid, user.gid, [one for one in os.getgrouplist(user.name, user.gid) if one])
    shown = path if path.startswith("/") else f"~{user.name}/{path}"
    try:
        with open_home(user.home, user.uid) as home:
            if home is None:
                raise Failure(os.EX_NOINPUT, f"{user.name} has no home, so no rules; name a file with --rules")
            file = Ruleset(AgentSettings.from_site(dataclasses.asdict(settings)), user.uid)
            loaded = file.load(home)
    except Unavailable as error:
        raise Failure(os.EX_NOINPUT, f"{shown}: cannot read: {error}") from error
    if loaded.policy is None and not loaded.problems:
        raise Failure(os.EX_NOINPUT, f"{shown}: there is no such file, so all mail is kept; name one with --rules")
    if loaded.policy is None:
        # The agent refuses rules whose tests fail; here they are tried all the same, and the exit code says so.
        again = named([os.path.join(user.home, path)], site=False, settings=settings)
        if again.failed and {one.text for one in loaded.problems} <= {one.text for one in again.found}:
            return again

    @contextmanager
    def place(script: str) -> Iterator[ScriptPlace]:
        with open_home(user.home, user.uid) as home, file.script_place(-1 if home is None else home, script) as found:
            yield found

    lists = {} if loaded.site is None else loaded.site.lists
    sources = Sources(loaded.scripts, place, os.path.join(user.home, STATE), folder, lists)
    return Rules(loaded.policy, loaded.problems, scripts=sources)


def site(settings: Settings) -> Rules:
    """Return the site's rules, with the checks that the milter makes. Raises Failure 66."""
    path = settings.milter.rules
    rules = named([path], site=True, settings=settings)
    if rules.policy is None or rules.failed:
        return rules
    _, found = read_site_rules(path, authserv_ids=settings.authserv_ids, transports=settings.milter.transports)
    more = tuple(problem for problem in found if problem not in rules.problems)
    return Rules(None, (*rules.problems, *more)) if more else rules


def named(paths: Sequence[str], *, site: bool, settings: Settings) -> Rules:
    """Return the rules of these files as one policy, in this order. Raises Failure 66.

    settings: whose Authentication-Results they may ask for, and which programs they may start.
    """
    programs = _programs(settings)
    sources: dict[str, bytes] = {}
    folders: dict[str, str] = {}
    loaded = [
        load(
            _read(path), path, site=site, read_list=_lists(path, site=site),
            read_script=_scripts(path, sources, folders), tests=False, authserv_ids=settings.authserv_ids,
            programs=programs, plain=plain_programs(programs),
            flags_kept=settings.delivery.keep == "maildir",
        )
        for path in paths
    ]  # fmt: skip
    policies = [policy for policy, _ in loaded if policy is not None]
    joined = _joined(policies, len(paths), tuple(problem for _, found in loaded for problem in found))
    shown = os.path.dirname(paths[0]) if paths else ""
    lists = _lists_around(settings) if sources and not site else {}
    found = Sources(sources, lambda script: beside(folders[script], script), shown=shown, lists=lists)
    return replace(joined, scripts=found)


def _lists_around(settings: Settings) -> dict[str, NamedList]:
    """Return the lists of the site's rules around people's own, which scripts may ask; of broken rules none."""
    found: dict[str, NamedList] = {}
    for path in (settings.delivery.rules_after, settings.delivery.rules_before):
        if path:
            policy, _ = load(_read(path), path, site=False, read_list=_lists(path, site=False), tests=False,
                             authserv_ids=settings.authserv_ids, programs=_programs(settings))  # fmt: skip
            found |= {} if policy is None else policy.lists
    return found


def is_site_file(path: str) -> bool:
    """Tell whether a file, without --site, is read as site rules: its name is `site.yaml`."""
    return os.path.basename(path) == "site.yaml"


def below(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the rule files below a folder in order, each with whether it holds site rules. Raises Failure 66.

    That is every *.yaml, but for names that begin with a dot. Site rules are in `site.yaml` and below a folder `site`.
    """

    def fail(error: OSError) -> None:
        raise cannot_read(str(error.filename), error)

    top = os.path.basename(os.path.abspath(folder))
    for here, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        of_site = "site" in (top, *os.path.relpath(here, folder).split(os.sep))
        for name in sorted(files):
            path = os.path.join(here, name)
            if name.endswith(".yaml") and not name.startswith(".") and name != NOT_RULES and os.path.isfile(path):
                yield path, of_site or is_site_file(path)


def _joined(policies: Sequence[Policy], files: int, problems: tuple[Problem, ...]) -> Rules:
    """Return the policies of so many files as one, the rules of each after those of the one before, all tests run."""
    if len(policies) < files:
        return Rules(None, problems)
    failed = tuple(problem for policy in policies for problem in run_tests(policy))
    if files == 1:
        return Rules(policies[0], problems, failed)
    rules = [rule for policy in policies for rule in policy.rules]
    first: dict[str, Place] = {}
    twice = [
        Problem(rule.place, f"a second rule {rule.name!r}, the first is at {first[rule.name]}")
        for rule in rules
        if first.setdefault(rule.name, rule.place) != rule.place
    ]
    if twice:
        return Rules(None, (*problems, *twice))
    joined = Policy(
        file=", ".join(policy.file for policy in policies),
        site=policies[0].site,
        rules=tuple(rules),
        tests=tuple(test for policy in policies for test in policy.tests),
    )
    return Rules(joined, problems, failed)


def _programs(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the site's programs as the agent has them."""
    return {name: dataclasses.asdict(one) for name, one in settings.programs.items()}


def _read(path: str) -> bytes:
    """Return what a file holds. Raises Failure 66."""
    try:
        with open(path, "rb") as file:
            source = file.read(_MOST + 1)
    except OSError as error:
        raise cannot_read(path, error) from error
    if len(source) > _MOST:
        raise Failure(os.EX_DATAERR, Problem(Place(path), f"the file is larger than {_MOST} bytes"))
    return source


def _scripts(path: str, sources: dict[str, bytes], folders: dict[str, str]) -> Callable[[str], bytes]:
    """Return what reads a script by its path from a rule file, and notes what it holds and the rules' folder."""
    folder = os.path.dirname(path)

    def read_script(name: str) -> bytes:
        if folders.get(name, folder) != folder:
            raise OSError(errno.EEXIST, f"another rule file has a script of that name, in {folders[name] or '.'}")
        with open(os.path.join(folder, name), "rb") as file:
            sources[name] = file.read(_MOST + 1)
        folders[name] = folder
        return sources[name]

    return read_script


def _lists(path: str, *, site: bool) -> Callable[[str], bytes]:
    """Return what reads a list beside a rule file; it raises OSError with the reason, as delivery does."""
    folder = os.path.dirname(path)

    def read_list(name: str) -> bytes:
        if not site and "/" in name:
            raise OSError(errno.EINVAL, "a list is a file beside the rules, its name without '/'")
        with open(os.path.join(folder, name), "rb") as file:
            return file.read(_MOST + 1)

    return read_list
