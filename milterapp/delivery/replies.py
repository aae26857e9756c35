"""Whether a message may be answered, and the answer (RFC 3834, RFC 5230 section 4, what Pigeonhole adds).

Must never: be gone round. `refusal` is the one place that says no, over values alone: submit asks it before anything
leaves, about the message as it came, and the dry run asks it to say beforehand what submit will do.
"""

from __future__ import annotations

import quopri
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from email.utils import format_datetime

from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import Envelope, split_address, split_detail
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from milterapp.mail.values import HeaderText
from milterapp.rules.folding import plain

__all__ = [
    "answering", "automatic", "build", "is_own", "letter", "own_addresses", "refusal", "writer", "written_by_nobody",
]  # fmt: skip

# Senders that are no person: RFC 3834 section 2, RFC 5230 section 4.6, and how list managers write a bounce address.
_MACHINES = frozenset({
    "mailer-daemon", "double-bounce", "postmaster", "listserv", "majordomo", "mailman", "ecartis", "sympa",
    "noreply", "no-reply", "donotreply", "do-not-reply", "bounce", "bounces",
})  # fmt: skip
_MACHINE_STARTS = ("owner-", "listserv-", "majordomo-", "bounce-", "bounces-", "bounce+", "bounces+", "prvs=owner-")
_MACHINE_ENDS = (
    "-owner", "-request", "-bounce", "-bounces", "-errors", "-noreply", "-no-reply", "-donotreply", "-do-not-reply",
)  # fmt: skip
_EZMLM = re.compile(r".-return-[0-9]")
# A sender under a mask that changes by the day: BATV (prvs=TAG=local@domain) and SRS (SRS0=hash=day=domain=local@…;
# SRS1=hash=host==hash=day=domain=local@…), whose separators may be `+` or `-` at the first place.
_MASKED = re.compile(r"prvs=(?P<tag>[0-9a-f]{10})=(?P<local>.+)", re.IGNORECASE)
_REWRITTEN = re.compile(
    r"(?:SRS0|SRS1[=+-][^=]+=[^=]+=)[=+-][^=]+=[^=]+=(?P<domain>[^=]+)=(?P<local>.+)", re.IGNORECASE
)
_PRECEDENCES = frozenset({"bulk", "junk", "list", "auto_reply"})
_UNANSWERED = ("list", "bounce", "auto-reply")  # kinds, as rules ask for them
_SUPPRESS = frozenset({"all", "oof", "autoreply"})
_ADDRESSED = ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc")
_REPLIED = ("X-Autoreply", "X-Autorespond", "X-Autoresponder", "X-Auto-Reply-From", "X-Autoreply-From")
_MESSAGE_ID = re.compile(r"<[!#-'*+\-./0-9=?A-Z^_`a-z{|}~\[\]\":;,@\\]{1,250}>")
_MOST_REFERENCES = 12
_LONGEST_SUBJECT = 200  # characters
_TEXT = (
    ("MIME-Version", "1.0"),
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Transfer-Encoding", "quoted-printable"),
)


def own_addresses(*addresses: str, delimiter: str) -> frozenset[str]:
    """Return the addresses and what they are without their extension, comparable: one case, no quotes."""
    return frozenset(one for address in addresses if address for one in _readings(address, delimiter))


def refusal(mail: Mail, envelope: Envelope, own: Collection[str], *, delimiter: str = "+") -> str:
    """Return why the message must not be answered, "" where it may be.

    mail: the message as it came; its header is enough. own: further addresses of the recipient; the envelope's
    recipients and the original recipient always count as its own. A limit hit while reading is a reason too.
    """
    mine = own_addresses(*envelope.recipients, envelope.original_recipient, *own, delimiter=delimiter)
    try:
        for guard in _GUARDS:
            if reason := guard(mail, envelope.sender, mine, delimiter):
                return reason
    except LimitHit as limit:
        return f"the header cannot be read whole: {limit}"
    return ""


def written_by_nobody(mail: Mail, envelope: Envelope) -> bool:
    """Return whether the message is a bounce or was made by a program, as far as its header and sender say so."""
    guards = (_null_sender, _automatic, _bounce)
    return any(guard(mail, envelope.sender, frozenset(), "") for guard in guards)


def _null_sender(_mail: Mail, sender: str, _own: frozenset[str], _delimiter: str) -> str:
    return "the envelope sender is null" if sender in ("", "<>") else ""


