"""Carrying a prepared Decision out: each delivery once, marked as soon as it is durable, over any number of attempts.

Must never: decide, answer `ok` while a delivery is not done, or do a step again that the journal says is done.

A forward that submit refuses (its loop mark is on the message already, or there are too many) becomes a keep, unless
it was a copy, and so does what was to be filed into a folder that must not be made: nothing is lost, nothing bounces,
and the mail is where its owner looks. However many deliveries are a keep or become one, the message is kept once: all
of them have the same edits, and the first that a rule asks for says with which flags, else the first that became one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from milterapp.delivery import sealed, wire
from milterapp.delivery.filtered import Filtered
from milterapp.delivery.programs import Programs
from milterapp.delivery.requests import RESPONSES, printable, waiting
from milterapp.delivery.said import MOST_TEXT
from milterapp.delivery.stores import Maildir, Name, NoFolderError, folder_name, stamped
from milterapp.mail.edits import apply
from milterapp.rules.decision import Decision, Filter, Reply, Verdict
from milterapp.rules.deliveries import Delivery, File, Forward, Keep, Pipe, Send, SendReply, Vacation
from milterapp.state.journal import Journal, Key, Prepared, StateError

__all__ = [
    "SECOND_VACATION", "Answer", "Job", "Outcome", "Submit", "carry_out", "deferral", "left_to_keep", "rejection",
    "through",
]  # fmt: skip

SECOND_VACATION = "another vacation answers this message"  # RFC 5230: one for a message
_FIELD = re.compile(rb"[!-9;-~]{1,200}[ \t]*:")  # how a header begins, RFC 5322 section 2.2
_REPLY_TEXT = MOST_TEXT
_LAST = SendReply | Vacation | Send  # what leaves only when everything else is done
_KEEP = "keep"  # the step of what deliveries become, where none of them is a keep
_ENDS_WELL = (Verdict.NONE, Verdict.ACCEPT, Verdict.DISCARD)
_VERDICT_ENDS = {Verdict.REJECT: "reject", **dict.fromkeys(_ENDS_WELL, "ok")}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one delivery. word: done, refused or failed; detail: a folder, a queue id, or the reason."""

    word: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the monitor is told: a status of `requests.ANSWER`, one line of text, and what became of each delivery.

    edited: of what is to be kept, the sealed memfd of the message as edited, to be closed by who answers; -1 for none.
    """

    status: str
    text: str = ""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    edited: int = -1


class Submit:
    """The agent's end of its line to submit, which becomes a socket when it is asked something for the first time.

    Faults of the connection are outcomes too: failed.
    """

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor, which is this object's to close, -1 for none."""
        self._descriptor = descriptor
        self._connection: socket.socket | None = None

    def ask(self, kind: str, fields: Mapping[str, str], message: int | None = None) -> Outcome:
        """Ask for one thing and wait for the answer. message: a sealed memfd, None for the message as it came."""
        try:
            if self._connection is None:
                if self._descriptor < 0:
                    raise ConnectionError("no line to it")
                self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=self._descriptor)
            wire.send(self._connection, kind, fields, () if message is None else (message,))
            answer = wire.receive(self._connection, RESPONSES)
        except (wire.WireError, OSError, UnicodeError) as error:
            return Outcome("failed", f"submit: {error}")
        if answer is None:
            return Outcome("failed", "submit closed the connection")
        if answer.kind == "DONE":
            return Outcome("done", answer.text("queue_id"))
        return Outcome(answer.kind.lower(), answer.text("text"))

    def rest(self) -> int:
        """Return the descriptor where nothing was asked, for the next message; else close it and return -1."""
        if self._connection is None:
            return self._descriptor
        self._connection.close()
        return -1


@dataclass(frozen=True)
class Job:
    """One message for one recipient, and everything that carrying a decision out needs. now: seconds since 1970.

    keep_here: `keep` files into the inbox of the Maildir, submit is not asked. programs, variables: what runs programs,
    and their environment; filtered: where the message is kept that filters wrote.
    """

    sender: str
    key: Key
    raw: bytes
    journal: Journal
    maildir: Maildir
    submit: Submit
    now: int
    keep_here: bool = False
    programs: Programs = field(default_factory=Programs)
    variables: Mapping[str, str] = field(default_factory=dict)
    filtered: Filtered | None = None


