"""The milter protocol, through pymilter: callbacks become steps of a Conversation, its answers become libmilter's.

Must never: decide anything; let an exception, or a text that is not ours, reach the client; fork (it runs in threads
that libmilter made); keep a reference to a libmilter context beyond its callback.

The C module `milter` is used as it is: the Python package above it swallows what goes wrong in negotiation and cannot
ask for macros. What the C module itself stumbles on (an 8-bit HELO cannot be decoded, and no callback is called)
arrives in sys.excepthook, is noted there, and is answered at the next step.

Debian builds libmilter with a pool of threads: one connection moves between threads, and a libmilter that is told to
stop abandons its connections. What is kept for a connection is therefore kept in its Python thread state, which moves
with it (threading.local), and a worker that ends stops listening by other means (worker.py).
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

import milter

from milterapp import log
from milterapp.milter.budget import Ticker
from milterapp.milter.conversation import CONTINUE, Context, Conversation, Said, Say
from milterapp.milter.counters import Counters
from milterapp.milter.event import fields_of
from milterapp.milter.plan import MACROS, Step
from milterapp.milter.reply import FAULT, wire_reply
from milterapp.rules.decision import Reply, Verdict

__all__ = ["open_socket", "serve"]

_ACTIONS = (
    milter.ADDHDRS
    | milter.CHGHDRS
    | milter.CHGBODY
    | milter.CHGFROM
    | milter.ADDRCPT
    | milter.DELRCPT
    | milter.QUARANTINE
    | milter.SETSYMLIST
)

# By step: "do not send it", "I shall not reply to it", and where its macros belong.
_BITS: dict[Step, tuple[int, int]] = {
    "connect": (milter.P_NOCONNECT, milter.P_NR_CONN),
    "helo": (milter.P_NOHELO, milter.P_NR_HELO),
    "mail": (milter.P_NOMAIL, milter.P_NR_MAIL),
    "rcpt": (milter.P_NORCPT, milter.P_NR_RCPT),
    "data": (milter.P_NODATA, milter.P_NR_DATA),
    "header": (milter.P_NOHDRS, milter.P_NR_HDR),
    "eoh": (milter.P_NOEOH, milter.P_NR_EOH),
    "body": (milter.P_NOBODY, milter.P_NR_BODY),
    "unknown": (milter.P_NOUNKNOWN, milter.P_NR_UNKN),
}
_MACRO_STAGES: dict[Step, int] = {
    "connect": milter.M_CONNECT,
    "helo": milter.M_HELO,
    "mail": milter.M_ENVFROM,
    "rcpt": milter.M_ENVRCPT,
    "data": milter.M_DATA,
    "eoh": milter.M_EOH,
    "eom": milter.M_EOM,
}
_CODES: dict[Say, int] = {
    Say.CONTINUE: milter.CONTINUE,
    Say.ACCEPT: milter.ACCEPT,
    Say.REJECT: milter.REJECT,
    Say.DEFER: milter.TEMPFAIL,
    Say.DISCARD: milter.DISCARD,
    Say.SKIP: milter.SKIP,
}
_GO_ON: int = milter.CONTINUE
_UNANSWERED: int = milter.NOREPLY
_LATER: int = milter.TEMPFAIL
_CLOSE: int = milter.REJECT
_VERDICTS = {Say.REJECT: Verdict.REJECT, Say.DEFER: Verdict.DEFER}
_SENDMAIL = re.compile(r"8\.[0-9]+\.[0-9]")  # how its version begins; Postfix's begins with its name
_KNOWN_NAMELESS = ("", "unknown")

_log = log.get("milter")
_ticker = Ticker()
_here = threading.local()  # .session: the connection whose callback runs


class _Shared:
    """What every connection of this process is served with; set once, before the first of them."""

    context: Context
    counters: Counters | None = None
    log = _log  # bound to its service once, when it is known how to log
    protocol = 0  # what was agreed on last: for a server that changes connections without negotiating again


class Session:
    """One connection: its conversation, what was negotiated, the time it took."""

    __slots__ = ("conversation", "protocol", "spent", "to_field")

    def __init__(self, protocol: int) -> None:
        answers = frozenset(
            step for step in _Shared.context.plan.answers if not protocol & (_BITS[step][0] | _BITS[step][1])
        )
        self.protocol = protocol
        self.to_field = _UNANSWERED if protocol & milter.P_NR_HDR else _GO_ON  # what a header field is answered
        self.spent: dict[Step, float] = {}
        self.conversation = Conversation(
            _Shared.context,
            answers,
            blank=" " if protocol & milter.P_HDR_LEADSPC else "",
        )

    def answer(self, ctx: Any, step: Step, said: Said) -> int:
        """Return the code for libmilter, after what has to be said or done first."""
        if step in _BITS and self.protocol & _BITS[step][1]:
            return _UNANSWERED
        if said.say is Say.SKIP and not self.protocol & milter.P_SKIP:
            return _GO_ON
        if said.say in _VERDICTS:
            _set_reply(ctx, _VERDICTS[said.say], said.reply)
        for call in said.calls:
            getattr(ctx, call.method)(*call.arguments)
        return _CODES[said.say]

    def tell(self) -> None:
        """Log what happened."""
        happened = self.conversation.happened
        while happened:
            one = happened.pop(0)
            observers = _Shared.context.plan.observers
            if _Shared.counters is not None:
                _Shared.counters.add(one, sum(self.spent.values()), observers)
            fields = fields_of(one, observers, {step: spent * 1000 for step, spent in self.spent.items()})
            (_Shared.log.error if one.fault else _Shared.log.info)("message", **fields)
            self.spent = {}


def _set_reply(ctx: Any, verdict: Verdict, reply: Reply | None) -> None:
    wire = wire_reply(verdict, reply)
    ctx.setreply(wire.code, wire.status, *wire.lines)


def _text(raw: bytes) -> str:
    """Return what came over the wire as text without surrogates: UTF-8, or else Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _macro(ctx: Any, name: str) -> str:
    try:
        return ctx.getsymval(name) or ""
    except UnicodeDecodeError as error:
        return _text(error.object)