def _machine(_mail: Mail, sender: str, _own: frozenset[str], _delimiter: str) -> str:
    local, domain = split_address(sender)
    if not domain:
        return "the envelope sender has no domain"
    for one in {local, split_address(writer(sender))[0]}:
        lowered = one.strip('"').replace("\\", "").lower().replace("_", "-")
        base = re.split(r"[+=]", lowered, maxsplit=1)[0]
        if base in _MACHINES or lowered.startswith(_MACHINE_STARTS) or base.endswith(_MACHINE_ENDS):
            return f"the envelope sender {local!r} is no person"
        if _EZMLM.search(lowered):
            return f"the envelope sender {local!r} is a list's"
    return ""


def _oneself(_mail: Mail, sender: str, own: frozenset[str], delimiter: str) -> str:
    mine = (_readings(sender, delimiter) | _readings(writer(sender), delimiter)) & own
    return "the envelope sender is the recipient" if mine else ""


def _automatic(mail: Mail, _sender: str, _own: frozenset[str], _delimiter: str) -> str:
    for value in mail.raw_values("Auto-Submitted"):
        word = _uncommented(value).partition(";")[0].strip().lower()
        if word != "no":
            return f"Auto-Submitted is {word[:40]!r}"
    for name in _REPLIED:
        if mail.raw_values(name):
            return f"{name} marks an automatic reply"
    for value in mail.raw_values("X-Auto-Response-Suppress"):
        if {word.strip().lower() for word in value.split(",")} & _SUPPRESS:
            return "X-Auto-Response-Suppress asks for no reply"
    return ""


def _loop(mail: Mail, _sender: str, own: frozenset[str], delimiter: str) -> str:
    for value in mail.raw_values("X-Loop"):
        if _readings(value.strip().strip("<>"), delimiter) & own:
            return "X-Loop names the recipient: the message was here before"
    return ""


def _list(mail: Mail, _sender: str, _own: frozenset[str], _delimiter: str) -> str:
    for field in mail.header:
        if field.name.lower().startswith("list-") or field.name.lower() == "mailing-list":
            return f"{field.name[:40]} marks a mailing list"
    for value in mail.raw_values("Precedence"):
        if _uncommented(value).strip().lower().replace("-", "_") in _PRECEDENCES:
            return f"Precedence is {value.strip().lower()[:40]!r}"
    return ""


def _bounce(mail: Mail, _sender: str, _own: frozenset[str], _delimiter: str) -> str:
    for value in mail.raw_values("Content-Type"):
        kind = _uncommented(value).partition(";")[0].strip().lower()
        if kind in ("multipart/report", "message/delivery-status", "message/disposition-notification"):
            return f"the message is a report ({kind})"
    if any(value.strip() == "<>" for value in mail.raw_values("Return-Path")):
        return "Return-Path is null"
    return ""


def _kind(mail: Mail, _sender: str, _own: frozenset[str], _delimiter: str) -> str:
    for kind in _UNANSWERED:
        if kind in mail.kinds:
            return f"the message is of the kind {kind}"
    return ""


def _addressed(mail: Mail, _sender: str, own: frozenset[str], delimiter: str) -> str:
    for address in mail.addresses(*_ADDRESSED):
        if _readings(address.address, delimiter) & own:
            return ""
    return "no address of the recipient stands in To, Cc, Bcc or Resent-*"


_GUARDS: tuple[Callable[[Mail, str, frozenset[str], str], str], ...] = (
    _null_sender,
    _machine,
    _oneself,
    _automatic,
    _loop,
    _list,
    _bounce,
    _kind,
    _addressed,
)


def writer(sender: str) -> str:
    """Return who a sender stands for under BATV or SRS, whose masks are others each day; else the sender."""
    local, domain = split_address(sender)
    if found := _REWRITTEN.fullmatch(local):
        local, domain = found["local"], found["domain"]
    if found := _MASKED.fullmatch(local):
        local = found["local"]
    return f"{local}@{domain}" if domain else local


def _uncommented(value: str) -> str:
    """Return a value without its comments, however deep they stand (RFC 5322 section 3.2.2)."""
    depth, found = 0, []
    for piece in re.split(r"([()])", value):
        if piece == "(":
            depth += 1
        elif piece == ")":
            depth = max(depth - 1, 0)
        elif not depth:
            found.append(piece)
    return "".join(found)


def _readings(address: str, delimiter: str) -> frozenset[str]:
    """Return an address with and without its extension, comparable: composed, its domain in A-labels."""
    local, domain = split_address(plain(address))
    if len(local) > 1 and local.startswith('"') and local.endswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    user, _ = split_detail(local, delimiter)
    end = "@" + ascii_domain(domain) if domain else ""
    return frozenset({local.lower() + end, user.lower() + end})