class _FilterError(Exception):
    """A message that cannot be delivered before a program has filtered it; str() says why."""


class _Steps:
    """The message as edited, and one method for each kind of delivery."""

    def __init__(self, job: Job, decision: Decision, prepared: Prepared) -> None:
        self._job = job
        self._decision = decision
        self._prepared = prepared
        self.done = {} if prepared.fresh else dict(job.journal.steps(job.key))
        self.outcomes: dict[str, Outcome] = {}
        self._keeps = _keeps(decision, here=job.keep_here)
        self._keep_step = next(iter(self._keeps), _KEEP)
        # Each delivery had a keep of its own once: what was filed or marked as any of them, before an upgrade, is this.
        self._known_keeps = [*self._keeps, *(f"{number}.keep" for number in range(len(decision.deliveries)))]
        kept = [self.done[one] for one in self._known_keeps if self.done.get(one, "").startswith("done ")]
        if kept:
            self.done.setdefault(self._keep_step, kept[0])

    @property
    def _edited(self) -> bytes:
        """The message as it is delivered. Raises _FilterError."""
        message = self._filtered
        if isinstance(message, str):
            raise _FilterError(message)
        return message

    @cached_property
    def _filtered(self) -> bytes | str:
        """The message, edited and then filtered, or why it could not be; a second delivery does not try again."""
        job = self._job
        message = _as_edited(self._decision, job.raw)
        if not self._decision.filters:
            return message
        try:
            found = None if self._prepared.fresh or job.filtered is None else job.filtered.find()
            if found is not None:
                return found
            for one in self._decision.filters:
                written, fault = through(job.programs, one, message, job.variables)
                if fault and one.on_error == "defer":
                    return f"filter: {fault}"
                message = written or message
            if job.filtered is not None:
                job.filtered.write(message)
        except OSError as error:
            return f"filter: {error}"
        return message

    def once(self, step: str, do: Callable[[], Outcome]) -> Outcome:
        """Do a step that is not done, and mark it. A refusal is final too: a retry does not ask again.

        What was tried in this attempt is not tried again in it.
        """
        if step in self.outcomes:
            return self.outcomes[step]
        if step in self.done:
            word, _, detail = self.done[step].partition(" ")
            outcome = Outcome(word, detail)
        else:
            try:
                outcome = do()
                if outcome.word != "failed":
                    said = f"{outcome.word} {printable(outcome.detail)}"
                    self._job.journal.mark(self._job.key, step, said, self._job.now)
            except (OSError, StateError, _FilterError) as error:
                outcome = Outcome("failed", str(error))
        self.outcomes[step] = outcome
        return outcome

    def deliver(self, step: str, delivery: Delivery) -> bool:
        """Carry one delivery out; False where it must be tried again."""
        if isinstance(delivery, Keep) or step in self._keeps:
            return self._kept().word == "done"
        if isinstance(delivery, File):
            outcome = self.once(step, lambda: self._file(step, delivery.folder, delivery.flags, create=delivery.create))
            return self._kept_instead(outcome, delivery.flags, copy=delivery.copy)
        if isinstance(delivery, Forward):
            asked = {"to": delivery.to, "step": step}
            if delivery.script:
                asked |= {"script": delivery.script, "from": delivery.sender}
            outcome = self.once(step, lambda: self._send("FORWARD", asked))
            return self._kept_instead(outcome, copy=delivery.copy)
        if isinstance(delivery, Send):
            return self.once(step, lambda: self._write(step, delivery)).word != "failed"
        if isinstance(delivery, Pipe):
            return self.once(step, lambda: self._pipe(delivery)).word == "done"
        return self.once(step, lambda: self._reply(step, delivery)).word != "failed"

    def why(self, step: str) -> str:
        """Return why a delivery must be tried again: its own reason, or that of the keep it is or became."""
        outcome = self.outcomes.get(step)
        if outcome is None or outcome.word == "refused":
            outcome = self.outcomes[self._keep_step]
        return waiting(f"{self._decision.deliveries[int(step)].to_json()['action']}: {outcome.detail}")

    def _kept_instead(self, outcome: Outcome, flags: Sequence[str] = (), *, copy: bool) -> bool:
        """Keep what could not go where its rule sends it, unless it was a copy; False where it must be tried again."""
        if outcome.word == "refused" and not copy:
            outcome = self._kept(flags)
        return outcome.word != "failed"

    def _kept(self, flags: Sequence[str] = ()) -> Outcome:
        """Keep the message, once, whatever asks for it and however often. flags: where no delivery is a keep itself."""
        return self.once(self._keep_step, lambda: self._keep(next(iter(self._keeps.values()), flags)))

    def _file(
        self, step: str, folder: Sequence[str], flags: Sequence[str], *, create: bool = True, known: Sequence[str] = ()
    ) -> Outcome:
        """File the message. known: other steps as which it may be there."""
        job, key = self._job, self._job.key
        unique, *others = (f"M{key.word}S{one.replace('.', '-')}" for one in (step, *known))
        name = Name(self._prepared.at, unique)
        parts = stamped(self._edited, job.sender, key.recipient, key.original)
        try:
            filed = job.maildir.deliver(
                folder, name, parts, fresh=self._prepared.fresh, flags=flags, create=create, known=others
            )
        except NoFolderError as error:
            return Outcome("refused", error.strerror or "")
        return Outcome("done", str(name) if filed else f"{name}, there already")

    def _pipe(self, delivery: Pipe) -> Outcome:
        job = self._job
        message = b"".join(stamped(self._edited, job.sender, job.key.recipient, job.key.original))
        ran = job.programs.run(delivery.program, delivery.arguments, message, job.variables, wanted=False)
        return Outcome("done", delivery.program) if ran.done else Outcome("failed", str(ran))

    def _keep(self, flags: Sequence[str]) -> Outcome:
        if self._job.keep_here:
            return self._file(self._keep_step, (), flags, known=self._known_keeps)
        outcome = self._send("KEEP", {})
        return Outcome("failed", outcome.detail) if outcome.word == "refused" else outcome

    def _send(self, kind: str, fields: Mapping[str, str]) -> Outcome:
        if not self._decision.edits and not self._decision.filters and not self._decision.message:
            return self._job.submit.ask(kind, fields)
        message = sealed.seal([self._edited])
        try:
            return self._job.submit.ask(kind, fields, message)
        finally:
            os.close(message)

    def _write(self, step: str, letter: Send) -> Outcome:
        if len(letter.text.encode("utf-8", "surrogateescape")) > _REPLY_TEXT:
            return Outcome("refused", f"the text is longer than {_REPLY_TEXT} bytes")
        asked = {"to": letter.to, "subject": letter.subject[:900], "text": letter.text, "step": step}
        return self._job.submit.ask("SEND", asked | {"script": letter.script, "from": letter.sender})

    def _reply(self, step: str, reply: SendReply | Vacation) -> Outcome:
        if self._decision.verdict is Verdict.REJECT:
            return Outcome("refused", "the message is rejected, which is answer enough")
        if len(reply.text.encode("utf-8", "surrogateescape")) > _REPLY_TEXT:
            return Outcome("refused", f"the text is longer than {_REPLY_TEXT} bytes")
        asked = {"rule": reply.rule[:200], "subject": reply.subject[:900], "text": reply.text, "step": step}
        if isinstance(reply, SendReply) and reply.script:
            asked |= {"script": reply.script, "from": reply.sender}
        if isinstance(reply, Vacation):
            if any(isinstance(one, Vacation) for one in self._decision.deliveries[: int(step)]):
                return Outcome("refused", SECOND_VACATION)
            addresses = "\n".join(reply.addresses)
            asked |= {"days": str(reply.days), "handle": reply.handle, "from": reply.from_, "addresses": addresses}
        return self._job.submit.ask("REPLY", asked)