def _step(step: Step) -> Callable[[Callable[..., Said]], Callable[..., int]]:
    """Make a callback of libmilter out of a function of (session, context, …): timed, logged, never raising."""

    def decorate(function: Callable[..., Said]) -> Callable[..., int]:
        def callback(ctx: Any, *arguments: Any) -> int:
            begun = perf_counter()
            session: Session | None = ctx.getpriv()
            try:
                if session is None:
                    session = _adopt(ctx, _Shared.protocol)
                said = function(session, ctx, *arguments)
                took = perf_counter() - begun
                session.spent[step] = session.spent.get(step, 0.0) + took
                late = _Shared.context.budget.exceeded(step, took)
                code = session.answer(ctx, step, session.conversation.late(step, late, said) if late else said)
                if session.conversation.happened:
                    session.tell()
            except BaseException as error:  # noqa: BLE001 - above is libmilter, which would answer in its own words
                return _fault(ctx, session, step, error)
            return code

        return callback

    return decorate


def _fault(ctx: Any, session: Session | None, step: Step, error: BaseException) -> int:
    """Log a fault of ours and answer it as on_error says; after it, even a fault of that is a temporary refusal."""
    try:
        queue_id = session.conversation.queue_id if session else ""
        _log.exception("fault", step=step, queue_id=queue_id or "NOQUEUE", exc_info=error)
        if session is not None:
            said = session.conversation.fault(step, error)
            if session.conversation.happened:
                session.tell()
            return session.answer(ctx, step, said)
        _set_reply(ctx, Verdict.DEFER, FAULT)
    except BaseException:  # noqa: BLE001 - the same
        _log.exception("fault in a fault", step=step)
    return _LATER


def _adopt(ctx: Any, protocol: int) -> Session:
    session = Session(protocol)
    ctx.setpriv(session)
    _here.session = session
    return session


def _negotiate(ctx: Any, options: list[int]) -> int:
    """Agree on steps, replies, edits and macros; options is changed in place."""
    try:
        plan = _Shared.context.plan
        offered_actions, offered = options[0], options[1]
        protocol = offered & (milter.P_SKIP | milter.P_HDR_LEADSPC)
        for step, (unwanted, one_way) in _BITS.items():
            if step not in plan.steps:
                protocol |= offered & unwanted
            elif step not in plan.answers:
                protocol |= offered & one_way
        if offered_actions & milter.SETSYMLIST:
            for step, macros in MACROS.items():
                if step == "eom" or step in plan.steps:
                    _ask_macros(ctx, step, macros)
        options[:] = [offered_actions & _ACTIONS, protocol, 0, 0]
        _Shared.protocol = protocol
        _adopt(ctx, protocol)
    except BaseException:  # noqa: BLE001 - above is libmilter; it closes the connection, the server defers
        _log.exception("fault", step="negotiate")
        return _CLOSE
    return _GO_ON


def _ask_macros(ctx: Any, step: Step, macros: str) -> None:
    try:
        ctx.setsymlist(_MACRO_STAGES[step], macros)
    except milter.error:
        pass  # a second negotiation on one connection: they are asked for already


@_step("connect")
def _connect(session: Session, ctx: Any, name: str, _family: int, address: Any) -> Said:
    host = address[0] if isinstance(address, tuple) else ""
    port = address[1] if isinstance(address, tuple) else 0
    # A queue id before there is a message: cleanup(8) feeds us what came without SMTP, unless this is Sendmail.
    smtp = not _macro(ctx, "i") or _SENDMAIL.match(_macro(ctx, "v")) is not None
    local = not host or (not port and not smtp)
    bare = "" if name in _KNOWN_NAMELESS or name.startswith("[") else name
    return session.conversation.connect(
        "" if local else bare, "" if local else host, local=local, smtp=smtp and bool(host)
    )


