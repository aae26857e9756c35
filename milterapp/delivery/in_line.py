"""What a site's script says of a message in-line: from the bytes of its process to what rules know, or its failure.

Must never: believe a script process, or let anything through that is to be done once.
"""

from __future__ import annotations

import re

from milterapp.delivery.said import said
from milterapp.rules.decision import Scripted
from milterapp.rules.truth import Failed
from milterapp.script.actions import IN_LINE, NO_PLACE
from milterapp.script.memory import Remembered
from milterapp.script.plan import DEFAULT, Failure, Plan, PlanError, PlanLimits, decode

__all__ = ["failed", "understood"]

_PLACE = re.compile(r'^ *File "([^"\n]{1,300})", line (\d{1,9})', re.MULTILINE)
_SHOWN = 300  # characters of a failure in the log of a message


def understood(answer: bytes, script: str, limits: PlanLimits = DEFAULT) -> Scripted | Failure:
    """Return what a script process answered for a script of that name in the rules; a plan that is none is a failure
    of the script.
    """
    try:
        found = decode(answer, limits)
        return found if isinstance(found, Failure) else _said(found, script)
    except PlanError as error:
        return Failure("Plan", str(error))


def _said(plan: Plan, script: str) -> Scripted:
    if plan.state or plan.about or not plan.routed:
        raise PlanError("a plan of routes, which a site script does not have")
    for one in plan.actions:
        if not isinstance(one, IN_LINE):
            raise PlanError(f"`{one.word}` {NO_PLACE}")
    return said(plan, script, "", Remembered())


def failed(script: str, failure: Failure) -> Failed:
    """Return a failure as the answer to a rule, in a line: the last place in the script, and why."""
    places = _PLACE.findall(failure.trace)
    where = ":".join(places[-1]) if places else script
    said_so = failure.text if failure.kind == "Problem" else f"{where}: {failure.kind}: {failure.text}"
    return Failed(" ".join(said_so.split())[:_SHOWN])
