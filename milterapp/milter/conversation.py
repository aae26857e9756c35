"""One SMTP connection as the milter sees it: what was said so far, what the rules make of it, what is answered.

Must never: know the protocol (session does), keep anything of one message for the next, refuse a recipient of a message
that did not come over SMTP, or let an exception decide.

`discard` is said at DATA at the earliest, the first step that knows the queue id, and `accept` at the end of the
header, though they may be settled long before: an ACCEPT at RCPT would end filtering for every recipient, and a header
may hold what no message may bring along. The body is not sent to us all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

from milterapp.mail.edits import edits_body, notes
from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail
from milterapp.milter.apply import Call, calls_for, is_empty, removals
from milterapp.milter.budget import Budget
from milterapp.milter.collect import Collector
from milterapp.milter.entry import Trust, forbidden
from milterapp.milter.event import Happening
from milterapp.milter.plan import Plan, Step
from milterapp.milter.recall import Recall
from milterapp.milter.reply import FAULT
from milterapp.milter.saying import CONTINUE, Said, Say
from milterapp.milter.site_scripts import Scripts
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.policy import Policy
from milterapp.rules.stages import Answer, SiteSession
from milterapp.rules.truth import Failed, Need, Value

__all__ = ["Context", "Conversation"]


_MUCH = 16 * 1024  # bytes to read, of which others notice that they are read
_SKIP = Said(Say.SKIP)
_GATES = frozenset({"eoh", "eom"})
_REFUSALS = {Verdict.REJECT: Say.REJECT, Verdict.DEFER: Say.DEFER}


@dataclass(frozen=True, slots=True)
class Context:
    """What all connections of a worker share. on_error: accept or defer. delimiter: Postfix's recipient_delimiter.

    trust: whose Authentication-Results stay. budget: how long a step may take. recall: the memory of earlier messages.
    scripts: what runs the site's scripts, None for nobody.
    """

    policy: Policy
    plan: Plan
    limits: Limits
    on_error: str = "defer"
    delimiter: str = "+"
    trust: Trust = field(default_factory=Trust)
    budget: Budget = field(default_factory=Budget)
    recall: Recall = field(default_factory=lambda: Recall("memory"))
    scripts: Scripts | None = None


class Conversation:
    """One connection. answers: the steps at which an answer can be given, the others are one-way.

    slow: is called before what may take long: a memory or a script is asked, or much is read.

    Each step returns Said; `happened` collects what there is to log, the caller takes it away.
    """

    def __init__(
        self,
        context: Context,
        answers: frozenset[Step],
        *,
        blank: str = " ",
        slow: Callable[[], object] = lambda: None,
    ) -> None:
        self.context = context
        self._slow = slow
        self.site = SiteSession(context.policy, delimiter=context.delimiter, answer=self._recall)
        self.happened: list[Happening] = []
        self.queue_id = ""
        self.helo_name = ""
        self.client = ""
        self.client_name = ""
        self._answers = answers
        self._blank = blank
        self._smtp = True
        self._suspects: tuple[str, ...] = ()  # ids in whose name this client may not speak
        # What was found at connect or HELO outlives the message.
        self._lasting_fault = ""
        self._lasting: dict[Step, Said] = {}
        self._clear()

    def _clear(self) -> None:
        self.sender = ""
        self.recipients: list[str] = []
        self.login = ""
        self.queue_id = ""
        self._in_mail = False
        self._final: Said | None = None  # what this message was told; from there on it is told nothing else
        self._unsettled = 0  # recipients for whom the rules want to know more
        self._waits = False  # something is to be carried out at the end of the message, and no earlier
        self._settled = False
        self._edits_body = False  # settled, and the body is wanted for what is to become of it
        self._pending = next(iter(self._lasting.values()), None)
        self._fault = self._lasting_fault
        self._on_error = ""  # of the rule that could not be told, "" where it leaves that to the site
        self._token = ""  # what tells this try at a message from all others
        self._scripting = 0.0  # seconds that scripts have taken
        self._came_as: dict[str, str] = {}
        self._collected = Collector(self.context.limits)
        self._mail: Mail | None = None  # as the rules see it: without what it may not bring along
        self._entry: tuple[Call, ...] = ()  # what takes that away
        self._refused = False

    # -- the steps -----------------------------------------------------------------------------------------------------

    def connect(self, client_name: str, client: str, *, local: bool, smtp: bool) -> Said:
        """Begin. client: IP address, "" where local. smtp: False where no recipient can be refused (cleanup(8))."""
        self.client, self.client_name, self._smtp = client, client_name, smtp
        self._suspects = self.context.trust.suspects(client)
        return self._hear("connect", self.site.connect(client, client_name, local))

    def helo(self, name: str) -> Said:
        """Take HELO or EHLO, which may come more than once."""
        self.helo_name = name
        self._lasting.pop("helo", None)
        return self._hear("helo", self.site.helo(name))

    def mail(self, sender: str, login: str, *, tls: bool) -> Said:
        """Begin a message, whatever became of the one before."""
        self.end()
        self._clear()
        self.sender, self.login, self._in_mail = sender, login, True
        if self._fault:
            return self._fail("mail")
        if self._pending is not None:
            return self._say("mail", self._pending)
        return self._hear("mail", self.site.mail(sender, login, tls, datetime.now(UTC)))

    def rcpt(self, address: str, as_given: str) -> Said:
        """Take one recipient. as_given: what delrcpt wants to hear, brackets included."""
        self.recipients.append(address)
        self._came_as[address] = as_given
        if self._fault:
            return self._fail("rcpt")
        if self._pending is not None:
            return self._say("rcpt", self._pending)
        answer = self.site.rcpt(address)
        if answer.verdict not in _REFUSALS:
            self._unsettled += not answer.settled
            self._waits = self._waits or answer.pending
        return self._hear("rcpt", answer)

    def data(self) -> Said:
        """Take DATA: the envelope is complete."""
        if self._fault:
            return self._fail("data")
        if self._pending is not None:
            return self._say("data", self._pending)
        if self._unsettled or "data" not in self._answers:
            return CONTINUE
        decision = self.site.decision()
        # What goes through shows its header first, for what it may not bring along.
        if decision.verdict is Verdict.DISCARD or is_empty(decision) or decision.could_not_tell:
            return self._conclude("data")
        return CONTINUE

    def fields(self, some: Iterable[tuple[bytes, bytes]]) -> None:
        """Take header fields, each its name and its value. They are never answered."""
        if self._in_mail:
            self._collected.fields(some)

    def end_of_header(self) -> Said:
        """Take the end of the header."""
        if self._fault:
            return self._fail("eoh")
        if self._pending is not None:
            return self._say("eoh", self._pending)
        if self._collected.hit:
            return self.fault("eoh", LimitHit(self._collected.hit))
        self._join()
        if not self._settled or self._waits or "eoh" not in self._answers:
            return CONTINUE
        return self._conclude("eoh")

    def _join(self) -> None:
        """Have the rules look at the header, which also makes one decision of those for single recipients."""
        if self._collected.size > _MUCH:
            self._slow()
        answer = self.site.headers(self._read_header())
        self._settled, self._waits = answer.settled, answer.pending or bool(self._entry)
        self._edits_body = answer.settled and answer.pending and edits_body(self.site.decision().edits)

    def _read_header(self) -> Mail:
        mail = self._collected.header()
        entry = forbidden(mail, self._suspects)
        if entry.fields:
            self._entry = removals(entry.occurrences)
            self._collected.leave_out(entry.fields)
            mail = self._collected.header()
        self._mail = mail
        return mail

    def body(self, chunk: bytes) -> Said:
        """Take a piece of the body; SKIP where no more of it is of interest."""
        if (self._settled and not self._edits_body) or self._fault or self._final or not self._in_mail:
            return _SKIP
        self._collected.body(chunk)
        return _SKIP if self._collected.hit else CONTINUE

    def end_of_message(self) -> Said:
        """Give the final answer, with the calls that carry it out."""
        if self._final is not None or not self._in_mail:
            return self._final or Said(Say.ACCEPT)
        if self._fault:
            return self._fail("eom")
        if self._pending is not None:
            return self._say("eom", self._pending)
        if self._collected.hit:
            return self.fault("eom", LimitHit(self._collected.hit))
        if self._mail is None:
            self._join()
        if self.context.plan.body and (self._edits_body or not self._settled):
            if self._collected.size > _MUCH:
                self._slow()
            self._mail = self._collected.message(self._mail)
            self.site.body(self._mail)
        return self._conclude("eom")

    def end(self) -> None:
        """Take the end of a message that did not get to its end: RSET, the next MAIL, the connection's end."""
        if self._in_mail and self._final is None and self._refused:
            self._log(self.site.decision(), self._fault)
        self._in_mail = False

    def leave(self) -> None:
        """Take the end of the connection, and let go of what was held of it, now and not when memory is swept."""
        self.end()
        self._clear()
        self.site.reset()

    def _recall(self, need: Need) -> Value:
        self._slow()
        if need.kind == "script":
            return self._scripted(need.key[0])
        self._token = self._token or uuid4().hex
        return self.context.recall.answer(need, self._token)

    def _scripted(self, script: str) -> Value:
        """Have a script run for the message as the rules see it."""
        scripts, source = self.context.scripts, self.context.policy.scripts.get(script)
        if scripts is None or source is None or self._mail is None:
            return Failed(f"{script}: there is nobody to run it")
        envelope = replace(self.site.envelope, queue_id=self.queue_id)
        begun = time.monotonic()
        try:
            left = self.context.budget.scripts - self._scripting
            return scripts.answer(script, source, envelope, self._mail.raw, left)
        finally:
            self._scripting += time.monotonic() - begun

    # -- the answers ---------------------------------------------------------------------------------------------------

    def _hear(self, step: Step, answer: Answer) -> Said:
        """Refuse where the rules refuse; every other answer waits for DATA or later."""
        if answer.could_not_tell:
            return self._untold(step, answer)
        if answer.verdict not in _REFUSALS:
            return CONTINUE
        said = Said(_REFUSALS[answer.verdict], answer.reply)
        if not self._in_mail:
            self._lasting[step] = said
        return self._say(step, said)

    def _conclude(self, step: Step) -> Said:
        """Say what the decision is, now that nothing can change it."""
        decision = self.site.decision()
        if decision.could_not_tell:
            return self._untold(step, decision)
        if decision.verdict in _REFUSALS:
            return self._close(decision, Said(_REFUSALS[decision.verdict], decision.reply))
        if decision.verdict is Verdict.DISCARD or is_empty(decision):
            return self._close(decision, Said(Say.DISCARD))
        calls = self._entry + calls_for(decision, self._mail, self._came_as, queue_id=self.queue_id, blank=self._blank)
        undone = notes(self._mail, decision.edits) if calls and self._mail and self._mail.complete else ()
        return self._close(decision, Said(Say.ACCEPT, calls=calls), undone=undone)

    def _say(self, step: Step, said: Said) -> Said:
        """Refuse now, or at the first step that can. What is said at RCPT is said to one recipient."""
        if not self._can(step):
            self._pending = said
            return CONTINUE
        if step == "rcpt":
            self._refused = True
            return said
        return self._close(self.site.decision(), said)

    def _can(self, step: Step) -> bool:
        if step == "rcpt" and not self._smtp:
            return False
        return step in self._answers or step == "eom"

    def _close(self, decision: Decision, said: Said, fault: str = "", undone: tuple[str, ...] = ()) -> Said:
        self._final = Said(said.say, said.reply)
        self._log(decision, fault, undone)
        return said

    def _log(self, decision: Decision, fault: str = "", undone: tuple[str, ...] = ()) -> None:
        self.happened.append(
            Happening(
                queue_id=self.queue_id,
                client=self.client,
                client_name=self.client_name,
                helo=self.helo_name,
                login=self.login,
                sender=self.sender if self._in_mail else None,
                recipients=tuple(self.recipients),
                decision=decision,
                fault=fault,
                undone=undone,
                answer=(self._final.say if self._final else Say.DEFER).value if fault else "",
            )
        )

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(self, step: Step, error: BaseException) -> Said:
        """Answer a step that could not be decided, as on_error says: a limit of ours, or a fault.

        Edits that failed half-way are deferred whatever on_error says.
        """
        if self._final is not None and step == "eom":
            self.happened.clear()
            return self._close(Decision(), Said(Say.DEFER, FAULT), f"edits: {error}")
        self.note_fault(step, error)
        return self._fail(step)

    def _untold(self, step: Step, found: Answer | Decision) -> Said:
        """Answer what could not be told as the rule in question says, or else the site."""
        self._on_error = found.on_error
        return self.fault(step, LimitHit(found.could_not_tell))

    def late(self, step: Step, why: str, said: Said) -> Said:
        """Answer a step that took too long, whatever was decided, as on_error says; a fault was already."""
        if self._fault:
            return said
        self._final = None
        self.happened.clear()
        self.note_fault(step, LimitHit(why))
        return self._fail(step)

    def note_fault(self, step: Step, error: BaseException) -> None:
        """Keep a fault that cannot be answered now; the next step that can does."""
        words = str(error) if isinstance(error, LimitHit) else f"{type(error).__name__}: {error}"
        self._fault = f"{step}: {words}"
        if not self._in_mail:
            self._lasting_fault = self._fault

    def _fail(self, step: Step) -> Said:
        """Say what on_error says, at the first step that can: `defer` at once, `accept` once the header is known."""
        if self._final is not None:
            return self._final if self._can(step) else CONTINUE
        if not self._can(step):
            return CONTINUE
        if (self._on_error or self.context.on_error) == "accept":
            if step not in _GATES:
                return CONTINUE
            if self._mail is None and not self._collected.hit:
                self._read_header()
            if self._entry and step != "eom":
                return CONTINUE
            return self._close(Decision(), Said(Say.ACCEPT, calls=self._entry), self._fault)
        said = Said(Say.DEFER, FAULT)
        if step == "rcpt":
            self._refused = True
            return said
        return self._close(Decision(), said, self._fault)
