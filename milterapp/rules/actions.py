"""Actions: what a rule may do, one small class each. Fields are the arguments, the docstring the manual's paragraph.

Must never: do anything; an action adds a verdict, an edit or a delivery to the outcome, and the edges carry it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from milterapp.mail import edits
from milterapp.mail.values import Mailbox
from milterapp.rules.decision import Delivery, File, Forward, Keep, Reply, SendReply, Verdict
from milterapp.rules.placeholders import Template, Value, one_line

__all__ = ["ACTIONS", "Action", "Folder", "Outcome", "Target"]

Fill = Callable[[Value], str]


@dataclass(slots=True)
class Outcome:
    """What the rules have come to so far."""

    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    hold_reason: str = ""
    ended: bool = False
    edits: list[edits.Edit] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def deliver(self, delivery: Delivery, *, copy: bool) -> None:
        """Add a delivery, once; one that is no copy ends the rules."""
        if delivery not in self.deliveries:
            self.deliveries.append(delivery)
        self.ended = self.ended or not copy


@dataclass(frozen=True, slots=True)
class Action:
    """What every action has. word: as a rule writes it; main: the argument that may stand alone, "" for none.

    site, personal: where it may stand. for_all: it concerns the whole message, not one recipient of it.
    """

    word: ClassVar[str]
    main: ClassVar[str] = ""
    site: ClassVar[bool] = True
    personal: ClassVar[bool] = True
    verdict: ClassVar[Verdict | None] = None
    for_all: ClassVar[bool] = False

    def ends(self) -> bool:
        """Return whether the rules end with this one."""
        return self.verdict is not None

    def templates(self) -> tuple[Template, ...]:
        """Return the texts that values of the message may stand in."""
        return ()

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:
        """Add to the outcome. rule: the rule's name; fill: gives the values, every one of which is there."""
        raise NotImplementedError


class Accept(Action):
    """Let the message pass: no later rule is asked. In a rule on `recipient` this is for that recipient only."""

    word = "accept"
    personal = False
    verdict = Verdict.ACCEPT

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
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

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Refuse with the reply."""
        assert self.verdict is not None  # noqa: S101 - Reject and Defer have one
        default = REPLIES[self.verdict]
        text = one_line(self.text.fill(fill, ascii_line))[:480] if self.text else ""
        outcome.verdict, outcome.ended = self.verdict, True
        outcome.reply = Reply(self.code or default.code, self.status or default.status, text or default.text)


def ascii_line(text: str) -> str:
    """Return any text as SMTP replies can hold it: one line of printable ASCII, bounded."""
    return one_line(text)[:200].encode("ascii", "replace").decode("ascii")


class Reject(Refusal):
    """Refuse the message for good: `reject: 5.7.1 No advertisements here`. The text may begin with a status
    (`5.7.1`) or with code and status (`550 5.7.1`); `reject` alone says 550 5.7.1. In a personal rule Postfix tells
    the sender, with the text. It is one line of ASCII.
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

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
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

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:
        """Hold."""
        outcome.verdict, outcome.ended = Verdict.HOLD, True
        outcome.hold_reason = ascii_line(self.reason.fill(fill, ascii_line) if self.reason else f"rule {rule}")


class KeepIt(Action):
    """Deliver as Postfix would without rules, and ask no later rule."""

    word = "keep"
    site = False
    verdict = Verdict.NONE

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Keep."""
        outcome.deliver(Keep(), copy=False)


@dataclass(frozen=True, slots=True)
class SetHeader(Action):
    """Give each named header field its value, in place of all fields of that name there are:
    `set_header: {X-Checked: yes}`.
    """

    word = "set_header"
    main = "headers"
    for_all = True

    headers: dict[str, Template] = field(hash=False)

    def templates(self) -> tuple[Template, ...]:
        """Return the values."""
        return tuple(self.headers.values())

    def edit(self, name: str, value: str) -> edits.Edit:
        """Return the edit for one field."""
        return edits.SetHeader(name, value)

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Add one edit a field."""
        outcome.edits += [self.edit(name, one_line(text.fill(fill, one_line))) for name, text in self.headers.items()]


class AddHeader(SetHeader):
    """Add a header field for each name, beside those there are: `add_header: {X-Spam-Flag: yes}`."""

    word = "add_header"

    def edit(self, name: str, value: str) -> edits.Edit:
        """Return the edit for one field."""
        return edits.AddHeader(name, value)


