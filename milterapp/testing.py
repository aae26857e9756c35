"""What the tests of a script need: an application that mail is spoken to, and what came of it; in this process.

Must never: carry anything out; what would leave, or be filed or written, is there to be looked at.

The script runs as it does for the agent, its memory is the agent's, its answers pass submit's guards and are
the messages that submit would send; only the sandbox and the site's rates are not there, so it may do here what
milterapp-script(7) says it cannot. Use it for scripts that you would run yourself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from milterapp.delivery import replies
from milterapp.delivery.remembering import Remembering
from milterapp.delivery.said import change_of, check_kept, said
from milterapp.mail.edits import apply
from milterapp.mail.envelope import Envelope, split_address
from milterapp.mail.message import Mail
from milterapp.mail.values import HeaderText
from milterapp.rules.decision import Verdict
from milterapp.rules.deliveries import Delivery, File, Forward, Keep, Send, SendReply
from milterapp.rules.lists import NamedList
from milterapp.rules.membership import Membership
from milterapp.script import stored
from milterapp.script.plan import Failure, PlanLimits
from milterapp.script.run import Job, run
from milterapp.state.conversations import Conversations

__all__ = ["Application", "Letter", "Said", "ScriptFailedError", "mail"]

_MOST_ROUNDS = 100  # messages that one may cause where an application writes to itself
_MOST_KEYS = 100_000


class ScriptFailedError(AssertionError):
    """The script raised, or asks for what cannot be done; str() is what its author would be told."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that left. sender, to: of its envelope, "" for the null sender."""

    sender: str
    to: str
    raw: bytes = field(repr=False)

    @property
    def mail(self) -> Mail:
        """The message, to be read."""
        return Mail(self.raw)

    @property
    def subject(self) -> str:
        """The subject, decoded."""
        return self.mail.subject or ""

    @property
    def text(self) -> str:
        """The text, decoded."""
        return self.mail.text

    @property
    def from_(self) -> str:
        """The first address of From."""
        return next((one.address for one in self.mail.addresses("From")), "")

    def header(self, name: str) -> str:
        """The first value of a field, decoded; "" without one."""
        return next(iter(self.mail.values(name)), "")


@dataclass(slots=True)
class Said:
    """What came of a message. letters: what left; refused: status and text of a refusal or deferral, "" for none.

    unsent: why answers did not leave; kept: it is in the inbox; routed: False where the script had nothing to say.
    failed: what the author would be told, where a function failed and ERROR answered in its place.
    """

    letters: list[Letter] = field(default_factory=list)
    refused: str = ""
    unsent: list[str] = field(default_factory=list)
    kept: bool = False
    routed: bool = True
    failed: str = ""

    @property
    def letter(self) -> Letter:
        """The one letter. Raises AssertionError where there are none or several."""
        if len(self.letters) != 1:
            raise AssertionError(f"expected one letter, found {self.letters}; unsent: {self.unsent}, {self.refused!r}")
        return self.letters[0]


