"""The agent: with the recipient's ids, that person's rules for one message after the other, until the monitor hangs up.

Must never: answer `ok` or `reject` for a fault of ours, do anything that was not journalled first, or submit mail
itself (submit does, over the connection that came with the message).

The order for each message: rules, Decision, what scripts change (with the record), journal (*prepared*), files of
scripts, deliveries, each marked done, answer. A retry finds the record and only does what is missing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

from milterapp.delivery import fenced, notice, record, refusals, sealed, wire
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.carry_out import Answer, Job, Submit, carry_out, deferral, left_to_keep
from milterapp.delivery.explained import bounded, explained
from milterapp.delivery.filtered import Filtered
from milterapp.delivery.programs import Programs, environment
from milterapp.delivery.requests import JOB, printable
from milterapp.delivery.rulefile import Loaded, Unavailable, open_home
from milterapp.delivery.ruleset import Ruleset
from milterapp.delivery.scripts import MEMORY, RefusedError, Scripts, concerns_scripts
from milterapp.delivery.stores import Maildir
from milterapp.delivery.sweeping import Sweeper
from milterapp.mail import findings
from milterapp.mail.envelope import Envelope, Stage, stated
from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.deliveries import Keep
from milterapp.rules.facts import Facts
from milterapp.rules.truth import Failed, Need, Value
from milterapp.script.plan import PlanError
from milterapp.state.database import exists
from milterapp.state.journal import Journal, Key, StateError
from milterapp.state.rates import Rates

__all__ = ["STATE", "Agent", "serve"]

STATE = ".milterapp"  # below the home: the journal, and by default the rules
_JOURNAL = "journal.sqlite"
_RATES = "rates.sqlite"  # beside it: what the conditions rate and duplicate remember
_LONGEST_READ = 1 << 31  # bytes; the limits of reading mail are settings and lower, this only keeps a size sane
_FAULTS = (StateError, record.RecordError, sealed.SealError, wire.WireError, PlanError, OSError)


def serve(
    control: socket.socket, settings: AgentSettings, home: str, user: str, programs: int = -1, *, alone: bool = False
) -> NoReturn:
    """Serve jobs over the control socket until its end, then exit. The caller has dropped and verified the ids.

    programs: the descriptor of the connection to a runner, -1 for none; without its runner an agent ends as well,
    and where the home could not be opened, or is another by now: this one will never reach it. alone: as Agent's.
    What waits too long is killed by the monitor; SIGALRM, a little later, is for where the monitor is gone.
    """
    os.umask(0o077)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    control.setblocking(True)  # noqa: FBT003 - the name of the method says it
    agent = Agent(
        settings, home, user, Programs(socket.socket(fileno=programs) if programs >= 0 else None), alone=alone
    )
    status = 0
    try:
        while (job := wire.receive(control, JOB, descriptors=(1, 2))) is not None:
            signal.setitimer(signal.ITIMER_REAL, settings.deadline + 10)
            answer, event = agent.answer(job)
            said = {"status": answer.status, "text": printable(answer.text, 600), "event": event}
            wire.send(control, "ANSWER", said, () if answer.edited < 0 else (answer.edited,))
            if answer.edited >= 0:
                os.close(answer.edited)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if agent.programs.lost or agent.homeless:
                break
            agent.sweep(time.time(), lambda: _waits(control))
    except BaseException:  # noqa: BLE001 - the process's edge: without an answer the monitor defers
        status = 70
    os._exit(status)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A job as it came over the socket, its message in memory."""

    envelope: Envelope
    key: Key
    raw: bytes
    submit: Submit


