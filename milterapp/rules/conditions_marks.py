"""Conditions on what earlier rules said of the message, and on what only the edge knows: rates, duplicates, programs.

Must never: count, remember or run anything; deciding asks the edge with a Need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NewType

from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import Stage, split_address, split_detail
from milterapp.rules.conditions import Direct
from milterapp.rules.decision import Scripted
from milterapp.rules.facts import Facts
from milterapp.rules.folding import fold
from milterapp.rules.lists import TypedList, network_of
from milterapp.rules.truth import Marks, Need, Truth, Value

__all__ = [
    "MARKS_CONDITIONS", "Asked", "Command", "Duplicate", "Marked", "ProgramName", "Rate", "RateOfRecipient", "Score",
    "ScriptSays", "Tag", "TagName",
]  # fmt: skip

TagName = NewType("TagName", str)
ProgramName = NewType("ProgramName", str)

_HOST = 64  # bits of an IPv6 address that tell hosts apart (RFC 4291 section 2.5.1: the rest is the interface's)


@dataclass(frozen=True, slots=True)
class Marked(Direct):
    """A condition on what the rules above have marked the message with."""

    stage = Stage.CONNECT

    def standing(self, marks: Marks) -> Truth:
        """Return whether it holds where the rule stands."""
        raise NotImplementedError

    def shows(self, marks: Marks) -> str:
        """Return what it looked at, as a trace shows it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Score(Marked):
    """What `score` actions of the rules above add up to: `score: {over: 5}`, `under`, or the number itself. It begins
    with 0; in a personal rule with what the site's rules came to.
    """

    word = "score"

    is_: float | None = None
    over: float | None = None
    under: float | None = None

    def standing(self, marks: Marks) -> Truth:
        """Return whether the score passes."""
        if marks.unknown is not None:
            return marks.unknown
        score = round(marks.score, 6)
        return (
            (self.is_ is None or score == self.is_)
            and (self.over is None or score > self.over)
            and (self.under is None or score < self.under)
        )

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        asked = (("is", self.is_), ("over", self.over), ("under", self.under))
        return f"{self.word} {' and '.join(f'{name} {value:g}' for name, value in asked if value is not None)}"

    def shows(self, marks: Marks) -> str:
        """Return the score."""
        return f"{marks.score:g}"


@dataclass(frozen=True, slots=True)
class Tag(Marked):
    """A tag that a rule above gave the message with the action `tag`: `tag: suspicious`, any of several, or
    `{in: NAME}` for those of a list. In a personal rule also those of the site's rules. Case does not count.
    """

    word = "tag"

    words: tuple[TagName, ...] = ()
    lists: tuple[TypedList, ...] = ()

    def standing(self, marks: Marks) -> Truth:
        """Return whether there is such a tag; one that is there stays."""
        for tag in marks.tags:
            if tag in self.words or any(one.holds(tag, (tag,)) for one in self.lists):
                return True
        return False if marks.unknown is None else marks.unknown

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {'is ' + ' or '.join(self.words) if self.words else 'in a list'}"

    def shows(self, marks: Marks) -> str:
        """Return the tags there are."""
        return ", ".join(sorted(marks.tags)) or "none"


@dataclass(frozen=True, slots=True)
class Asked(Direct):
    """A condition on a fact that the edge is asked for, once everything else in the rule holds."""

    kind: ClassVar[str]
    assumed: ClassVar[Value]

    def need(self, facts: Facts, rule: str) -> Need | None:
        """Return what to ask for; None where there is nothing to ask about, and the condition does not hold."""
        raise NotImplementedError

    def met(self, answer: Value) -> bool:
        """Return whether the answer is what the rule asks."""
        raise NotImplementedError


By = Literal["client", "login", "sender", "sender_domain", "recipient", "recipient_domain"]


