"""What deciding may look at: envelope, message, clock and delimiter, given as values.

Must never: fetch anything; what is not here is not known yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.message import Mail
from milterapp.rules.truth import Value

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one stage.

    stage: how far the session has come; a personal decision is always at Stage.BODY. recipient: the one that is
    decided for, without angle brackets, "" where the decision is for all. mail: the message from Stage.HEADERS on.
    now: aware time of the first attempt. delimiter: Postfix's recipient_delimiter, which splits off a detail.
    score, tags: what earlier rules came to (personal: the site's, where they are trusted); tags in lower case.
    assumed: for a dry run, by kind of Need (`rate`, `duplicate`, `command`), what is taken for its answer; nobody is
    asked for a kind that is named here.
    """

    stage: Stage
    envelope: Envelope
    recipient: str = ""
    mail: Mail | None = None
    now: datetime | None = None
    delimiter: str = "+"
    score: float = 0.0
    tags: frozenset[str] = frozenset()
    assumed: tuple[tuple[str, Value], ...] = ()

    @property
    def message(self) -> Mail:
        """The message; only what is known from Stage.HEADERS on may ask for it."""
        if self.mail is None:
            raise ValueError("no message is known at this stage")
        return self.mail
