"""`milterapp check`: are rules and configuration valid, their tests met, and what can this machine enforce?

Must never: change anything, or stop at the first problem.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from milterapp.commands import client, configuration, rule_files, site_file
from milterapp.commands.failure import UNMET, Failure
from milterapp.commands.programs import examined as programs_examined
from milterapp.commands.rule_files import Rules
from milterapp.commands.scripts import examined as scripts_examined
from milterapp.delivery import confined, fenced
from milterapp.delivery.recipients import MapError, Recipients
from milterapp.delivery.sandbox_level import probe
from milterapp.settings import Settings

__all__ = ["arguments", "run"]

_WORST_FIRST = (os.EX_DATAERR, os.EX_CONFIG, os.EX_NOINPUT, UNMET, os.EX_OK)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="rule files, or folders with rule files below them")
    parser.add_argument("--site", action="store_true", help="the files are site rules; without PATH, the site's")
    site_file.argument(parser)


def run(options: argparse.Namespace) -> int:
    """Check everything and print the problems; return the worst exit code."""
    codes = [os.EX_OK]
    settings = Settings()
    try:
        settings = configuration.load(options.config)
    except Failure as failure:
        codes.append(_failed(failure))
    for path, site in _files(options, settings, codes):
        try:
            if site and not options.paths:
                rules = rule_files.site(settings)
            else:
                rules = rule_files.named([path], site=site, settings=settings)
        except Failure as failure:
            codes.append(_failed(failure))
        else:
            codes.append(_report(path, rules, settings, site=site))
    if not options.paths and not options.site:
        codes += _own(settings)
    file = options.config or site_file.DEFAULT
    for problem in (*programs_examined(settings, file), *client.examined(settings, file)):
        print(problem)
        codes.append(os.EX_OK if problem.warning else os.EX_CONFIG)
    codes += _recipients(settings)
    _print_sandbox(settings.delivery.sandbox)
    return min(codes, key=_WORST_FIRST.index)


def _files(options: argparse.Namespace, settings: Settings, codes: list[int]) -> Iterator[tuple[str, bool]]:
    """Yield each rule file with whether it holds site rules; what cannot be read adds to the codes."""
    if not options.paths:
        if options.site or os.access(settings.milter.rules, os.R_OK):
            yield settings.milter.rules, True
        around = (settings.delivery.rules_before, settings.delivery.rules_after)
        yield from ((path, False) for path in around if path)
        return
    for path in options.paths:
        if not os.path.isdir(path):
            yield path, options.site or rule_files.is_site_file(path)
            continue
        try:
            found = list(rule_files.below(path))
            if not found:
                raise Failure(os.EX_NOINPUT, f"{path}: there are no rule files (*.yaml) below it")
            yield from ((file, options.site or site) for file, site in found)
        except Failure as failure:
            codes.append(_failed(failure))


def _recipients(settings: Settings) -> Iterator[int]:
    """Check the file of the recipients of virtual domains, and whether this machine can keep them apart."""
    path = settings.delivery.recipients
    if not path:
        return
    try:
        found = sorted(set(Recipients(path).read()), key=lambda one: one.uid)
    except (MapError, OSError) as error:
        print(error)
        yield os.EX_CONFIG
        return
    low = [one for one in found if one.uid < settings.delivery.min_uid]
    if low:
        print(f"{path}: warning: {low[0].name} has uid {low[0].uid}, below delivery.min_uid: no rules are asked for it")
    if lacks := confined.missing(settings.delivery.sandbox):
        print(f"{path}: {lacks}")
        yield os.EX_CONFIG
        return
    print(f"{path}: {_count(len(found), 'recipient')}, all well")


def _own(settings: Settings) -> Sequence[int]:
    """Check the caller's own rules, where there are any."""
    user = rule_files.user_of(None)
    path = os.path.join(user.home, settings.delivery.personal_rules)
    if not os.path.lexists(path):
        return ()
    try:
        rules = rule_files.own(user, settings)
        return (_report(path, rules, settings, site=False),)
    except Failure as failure:
        return (_failed(failure),)


def _report(path: str, rules: Rules, settings: Settings, *, site: bool) -> int:
    """Print what was found; return its exit code."""
    scripts = scripts_examined(rules.scripts, settings, site=site)
    for problem in (*rules.found, *scripts):
        print(problem)
    if rules.policy is None or not all(one.warning for one in scripts):
        return os.EX_DATAERR
    if rules.failed:
        return UNMET
    words = [_count(len(rules.policy.rules), "rule"), _count(len(rules.policy.tests), "test")]
    words += [_count(len(rules.scripts.sources), "script")] if rules.scripts.sources else []
    print(f"{path}: {', '.join(words)}, all well")
    return os.EX_OK


def _failed(failure: Failure) -> int:
    for line in failure.lines:
        print(line)
    return failure.code


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _print_sandbox(floor: str) -> None:
    """Print what the kernel can enforce on what a person wrote, and what not, in words. floor: delivery.sandbox."""
    level = probe()
    print(f"this machine: {level}")
    for missing in level.missing:
        print(f"    {missing}")
    if level.landlock < fenced.LEAST:
        print(f"    Landlock below ABI {fenced.LEAST}: an agent writes where its user may, wherever a link leads it")
    if not level.reaches(floor):
        print(f"    below delivery.sandbox, {floor}: no script runs, and the mail of those who have one is kept")