def carry_out(job: Job, decision: Decision, prepared: Prepared) -> Answer:
    """Carry out what the record says and is not done yet. Never raises for what a delivery runs into: it defers.

    Replies and what scripts send come last, and only when everything else is done. Raises StateError where the journal
    cannot be read.
    """
    if decision.verdict not in _VERDICT_ENDS or (decision.verdict is not Verdict.DISCARD and not _does(decision)):
        return Answer("defer", f"a decision that cannot be carried out: {decision.verdict.value}")
    steps = _Steps(job, decision, prepared)
    numbered = [(str(number), delivery) for number, delivery in enumerate(decision.deliveries)]
    for replies in (False, True):
        some = [pair for pair in numbered if isinstance(pair[1], _LAST) is replies]
        failed = [step for step, delivery in some if not steps.deliver(step, delivery)]
        if failed:
            return Answer("defer", steps.why(failed[0]), steps.outcomes)
    if decision.filters and job.filtered is not None:
        job.filtered.remove()
    status = _VERDICT_ENDS[decision.verdict]
    return Answer(status, rejection(decision.reply) if status == "reject" else "", steps.outcomes)


def left_to_keep(decision: Decision, raw: bytes) -> Answer | None:
    """Return the answer that leaves a message to who gave the job, where to keep it is all there is to do; else None.

    Filters would run again with a retry, so theirs is more. Raises OSError.
    """
    ends_well = decision.verdict in _ENDS_WELL
    if not ends_well or [*map(type, decision.deliveries)] != [Keep] or decision.filters:
        return None
    as_it_came = not decision.edits and not decision.message
    return Answer("keep", edited=-1 if as_it_came else sealed.seal([_as_edited(decision, raw)]))


