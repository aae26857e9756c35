"""One connection of a mail server: packets become steps of a Conversation, its answers become packets.

Must never: decide anything; let an exception, or a text that is not ours, reach the client; take what is out of order
for a message; read, write or wait by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ClassVar

from milterapp import log
from milterapp.milter import protocol
from milterapp.milter.budget import Ticker
from milterapp.milter.conversation import CONTINUE, Context, Conversation, Said, Say
from milterapp.milter.counters import Counters
from milterapp.milter.event import fields_of
from milterapp.milter.plan import MACROS, Step
from milterapp.milter.protocol import NEEDLESS, ONE_WAY, ProtocolError
from milterapp.milter.reply import FAULT, wire_reply
from milterapp.rules.decision import Reply, Verdict

__all__ = ["Ended", "Service", "Session"]

_PLAIN: Mapping[Say, bytes] = {
    Say.CONTINUE: protocol.CONTINUE,
    Say.ACCEPT: protocol.ACCEPT,
    Say.DISCARD: protocol.DISCARD,
    Say.SKIP: protocol.SKIP,
}
_VERDICTS: Mapping[Say, Verdict] = {Say.REJECT: Verdict.REJECT, Say.DEFER: Verdict.DEFER}
_OF_A_MESSAGE = frozenset(("rcpt", "data", "header", "eoh", "body", "eom"))
_SENDMAIL = re.compile(rb"8\.[0-9]+\.[0-9]")  # how its version begins; Postfix's begins with its name
_NAMELESS = ("", "unknown")


class Ended(Exception):  # noqa: N818 - it is no error
    """The mail server has said that it is done with this connection."""


@dataclass(slots=True)
class Service:
    """What every connection of a process is served with."""

    context: Context
    counters: Counters | None = None
    ticker: Ticker = field(default_factory=Ticker)
    log: Any = field(default_factory=lambda: log.get("milter").bind())


class Session:
    """One connection: its conversation, what was agreed on, its macros, the time it took.

    progress: says at once that the end of a message is worked on.
    """

    __slots__ = (
        "_agreed", "_fresh", "_macros", "_mail_macros", "_next", "_open", "_service", "_spent", "_steps", "_to_field",
        "conversation", "progress",
    )  # fmt: skip

    def __init__(self, service: Service, progress: Callable[[], object]) -> None:
        self._service = service
        self.progress = progress
        self._agreed = False
        self._next = False  # one connection is over, another may begin, with or without an offer
        self._begin(0)

    def _begin(self, steps: int) -> None:
        self._steps = steps
        self._open = False  # a message is
        self._macros: dict[bytes, bytes] = {}
        self._mail_macros: dict[bytes, bytes] = {}
        self._fresh = False  # its macros came before MAIL itself
        self._spent: dict[Step, float] = {}
        self._to_field = b"" if steps & ONE_WAY["header"] else protocol.CONTINUE
        context = self._service.context
        self.conversation = Conversation(
            context,
            frozenset(step for step in context.plan.answers if not steps & (NEEDLESS[step] | ONE_WAY[step])),
            blank=" " if steps & protocol.LEADING_BLANK else "",
        )

    def take(self, code: int, data: bytes) -> bytes:
        """Take one packet and return what is to be sent, b"" for nothing.

        Raises ProtocolError where the connection is to be closed, Ended where it is over.
        """
        step = protocol.STEPS.get(code)
        if step == "header" and self._open:
            return self._header(data)
        if step == "macros":
            self._keep(data)
            return b""
        if step == "negotiate":
            return self._negotiate(data)
        if step == "close":
            raise Ended
        if step is None or not self._agreed or (step in _OF_A_MESSAGE and not self._open):
            raise ProtocolError(f"packet {code:#x} is out of place")
        return self._step(step, data)

    def _step(self, step: Step, data: bytes) -> bytes:
        """Have a step answered: timed, logged, and nothing but ProtocolError raised."""
        begun = perf_counter()
        try:
            said = self._takers[step](self, data)
            took = perf_counter() - begun
            self._spent[step] = self._spent.get(step, 0.0) + took
            late = self._service.context.budget.exceeded(step, took)
            answer = self._answer(step, self.conversation.late(step, late, said) if late else said)
            if self.conversation.happened:
                self._tell()
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears on_error's words
            return self._fault(step, error)
        return answer

    def end(self) -> None:
        """Take the end of the connection, however it came."""
        try:
            self.conversation.end()
            self._tell()
        except Exception:
            self._service.log.exception("fault", step="close", queue_id=self.conversation.queue_id or "NOQUEUE")

    # -- what is answered ----------------------------------------------------------------------------------------------

    def _answer(self, step: Step, said: Said) -> bytes:
        """Return what carries an answer, the edits before it; all of it is made before any of it is sent."""
        if step in ("abort", "next") or self._steps & ONE_WAY.get(step, 0):
            return b""
        if said.say in _VERDICTS:
            return _refusal(_VERDICTS[said.say], said.reply)
        plain = _PLAIN[said.say]
        if said.say is Say.SKIP and not self._steps & protocol.SKIPS:
            plain = protocol.CONTINUE
        if not said.calls:
            return plain
        return b"".join([protocol.edit(call.method, call.arguments) for call in said.calls]) + plain

    def _fault(self, step: Step, error: Exception) -> bytes:
        """Log a fault of ours and answer it as on_error says; after it, even a fault of that is a temporary refusal."""
        try:
            queue_id = self.conversation.queue_id or "NOQUEUE"
            self._service.log.exception("fault", step=step, queue_id=queue_id, exc_info=error)
            said = self.conversation.fault(step, error)
            self._tell()
            return self._answer(step, said)
        except Exception:
            self._service.log.exception("fault in a fault", step=step)
            return self._answer(step, Said(Say.DEFER, FAULT))

    def _tell(self) -> None:
        """Log what happened."""
        happened = self.conversation.happened
        service = self._service
        while happened:
            one = happened.pop(0)
            observers = service.context.plan.observers
            if service.counters is not None:
                service.counters.add(one, sum(self._spent.values()), observers)
            fields = fields_of(one, observers, {step: spent * 1000 for step, spent in self._spent.items()})
            (service.log.error if one.fault else service.log.info)("message", **fields)
            self._spent = {}

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _negotiate(self, data: bytes) -> bytes:
        """Agree on steps, replies, edits and macros."""
        if self._agreed and not self._next:
            raise ProtocolError("a second offer")
        offer = protocol.offer_of(data)
        plan = self._service.context.plan
        wanted = protocol.SKIPS | protocol.LEADING_BLANK
        for step, needless in NEEDLESS.items():
            if step not in plan.steps:
                wanted |= needless
            elif step not in plan.answers:
                wanted |= ONE_WAY[step]
        self._begin(wanted & offer.steps)
        self._agreed, self._next = True, False
        macros = {step: names for step, names in MACROS.items() if step == "eom" or step in plan.steps}
        return protocol.agreement(offer, wanted, macros)

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

    def _connect(self, data: bytes) -> Said:
        client = protocol.client_of(data)
        self._next = False
        # A queue id before there is a message: cleanup(8) feeds us what came without SMTP, unless this is Sendmail.
        smtp = not self._macros.get(b"i") or _SENDMAIL.match(self._macros.get(b"v", b"")) is not None
        local = not client.address or (not client.port and not smtp)
        name = _text(client.name)
        bare = "" if name in _NAMELESS or name.startswith("[") else name
        return self.conversation.connect(
            "" if local else bare, "" if local else client.address, local=local, smtp=smtp and bool(client.address)
        )

    def _helo(self, data: bytes) -> Said:
        return self.conversation.helo(_text(protocol.strings(data, 1)[0]))

    def _mail(self, data: bytes) -> Said:
        sender = _text(protocol.strings(data, 1)[0])
        if not self._fresh:
            self._mail_macros = {}  # a login of the message before is not this one's
        self._fresh, self._open = False, True
        said = self.conversation.mail(_bare(sender), self._macro(b"auth_authen"), tls=bool(self._macro(b"tls_version")))
        self._tell()
        return said

    def _rcpt(self, data: bytes) -> Said:
        address = _bare(_text(protocol.strings(data, 1)[0]))
        self.conversation.queue_id = self._macro(b"i")
        return self.conversation.rcpt(address, f"<{address}>")

    def _data(self, _data: bytes) -> Said:
        self.conversation.queue_id = self._macro(b"i")
        return self.conversation.data()

    def _header(self, data: bytes) -> bytes:
        """Take a field: most packets are this, which decides nothing and is not worth timing."""
        name, found, value = data.partition(b"\0")
        if not found or value[-1:] != b"\0":
            raise ProtocolError("a header field without an end")
        try:
            self.conversation.field(name, value[:-1])
        except Exception as error:  # noqa: BLE001 - as in every step
            return self._fault("header", error)
        return self._to_field

    def _end_of_header(self, _data: bytes) -> Said:
        self.conversation.queue_id = self._macro(b"i")
        return self.conversation.end_of_header()

    def _body(self, data: bytes) -> Said:
        return self.conversation.body(data)

    def _end_of_message(self, data: bytes) -> Said:
        if data:
            self.conversation.body(data)
        self.conversation.queue_id = self._macro(b"i") or self.conversation.queue_id
        self._open = False
        with self._service.ticker.watching(self):
            return self.conversation.end_of_message()

    def _abort(self, _data: bytes) -> Said:
        self._open = False
        self.conversation.end()
        return CONTINUE

    def _over(self, _data: bytes) -> Said:
        """End one connection; another begins on the same socket, which need not make an offer again."""
        self.conversation.end()
        self._tell()
        self._begin(self._steps)
        self._next = True
        return CONTINUE

    def _unknown(self, _data: bytes) -> Said:
        return CONTINUE

    _takers: ClassVar[Mapping[Step, Callable[[Session, bytes], Said]]] = {
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
