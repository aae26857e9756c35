"""What deciding gives: verdict, edits, deliveries and the trace that explains them. Values only.

Must never: do anything; the milter, the agent and `milterapp test` each carry a Decision out in their own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from milterapp.mail.edits import Edit
from milterapp.mail.envelope import Stage
from milterapp.rules.problem import Place, Problem

__all__ = [
    "Decision",
    "Delivery",
    "Explanation",
    "File",
    "Forward",
    "Keep",
    "RecipientDecision",
    "Reply",
    "SendReply",
    "Verdict",
]


class Verdict(Enum):
    """The answer to Postfix; `none` lets the message go on its way (personal: by its deliveries)."""

    NONE = "none"
    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Reply:
    """SMTP reply code, enhanced status (RFC 3463) and one line of text."""

    code: int
    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.text}"


@dataclass(frozen=True, slots=True)
class Keep:
    """Deliver as Postfix always did; `implicit` where no rule asked for it."""

    implicit: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "keep", "implicit": self.implicit}


@dataclass(frozen=True, slots=True)
class File:
    """File into a folder: its levels from the top, each one harmless path component (mail.values.Mailbox)."""

    folder: tuple[str, ...]
    copy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "file", "folder": "/".join(self.folder), "copy": self.copy}


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the message on to one address."""

    to: str
    copy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "forward", "to": self.to, "copy": self.copy}


@dataclass(frozen=True, slots=True)
class SendReply:
    """Answer the envelope sender with a text; never ends the rules, never keeps the message from being kept.

    refused: why the guards of invariant 2 would not let it out, "" where they would.
    """

    text: str
    subject: str = ""
    rule: str = ""
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the delivery as `--json` prints it."""
        return {"action": "reply", "text": self.text, "subject": self.subject, "refused": self.refused or None}


Delivery = Keep | File | Forward | SendReply


@dataclass(frozen=True, slots=True)
class Explanation:
    """One rule's line of the trace: matched (None: not yet known), why, and where it stands in the file."""

    name: str
    matched: bool | None
    reason: str
    place: Place
    observe: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the line as `--json` prints it."""
        return {
            "name": self.name,
            "matched": self.matched,
            "reason": self.reason,
            "place": str(self.place),
            "observe": self.observe,
        }


@dataclass(frozen=True, slots=True)
class RecipientDecision:
    """What became of one envelope recipient (site rules)."""

    address: str
    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    stage: Stage | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the recipient as `--json` prints it."""
        return {
            "address": self.address,
            "verdict": self.verdict.value,
            "reply": None if self.reply is None else reply_json(self.reply),
            "stage": None if self.stage is None else self.stage.word,
        }


def reply_json(reply: Reply) -> dict[str, Any]:
    """Return an SMTP reply as `--json` prints it."""
    return {"code": reply.code, "status": reply.status, "text": reply.text}


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything that follows from the rules for one message (personal: for one recipient of it).

    settled: nothing a later stage brings can change the verdict; while False, a site decision is a "so far".
    hold_reason: the text for Postfix's quarantine, with Verdict.HOLD.
    could_not_tell: why a limit or a failed lookup left the decision open, "" where it did not; `on_error` answers it.
    matched: names of the rules that hold, those that only observe included, in their order.
    rules: a line of the trace for each rule, made when it is first read.
    """

    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    stage: Stage | None = None
    settled: bool = True
    rules: Sequence[Explanation] = ()
    edits: tuple[Edit, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    recipients: tuple[RecipientDecision, ...] = ()
    problems: tuple[Problem, ...] = field(default=())
    hold_reason: str = ""
    could_not_tell: str = ""
    matched: tuple[str, ...] = ()

    def with_recipients(self, recipients: tuple[RecipientDecision, ...]) -> Decision:
        """Return this decision with what became of each recipient."""
        return replace(self, recipients=recipients)

    def to_json(self) -> dict[str, Any]:
        """Return the one object that `milterapp test --json` prints (milterapp(1))."""
        return {
            "verdict": self.verdict.value,
            "reply": None if self.reply is None else reply_json(self.reply),
            "stage": None if self.stage is None else self.stage.word,
            "recipients": [one.to_json() for one in self.recipients],
            "rules": [one.to_json() for one in self.rules],
            "edits": [one.to_json() for one in self.edits],
            "deliveries": [one.to_json() for one in self.deliveries],
            "problems": [str(one) for one in self.problems],
            "could_not_tell": self.could_not_tell or None,
        }
