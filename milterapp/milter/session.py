"""One connection of a mail server: packets become steps of a Conversation, its answers become packets.

Must never: decide anything; let an exception, or a text that is not ours, reach the client; take what is out of order
for a message; read, write or wait by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar

from milterapp import log
from milterapp.milter import protocol
from milterapp.milter.budget import Ticker
from milterapp.milter.conversation import Context, Conversation
from milterapp.milter.counters import Counters
from milterapp.milter.event import fields_of
from milterapp.milter.plan import MACROS, Step
from milterapp.milter.protocol import NEEDLESS, ONE_WAY, ProtocolError
from milterapp.milter.reply import FAULT, wire_reply
from milterapp.milter.saying import CONTINUE, Said, Say
from milterapp.rules.decision import Reply, Verdict

__all__ = ["Ended", "Service", "Session"]

_PLAIN: Mapping[Say, bytes] = {
    Say.CONTINUE: protocol.CONTINUE,
    Say.ACCEPT: protocol.ACCEPT,
    Say.DISCARD: protocol.DISCARD,
    Say.SKIP: protocol.SKIP,
}
_VERDICTS: Mapping[Say, Verdict] = {Say.REJECT: Verdict.REJECT, Say.DEFER: Verdict.DEFER}
_FIELD = ord("L")
_UNANSWERED = frozenset(("abort", "next"))
_OFFERS, _SHORT = 16, 64  # offers that are remembered, and bytes of one that is
_OF_A_MESSAGE = frozenset(("rcpt", "data", "header", "eoh", "body", "eom"))
_SENDMAIL = re.compile(rb"8\.[0-9]+\.[0-9]")  # how its version begins; Postfix's begins with its name
_NAMELESS = ("", "unknown")


class Ended(Exception):  # noqa: N818 - it is no error
    """The mail server has said that it is done with this connection."""


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What is made of an offer. steps: the protocol's bits; answers: the steps that are answered; packet: says it."""

    steps: int
    answers: frozenset[Step]
    packet: bytes


@dataclass(slots=True)
class Service:
    """What every connection of a process is served with. agreed: what was made of the offers that came so far."""

    context: Context
    counters: Counters | None = None
    ticker: Ticker = field(default_factory=Ticker)
    log: Any = field(default_factory=lambda: log.get("milter").bind())
    agreed: dict[bytes, _Agreed] = field(default_factory=dict)