def _keeps(decision: Decision, *, here: bool) -> dict[str, Sequence[str]]:
    """Return step and flags of each delivery that is a keep, as filing into the inbox is, where mail is kept there."""
    return {
        str(number): one.flags
        for number, one in enumerate(decision.deliveries)
        if isinstance(one, Keep) or (isinstance(one, File) and here and not folder_name(one.folder))
    }


def _as_edited(decision: Decision, raw: bytes) -> bytes:
    """Return the message, edited, before any filter. raw: as it came."""
    message = decision.message.encode("latin-1") or raw
    return apply(message, decision.edits) if decision.edits else message


def through(programs: Programs, one: Filter, message: bytes, variables: Mapping[str, str]) -> tuple[bytes, str]:
    """Return what a filter makes of a message, or b"" and why it is none."""
    ran = programs.run(one.program, one.arguments, message, variables, wanted=True)
    if not ran.done:
        return b"", str(ran)
    written = _message_in(ran.output)
    return written, "" if written else f"{one.program} wrote no message"


def _message_in(written: bytes) -> bytes:
    """Return the message that a filter wrote, without a line `From ` before it; b"" where it is none.

    The least that makes one is a field in its first line: nothing at all, or what a program says of its troubles, must
    not take the place of somebody's mail.
    """
    line, newline, rest = written.partition(b"\n")
    message = rest if newline and line.startswith(b"From ") else written
    return message if _FIELD.match(message) else b""


def _does(decision: Decision) -> bool:
    """Tell whether the decision puts the message anywhere, or refuses it."""
    return decision.verdict is Verdict.REJECT or any(not isinstance(one, _LAST) for one in decision.deliveries)


def rejection(reply: Reply | None) -> str:
    """Return `5.x.y text` for pipe(8): an enhanced status of class 5 at its first byte, one printable line."""
    return _answered(reply, "5.7.1", "Message refused by its recipient")


def deferral(reply: Reply | None) -> str:
    """Return `4.x.y text` likewise: pipe(8) defers with that status, and lmtp(8) does."""
    return _answered(reply, "4.7.1", "Message deferred by its recipient")


def _answered(reply: Reply | None, default: str, text: str) -> str:
    if reply is None:
        return f"{default} {text}"
    status = reply.status if reply.status.startswith(default[:2]) else default
    return printable(f"{status} {reply.line}", 500)