class Agent:
    """One user's agent: rules and journal stay open from one message to the next.

    alone: there is no submit to remember what it only has to keep.
    """

    def __init__(
        self, settings: AgentSettings, home: str, user: str, programs: Programs | None = None, *, alone: bool = False
    ) -> None:
        self._settings = settings
        self._alone = alone
        self.programs = programs or Programs()
        self._home = home
        self.homeless = False
        self._warm = False
        self._line = -1  # to submit, which the last message had no use for
        self._user = user
        self._limits = Limits(**settings.limits)
        self._rules = Ruleset(settings, os.geteuid())
        self._journal: Journal | None = None
        self._journal_path = os.path.join(home, STATE, _JOURNAL)
        self._rates: Rates | None = None
        self._scripts = Scripts(settings, os.path.join(home, STATE), self._rules, _make_state)
        self._sweeper = Sweeper(
            home, STATE, (_JOURNAL, _RATES, MEMORY), settings.keep_records, min(1.0, settings.deadline / 10)
        )

    def answer(self, job: wire.Datagram) -> tuple[Answer, str]:
        """Return the answer for one job and its event as JSON; every fault is a deferral. Closes what came.

        `again` is said of one that has not begun, where the home is another than when this process started.
        What comes with the message is the line to submit; where none comes, the former one was not used yet.
        """
        start = time.monotonic()
        event: dict[str, Any] = {"user": self._user}
        self.programs.begin(until := start + self._settings.working)
        self._scripts.begin(until)
        message, *lines = job.descriptors
        submit = Submit(lines[0] if lines else self._line)
        if lines and self._line >= 0:
            os.close(self._line)
        try:
            if self._warm and fenced.moved():
                self.homeless = True
                answer = Answer("again", "another home is there by now")
            else:
                answer = self._deliver(_arrived(job, message, submit), event)
        except Unavailable as error:
            self.homeless = True
            answer = Answer("defer", str(error))
        except _FAULTS as error:
            answer = Answer("defer", str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the edge of one message: whatever it is, Postfix keeps the message
            answer = Answer("defer", f"internal error: {type(error).__name__}")  # its words may be the message's
            event["fault"] = _place(error)
        finally:
            self._scripts.end()
            self._line = submit.rest()
            os.close(message)
        if answer.status == "defer" and fenced.moved():
            self.homeless = True
        self._warm = True
        event["programs"] = list(self.programs.runs)
        event["seconds"] = round(time.monotonic() - start, 4)
        if answer.outcomes:
            event["outcomes"] = {step: f"{one.word} {one.detail}".strip() for step, one in answer.outcomes.items()}
        return answer, bounded(event)

    def sweep(self, now: float, wanted: Callable[[], bool]) -> None:
        """Forget records too old for Postfix to ask about again, once a day. Arguments are those of Sweeper.sweep()."""
        if self._journal is not None:
            self._sweeper.sweep(now, wanted)

    def _deliver(self, arrived: _Arrived, event: dict[str, Any]) -> Answer:
        with open_home(self._home, os.geteuid()) as home:
            journal = self._journal_in(home)
            prepared = None if journal is None else journal.find(arrived.key)
            text = prepared.record if prepared is not None else self._scripts.committed(home, arrived.key.word)
            if text:
                loaded, decision = None, record.from_text(text)
            else:
                loaded = self._rules.load(home)
                decision = self._decide(loaded, arrived, home)
                self._tell(arrived, home, event)
            event.update(explained(decision), retry=bool(text))
            if decision.verdict is Verdict.DEFER:
                return Answer("defer", decision.could_not_tell or deferral(decision.reply))
            left = bool(text) and not self._alone and record.is_left(text)  # and stays so, whatever the site has by now
            keep_here = self._settings.keep == "maildir" and not left
            ruleless = loaded is not None and loaded.policy is loaded.site is None and not loaded.problems
            if home is None or (ruleless and not keep_here and not (self._alone and _remembers(home))):
                return Answer("keep")  # nothing to remember here: submit remembers
            now = int(time.time())
            journal = journal or self._new_journal(home)
            if prepared is None:
                known, scripts = bool(text), concerns_scripts(decision)
                text = text or record.to_text(decision, left=not (keep_here or self._alone))
                if scripts and not known and (too_many := self._scripts.too_many(decision, now)):
                    return Answer("defer", too_many)
                if scripts:
                    self._scripts.commit(home, arrived.key.word, text, decision, arrived.envelope, arrived.raw, now)
                prepared = journal.prepare(arrived.key, text, now)
                if scripts:
                    self._scripts.journalled(arrived.key.word)
                decision = decision if prepared.fresh else record.from_text(prepared.record)
                if known:  # it was decided before, so it may have been filed before, whatever became of the journal
                    prepared = replace(prepared, fresh=False)
            if decision.scripts and (refused := self._scripts.write(home)):
                event["outputs"] = refused
            if (
                self._settings.keep == "postfix"
                and (prepared.fresh or not journal.steps(arrived.key))  # it may be done where the site kept mail before
                and (kept := left_to_keep(decision, arrived.raw)) is not None
            ):
                return kept  # submit marks that: a retry asks again, and hears that it is done
            maildir = Maildir(home, self._settings.maildir)
            job = Job(
                arrived.envelope.sender, arrived.key, arrived.raw, journal, maildir, arrived.submit, now, keep_here,
                programs=self.programs,
                variables=environment(arrived.envelope, self._settings.delimiter) if self._settings.programs else {},
                filtered=Filtered(home, STATE, arrived.key.word),
            )  # fmt: skip
            return carry_out(job, decision, prepared)

    def _decide(self, loaded: Loaded, arrived: _Arrived, home: int | None) -> Decision:
        """Return what the rules say; where there are none, or none that can be used, what the site says then."""
        keep = Decision(stage=Stage.BODY, deliveries=(Keep(implicit=True),), problems=loaded.problems)
        if loaded.broken:
            self._scripts.told.append(notice.of_rules(loaded.problems))
        policy = loaded.policy or loaded.site
        if loaded.broken and self._settings.broken_rules != "keep":
            errors = [str(one) for one in loaded.problems if not one.warning]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            text = f"the rules of the recipient cannot be used: {errors[0]}{more}"
            return Decision(Verdict.DEFER, problems=loaded.problems, could_not_tell=text)
        if policy is None:
            return keep
        mail = Mail(arrived.raw, self._limits)
        found = _findings(mail, arrived.key.queue_id)
        facts = Facts(
            stage=Stage.BODY,
            envelope=arrived.envelope,
            recipient=arrived.key.recipient,
            mail=mail,
            now=datetime.now().astimezone(),
            delimiter=self._settings.delimiter,
            score=found.score,
            tags=frozenset(found.tags),
        )
        answers: dict[Need, Value] = {}
        try:
            while isinstance(decision := decide(policy, facts, answers), Need):
                answers[decision] = self._answered(decision, loaded, arrived, home)
        except RefusedError as refused:
            return replace(keep, could_not_tell=str(refused))
        if not decision.could_not_tell:
            own = self._settings
            return refusals.answered(decision, mail, arrived.envelope, own.reject, own.authserv_ids)
        if (decision.on_error or self._settings.broken_rules) == "keep":
            return replace(keep, matched=decision.matched, could_not_tell=decision.could_not_tell)
        return replace(decision, verdict=Verdict.DEFER, deliveries=())

    def _answered(self, need: Need, loaded: Loaded, arrived: _Arrived, home: int | None) -> Value:
        """Return what a rule must know and only memory, a script or a program tells; else it could not be told."""
        if home is not None and need.kind == "script":
            return self._scripts.answer(need.key[0], loaded, arrived.envelope, arrived.raw, home)
        if home is not None and need.kind == "command":
            return self.programs.command(need.key, arrived.raw, arrived.envelope, self._settings.delimiter)
        if home is None or need.kind not in ("rate", "duplicate"):
            return Failed(f"{need.kind}: nothing is remembered here")
        try:
            if self._rates is not None and not self._rates.database.still_there():
                self._rates.close()
                self._rates = None
            if self._rates is None:
                _make_state(home)
                self._rates = Rates(os.path.join(self._home, STATE, _RATES))
            ask = self._rates.rate if need.kind == "rate" else self._rates.duplicate
            return ask(need.rule, need.key, arrived.key.word, now=time.time(), within=need.within)
        except (StateError, OSError) as error:
            return Failed(str(error))

    def _tell(self, arrived: _Arrived, home: int | None, event: dict[str, Any]) -> None:
        """Tell a user once that rules or a script failed; that this cannot be done is no reason to do anything else.

        It is remembered when it is sent, and sent only where that can be remembered: else it came with every message.
        An attempt that died between the two is repeated, and the letter is the same one.
        """
        if home is None or not self._scripts.told:
            return
        now, keeps, said = int(time.time()), self._settings.broken_rules == "keep", []
        here = Maildir(home, self._settings.maildir) if self._settings.keep == "maildir" else None
        try:
            for told in self._scripts.news(home):
                begun = replace(told, handle=f"{told.handle} begun")
                self._scripts.tell(home, begun, now)
                letter = notice.Letter(told, arrived.envelope, arrived.key, arrived.raw, now, keeps)
                outcome = notice.tell(letter, home, STATE, here, arrived.submit)
                said.append(f"{outcome.word} {outcome.detail}".strip())
                if outcome.word == "done":
                    self._scripts.tell(home, told, now)
                self._scripts.untell(begun)
        except (StateError, OSError) as error:
            said.append(f"failed {error}")
        event["notice"] = "; ".join(said)

    def _journal_in(self, home: int | None) -> Journal | None:
        """Return the user's journal, None where there is none yet. Raises StateError."""
        if self._journal is not None and not self._journal.database.still_there():
            self._journal.close()
            self._journal = None
        if self._journal is None and home is not None and exists(self._journal_path):
            self._journal = Journal(self._journal_path)
        return self._journal

    def _new_journal(self, home: int) -> Journal:
        """Return the user's journal, made now in a folder only that user can open. Raises StateError or OSError."""
        _make_state(home)
        self._journal = Journal(self._journal_path)
        self._sweeper.begin(time.time())
        return self._journal


def _waits(control: socket.socket) -> bool:
    """Tell whether the next job is there already."""
    try:
        return bool(control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _findings(mail: Mail, queue_id: str) -> findings.Findings:
    """Return what the in-line rules found; nothing where a limit hides the header: each rule will say so itself."""
    try:
        return findings.read(mail, queue_id)
    except LimitHit:
        return findings.NOTHING


def _make_state(home: int) -> None:
    """Make the folder that only the user can open, where there is none. Raises OSError."""
    try:
        os.mkdir(STATE, 0o700, dir_fd=home)
        os.fsync(home)
    except FileExistsError:
        pass  # its owner and mode are looked at where a file in it is opened


def _remembers(home: int) -> bool:
    """Tell whether its user may have a journal there, as most system accounts may not. Raises OSError: not now."""
    try:
        _make_state(home)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    return True


def _arrived(job: wire.Datagram, message: int, submit: Submit) -> _Arrived:
    """Return the job with its message read, once. Raises SealError."""
    raw = sealed.read(message, sealed.measure(message, _LONGEST_READ))
    client = job.text("client")
    recipient, original = job.text("recipient"), stated(job.text("original"))
    envelope = Envelope(
        client="" if client == "unknown" else client,
        local=client in ("", "unknown"),
        sender=job.text("sender"),
        recipients=(recipient,),
        original_recipient=original,
        queue_id=job.text("queue_id"),
    )
    key = Key(envelope.queue_id, recipient, original, hashlib.sha256(raw).hexdigest())
    return _Arrived(envelope, key, raw, submit)


def _place(error: Exception) -> str:
    """Return what a fault of ours was and where, for the log."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{printable(repr(error))} at {os.path.basename(last.filename)}:{last.lineno}"
