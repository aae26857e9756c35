"""Site rules stage by stage: one SMTP session through a policy, shared by the milter and the dry run.

Must never: say anything to a client by itself, or let a verdict for one recipient become one for all in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide_from
from milterapp.rules.decision import Decision, Explanation, RecipientDecision, Reply, Verdict
from milterapp.rules.evaluate import Evaluation
from milterapp.rules.explain import Trace
from milterapp.rules.facts import Facts
from milterapp.rules.policy import Policy
from milterapp.rules.truth import Need, Value, Wanted

__all__ = ["Answer", "SiteSession", "drive"]

REFUSALS = (Verdict.REJECT, Verdict.DEFER)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say at one stage.

    verdict, reply: to give now; NONE where the session goes on. settled: nothing later can change the decision, of
    this recipient at rcpt and of the message otherwise. pending: something is left to carry out at the end of the
    message (edits, findings, removed recipients, a hold, a refusal that local submission puts off), so do not end
    filtering early even where settled. could_not_tell, on_error: as in Decision.
    """

    verdict: Verdict = Verdict.NONE
    reply: Reply | None = None
    settled: bool = False
    pending: bool = False
    could_not_tell: str = ""
    on_error: str = ""

    @property
    def reads_more(self) -> bool:
        """Whether what later stages bring may still matter."""
        return not self.settled


_NOTHING = Answer()
_UNKNOWN = Decision(settled=False)


