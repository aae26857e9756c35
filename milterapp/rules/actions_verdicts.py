"""Actions that answer, end or mark: verdicts, `stop`, `score`, `tag` and `log`.

Must never: do anything; the edges give the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from milterapp.rules.action import Action, Given, Outcome
from milterapp.rules.conditions_marks import TagName
from milterapp.rules.decision import Reply, Verdict
from milterapp.rules.deliveries import Keep
from milterapp.rules.placeholders import Template, one_line

__all__ = [
    "REPLIES", "Accept", "AddScore", "AddTag", "Defer", "Discard", "Hold", "KeepIt", "LogLine", "Points", "Refusal",
    "Reject", "Stop",
]  # fmt: skip

Points = NewType("Points", float)


class Accept(Action):
    """Let the message pass: no later rule is asked. In a rule on `recipient` this is for that recipient only."""

    word = "accept"
    personal = False
    verdict = Verdict.ACCEPT

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Accept."""
        outcome.verdict, outcome.ended = Verdict.ACCEPT, True


REPLIES = {
    Verdict.REJECT: Reply(550, "5.7.1", "Message refused"),
    Verdict.DEFER: Reply(451, "4.7.1", "Please try again later"),
}


@dataclass(frozen=True, slots=True)
class Refusal(Action):
    """A verdict with a reply. text may begin with code and status, which the loader has put into theirs."""

    main = "text"

    text: Template | None = None
    code: int | None = None
    status: str | None = None

    def templates(self) -> tuple[Template, ...]:
        """Return the text."""
        return (self.text,) if self.text else ()

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Refuse with the reply."""
        assert self.verdict is not None  # noqa: S101 - Reject and Defer have one
        default = REPLIES[self.verdict]
        lines = self.text.fill(given.fill, ascii_line).split("\n") if self.text else []  # a value never has two
        text = "\n".join(one_line(line)[:480] for line in lines)
        outcome.verdict, outcome.ended = self.verdict, True
        outcome.reply = Reply(self.code or default.code, self.status or default.status, text or default.text)


def ascii_line(text: str) -> str:
    """Return any text as SMTP replies can hold it: one line of printable ASCII, bounded."""
    return one_line(text)[:200].encode("ascii", "replace").decode("ascii")


class Reject(Refusal):
    """Refuse the message for good: `reject: 5.7.1 No advertisements here`. The text may begin with a status
    (`5.7.1`) or with code and status (`550 5.7.1`); `reject` alone says 550 5.7.1. It is ASCII; of several lines (a
    block: `reject: |`) the client hears each. In a personal rule Postfix tells the sender, with the text as one line
    (RFC 5429); where the sender is likely forged, or the site says so (`delivery.reject`), the message is kept
    instead, with the edits of all rules.
    """

    word = "reject"
    verdict = Verdict.REJECT


class Defer(Refusal):
    """Refuse the message for now, so that the sender's server tries again: as `reject`, with 451 4.7.1."""

    word = "defer"
    verdict = Verdict.DEFER


class Discard(Action):
    """Take the message and throw it away; nobody is told. In a site rule on `recipient` it is thrown away for that
    recipient only. Copies that earlier actions made stay.
    """

    word = "discard"
    verdict = Verdict.DISCARD

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Discard."""
        outcome.verdict, outcome.ended = Verdict.DISCARD, True


@dataclass(frozen=True, slots=True)
class Hold(Action):
    """Put the message into Postfix's hold queue, where the postmaster looks at it (postsuper -H releases it). The
    reason, if one is given, is logged with it.
    """

    word = "hold"
    main = "reason"
    personal = False
    verdict = Verdict.HOLD
    for_all = True

    reason: Template | None = None

    def templates(self) -> tuple[Template, ...]:
        """Return the reason."""
        return (self.reason,) if self.reason else ()

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Hold."""
        outcome.verdict, outcome.ended = Verdict.HOLD, True
        outcome.hold_reason = ascii_line(
            self.reason.fill(given.fill, ascii_line) if self.reason else f"rule {given.rule}"
        )


class KeepIt(Action):
    """Deliver as Postfix would without rules, and ask no later rule."""

    word = "keep"
    site = False
    verdict = Verdict.NONE

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Keep."""
        outcome.deliver(Keep(flags=outcome.flags), copy=False)


class Stop(Action):
    """Ask no later rule. Without a delivery before it the message goes on its way."""

    word = "stop"

    def ends(self) -> bool:
        """Return True."""
        return True

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """End the rules."""
        outcome.ended = True


@dataclass(frozen=True, slots=True)
class AddScore(Action):
    """Add a number to the message's score, which the condition `score` of the rules below asks for: `score: 2.5`, or a
    negative one.
    """

    word = "score"
    main = "points"
    marks = True

    points: Points

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Add the points."""
        outcome.score += self.points


@dataclass(frozen=True, slots=True)
class AddTag(Action):
    """Give the message a tag, or several, which the condition `tag` of the rules below asks for: `tag: suspicious`. A
    tag is a word of letters, digits, dots, hyphens and underscores.
    """

    word = "tag"
    main = "names"
    marks = True

    names: tuple[TagName, ...]

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Add the tags."""
        outcome.tags |= frozenset(self.names)


@dataclass(frozen=True, slots=True)
class LogLine(Action):
    """Put a text into the line that the log has about the message: `log: 'a large list of ${from.address}'`. A value
    is one line of it.
    """

    word = "log"
    main = "text"

    text: Template

    def templates(self) -> tuple[Template, ...]:
        """Return the text."""
        return (self.text,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add the text."""
        outcome.log.append(one_line(self.text.fill(given.fill, one_line))[:500])
