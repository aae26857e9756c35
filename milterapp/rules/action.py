"""What every action is, what it is given and what it adds to.

Must never: do anything; an action adds a verdict, an edit or a delivery to the outcome, and the edges carry it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from milterapp.mail.edits import Edit
from milterapp.mail.envelope import Stage
from milterapp.rules.decision import EnvelopeEdit, Filter, Reply, Scripted, ScriptRun, Verdict
from milterapp.rules.deliveries import Delivery, joined, place_of
from milterapp.rules.facts import Facts
from milterapp.rules.placeholders import Template, Value

__all__ = ["Action", "Fill", "Given", "Outcome"]

Fill = Callable[[Value], str]


@dataclass(slots=True)
class Outcome:
    """What the rules have come to so far. flags: of the rule that is carried out, for what it files; places: which of
    the deliveries goes to a place.
    """

    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    hold_reason: str = ""
    ended: bool = False
    edits: list[Edit] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    envelope: list[EnvelopeEdit] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    places: dict[Delivery, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    score: float = 0.0
    tags: frozenset[str] = frozenset()
    log: list[str] = field(default_factory=list)
    scripts: list[ScriptRun] = field(default_factory=list)
    message: str = ""

    def deliver(self, delivery: Delivery, *, copy: bool) -> None:
        """Add a delivery, joined with one to the same place, where that stands; one that is no copy ends the rules."""
        at = self.places.setdefault(place_of(delivery), len(self.deliveries))
        if at < len(self.deliveries):
            self.deliveries[at] = joined(self.deliveries[at], delivery)
        else:
            self.deliveries.append(delivery)
        self.ended = self.ended or not copy


@dataclass(frozen=True, slots=True)
class Given:
    """What an action is carried out with. rule: the rule's name; fill: gives the values, which are all there; script:
    gives what a script of that name said.
    """

    rule: str
    fill: Fill
    facts: Facts
    script: Callable[[str], Scripted] = lambda _: Scripted(routed=False)


@dataclass(frozen=True, slots=True)
class Action:
    """What every action has. word: as a rule writes it; main: the argument that may stand alone, "" for none.

    site, personal: where it may stand. for_all: it concerns the whole message, not one recipient of it. marks: later
    rules may ask for what it leaves.
    """

    word: ClassVar[str]
    main: ClassVar[str] = ""
    site: ClassVar[bool] = True
    personal: ClassVar[bool] = True
    verdict: ClassVar[Verdict | None] = None
    for_all: ClassVar[bool] = False
    marks: ClassVar[bool] = False

    def ends(self) -> bool:
        """Return whether the rules end with this one."""
        return self.verdict is not None

    def stage(self) -> Stage:
        """Return the stage from which on everything is known that it looks at."""
        return Stage.CONNECT

    def prepare(self, facts: Facts) -> None:
        """Look at everything that apply() will look at, from its stage on; raises LimitHit, and apply() then not."""

    def breaks_signature(self) -> bool:
        """Return whether it changes what a DKIM signature usually covers (RFC 6376 section 5.4.1)."""
        return False

    def templates(self) -> tuple[Template, ...]:
        """Return the texts that values of the message may stand in."""
        return ()

    def apply(self, outcome: Outcome, given: Given) -> None:
        """Add to the outcome."""
        raise NotImplementedError
