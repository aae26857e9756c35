"""All rules that one person's mail meets at delivery: the site's before, the person's own, the site's after them.

Must never: let one file's rules go unasked because another cannot be used and nobody said so.

They are one policy, in this order, so a verdict or a delivery ends them wherever it stands; the site's are shown and
counted as `site: NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.rulefile import Loaded, RuleFile, ScriptPlace, Unavailable
from milterapp.rules.policy import Policy, Rule

__all__ = ["Ruleset"]


class Ruleset:
    """The rules of one user, each file loaded again only when it changed. uid: the user's."""

    def __init__(self, settings: AgentSettings, uid: int) -> None:
        given = (settings.authserv_ids, settings.programs)
        flags_kept = settings.keep == "maildir"
        self._own = RuleFile(settings.personal_rules, uid, *given, flags_kept=flags_kept)
        self._around = tuple(
            RuleFile(path, 0, *given, flags_kept=flags_kept, scripts=False) if path else None
            for path in (settings.rules_before, settings.rules_after)
        )
        self._good: list[Policy | None] = [None, None]  # the last of each of the site's that could be used
        self._made_of: tuple[object, ...] = ()
        self._joined: Policy | None = None

    def load(self, home: int | None) -> Loaded:
        """Return the rules as they stand now. home: a descriptor, None for an account without. Raises Unavailable.

        `site` of what is returned holds the site's rules alone, for where the person's cannot be used, and its lists:
        of two of one name, that of the rules before.
        """
        if home is None:
            return Loaded(None)
        own = self._own.load(home)
        if self._around == (None, None):
            return own
        before, after = (self._of_site(at, home) for at in (0, 1))
        return replace(own, policy=None if own.broken else self._join(before, own.policy, after),
                       site=_joined(before, None, after))  # fmt: skip

    def script_place(self, home: int, script: str) -> AbstractContextManager[ScriptPlace]:
        """Give the place of a script that the person's rules name. Raises UnsafeError or OSError."""
        return self._own.script_place(home, script)

    def _of_site(self, at: int, home: int) -> Policy | None:
        """Return one of the site's policies; the last good one where it is broken now."""
        file = self._around[at]
        if file is None:
            return None
        loaded = file.load(home)
        if loaded.policy is not None:
            self._good[at] = loaded.policy
        found = self._good[at]
        if found is None:
            why = next((str(one) for one in loaded.problems if not one.warning), "there is no such file")
            raise Unavailable(f"the site's rules for delivery cannot be used: {file.shown}: {why}")
        return found

    def _join(self, *parts: Policy | None) -> Policy:
        """Return the policies as one, the same object while they are the same."""
        if self._joined is None or any(one is not other for one, other in zip(parts, self._made_of, strict=True)):
            self._made_of, self._joined = parts, _joined(*parts)
        return self._joined


def _joined(before: Policy | None, own: Policy | None, after: Policy | None) -> Policy:
    rules = (*_named(before), *(() if own is None else own.rules), *_named(after))
    files = [one.file for one in (before, own, after) if one is not None]
    lists = {name: one for part in (after, before) if part is not None for name, one in part.lists.items()}
    return Policy(file=", ".join(files), site=False, rules=rules, tests=() if own is None else own.tests, lists=lists)


def _named(policy: Policy | None) -> Iterator[Rule]:
    for rule in () if policy is None else policy.rules:
        yield replace(rule, name=f"site: {rule.name}")
