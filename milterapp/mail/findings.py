"""What the in-line rules found, as a field that delivery reads: `X-Milterapp-Found: id=4XyZ; score=2.5; tags=a,b`.

Must never: believe a field that does not name the queue id under which the message is being delivered, or several.

The milter takes every X-Milterapp-* away that a message brings along, and adds this one. Nobody outside can know the
queue id beforehand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from milterapp.mail.message import Mail

__all__ = ["FIELD", "NOTHING", "Findings", "read", "value_of"]

FIELD = "X-Milterapp-Found"
_LONGEST = 900  # characters; RFC 5322 section 2.1.1 allows a line 998
_VALUE = re.compile(r"id=([0-9A-Za-z]{1,64}); score=(-?[0-9]+(?:\.[0-9]+)?); tags=([\w.~%-]*(?:,[\w.~%-]+)*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Findings:
    """What rules with `score` and `tag` came to. tags: in lower case."""

    score: float = 0.0
    tags: tuple[str, ...] = ()


NOTHING = Findings()


def value_of(queue_id: str, score: float, tags: Iterable[str]) -> str:
    """Return the field's value, "" where there is nothing to say or no queue id to say it of.

    Tags that would make the line too long are left out, from the last on.
    """
    given = list(tags)
    score = round(score, 6)
    if not queue_id or not (score or given) or not math.isfinite(score):
        return ""
    number = f"{score:.6f}".rstrip("0").rstrip(".")
    head = f"id={queue_id}; score={number}; tags="
    shown = ""
    for tag in given:
        longer = f"{shown}{',' if shown else ''}{quote(tag, safe='-_.')}"
        if len(head) + len(longer) > _LONGEST:
            break
        shown = longer
    return head + shown


def read(mail: Mail, queue_id: str) -> Findings:
    """Return what the field says where it is the only one and is of this queue id, else nothing. Raises LimitHit."""
    values = mail.raw_values(FIELD)
    found = _VALUE.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None or not queue_id or found[1] != queue_id:
        return NOTHING
    tags = tuple(unquote(tag, errors="replace").lower() for tag in found[3].split(",") if tag)
    return Findings(float(found[2]), tags)
