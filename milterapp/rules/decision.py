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
from milterapp.rules.deliveries import Delivery
from milterapp.rules.problem import Place, Problem

__all__ = [
    "AddRecipient",
    "Decision",
    "EnvelopeEdit",
    "Explanation",
    "Filter",
    "RecipientDecision",
    "RemoveRecipient",
    "Reply",
    "ScriptRun",
    "Scripted",
    "SetSender",
    "Transport",
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
    """SMTP reply code, enhanced status (RFC 3463) and text; where that has several lines, LF stands between them."""

    code: int
    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.line}"

    @property
    def line(self) -> str:
        """The text as one line, for where no more than one can go."""
        return self.text.replace("\n", " ")


@dataclass(frozen=True, slots=True)
class Filter:
    """Give the message, edited, to a program of the site's and go on with what it writes; in the order of the rules.

    on_error: what then, where the program fails: defer, or keep it as it was.
    """

    program: str
    arguments: tuple[str, ...] = ()
    on_error: str = "defer"

    def to_json(self) -> dict[str, Any]:
        """Return the filter as `--json` prints it, among the edits."""
        return {"action": "filter", "program": self.program, "arguments": list(self.arguments)}


@dataclass(frozen=True, slots=True)
class SetSender:
    """Give the message another envelope sender, without angle brackets, `<>` for the null sender."""

    sender: str

    def to_json(self) -> dict[str, Any]:
        """Return the change as `--json` prints it, among the edits."""
        return {"action": "set_sender", "sender": self.sender}


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """Add an envelope recipient."""

    address: str

    def to_json(self) -> dict[str, Any]:
        """Return the change as `--json` prints it, among the edits."""
        return {"action": "add_recipient", "address": self.address}


@dataclass(frozen=True, slots=True)
class RemoveRecipient:
    """Take an address off the envelope recipients, where it is one."""

    address: str

    def to_json(self) -> dict[str, Any]:
        """Return the change as `--json` prints it, among the edits."""
        return {"action": "remove_recipient", "address": self.address}


@dataclass(frozen=True, slots=True)
class Transport:
    """Have Postfix deliver by `transport:nexthop`, as FILTER in header_checks(5)."""

    to: str

    def to_json(self) -> dict[str, Any]:
        """Return the change as `--json` prints it, among the edits."""
        return {"action": "transport", "to": self.to}


EnvelopeEdit = SetSender | AddRecipient | RemoveRecipient | Transport


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """What a script changes beside mail: its memory, and the files of its output folder.

    script: as the rule names it. state: the sender's next state, "" where it stays. stores: keys with the beginning of
    what is stored, "" where it is forgotten; outputs: the names of files, both to be shown. plan: all of it, as the
    edge that ran the script wrote it.
    """

    script: str
    sender: str = ""
    state: str = ""
    stores: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    plan: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the run as `--json` prints it."""
        return {
            "script": self.script,
            "state": self.state or None,
            "stores": dict(self.stores),
            "outputs": list(self.outputs),
        }


@dataclass(frozen=True, slots=True)
class Scripted:
    """What a script said of a message. routed: False where it has nothing to say, and its rule does not match.

    verdict, reply: NONE and None where it gives none. run: None where it changes nothing beside mail. message: the one
    that edits and deliveries are of, as Latin-1, where it is another than came.
    """

    routed: bool = True
    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    edits: tuple[Edit, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    run: ScriptRun | None = None
    message: str = field(default="", repr=False)


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
    could_not_tell: why a limit or a failed lookup left the decision open, "" where it did not; on_error: what the rule
    in question says of that (accept, keep or defer), "" where it leaves it to the site.
    filters: programs that the edited message goes through, in order. envelope: changes of it, in order (site).
    score, tags, log: what the actions of these names left. scripts: what scripts change beside mail. message: the one
    that edits and deliveries are of, as Latin-1, where a script answers about another than came.
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
    on_error: str = ""
    matched: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    envelope: tuple[EnvelopeEdit, ...] = ()
    score: float = 0.0
    tags: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    scripts: tuple[ScriptRun, ...] = ()
    message: str = field(default="", repr=False)

    @property
    def changes(self) -> tuple[Edit | Filter | EnvelopeEdit, ...]:
        """Everything that becomes of the message and its envelope, as `edits` of `--json` has it."""
        return (*self.edits, *self.filters, *self.envelope)

    def with_recipients(self, recipients: tuple[RecipientDecision, ...]) -> Decision:
        """Return this decision with what became of each recipient."""
        return replace(self, recipients=recipients)

    def to_json(self) -> dict[str, Any]:
        """Return the one object that `milterapp test --json` prints (milterapp(1))."""
        return (
            {
                "verdict": self.verdict.value,
                "reply": None if self.reply is None else reply_json(self.reply),
                "stage": None if self.stage is None else self.stage.word,
                "recipients": [one.to_json() for one in self.recipients],
                "rules": [one.to_json() for one in self.rules],
                "edits": [one.to_json() for one in self.changes],
                "deliveries": [one.to_json() for one in self.deliveries],
                "problems": [str(one) for one in self.problems],
                "could_not_tell": self.could_not_tell or None,
            }
            | {name: list(found) for name, found in (("tags", self.tags), ("log", self.log)) if found}
            | ({"score": self.score} if self.score else {})
            | ({"scripts": [one.to_json() for one in self.scripts]} if self.scripts else {})
        )