def is_own(address: str, envelope: Envelope, *, delimiter: str = "+") -> bool:
    """Return whether an address is one of the recipient's, before or after aliases, with whatever extension."""
    local, domain = split_address(address)
    for one in (envelope.original_recipient, *envelope.recipients):
        mine, host = split_address(one)
        base = split_detail(mine, delimiter)[0].lower()
        if domain.lower() != host.lower() or not domain or not base:
            continue
        rest = local.lower().removeprefix(base)
        if local.lower().startswith(base) and (not rest or rest[0] in delimiter):
            return True
    return False


def answering(mail: Mail, envelope: Envelope, *, delimiter: str = "+", wish: str = "") -> str:
    """Return the address that answers: the recipient before its aliases where that was written to, else after them.

    wish: the one to answer as, ignored where it is neither of them, nor one of them without its extension (RFC 5230
    section 4.3).
    """
    for address in (envelope.original_recipient, envelope.recipients[0]):
        local, domain = split_address(address)
        for one in (address, f"{split_detail(local, delimiter)[0]}@{domain}"):
            if wish and domain and one.lower() == wish.lower():
                return one  # in the words of the envelope: nobody else wrote them
    original = own_addresses(envelope.original_recipient, delimiter=delimiter)
    written = frozenset[str]().union(*(_readings(one.address, delimiter) for one in mail.addresses(*_ADDRESSED)))
    return envelope.original_recipient if original & written else envelope.recipients[0]


def build(
    mail: Mail, *, sender: str, own: str, subject: str, text: str, now: datetime, message_id: str
) -> Iterator[bytes]:
    """Yield the answer, lines ending in CRLF: a text in UTF-8 to the envelope sender, and to nobody else.

    mail: the message answered. sender: its envelope sender. own: the address that answers. subject: "" for `Re: ` and
    the message's own. now: aware. message_id: without the angle brackets. Source: RFC 3834 section 3.
    """
    answered = _MESSAGE_ID.findall(" ".join(mail.raw_values("Message-ID")))[:1]
    thread = _MESSAGE_ID.findall(" ".join(mail.raw_values("References")))
    thread = thread or _MESSAGE_ID.findall(" ".join(mail.raw_values("In-Reply-To")))[:1]
    references = [*[one for one in thread if one not in answered][1 - _MOST_REFERENCES :], *answered]
    about = " ".join((subject or _answered(mail.subject or "")).split())[:_LONGEST_SUBJECT]
    fields = [
        ("From", _one_line(own)),
        ("To", _one_line(sender)),
        ("Subject", HeaderText.encode(about).replace("?= =?", "?=\r\n =?")),
        ("Date", format_datetime(now)),
        ("Message-ID", f"<{_one_line(message_id)}>"),
        ("In-Reply-To", "".join(answered)),
        ("References", "\r\n ".join(references)),
        ("Auto-Submitted", "auto-replied"),
        ("X-Auto-Response-Suppress", "All"),
        *_TEXT,
    ]
    yield from _message(fields, text)


def letter(*, own: str, to: str = "", subject: str, text: str, now: datetime, message_id: str) -> Iterator[bytes]:
    """Yield a message that answers none, lines ending in CRLF: from a recipient's own address, "" for the same as to.

    now: aware. message_id: without the angle brackets. Source: RFC 3834 section 5 for Auto-Submitted.
    """
    fields = [
        ("From", _one_line(own)),
        ("To", _one_line(to or own)),
        ("Subject", HeaderText.encode(" ".join(subject.split())[:_LONGEST_SUBJECT]).replace("?= =?", "?=\r\n =?")),
        ("Date", format_datetime(now)),
        ("Message-ID", f"<{_one_line(message_id)}>"),
        ("Auto-Submitted", "auto-generated"),
        ("X-Auto-Response-Suppress", "All"),
        *_TEXT,
    ]
    yield from _message(fields, text)


def _message(fields: Sequence[tuple[str, str]], text: str) -> Iterator[bytes]:
    for name, value in fields:
        if value:
            yield f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")
    yield b"\r\n"
    lines = text.encode("utf-8", "replace").replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
    yield quopri.encodestring(lines + b"\n").replace(b"\n", b"\r\n")


def automatic(subject: str) -> str:
    """Return the subject of a vacation that has none of its own (RFC 5230 section 5)."""
    return f"Auto: {subject}" if subject.strip() else "Automatic reply"


def _answered(subject: str) -> str:
    """Return the subject of an answer: one `Re: `, however many stand there."""
    return "Re: " + re.sub(r"^(?:\s*re\s*:)+\s*", "", subject, flags=re.IGNORECASE)


def _one_line(address: str) -> str:
    """Return an envelope address as a header holds it: nothing in it can end the line."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", address)