class SiteSession:
    """One connection and the messages on it, one after the other.

    Call connect, helo, then for each message mail, rcpt for each recipient, headers and body, as far as answers ask for
    more; then decision(), and reset() before the next message. delimiter: Postfix's recipient_delimiter.
    answer: answers a Need, at most once a message; without it nobody is asked, and what is assumed is taken.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        delimiter: str = "+",
        answer: Callable[[Need], Value] | None = None,
        assumed: tuple[tuple[str, Value], ...] = (),
    ) -> None:
        self.policy = policy
        self.delimiter = delimiter
        self._answer = answer
        self._assumed = assumed
        self._connection = Envelope()
        # What connection or HELO settled for every message to come, and where.
        self._settled: dict[Stage, Decision] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the message; connection and HELO stay."""
        self._envelope = self._connection
        self._now: datetime | None = None
        self._message: Decision | None = next(iter(self._settled.values()), None)
        self._seen: Evaluation | None = None
        self._answers: dict[Need, Value] | None = None if self._answer is None else {}
        # Every recipient named: its decision at rcpt where it was settled there, None where it is still decided for.
        self._recipients: dict[str, Decision | None] = {}
        self._latest: dict[str, Decision] = {}

    def connect(self, client: str, client_name: str, local: bool) -> Answer:  # noqa: FBT001 - the fact itself
        """Take the client: its address, "" for none, its verified name, "" for none, whether it is this host."""
        self._settled = {}
        self._connection = Envelope(client=client, client_name=client_name, local=local)
        self.reset()
        return self._early(Stage.CONNECT)

    def helo(self, name: str) -> Answer:
        """Take the name of HELO or EHLO."""
        self._settled.pop(Stage.HELO, None)  # a client says it anew after STARTTLS
        before = self._connection
        self._connection = Envelope(before.client, before.client_name, before.local, name)
        self.reset()
        return self._early(Stage.HELO)

    def mail(self, sender: str, login: str, tls: bool, now: datetime | None = None) -> Answer:  # noqa: FBT001
        """Take the envelope sender, "" for the null sender; login: SASL user or ""; now: the time of this attempt."""
        self.reset()
        before = self._connection
        self._envelope = Envelope(before.client, before.client_name, before.local, before.helo, sender, login, tls)
        self._now = now
        return self._early(Stage.MAIL)

    def rcpt(self, address: str) -> Answer:
        """Take one recipient. A refusal is for this one; to accept or discard it the client is told nothing."""
        if self._message is not None:
            self._recipients[address] = None
            return _answer(self._message)
        if self._recipients.get(address) is None and self.policy.first > Stage.RCPT:
            self._recipients[address], self._latest[address] = None, _UNKNOWN
            return _NOTHING
        if self._recipients.get(address) is None:
            so_far = self._envelope_for((*self._live(), address))
            self._seen = evaluation = self._evaluate(Stage.RCPT, so_far, recipient=address)
            decision = self._decide(evaluation)
            told = decision.settled and not decision.could_not_tell
            self._recipients[address] = decision if told and decision.verdict is not Verdict.NONE else None
            self._latest[address] = decision
        decision = self._latest[address]
        if not decision.settled or decision.could_not_tell:
            return Answer()
        if decision.verdict in REFUSALS and not self._envelope.local:
            return _answer(decision)
        return Answer(settled=True, pending=decision.verdict is not Verdict.NONE or _leaves(decision))

    @property
    def envelope(self) -> Envelope:
        """The envelope by now, with the recipients that are neither refused nor removed."""
        return self._envelope_for(self._live())

    def headers(self, mail: Mail) -> Answer:
        """Take the header, once every recipient has been named."""
        return self._late(Stage.HEADERS, mail)

    def body(self, mail: Mail) -> Answer:
        """Take the whole message."""
        return self._late(Stage.BODY, mail)

    def decision(self) -> Decision:
        """Return what the rules have come to by now, with what became of each recipient."""
        decision = self._message
        if decision is None:
            everyone = list(self._recipients.values())
            refused = [one for one in everyone if one is not None and one.verdict in REFUSALS]
            if everyone and len(refused) == len(everyone):
                deferred = [one for one in refused if one.verdict is Verdict.DEFER]
                decision = (deferred or refused)[0]
            else:
                found = list(self._latest.values())
                decision = replace(found[-1], verdict=Verdict.NONE, reply=None, stage=None) if found else None
        if decision is None:
            evaluation = self._seen or self._evaluate(Stage.CONNECT, self._envelope)
            decision = self._decide(evaluation)
        return self._told(decision)

    # Deciding

    def _evaluate(self, stage: Stage, envelope: Envelope, recipient: str = "", mail: Mail | None = None) -> Evaluation:
        facts = Facts(stage, envelope, recipient, mail, self._now, self.delimiter, assumed=self._assumed)
        return Evaluation(self.policy.index, facts, self._seen, self._answers)

    def _decide(self, evaluation: Evaluation) -> Decision:
        while True:
            try:
                return decide_from(self.policy, evaluation)
            except Wanted as wanted:
                if self._answers is None or self._answer is None:
                    raise
                need = wanted.need
            self._answers[need] = self._answer(need)  # out here: a script's process has no exception of ours under way

    def _early(self, stage: Stage) -> Answer:
        if self._message is None:
            if stage < self.policy.first:
                return _NOTHING
            self._seen = self._evaluate(stage, self._envelope)
            decision = self._decide(self._seen)
            if decision.settled:
                self._message = decision
                if stage < Stage.MAIL:
                    self._settled[stage] = decision
        return Answer() if self._message is None else _answer(self._message)

    def _envelope_for(self, recipients: tuple[str, ...]) -> Envelope:
        one = self._envelope
        return Envelope(one.client, one.client_name, one.local, one.helo, one.sender, one.login, one.tls, recipients)

    def _live(self) -> tuple[str, ...]:
        """Return the recipients that are neither refused nor removed."""
        gone = (*REFUSALS, Verdict.DISCARD)
        return tuple(address for address, one in self._recipients.items() if one is None or one.verdict not in gone)

    def _late(self, stage: Stage, mail: Mail) -> Answer:
        if self._message is None:
            envelope = self.envelope
            self._latest = {}
            for address in self._asked():
                evaluation = self._evaluate(stage, envelope, address, mail)
                self._latest[address] = self._decide(evaluation)
                self._seen = evaluation
            decision = self._joined()
            if not decision.settled:
                return Answer()
            self._message = decision
        return _answer(self._message, removed=any(self._removed()))

    def _asked(self) -> tuple[str, ...]:
        """Return whom to decide for: each unsettled recipient where a rule tells them apart, else all as one."""
        unsettled = tuple(address for address, one in self._recipients.items() if one is None)
        if self._recipients and not unsettled:
            return ()
        return unsettled if self.policy.one_recipient and unsettled else ("",)

    def _removed(self) -> list[str]:
        found = [address for address, one in self._recipients.items() if one and one.verdict is Verdict.DISCARD]
        return found + [address for address, one in self._latest.items() if address and one.verdict is Verdict.DISCARD]

    def _joined(self) -> Decision:
        """Return the one decision for the message: SMTP knows no answer after rcpt that is for one recipient alone."""
        if self._envelope.local:
            for one in self._recipients.values():
                if one is not None and one.verdict in REFUSALS:
                    return one
        found = list(self._latest.values())
        for verdict in (Verdict.REJECT, None, Verdict.DEFER, Verdict.HOLD):
            if verdict is None:
                if not all(one.settled for one in found):
                    return Decision(settled=False, rules=found[-1].rules)
                untold = [one for one in found if one.could_not_tell]
                if untold:
                    return untold[0]
            chosen = [one for one in found if one.settled and one.verdict is verdict]
            if chosen:
                return _with_most(chosen[0], found if verdict is Verdict.HOLD else ())
        settled = [one for one in self._recipients.values() if one is not None and one.verdict not in REFUSALS]
        if len(found) == 1 and not settled and found[0].verdict is Verdict.NONE:
            return found[0]
        verdicts = {one.verdict for one in (*found, *settled)}
        template = (found or settled)[-1] if found or settled else Decision()
        if verdicts == {Verdict.DISCARD}:
            return template
        kept = [one for one in (*found, *settled) if one.verdict is not Verdict.DISCARD]
        accepted = bool(kept) and all(one.verdict is Verdict.ACCEPT for one in kept)
        joined = replace(
            kept[0] if kept else template,
            verdict=Verdict.ACCEPT if accepted else Verdict.NONE,
            stage=max(one.stage or Stage.CONNECT for one in kept) if accepted else None,
            reply=None,
        )
        return _with_most(joined, kept)

    # Telling

    def _told(self, decision: Decision) -> Decision:
        """Return the decision with its recipients, and with the rules that held for one of them only."""
        recipients = tuple(self._recipient(address, one, decision) for address, one in self._recipients.items())
        others = {address: one for address, one in self._recipients.items() if one is not None}
        others |= {address: one for address, one in self._latest.items() if address}
        names = {name for one in (decision, *others.values()) for name in one.matched}
        matched = tuple(rule.name for rule in self.policy.rules if rule.name in names)
        if set(matched) != set(decision.matched):
            decision = replace(decision, rules=Trace(_merged(decision, others), len(self.policy.rules)))
        return replace(decision, recipients=recipients, matched=matched)

    def _recipient(self, address: str, own: Decision | None, message: Decision) -> RecipientDecision:
        if own is not None and own.verdict in REFUSALS and not self._envelope.local:
            return RecipientDecision(address, own.verdict, own.reply, own.stage)
        if message.verdict in (*REFUSALS, Verdict.HOLD):
            return RecipientDecision(address, message.verdict, message.reply, message.stage)
        found = own or self._latest.get(address) or message
        return RecipientDecision(address, found.verdict, found.reply, found.stage)


