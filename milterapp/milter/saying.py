"""What a mail server can be told of one step, in the words of the milter protocol.

Must never: decide, or know how it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from milterapp.milter.apply import Call
from milterapp.rules.decision import Reply

__all__ = ["CONTINUE", "Said", "Say"]


class Say(Enum):
    """What a mail server can be told. ACCEPT and DISCARD are for the whole message."""

    CONTINUE = "continue"
    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer to one step; reply with REJECT and DEFER, calls at the end of a message only."""

    say: Say
    reply: Reply | None = None
    calls: tuple[Call, ...] = ()


CONTINUE = Said(Say.CONTINUE)