class Session:
    """One connection: its conversation, what was agreed on, its macros, the time it took.

    progress: says at once that the end of a message is worked on. slow: is called before what may take long.
    """

    __slots__ = (
        "_agreed", "_fresh", "_macros", "_mail_macros", "_next", "_open", "_service", "_slow", "_spent", "_steps",
        "conversation", "progress",
    )  # fmt: skip

    def __init__(
        self, service: Service, progress: Callable[[], object], slow: Callable[[], object] = lambda: None
    ) -> None:
        self._service = service
        self._slow = slow
        self.progress = progress
        self._agreed: _Agreed | None = None
        self._next = False  # one connection is over, another may begin, with or without an offer
        self._open = False  # a message is
        self._steps = 0
        self._macros: dict[bytes, bytes] = {}
        self._mail_macros: dict[bytes, bytes] = {}
        self._fresh = False  # a message's macros came, before MAIL itself
        self._spent: dict[Step, float] = {}
        self.conversation: Conversation | None = None

    def _begin(self, agreed: _Agreed) -> None:
        self._agreed, self._steps, self._open, self._fresh = agreed, agreed.steps, False, False
        self._macros, self._mail_macros, self._spent = {}, {}, {}
        blank = " " if agreed.steps & protocol.LEADING_BLANK else ""
        self.conversation = Conversation(self._service.context, agreed.answers, blank=blank, slow=self._slow)

    def take(self, some: Sequence[tuple[int, bytes]]) -> bytes:
        """Take packets, as (code, data), and return what is to be sent, b"" for nothing.

        Raises ProtocolError where the connection is to be closed, Ended where it is over.
        """
        answers: list[bytes] = []
        fields: list[bytes] = []
        for code, data in some:
            if code == _FIELD:
                fields.append(data)
                continue
            if fields:
                answers.append(self._header(fields))
                fields = []
            answers.append(self._take(code, data))
        if fields:
            answers.append(self._header(fields))
        return b"".join(answers)

    def _take(self, code: int, data: bytes) -> bytes:
        step = protocol.STEPS.get(code)
        if step == "macros":
            self._keep(data)
            return b""
        if step == "negotiate":
            return self._negotiate(data)
        if step == "close":
            raise Ended
        if step is None or self.conversation is None or (step in _OF_A_MESSAGE and not self._open):
            raise ProtocolError(f"packet {code:#x} is out of place")
        return self._step(step, self.conversation, data)

    def _step(self, step: Step, talk: Conversation, data: bytes) -> bytes:
        """Have a step answered: timed, logged, and nothing but ProtocolError raised."""
        begun = perf_counter()
        try:
            said = self._takers[step](self, talk, data)
            took = perf_counter() - begun
            self._spent[step] = self._spent.get(step, 0.0) + took
            late = self._service.context.budget.exceeded(step, took)
            answer = self._answer(step, talk.late(step, late, said) if late else said)
            if talk.happened:
                self._tell(talk)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears on_error's words
            return self._fault(step, talk, error)
        return answer

    def end(self) -> None:
        """Take the end of the connection, however it came."""
        talk = self.conversation
        if talk is None:
            return
        try:
            queue_id = talk.queue_id
            talk.leave()
            self._tell(talk)
        except Exception:
            self._service.log.exception("fault", step="close", queue_id=queue_id or "NOQUEUE")

    # -- what is answered ----------------------------------------------------------------------------------------------

    def _answer(self, step: Step, said: Said) -> bytes:
        """Return what carries an answer, the edits before it; all of it is made before any of it is sent."""
        if step in _UNANSWERED or self._steps & ONE_WAY.get(step, 0):
            return b""
        if said.say in _VERDICTS:
            return _refusal(_VERDICTS[said.say], said.reply)
        plain = _PLAIN[said.say]
        if said.say is Say.SKIP and not self._steps & protocol.SKIPS:
            plain = protocol.CONTINUE
        if not said.calls:
            return plain
        return b"".join([protocol.edit(call.method, call.arguments) for call in said.calls]) + plain

    def _fault(self, step: Step, talk: Conversation, error: Exception) -> bytes:
        """Log a fault of ours and answer it as on_error says; after it, even a fault of that is a temporary refusal."""
        try:
            self._service.log.exception("fault", step=step, queue_id=talk.queue_id or "NOQUEUE", exc_info=error)
            said = talk.fault(step, error)
            self._tell(talk)
            return self._answer(step, said)
        except Exception:
            self._service.log.exception("fault in a fault", step=step)
            return self._answer(step, Said(Say.DEFER, FAULT))

    def _tell(self, talk: Conversation) -> None:
        """Log what happened."""
        service = self._service
        observers = service.context.plan.observers
        while talk.happened:
            one = talk.happened.pop(0)
            if service.counters is not None:
                service.counters.add(one, sum(self._spent.values()), observers)
            fields = fields_of(one, observers, {step: spent * 1000 for step, spent in self._spent.items()})
            (service.log.error if one.fault else service.log.info)("message", **fields)
            self._spent = {}

    # -- what is agreed on ---------------------------------------------------------------------------------------------

    def _negotiate(self, data: bytes) -> bytes:
        """Agree on steps, replies, edits and macros."""
        if self.conversation is not None and not self._next:
            raise ProtocolError("a second offer")
        agreed = self._service.agreed.get(data) or self._agree(data)
        self._next = False
        self._begin(agreed)
        return agreed.packet

    def _agree(self, data: bytes) -> _Agreed:
        offer = protocol.offer_of(data)
        plan = self._service.context.plan
        wanted = protocol.SKIPS | protocol.LEADING_BLANK
        for step, needless in NEEDLESS.items():
            if step not in plan.steps:
                wanted |= needless
            elif step not in plan.answers:
                wanted |= ONE_WAY[step]
        steps = wanted & offer.steps
        answers = frozenset(step for step in plan.answers if not steps & (NEEDLESS[step] | ONE_WAY[step]))
        macros = {step: names for step, names in MACROS.items() if step == "eom" or step in plan.steps}
        agreed = _Agreed(steps, answers, protocol.agreement(offer, steps, macros))
        if len(self._service.agreed) < _OFFERS and len(data) < _SHORT:
            self._service.agreed[data] = agreed  # a mail server makes the same offer each time
        return agreed

    def _keep(self, data: bytes) -> None:
        """Keep macros: those of a message until the next one, those from before it as long as the connection."""
        step, found = protocol.macros_of(data)
        if step in ("connect", "helo"):
            self._macros |= found
        elif step == "mail":
            self._mail_macros, self._fresh = found, True
        elif step in _OF_A_MESSAGE:
            self._mail_macros |= found

    def _macro(self, name: bytes) -> str:
        value = self._mail_macros.get(name)
        return _text(self._macros.get(name, b"") if value is None else value)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _connect(self, talk: Conversation, data: bytes) -> Said:
        client = protocol.client_of(data)
        self._next = False
        # A queue id before there is a message: cleanup(8) feeds us what came without SMTP, unless this is Sendmail.
        smtp = not self._macros.get(b"i") or _SENDMAIL.match(self._macros.get(b"v", b"")) is not None
        local = not client.address or (not client.port and not smtp)
        name = _text(client.name)
        bare = "" if name in _NAMELESS or name.startswith("[") else name
        return talk.connect(
            "" if local else bare, "" if local else client.address, local=local, smtp=smtp and bool(client.address)
        )

    def _helo(self, talk: Conversation, data: bytes) -> Said:
        return talk.helo(_text(protocol.strings(data, 1)[0]))

    def _mail(self, talk: Conversation, data: bytes) -> Said:
        sender = _text(protocol.strings(data, 1)[0])
        if not self._fresh:
            self._mail_macros = {}  # a login of the message before is not this one's
        self._fresh, self._open = False, True
        said = talk.mail(_bare(sender), self._macro(b"auth_authen"), tls=bool(self._macro(b"tls_version")))
        self._tell(talk)
        return said

    def _rcpt(self, talk: Conversation, data: bytes) -> Said:
        address = _bare(_text(protocol.strings(data, 1)[0]))
        talk.queue_id = self._macro(b"i")
        return talk.rcpt(address, f"<{address}>")

    def _data(self, talk: Conversation, _data: bytes) -> Said:
        talk.queue_id = self._macro(b"i")
        return talk.data()

    def _header(self, some: Sequence[bytes]) -> bytes:
        """Take fields: most packets are that, which decides nothing and is not worth timing."""
        talk = self.conversation
        if talk is None or not self._open:
            raise ProtocolError("a header field is out of place")
        pairs = []
        for data in some:
            name, end, value = data.partition(b"\0")
            if not end or value[-1:] != b"\0":
                raise ProtocolError("a header field without an end")
            pairs.append((name, value[:-1]))
        try:
            talk.fields(pairs)
        except Exception as error:  # noqa: BLE001 - as in every step
            return self._fault("header", talk, error)
        return b"" if self._steps & ONE_WAY["header"] else protocol.CONTINUE * len(pairs)

    def _end_of_header(self, talk: Conversation, _data: bytes) -> Said:
        talk.queue_id = self._macro(b"i")
        return talk.end_of_header()

    def _body(self, talk: Conversation, data: bytes) -> Said:
        return talk.body(data)

    def _end_of_message(self, talk: Conversation, data: bytes) -> Said:
        if data:
            talk.body(data)
        talk.queue_id = self._macro(b"i") or talk.queue_id
        self._open = False
        with self._service.ticker.watching(self):
            return talk.end_of_message()

    def _abort(self, talk: Conversation, _data: bytes) -> Said:
        self._open = False
        talk.end()
        return CONTINUE

    def _over(self, talk: Conversation, _data: bytes) -> Said:
        """End one connection; another begins on the same socket, which need not make an offer again."""
        talk.leave()
        self._tell(talk)
        if self._agreed is not None:
            self._begin(self._agreed)
        self._next = True
        return CONTINUE

    def _unknown(self, _talk: Conversation, _data: bytes) -> Said:
        return CONTINUE

    _takers: ClassVar[Mapping[Step, Callable[[Session, Conversation, bytes], Said]]] = {
        "connect": _connect,
        "helo": _helo,
        "mail": _mail,
        "rcpt": _rcpt,
        "data": _data,
        "eoh": _end_of_header,
        "body": _body,
        "eom": _end_of_message,
        "abort": _abort,
        "next": _over,
        "unknown": _unknown,
    }


def _refusal(verdict: Verdict, reply: Reply | None) -> bytes:
    wire = wire_reply(verdict, reply)
    return protocol.refusal(wire.code, wire.status, wire.lines)


def _text(raw: bytes) -> str:
    """Return what came over the wire as text without surrogates: UTF-8, or else Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _bare(address: str) -> str:
    return address[1:-1] if address.startswith("<") and address.endswith(">") else address
