"""Actions that deliver, for one recipient: folders, forwards, answers, programs.

Must never: deliver anything; the agent carries deliveries out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NewType

from milterapp.mail.values import Mailbox, Program
from milterapp.rules.action import Action, Fill, Given, Outcome
from milterapp.rules.conditions_marks import ProgramName
from milterapp.rules.decision import Filter, Verdict
from milterapp.rules.deliveries import File, Forward, Pipe, Send, SendReply, Vacation
from milterapp.rules.placeholders import Template, Value, one_line
from milterapp.rules.targets import Target

__all__ = [
    "Address", "FileInto", "FilterThrough", "Flags", "Folder", "ForwardTo", "PipeTo", "ReplyWith", "RunScript",
    "ScriptName", "VacationReply",
]  # fmt: skip

Address = NewType("Address", str)
ScriptName = NewType("ScriptName", str)
_MOST_BYTES = 48 * 1024  # bytes of a program's, each with its end; what starts it is given 64 KiB in all


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
    always part of one level's name. With `create: false` the folder is not made: where it is missing, the message is
    kept. With `copy: true` the rules go on.
    """

    word = "file"
    main = "folder"
    site = False

    folder: Folder
    copy: bool = False
    create: bool = True

    def ends(self) -> bool:
        """Return whether the rules end here."""
        return not self.copy

    def templates(self) -> tuple[Template, ...]:
        """Return the levels."""
        return self.folder.levels

    def apply(self, outcome: Outcome, given: Given) -> None:
        """File."""
        folder = self.folder.fill(given.fill)
        outcome.deliver(File(folder, self.copy, outcome.flags, self.create), copy=self.copy)


@dataclass(frozen=True, slots=True)
class ForwardTo(Action):
    """Send the message on to an address, or to each of several: `forward: me@example.org`. A value from the message
    may stand there only whole, and only where a list that the rule itself asks with `in` holds that very address; it
    is sent to as the list writes it. With `copy: true` the rules go on.
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

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Forward."""
        for one in self.to:
            outcome.deliver(Forward(one.address.fill(given.fill, str), self.copy), copy=self.copy)


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

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Reply."""
        subject = one_line(self.subject.fill(given.fill, one_line)) if self.subject else ""
        outcome.deliver(SendReply(self.text.fill(given.fill, one_line), subject, given.rule), copy=True)


@dataclass(frozen=True, slots=True)
class Flags(Action):
    """Mark what the rule's `file` files with IMAP's words: `flag: flagged`, any of `seen`, `flagged`, `answered`. It
    stands in a rule with `file`, or, where the site keeps mail in the Maildir, with `keep`: nothing else can carry it.
    """

    word = "flag"
    main = "words"
    site = False

    words: tuple[Literal["seen", "flagged", "answered"], ...]

    def apply(self, outcome: Outcome, given: Given) -> None:  # noqa: ARG002
        """Give the flags to what this rule files; it is carried out before the rule's deliveries."""
        outcome.flags = tuple(sorted({*outcome.flags, *self.words}))