def _merged(decision: Decision, others: dict[str, Decision]) -> Callable[[], tuple[Explanation, ...]]:
    def lines() -> tuple[Explanation, ...]:
        made = list(decision.rules)
        for address, one in others.items():
            for at, line in enumerate(one.rules):
                if line.matched and not made[at].matched:
                    made[at] = replace(line, reason=f"for {address}: {line.reason}")
        return tuple(made)

    return lines


def _with_most(decision: Decision, others: Sequence[Decision]) -> Decision:
    """Return the decision with what most of the others' rules came to: a rule that ended early for one saw less."""
    return replace(
        decision,
        edits=max((one.edits for one in others), key=len, default=()),
        envelope=max((one.envelope for one in others), key=len, default=()),
        log=max((one.log for one in others), key=len, default=decision.log),
        score=max((one.score for one in others), key=abs, default=decision.score),
        tags=max((one.tags for one in others), key=len, default=decision.tags),
    )


def _leaves(decision: Decision) -> bool:
    """Return whether the message is changed, or delivery is to be told of what was found."""
    return bool(decision.changes or decision.tags or decision.score)


def _answer(decision: Decision, *, removed: bool = False) -> Answer:
    return Answer(
        verdict=decision.verdict,
        reply=decision.reply,
        settled=True,
        pending=_leaves(decision) or removed or decision.verdict is Verdict.HOLD,
        could_not_tell=decision.could_not_tell,
        on_error=decision.on_error,
    )


def drive(
    policy: Policy,
    mail: Mail,
    envelope: Envelope,
    *,
    now: datetime | None = None,
    delimiter: str = "+",
    assumed: tuple[tuple[str, Value], ...] = (),
    answer: Callable[[Need, Envelope], Value] | None = None,
) -> Decision:
    """Return what a site's policy makes of a message, stage by stage as the milter asks, each only where it must.

    assumed: the answers to needs, by their kind. answer: answers those of other kinds, with the envelope by then;
    without it nobody is asked.
    """

    def asked(need: Need) -> Value:
        assert answer is not None  # noqa: S101 - else nobody is asked
        return answer(need, session.envelope)

    session = SiteSession(policy, delimiter=delimiter, answer=None if answer is None else asked, assumed=assumed)
    said = session.connect(envelope.client, envelope.client_name, envelope.local)
    if not said.settled and not envelope.local:
        said = session.helo(envelope.helo)
    if not said.settled:
        said = session.mail(envelope.sender, envelope.login, envelope.tls, now)
    refused = said.settled and said.verdict in REFUSALS
    taken = 0
    for address in envelope.recipients:
        told = session.rcpt(address)
        taken += told.verdict not in REFUSALS
    if not refused and (taken or not envelope.recipients):
        said = session.headers(mail)
        if said.reads_more:
            session.body(mail)
    return session.decision()
