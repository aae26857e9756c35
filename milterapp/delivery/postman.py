"""What submit does with one request: policy, guards, the SMTP transaction, and the mark that it is done.

Must never: send without asking the guards, send again what the journal marks, or begin twice what is under way.

Once a message of the same key went out, the same request is answered with the first queue id. Marks that are due at
one moment are one write to the disk. Where the mark cannot be written (a full disk), this process remembers it, and
sends nothing more before it is. The gap that remains: Postfix took a message and the process died before the mark was
on disk; then a retry sends it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain

from milterapp.delivery import replies, sealed, smtp, trace, wire
from milterapp.delivery.held import Held
from milterapp.delivery.smtp_sessions import Sessions
from milterapp.delivery.stores import one_line
from milterapp.delivery.submit_policy import SubmitPolicy
from milterapp.delivery.tasks import Task
from milterapp.mail.envelope import split_address
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from milterapp.state.journal import Journal, Key
from milterapp.state.rates import Rates
from milterapp.state.replied import Replied

__all__ = ["DeferredError", "Postman", "RefusedError"]

_MOST_REPLIES = 4  # one message may cause, whatever its rules say
_MOST_NOTICES = 20  # likewise: its recipient may break rules and scripts in several ways while it waits
_KEEP_RECORDS = 30 * 86400  # seconds; longer than Postfix tries (maximal_queue_lifetime)
_LONGEST_DAYS = 365  # of a vacation
_MOST_ADDRESSES = 20  # a vacation may name beside the envelope's
_DAY = 86400
_HOUR = 3600.0
_STEP = re.compile(r"[0-9A-Za-z.]{1,32}")


class RefusedError(Exception):
    """Policy or guards say no; final. str() says why."""


class DeferredError(Exception):
    """Not now; str() says why."""


class Postman:
    """Carries requests out, a task each, all of one thread. Raises StateError where its state cannot be opened."""

    def __init__(self, policy: SubmitPolicy) -> None:
        self._policy = policy
        os.makedirs(policy.state, mode=0o700, exist_ok=True)
        self._journal = Journal(os.path.join(policy.state, "journal.sqlite"), large=True)
        self._replied = Replied(os.path.join(policy.state, "replied.sqlite"))
        self._rates = Rates(os.path.join(policy.state, "rates.sqlite"))
        self._sessions = Sessions(policy.timeout)
        self._under_way: set[str] = set()
        self._owed: dict[tuple[Key, str], tuple[str, int]] = {}  # key and mark to queue id and time

    def sweep(self, now: int) -> None:
        """Forget what is too old to matter. now: seconds since 1970. Raises StateError."""
        self._journal.expire(now - _KEEP_RECORDS)
        self._rates.expire(now - _KEEP_RECORDS)
        self._replied.expire(now - max(_LONGEST_DAYS * _DAY, int(self._policy.reply_interval)))

    def leave(self) -> None:
        """Take leave of Postfix; what comes after all has a session of its own."""
        self._sessions.close()

    def tidy(self) -> bool:
        """Leave the sessions that were kept for long enough; return whether there are others, to ask for again."""
        self._sessions.sweep()
        return bool(self._sessions)

    def close(self) -> None:
        """Close the state."""
        self.leave()
        self._journal.close()
        self._replied.close()
        self._rates.close()

    def carry(self, held: Held, request: wire.Datagram, now: float) -> Task[str]:
        """Carry one request out and return Postfix's queue id. now: seconds since 1970.

        A 5xx is temporary for what is kept. It is final for a forward, which its owner then keeps, and a reply: else
        the message would be tried for days and come back though it was delivered.
        Raises RefusedError (final); DeferredError, SmtpError, AddressError, StateError or OSError (temporary).
        """
        step = request.text("step")
        if request.kind != "KEEP" and not _STEP.fullmatch(step):
            raise RefusedError("the step of the request is no short word")
        mark = " ".join((request.kind, step, request.text("to"))).strip()
        mark = mark.encode("utf-8", "backslashreplace").decode()
        key = held.key
        with self._alone(key.word):
            self._write_owed()
            done = self._journal.steps(key)
            if mark in done:
                return done[mark]
            most = _MOST_NOTICES if request.kind == "NOTICE" else self._most(request)
            if request.kind != "KEEP" and sum(one.startswith(request.kind + " ") for one in done) >= most:
                raise RefusedError(f"no more than {most} of these for one message")
            try:
                queue_id = yield from _KINDS[request.kind](self, held, request, now)
            except LimitHit as limit:
                raise RefusedError(f"the header cannot be read whole: {limit}") from limit
            except (smtp.FinalError, smtp.AddressError) as error:
                if request.kind == "KEEP":
                    raise
                raise RefusedError(str(error)) from error
            self._owed[key, mark] = queue_id, int(now)
            try:
                yield None  # whoever has one to write now is written with it
            finally:
                self._write_owed()
            return queue_id

    def _most(self, request: wire.Datagram) -> int:
        """Return how many requests of this kind one message may cause."""
        if request.kind == "SEND" or (request.kind == "FORWARD" and request.text("script")):
            return self._policy.script_recipients
        return self._policy.forwards if request.kind == "FORWARD" else _MOST_REPLIES

    def _write_owed(self) -> None:
        """Mark what Postfix took and is not marked yet. Raises StateError: then nothing more may be sent."""
        if self._owed:
            owed = dict(self._owed)
            self._journal.mark_all([(key, mark, *result) for (key, mark), result in owed.items()])
            self._owed.clear()

    @contextmanager
    def _alone(self, word: str) -> Iterator[None]:
        """Let one request of a message run at a time: its first one may still wait for Postfix."""
        if word in self._under_way:
            raise DeferredError("another request for this message is under way")
        self._under_way.add(word)
        try:
            yield
        finally:
            self._under_way.discard(word)

    def _keep(self, held: Held, request: wire.Datagram, _now: float) -> Task[str]:
        door = self._keeper(held)
        first = b"" if door.startswith(smtp.LMTP) else self._trace(held, request, trace.HANDED_BACK)
        return self._pass_on(door, held.envelope.sender, held.recipient, _message(held, request), first)

    def _keeper(self, held: Held) -> str:
        """Return who takes what is kept. Whom the monitor names no user of, Postfix alone knows what to do with."""
        lmtp = self._policy.keep.startswith(smtp.LMTP) and held.user
        if lmtp:
            return self._policy.keep
        return self._policy.hand_back_virtual if held.virtual else self._policy.hand_back

    def _forward(self, held: Held, request: wire.Datagram, _now: float) -> Task[str]:
        target, recipient = request.text("to"), held.recipient
        if not all(split_address(target)):
            raise RefusedError("the address to forward to is not local@domain")
        marks = {value.strip().lower() for value in self._header(held).raw_values("Delivered-To")}
        own = self._own(held, request)
        here = {one.lower() for one in (recipient, own) if one}
        if target.lower() in here or here & marks:
            raise RefusedError("mail forwarding loop: the message was here before")
        sender = (own or held.envelope.sender) if held.envelope.sender else ""
        if sender == held.envelope.sender and sender and self._policy.forward_sender == "recipient":
            sender = recipient
        # A script that writes as another address of its user's does not give away this one.
        mark = b"Delivered-To: " + one_line(own or recipient) + b"\r\n"
        first = mark + self._trace(held, request, trace.FORWARDED)
        return self._pass_on(self._policy.send, sender, target, _message(held, request), first)

    def _trace(self, held: Held, request: wire.Datagram, names: Sequence[str]) -> bytes:
        """Return what a loop is known by and an edit took away. Raises LimitHit; what is kept goes as it is then."""
        if not request.descriptors:
            return b""
        try:
            return trace.missing(self._header(held), self._read(request.descriptors[0]), names)
        except LimitHit:
            if request.kind == "KEEP":
                return b""
            raise

    def _pass_on(self, door: str, sender: str, recipient: str, message: bytes | int, first: bytes = b"") -> Task[str]:
        """Send a message. Where its sender is taken for no address, from the null sender instead.

        sendmail(1) lets anything be a sender, and local(8) delivers it; no notice could reach such a one anyway.
        """
        if isinstance(message, bytes):
            eight_bit, parts = not message.isascii(), iter((first, message))
        else:
            eight_bit, parts = (yield from _eight_bit(message)), chain((first,), sealed.chunks(message))
        try:
            return (yield from self._sessions.send(door, smtp.Transaction(sender, recipient, eight_bit), parts))
        except (smtp.SenderError, smtp.AddressError):
            if not sender:
                raise
        return (yield from self._pass_on(door, "", recipient, message, first))

    def _reply(self, held: Held, request: wire.Datagram, now: float) -> Task[str]:
        mail, sender = self._header(held), held.envelope.sender
        what, interval, own = self._terms(request)
        if reason := replies.refusal(mail, held.envelope, own, delimiter=self._policy.delimiter):
            raise RefusedError(reason)
        if request.text("script"):
            self._within_rate("reply", held, request, sender, now)
            what, interval = self._copy(mail, held, request), int(self._policy.reply_interval)
        claimed = (held.user or held.recipient, replies.writer(sender), what, held.key.word, request.text("step"))
        if not self._replied.claim(*claimed, int(now), interval):
            if request.text("script"):
                raise RefusedError("the script answered another copy of the message, with the same Message-ID")
            raise RefusedError("this rule answered the same correspondent within the interval")
        try:
            self._within_day(held, request, now)
            return (yield from self._answer(mail, held, request, now))
        except BaseException:
            self._replied.release(*claimed)
            raise

    def _terms(self, request: wire.Datagram) -> tuple[str, int, tuple[str, ...]]:
        """Return what is remembered of a reply, for how many seconds, and the addresses that are the recipient's too.

        These count only in the guards: neither header nor envelope of the reply names one. Raises RefusedError.
        """
        days = request.text("days")
        if not days:
            return request.text("rule"), int(self._policy.reply_interval), ()
        if not re.fullmatch(r"[0-9]{1,3}", days, re.ASCII) or not 1 <= int(days) <= _LONGEST_DAYS:
            raise RefusedError(f"days is no number from 1 to {_LONGEST_DAYS}")
        addresses = tuple(request.text("addresses").split("\n")) if request.text("addresses") else ()
        if len(addresses) > _MOST_ADDRESSES:
            raise RefusedError(f"more than {_MOST_ADDRESSES} addresses")
        if not request.text("handle"):
            raise RefusedError("a vacation without a handle")
        return "vacation\0" + request.text("handle"), int(days) * _DAY, addresses

    def _answer(self, mail: Mail, held: Held, request: wire.Datagram, now: float) -> Task[str]:
        wish, sender = request.text("from"), held.envelope.sender
        own = self._own(held, request) or replies.answering(
            mail, held.envelope, delimiter=self._policy.delimiter, wish=wish
        )
        subject = request.text("subject")
        if request.text("days") and not subject:
            subject = replies.automatic(mail.subject or "")
        parts = replies.build(
            mail,
            sender=sender,
            own=own,
            subject=subject,
            text=request.text("text"),
            now=datetime.fromtimestamp(now, UTC),
            message_id=f"{held.key.word}.{request.text('step')}@{split_address(own)[1] or 'localhost'}",
        )
        transaction = smtp.letter("", sender, own)
        return self._sessions.send(self._policy.send, transaction, parts)

    def _write(self, held: Held, request: wire.Datagram, now: float) -> Task[str]:
        """Send a script's own letter, from the recipient's address, to which its bounce would come.

        A message that nobody wrote, a bounce or an automatic answer, causes no more to one address than answers do: two
        scripts could write to each other for ever.
        """
        target, mail = request.text("to"), self._header(held)
        if not all(split_address(target)):
            raise RefusedError("the address to send to is not local@domain")
        by_nobody = replies.written_by_nobody(mail, held.envelope)
        if by_nobody:
            self._within_rate("send", held, request, target, now)
        own = self._own(held, request) or replies.answering(mail, held.envelope, delimiter=self._policy.delimiter)
        parts = self._letter(held, request, now, own, target)
        sender = "" if by_nobody else own  # whose bounce would be one more message that nobody wrote
        transaction = smtp.letter(sender, target, own)
        return self._sessions.send(self._policy.send, transaction, parts)

    def _own(self, held: Held, request: wire.Datagram) -> str:
        """Return the address that a script writes as, "" for none named. Raises RefusedError where it is no own."""
        wish = request.text("from") if request.text("script") else ""
        if not wish:
            return ""
        domain = split_address(held.original)[1].lower()
        of_application = domain in self._policy.script_domains and split_address(wish)[1].lower() == domain
        if not of_application and not replies.is_own(wish, held.envelope, delimiter=self._policy.delimiter):
            raise RefusedError("a script can only write as an address of its user's")
        return wish

    def _within_rate(self, kind: str, held: Held, request: wire.Datagram, correspondent: str, now: float) -> None:
        """Count what a script sends to one correspondent, each step once. Raises RefusedError over the site's rate."""
        who = (held.user or held.recipient, request.text("script")[:200], correspondent.lower())
        step = f"{held.key.word} {request.text('step')}"
        if self._rates.rate(kind, who, step, now=now, within=_HOUR) > self._policy.script_replies:
            most = self._policy.script_replies
            raise RefusedError(f"the script answered the same correspondent {most} times within an hour")

    @staticmethod
    def _copy(mail: Mail, held: Held, request: wire.Datagram) -> str:
        """Return what is remembered of a script's reply, so that two copies of a message get one.

        A script may answer a correspondent again, and one message more than once, each time with a step of its own.
        """
        identity = " ".join(mail.raw_values("Message-ID")[:1]).strip() or held.key.word
        return "\0".join(("script", request.text("script")[:200], request.text("step"), identity))

    def _within_day(self, held: Held, request: wire.Datagram, now: float) -> None:
        """Count what a recipient answers to anybody, each step once. Raises RefusedError over the day's budget."""
        step = f"{held.key.word} {request.text('step')}"
        most = self._policy.daily_replies
        if self._rates.rate("day", (held.user or held.recipient,), step, now=now, within=_DAY) > most:
            raise RefusedError(f"{most} replies were sent within a day")

    def _notice(self, held: Held, request: wire.Datagram, now: float) -> Task[str]:
        """Put a letter into the recipient's own mailbox, past the rules."""
        own = held.recipient
        parts = self._letter(held, request, now, own, own)
        transaction = smtp.letter("", own, own)
        return self._sessions.send(self._keeper(held), transaction, parts)

    @staticmethod
    def _letter(held: Held, request: wire.Datagram, now: float, own: str, to: str) -> Iterator[bytes]:
        return replies.letter(
            own=own,
            to=to,
            subject=request.text("subject"),
            text=request.text("text"),
            now=datetime.fromtimestamp(now, UTC),
            message_id=f"{held.key.word}.{request.text('step')}@{split_address(own)[1] or 'localhost'}",
        )

    def _header(self, held: Held) -> Mail:
        """Return the message as it came, as far as a header may reach; it is read once, whatever is asked about it."""
        if not held.header:
            held.header.append(self._read(held.message))
        return held.header[0]

    def _read(self, message: int) -> Mail:
        limits = self._policy.limits
        return Mail(sealed.read(message, limits.header_bytes + 1), limits)


_KINDS = {
    "KEEP": Postman._keep,  # noqa: SLF001 - its own methods
    "FORWARD": Postman._forward,  # noqa: SLF001
    "REPLY": Postman._reply,  # noqa: SLF001
    "SEND": Postman._write,  # noqa: SLF001
    "NOTICE": Postman._notice,  # noqa: SLF001
}


def _message(held: Held, request: wire.Datagram) -> bytes | int:
    """Return the message to send, as edited, where the request brought one: its bytes, or its descriptor."""
    if request.descriptors:
        return request.descriptors[0]
    return held.message if held.whole is None else held.whole


def _eight_bit(message: int) -> Task[bool]:
    """Return whether it holds bytes above 127; a large one is looked through in turns with what else there is to do."""
    for number, chunk in enumerate(sealed.chunks(message)):
        if number:
            yield None
        if not chunk.isascii():
            return True
    return False