@dataclass(frozen=True, slots=True)
class VacationReply(Action):
    """Tell the sender that you are away (RFC 5230): a text, at most once in `days` (7) for each correspondent; the
    rules go on, and the message is kept unless they say otherwise. Only where the message names you in To, Cc or Bcc;
    `addresses` are other ones of yours, at most 20. `from` is the sender it names, an address that the message came
    to you by, with or without its extension (another is ignored); `subject` the answer's, else `Auto:` and the
    subject of the message. Texts with the same `handle` count as one; without it each text counts for itself. Of
    several for one message the first answers. What holds for `reply` holds here too.
    """

    word = "vacation"
    main = "text"
    site = False

    text: Template
    subject: Template | None = None
    days: int = 7
    from_: Address = Address("")
    addresses: tuple[Address, ...] = ()
    handle: str = ""

    def ends(self) -> bool:
        """Return False: an answer never ends the rules."""
        return False

    def templates(self) -> tuple[Template, ...]:
        """Return text and subject."""
        return (self.text, self.subject) if self.subject else (self.text,)

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Answer. The handle is over the arguments as the rule has them (RFC 5230 section 4.2)."""
        said = "\0".join("".join(map(str, one.parts)) for one in self.templates())
        handle = self.handle or hashlib.sha256(f"{said}\0{self.from_}".encode()).hexdigest()[:32]
        subject = one_line(self.subject.fill(given.fill, one_line)) if self.subject else ""
        text = self.text.fill(given.fill, one_line)
        outcome.deliver(Vacation(text, subject, self.days, self.from_, self.addresses, handle, given.rule), copy=True)


@dataclass(frozen=True, slots=True)
class PipeTo(Action):
    """Give the message to a program that the site allows, by its name there: `pipe: spool`, or
    `pipe: {program: spool, arguments: ['${from.domain}']}`. No shell is involved; a value is one argument or a part of
    one, and never makes it an option. An argument is cut at 4096 bytes, and the longest with values in them further
    where all together have more than 48 KiB. Where the program fails, the message waits. With `copy: true` the rules go
    on.
    """

    word = "pipe"
    main = "program"
    site = False

    program: ProgramName
    arguments: tuple[Template, ...] = ()
    copy: bool = False

    def ends(self) -> bool:
        """Return whether the rules end here."""
        return not self.copy

    def templates(self) -> tuple[Template, ...]:
        """Return the arguments."""
        return self.arguments

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Pipe."""
        outcome.deliver(Pipe(self.program, _arguments(self.arguments, given.fill), self.copy), copy=self.copy)


@dataclass(frozen=True, slots=True)
class FilterThrough(Action):
    """Give the message to a program that the site allows, and go on with what it writes: `filter: spamassassin`; as
    `pipe` otherwise. What the rules ask is asked of the message as it came, and edits are made before. Where the
    program fails, or writes no message, the message waits; with `on_error: keep` it goes on as it was.
    """

    word = "filter"
    main = "program"
    site = False

    program: ProgramName
    arguments: tuple[Template, ...] = ()
    on_error: Literal["defer", "keep"] = "defer"

    def templates(self) -> tuple[Template, ...]:
        """Return the arguments."""
        return self.arguments

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Filter."""
        outcome.filters.append(Filter(self.program, _arguments(self.arguments, given.fill), self.on_error))


def _arguments(templates: tuple[Template, ...], fill: Fill) -> tuple[str, ...]:
    """Return the arguments: a value is one line, and where one begins an argument it makes no option of it.

    Where they are too long together, the longest of those with values are cut: what a message holds must not keep it
    from being delivered.
    """
    made = [
        Program.argument(one.fill(fill, one_line), at_start=bool(one.parts) and isinstance(one.parts[0], Value))
        for one in templates
    ]
    sizes = [len(one.encode()) + 1 for one in made]
    most = max(sizes, default=0)
    while sum(sizes) > _MOST_BYTES and most > 1:
        most -= most // 16 + 1
        for at, one in enumerate(templates):
            if one.values and sizes[at] > most:
                made[at] = made[at].encode()[:most].decode("utf-8", "ignore")
                sizes[at] = len(made[at].encode()) + 1
    return tuple(made)


@dataclass(frozen=True, slots=True)
class RunScript(Action):
    """Run a script of your own, a Python file beside the rules or in a folder below theirs: `script: blog.py` or
    `script: blog/blog.py`. What it asks for is done as if rules had asked for it: a delivery without `copy` or a
    verdict ends the rules, everything else adds up and goes on. Where no route of the script answers at the address,
    the rule does not match. It is run where all that the rule asks for holds, and once for a message, however many
    rules name it; no other delivery and no verdict can stand beside it. The tests beside the rules run no scripts.
    A site's script is one function `main`, may reject, defer, discard and edit the header, and where it fails it could
    not be told.
    """

    word = "script"
    main = "file"
    for_all = True

    file: ScriptName

    def ends(self) -> bool:
        """Return whether the rules end here: they may."""
        return True

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Take over what it said."""
        said = given.script(self.file)
        outcome.edits += said.edits
        outcome.message = said.message or outcome.message
        for one in said.deliveries:
            copy = isinstance(one, SendReply | Send) or getattr(one, "copy", False)
            outcome.deliver(one, copy=copy)
        if said.verdict is not Verdict.NONE:
            outcome.verdict, outcome.reply, outcome.ended = said.verdict, said.reply, True
        if said.run is not None and said.run not in outcome.scripts:
            outcome.scripts.append(said.run)