def mail(text: str = "", *, to: str, sender: str, subject: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a message as its bytes: these header fields, and a text in UTF-8. headers: more fields, or others."""
    fields = {"From": f"<{sender or 'MAILER-DAEMON@example.net'}>", "To": f"<{to}>"}
    fields |= {"Subject": HeaderText.encode(subject)} if subject else {}
    fields |= {"MIME-Version": "1.0", "Content-Type": "text/plain; charset=utf-8"} | dict(headers or {})
    lines = [f"{name}: {value}\n" for name, value in fields.items()]
    return "".join([*lines, "\n", text]).encode("utf-8", "replace")


class Application:
    """A script and its user, whom people write to. user: an address whose extensions are the user's too.

    inbox, folders: messages kept and filed; outputs: files by name; sent: every letter so far. now: the time, which
    stands still until it is set. recipients: as delivery.script_recipients. site: the site's lists, entries by name.
    """

    def __init__(
        self,
        script: str | os.PathLike[str],
        *,
        user: str = "app@example.org",
        recipients: int = 20,
        site: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._path = os.fspath(script)
        self.user = user
        self.inbox: list[bytes] = []
        self.folders: dict[str, list[bytes]] = {}
        self.outputs: dict[str, str] = {}
        self.sent: list[Letter] = []
        self.now = datetime(2026, 5, 1, 12, tzinfo=UTC)
        self._limits = PlanLimits(recipients=recipients)
        self._number = 0
        self._site = Membership({name: NamedList.of(name, one) for name, one in (site or {}).items()})
        self._folder = tempfile.TemporaryDirectory(prefix="milterapp-")
        self._kept = Conversations(os.path.join(self._folder.name, "scripts.sqlite"))

    def close(self) -> None:
        """Forget everything."""
        self._kept.close()
        self._folder.cleanup()

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Speaking to it

    def later(self, **time: float) -> None:
        """Let time go by: days, hours, minutes, as timedelta has them."""
        self.now += timedelta(**time)

    def say(
        self,
        to: str,
        text: str = "hello\n",
        *,
        sender: str,
        subject: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Said:
        """Send it a message. Raises ScriptFailedError."""
        return self.deliver(mail(text, to=to, sender=sender, subject=subject, headers=headers), sender=sender, to=to)

    def answer(self, letter: Letter, text: str = "yes\n", *, sender: str = "") -> Said:
        """Answer a letter of its: to where that came from, as who got it. Raises ScriptFailedError."""
        return self.say(letter.from_, text, sender=sender or letter.to, subject=f"Re: {letter.subject}")

    def bounce(self, letter: Letter, status: str = "5.1.1") -> Said:
        """Have a letter of its come back, as Postfix reports it (RFC 3464). Raises ScriptFailedError."""
        report = (
            f"--x\n\nIt could not be delivered.\n--x\nContent-Type: message/delivery-status\n\n"
            f"Reporting-MTA: dns; mx.example.net\n\nFinal-Recipient: rfc822; {letter.to}\n"
            f"Action: failed\nStatus: {status}\nDiagnostic-Code: smtp; 550 {status} no\n\n--x--\n"
        )
        kind = {"Content-Type": "multipart/report; report-type=delivery-status; boundary=x"}
        return self.say(letter.sender, report, sender="", subject="Undelivered", headers=kind)

    def deliver(self, raw: bytes, *, sender: str, to: str) -> Said:
        """Give it a message as its bytes. What it writes to itself arrives too. Raises ScriptFailedError."""
        whole = self._one(raw, sender, to)
        waiting = list(whole.letters)
        for _ in range(_MOST_ROUNDS):
            own = next((one for one in waiting if self._is_own(one.to)), None)
            if own is None:
                return whole
            waiting.remove(own)
            more = self._one(own.raw, own.sender, own.to)
            waiting += more.letters
            whole.letters += more.letters
        raise ScriptFailedError(f"a mail loop: {whole.letters[-2:]}")

    # Looking at it

    def state(self, sender: str, *per: str) -> str:
        """Return a sender's state for these captures, "START" where it has none."""
        return self._kept.state(self._name, sender, per) or "START"

    def stored(self, key: str, default: Any = None) -> Any:
        """Return what is stored under a key."""
        found = self._kept.value(self._name, key)
        return default if found is None else stored.from_text(found)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin so, in order."""
        return [key for key, _ in self._kept.keys(self._name, prefix, _MOST_KEYS)]

    # One message

    @property
    def _name(self) -> str:
        return os.path.basename(self._path)

    def _is_own(self, address: str) -> bool:
        return replies.is_own(address, Envelope(recipients=(self.user,)))

    def _one(self, raw: bytes, sender: str, to: str) -> Said:
        self._number += 1
        now = int(self.now.timestamp())
        envelope = Envelope(sender=sender, recipients=(self.user,), original_recipient=to, queue_id=f"Q{self._number}")
        memory = Remembering(self._kept, self._name, sender, self._site, self.now.timestamp)
        with open(self._path, "rb") as file:
            source = file.read()
        folder = os.path.dirname(os.path.abspath(self._path))
        found = run(Job(source, self._path, raw, envelope, plan_limits=self._limits, now=now, folder=folder), memory)
        if isinstance(found, Failure):
            raise ScriptFailedError(found.trace or f"{found.kind}: {found.text}")
        check_kept(found, len(raw))
        plan = said(found, self._name, sender, memory)
        result = Said(routed=plan.routed, failed=found.failed.trace if found.failed is not None else "")
        if plan.reply is not None:
            result.refused = f"{plan.reply.status} {plan.reply.line}"
        if plan.verdict is Verdict.DEFER:
            return result
        message = plan.message.encode("latin-1") or raw
        edited = apply(message, plan.edits) if plan.edits else message
        if plan.run is not None:
            change = change_of(plan.run, self._limits, envelope, message, now)
            self._kept.commit(envelope.queue_id, "", [change], mails=0, now=now)
            for one in self._kept.outputs(10_000):
                self.outputs.pop(one.path, None)
                self.outputs |= {} if one.text is None else {one.path: one.text}
                self._kept.written(one.number)
        for number, delivery in enumerate(plan.deliveries):
            result.letters += self._deliver(delivery, number, edited, Mail(raw), envelope, result)
        ends = any(
            isinstance(one, Keep | File | Forward) and not getattr(one, "copy", False) for one in plan.deliveries
        )
        if any(isinstance(one, Keep) for one in plan.deliveries) or (plan.verdict is Verdict.NONE and not ends):
            result.kept = True
            self.inbox.append(edited)
        self.sent += result.letters
        return result

    def _deliver(
        self, one: Delivery, number: int, edited: bytes, came: Mail, envelope: Envelope, result: Said
    ) -> Iterator[Letter]:
        if isinstance(one, File):
            self.folders.setdefault("/".join(one.folder), []).append(edited)
        elif isinstance(one, Forward):
            self._check_own(one.sender, envelope)
            marks = {value.strip().lower() for value in came.raw_values("Delivered-To")}
            if self.user.lower() in marks:
                result.unsent.append(f"{one.to}: mail forwarding loop")
            else:
                sender = (one.sender or envelope.sender) if envelope.sender else ""
                yield Letter(sender, one.to, f"Delivered-To: {self.user}\n".encode() + edited)
        elif isinstance(one, SendReply):
            self._check_own(one.sender, envelope)
            if reason := replies.refusal(came, envelope, ()):
                result.unsent.append(f"{envelope.sender}: {reason}")
                return
            yield Letter("", envelope.sender, b"".join(replies.build(
                came, sender=envelope.sender, own=one.sender or replies.answering(came, envelope), subject=one.subject,
                text=one.text, now=self.now, message_id=self._id(number),
            )))  # fmt: skip
        elif isinstance(one, Send):
            self._check_own(one.sender, envelope)
            own = one.sender or replies.answering(came, envelope)
            sender = "" if replies.written_by_nobody(came, envelope) else own
            yield Letter(sender, one.to, b"".join(replies.letter(
                own=own, to=one.to, subject=one.subject, text=one.text, now=self.now, message_id=self._id(number)
            )))  # fmt: skip

    def _id(self, number: int) -> str:
        return f"{self._number}.{number}@{split_address(self.user)[1]}"

    def _check_own(self, address: str, envelope: Envelope) -> None:
        if address and not replies.is_own(address, envelope):
            raise ScriptFailedError(f"{address}: a script can only write as an address of its user's")
