"""A policy: rules in their order with the tests beside them, checked and ready to decide with.

Must never: change once it is loaded; a worker and its sessions share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from milterapp.mail.envelope import Stage
from milterapp.rules.actions import Action
from milterapp.rules.clauses import Clause, leaves, stage_of
from milterapp.rules.decision import Verdict
from milterapp.rules.expectation import Expectation
from milterapp.rules.lists import NamedList
from milterapp.rules.placeholders import ONE_RECIPIENT, VALUES
from milterapp.rules.problem import Place

__all__ = ["Case", "Policy", "Rule"]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule. clause: what it asks, what its actions need included. ends: no later rule is asked after it. marks:
    later rules may ask what it left; counts: it does one of the two. on_error: what becomes of a message for which it
    could not be told, accept (site), keep (personal) or defer, "" for what the site says.
    """

    name: str
    place: Place
    clause: Clause
    actions: tuple[Action, ...]
    observe: bool = False
    stage: Stage = Stage.CONNECT
    ends: bool = False
    verdict: Verdict = Verdict.NONE
    one_recipient: bool = False
    marks: bool = False
    counts: bool = False
    places: tuple[Place, ...] = ()
    on_error: str = ""

    @classmethod
    def make(
        cls,
        name: str,
        place: Place,
        clause: Clause,
        actions: tuple[Action, ...],
        *,
        observe: bool,
        places: tuple[Place, ...] = (),
        on_error: str = "",
    ) -> Rule:
        """Return a rule with what follows from its parts. places: of the actions."""
        verdicts = [action.verdict for action in actions if action.verdict is not None]
        values = {value.word for action in actions for text in action.templates() for value in text.values}
        ends = any(action.ends() for action in actions)
        marks = any(action.marks for action in actions) and not observe
        return cls(
            name=name,
            place=place,
            clause=clause,
            actions=actions,
            observe=observe,
            stage=stage_of(clause),
            ends=ends,
            verdict=verdicts[0] if verdicts else Verdict.NONE,
            one_recipient=any(leaf.condition.one_recipient for leaf in leaves(clause))
            or not ONE_RECIPIENT.isdisjoint(values),
            marks=marks,
            counts=ends or marks,
            places=places,
            on_error=on_error,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One test beside the rules: a message, its envelope, and what the rules make of it. sender: `<>` for a bounce.

    rate, duplicate, command: the answers to conditions of these names. score, tag: what earlier rules came to.
    """

    name: str
    message: str
    expect: tuple[Expectation, ...]
    sender: str = "sender@example.org"
    recipient: tuple[str, ...] = ("recipient@example.com",)
    client: str = "192.0.2.1"
    client_name: str = ""
    helo: str = "client.example.org"
    login: str = ""
    tls: bool = False
    local: bool = False
    rate: int = 0
    duplicate: bool = False
    command: int = 0
    score: float = 0.0
    tag: tuple[str, ...] = ()
    original: str = ""
    now: datetime = datetime(2024, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Policy:
    """Ordered rules. tests: (place, case) of those beside them. scripts: the source of each that site rules name.

    lists: of personal rules, by name; scripts may ask them where they are the site's.
    """

    file: str
    site: bool
    rules: tuple[Rule, ...]
    tests: tuple[tuple[Place, Case], ...] = ()
    scripts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    lists: Mapping[str, NamedList] = field(default_factory=dict, repr=False)

    @cached_property
    def one_recipient(self) -> bool:
        """Whether a rule tells one envelope recipient from another."""
        return any(rule.one_recipient for rule in self.rules)

    @cached_property
    def stages(self) -> frozenset[Stage]:
        """The stages whose data any rule reads."""
        read = {leaf.condition.stage for rule in self.rules for leaf in leaves(rule.clause)}
        read |= {
            VALUES[value.word].stage
            for rule in self.rules
            for action in rule.actions
            for text in action.templates()
            for value in text.values
            if value.word not in ("match", "now")
        }
        read |= {action.stage() for rule in self.rules for action in rule.actions if action.stage() > Stage.CONNECT}
        return frozenset(read)

    @cached_property
    def first(self) -> Stage:
        """The earliest stage at which a rule may be known; before it, none is."""
        return min(self.stages | {rule.stage for rule in self.rules}, default=Stage.CONNECT)

    @property
    def reads_headers(self) -> bool:
        """Whether any rule reads the header or the body."""
        return any(stage >= Stage.HEADERS for stage in self.stages)

    @property
    def reads_body(self) -> bool:
        """Whether any rule reads the body; where none does, Postfix need not send it."""
        return Stage.BODY in self.stages

    @cached_property
    def index(self) -> Index:
        """The rules arranged so that one pass over a message finds those that may hold."""
        return Index(self.rules)


from milterapp.rules.index import Index  # noqa: E402 - the index is made of rules, and rules are what a policy is