@dataclass(frozen=True, slots=True)
class RemoveHeader(Action):
    """Remove every header field of that name, or of each of several."""

    word = "remove_header"
    main = "names"
    for_all = True

    names: tuple[str, ...]

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Add one edit a name."""
        outcome.edits += [edits.RemoveHeader(name) for name in self.names]


@dataclass(frozen=True, slots=True)
class PrefixSubject(Action):
    """Put a text before the subject, once: a subject that has it already is left alone. Quote a prefix in brackets:
    `prefix_subject: '[EXTERNAL]'`.
    """

    word = "prefix_subject"
    main = "prefix"
    for_all = True

    prefix: Template

    def templates(self) -> tuple[Template, ...]:
        """Return the prefix."""
        return (self.prefix,)

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Add the edit."""
        outcome.edits.append(edits.PrefixSubject(one_line(self.prefix.fill(fill, one_line))))


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as a rule writes it: a text for each level, from the top."""

    levels: tuple[Template, ...]

    def fill(self, fill: Fill) -> tuple[str, ...]:
        """Return the levels, each one harmless component whatever the values are."""
        return tuple(
            level.literal if level.literal is not None else Mailbox.component(level.fill(fill, one_line))
            for level in self.levels
        )


@dataclass(frozen=True, slots=True)
class FileInto(Action):
    """File the message into a folder of the Maildir: `file: Lists/Python`, made where it is missing. A value in it is
    always part of one level's name. With `copy: true` the rules go on.
    """

    word = "file"
    main = "folder"
    site = False

    folder: Folder
    copy: bool = False

    def ends(self) -> bool:
        """Return whether the rules end here."""
        return not self.copy

    def templates(self) -> tuple[Template, ...]:
        """Return the levels."""
        return self.folder.levels

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """File."""
        outcome.deliver(File(self.folder.fill(fill), self.copy), copy=self.copy)


@dataclass(frozen=True, slots=True)
class Target:
    """An address to send to: text of the rule's own, or a value that must be in one of the rule's own lists."""

    address: Template


@dataclass(frozen=True, slots=True)
class ForwardTo(Action):
    """Send the message on to an address, or to each of several: `forward: me@example.org`. A value from the message
    may stand there only whole, and only where a list that the rule itself asks with `in` holds that very address.
    With `copy: true` the rules go on.
    """

    word = "forward"
    main = "to"
    site = False

    to: tuple[Target, ...]
    copy: bool = False

    def ends(self) -> bool:
        """Return whether the rules end here."""
        return not self.copy

    def templates(self) -> tuple[Template, ...]:
        """Return the addresses."""
        return tuple(one.address for one in self.to)

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """Forward."""
        for one in self.to:
            outcome.deliver(Forward(one.address.fill(fill, str), self.copy), copy=self.copy)


@dataclass(frozen=True, slots=True)
class ReplyWith(Action):
    """Answer the sender with a text; the rules go on and the message is kept, unless they say otherwise. Once for
    each correspondent and interval, and never to a list, a bounce, another automatic answer or a null sender: no rule
    can switch that off. Without `subject` it is `Re:` and the subject of the message. A value is one line of the text.
    """

    word = "reply"
    main = "text"
    site = False

    text: Template
    subject: Template | None = None

    def ends(self) -> bool:
        """Return False: an answer never ends the rules."""
        return False

    def templates(self) -> tuple[Template, ...]:
        """Return text and subject."""
        return (self.text, self.subject) if self.subject else (self.text,)

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:
        """Reply."""
        subject = one_line(self.subject.fill(fill, one_line)) if self.subject else ""
        outcome.deliver(SendReply(self.text.fill(fill, one_line), subject, rule), copy=True)


class Stop(Action):
    """Ask no later rule. Without a delivery before it the message goes on its way."""

    word = "stop"

    def ends(self) -> bool:
        """Return True."""
        return True

    def apply(self, outcome: Outcome, rule: str, fill: Fill) -> None:  # noqa: ARG002
        """End the rules."""
        outcome.ended = True


ACTIONS: dict[str, type[Action]] = {
    one.word: one
    for one in (
        Accept,
        Reject,
        Defer,
        Discard,
        Hold,
        KeepIt,
        AddHeader,
        SetHeader,
        RemoveHeader,
        PrefixSubject,
        FileInto,
        ForwardTo,
        ReplyWith,
        Stop,
    )
}