@_step("helo")
def _helo(session: Session, _ctx: Any, name: str) -> Said:
    return session.conversation.helo(name)


@_step("mail")
def _mail(session: Session, ctx: Any, sender: bytes, *_parameters: bytes) -> Said:
    login = _macro(ctx, "{auth_authen}")
    tls = bool(_macro(ctx, "{tls_version}"))
    said = session.conversation.mail(_bare(_text(sender)), login, tls=tls)
    if session.conversation.happened:
        session.tell()
    return said


@_step("rcpt")
def _rcpt(session: Session, ctx: Any, recipient: bytes, *_parameters: bytes) -> Said:
    session.conversation.queue_id = _macro(ctx, "i")
    address = _bare(_text(recipient))
    return session.conversation.rcpt(address, f"<{address}>")


@_step("data")
def _data(session: Session, ctx: Any) -> Said:
    session.conversation.queue_id = _macro(ctx, "i")
    return session.conversation.data()


def _header(ctx: Any, name: str, value: bytes) -> int:
    """Take a field: most callbacks are this one, which decides nothing and is not worth timing."""
    session: Session | None = ctx.getpriv()
    try:
        if session is None:
            session = _adopt(ctx, _Shared.protocol)
        session.conversation.field(name.encode(), value)
    except BaseException as error:  # noqa: BLE001 - as in every callback
        return _fault(ctx, session, "header", error)
    return session.to_field


@_step("eoh")
def _end_of_header(session: Session, ctx: Any) -> Said:
    session.conversation.queue_id = _macro(ctx, "i")
    return session.conversation.end_of_header()


@_step("body")
def _body(session: Session, _ctx: Any, chunk: bytes) -> Said:
    return session.conversation.body(chunk)


@_step("eom")
def _end_of_message(session: Session, ctx: Any) -> Said:
    session.conversation.queue_id = _macro(ctx, "i") or session.conversation.queue_id
    with _ticker.watching(ctx):
        return session.conversation.end_of_message()


@_step("abort")
def _abort(session: Session, _ctx: Any) -> Said:
    session.conversation.end()
    return CONTINUE


@_step("close")
def _close(session: Session, ctx: Any) -> Said:
    session.conversation.end()
    ctx.setpriv(None)
    return CONTINUE


@_step("unknown")
def _unknown(_session: Session, _ctx: Any, _command: str) -> Said:
    return CONTINUE


def _bare(address: str) -> str:
    return address[1:-1] if address.startswith("<") and address.endswith(">") else address


def _untrapped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Take what the C module stumbled on before it called us. libmilter goes on; we answer at the next step."""
    session: Session | None = getattr(_here, "session", None)
    if session is None:
        _log.exception("fault", step="libmilter", exc_info=(kind, error, trace))
        return
    conversation = session.conversation
    if isinstance(error, UnicodeDecodeError) and conversation.awaits_helo:
        conversation.helo(_text(error.object), unheard=True)
        return
    _log.exception(
        "fault", step="libmilter", queue_id=conversation.queue_id or "NOQUEUE", exc_info=(kind, error, trace)
    )
    conversation.note_fault("libmilter", error)


def open_socket(name: str, backlog: int) -> None:
    """Listen on a unix socket: `name` in the current directory, so that libmilter, which removes its socket's name when
    a worker stops, does not find it from the directory a worker lives in. Raises OSError.
    """
    milter.set_flags(_ACTIONS)
    milter.set_exception_policy(milter.CONTINUE)  # see _untrapped
    milter.set_connect_callback(_connect)
    milter.set_helo_callback(_helo)
    milter.set_envfrom_callback(_mail)
    milter.set_envrcpt_callback(_rcpt)
    milter.set_header_callback(_header)
    milter.set_eoh_callback(_end_of_header)
    milter.set_body_callback(_body)
    milter.set_eom_callback(_end_of_message)
    milter.set_abort_callback(_abort)
    milter.set_close_callback(_close)
    try:
        milter.register("milterapp", data=_data, unknown=_unknown, negotiate=_negotiate)
        milter.setconn(f"unix:{name}")
        milter.setbacklog(backlog)
        milter.opensocket(False)  # noqa: FBT003 - the name of a stale socket is Listening's to remove
    except milter.error as error:
        raise OSError(f"{name}: libmilter cannot listen: {error}") from error


def serve(context: Context, counters: Counters | None = None) -> None:
    """Serve connections until libmilter is stopped, which abandons those it has."""
    _Shared.context = context
    _Shared.counters = counters
    _Shared.log = log.get("milter").bind()
    sys.excepthook = _untrapped
    _ticker.start()
    milter.main()