@dataclass(frozen=True, slots=True)
class Rate(Asked):
    """More messages than `over` within a time, counted by one of `client`, `login`, `sender`, `sender_domain`,
    `recipient`, `recipient_domain`, or by several together: `rate: {by: login, over: 100, within: 1 hour}`. Each rule
    counts for itself, the messages for which all else in it holds, each of them once. It does not hold for a message
    that has no such thing. Clients with IPv6 are counted by their network of 64 bits, of which one host has every
    address. Counted by recipient it is a condition on one `recipient`.
    """

    word = "rate"
    kind = "rate"
    stage = Stage.MAIL
    assumed = 0

    by: tuple[By, ...]
    over: int
    within: float

    def need(self, facts: Facts, rule: str) -> Need | None:
        """Return what to count by."""
        key = tuple(_counted_by(one, facts) for one in self.by)
        return Need(self.kind, rule, key, self.within) if all(key) else None

    def met(self, answer: Value) -> bool:
        """Return whether there were more."""
        return isinstance(answer, int) and answer > self.over

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} by {' and '.join(self.by)} over {self.over} within {self.within:g} s"


class RateOfRecipient(Rate):
    """A rate that is counted for each recipient."""

    stage = Stage.RCPT
    one_recipient = True


def _counted_by(word: str, facts: Facts) -> str:
    name, _, domain = word.partition("_")
    if name == "client":
        return _client(facts.envelope.client)
    if name == "login":
        return facts.envelope.login
    address = facts.envelope.sender if name == "sender" else facts.recipient
    local, host = split_address(address)
    if domain:
        return ascii_domain(host)
    user, _ = split_detail(fold(local), facts.delimiter)
    return f"{user}@{ascii_domain(host)}" if address else ""


def _client(address: str) -> str:
    """Return an IPv4 address, the network of an IPv6 address, what is neither as it is."""
    try:
        network = network_of(address)
    except ValueError:
        return address
    if network.version == 4:
        return str(network.network_address)
    return str(network.supernet(new_prefix=_HOST))


@dataclass(frozen=True, slots=True)
class Duplicate(Asked):
    """`yes`: a message with the same Message-ID came before, within 7 days or `{within: 2 days}`. A message without
    one is no duplicate. In a site rule it may not lead to `reject` or `discard`: the milter cannot know that Postfix
    kept the first copy.
    """

    word = "duplicate"
    kind = "duplicate"
    stage = Stage.HEADERS
    assumed = False

    within: float = 7 * 86400.0

    def need(self, facts: Facts, rule: str) -> Need | None:
        """Return the Message-ID to look for."""
        found = facts.message.message_id
        return Need(self.kind, rule, (found[:1000],), self.within) if found else None

    def met(self, answer: Value) -> bool:
        """Return whether it was there."""
        return bool(answer)

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} within {self.within:g} s"


@dataclass(frozen=True, slots=True)
class Command(Asked):
    """The exit status of a program that the site allows, given the message on standard input: `command: NAME` holds
    where it is 0; `{run: NAME, arguments: [...], status: 1}` has all there is. No shell is involved. Other
    conditions of the rule are looked at first. A program that ends with 75 (try again), by a signal or not in time
    could not tell, nor could one for which the time for the message is over: all that its rules run share that.
    """

    word = "command"
    kind = "command"
    stage = Stage.BODY
    site = False
    assumed = 0

    run: ProgramName
    arguments: tuple[str, ...] = ()
    status: int = 0

    def need(self, facts: Facts, rule: str) -> Need | None:  # noqa: ARG002 - the same for every message
        """Return what to run."""
        return Need(self.kind, rule, (self.run, *self.arguments))

    def met(self, answer: Value) -> bool:
        """Return whether it ended with that status."""
        return answer == self.status

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {self.run} ends with {self.status}"


@dataclass(frozen=True, slots=True)
class ScriptSays(Asked):
    """That the rule's script has something to say: no rule writes it, the action `script` brings it."""

    word = "script"
    kind = "script"
    stage = Stage.BODY
    assumed = Scripted(routed=False)

    file: str

    def need(self, facts: Facts, rule: str) -> Need:  # noqa: ARG002 - the same for every message and every rule
        """Return what to run."""
        return Need(self.kind, "", (self.file,))

    def met(self, answer: Value) -> bool:
        """Return whether it had."""
        return isinstance(answer, Scripted) and answer.routed

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {self.file}"


MARKS_CONDITIONS = (Score, Tag, Rate, Duplicate, Command)
