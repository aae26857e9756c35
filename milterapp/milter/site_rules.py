"""The site's rules from their file, with the lists beside it, validated and tested, or the reasons why not.

Must never: take rules that somebody but root and the milter's account could have written, or whose own tests fail.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from milterapp.mail.limits import DEFAULT, Limits
from milterapp.milter.apply import CAN
from milterapp.milter.site_files import contents
from milterapp.milter.site_scripts import Examine, examined, read_script
from milterapp.rules.actions_edits import TransportBy
from milterapp.rules.beside import run_tests
from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from milterapp.rules.problem import Place, Problem

__all__ = ["read_site_rules"]

_MOST = 4 * 1024 * 1024  # bytes of the rules, and of each list


def read_site_rules(
    path: str,
    *,
    delimiter: str = "+",
    limits: Limits = DEFAULT,
    authserv_ids: Sequence[str] = (),
    transports: Collection[str] = (),
    examine: Examine | None = None,
) -> tuple[Policy | None, tuple[Problem, ...]]:
    """Return the policy, None where a problem that is no warning was found, and every problem.

    delimiter, limits: as the milter decides with, for the tests beside the rules. authserv_ids: whose
    Authentication-Results rules may ask for; transports: which ones rules may name. examine: looks at scripts, None for
    nobody; raises OSError where it cannot now.
    """
    folder = os.path.dirname(path)

    def read_list(name: str) -> bytes:
        return _read(os.path.join(folder, name))

    scripts: dict[str, bytes] = {}

    def read(script: str) -> bytes:
        scripts[script] = read_script(folder, script)
        return scripts[script]

    try:
        source = _read(path)
    except OSError as error:
        return None, (Problem(Place(path), f"cannot be used: {error.strerror or error}"),)
    policy, problems = load(
        source,
        path,
        site=True,
        read_list=read_list,
        read_script=read,
        tests=False,
        can=CAN,
        authserv_ids=tuple(authserv_ids),
    )
    if policy is None:
        return None, tuple(problems)
    unknown = tuple(_unknown_transports(policy, transports))
    if unknown:
        return None, (*problems, *unknown)
    if examine is not None and (wrong := examined(folder, scripts, examine)):
        return None, (*problems, *wrong)
    if scripts:
        policy = replace(policy, scripts=scripts)
        _ = policy.index  # made now, so that workers which fork from here share it
    failed = run_tests(policy, delimiter=delimiter, limits=limits)
    problems = (*problems, *failed)
    return (None if any(not one.warning for one in failed) else policy), problems


def _unknown_transports(policy: Policy, transports: Collection[str]) -> Iterator[Problem]:
    listed = ", ".join(transports) or "none"
    for rule in policy.rules:
        for action in rule.actions:
            if isinstance(action, TransportBy) and action.to not in transports:
                yield Problem(
                    rule.place, f"the transport {action.to!r} of {rule.name!r} is not in milter.transports: {listed}"
                )


def _read(path: str) -> bytes:
    """Return what a file holds. Raises OSError, also for one that others could have written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return contents(descriptor, path, _MOST)
    finally:
        os.close(descriptor)
