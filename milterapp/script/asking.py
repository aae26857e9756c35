"""`confirm`: asking a message's sender before anything is done, with the message kept until the answer comes.

Must never: call what waits twice, or for an answer without its token; keep a token where it can be read again.

The question leaves from `user+confirm-TOKEN@host`, so whoever answers it has read it. The token is 130 bits of the
kernel's; what is kept is its digest, with the message, what waits for the answer, and until when (actions.Ask). All of
that is in the run's plan: where a run is not committed, no question left either, and the next try has another token.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from milterapp.mail.envelope import Envelope
from milterapp.script import stored
from milterapp.script.actions import MOST_DAYS, Answered, Ask, Reject, Reply
from milterapp.script.context import Collected, ScriptError, current
from milterapp.script.mail import Mail, inside
from milterapp.script.templates import render
from milterapp.script.untrusted import Text
from milterapp.script.values import Address, HeaderText, Rendered, body_text

__all__ = ["Waiting", "confirm", "redeem", "token_of"]

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_LENGTH = 26
_ADDRESS = re.compile(rf"[^@]+\+confirm-([{_ALPHABET}]{{{_LENGTH}}})@[^@]+")
_LONGEST = 1 << 20  # bytes of a message that is kept
_PER = ""  # the name under which the captures of `per` wait, which is no parameter's
_TEXT = "Please answer this message, with whatever text, to confirm that you sent the one below.\n\n"


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a token stands for. then: what is to be called, None for an answer that is none; given: with what."""

    then: Callable[..., Any] | None
    raw: bytes = b""
    envelope: Envelope = field(default_factory=Envelope)
    per: tuple[str, ...] = ()
    given: dict[str, Any] = field(default_factory=dict)


class _Confirm:
    """Asks senders. What waits is called with the message, once its sender has answered."""

    def ask(
        self,
        mail: Mail,
        then: Callable[..., Any],
        template: str = "",
        *,
        subject: Text | HeaderText = "",
        days: int = 3,
        **given: Any,
    ) -> None:
        """Send the question and keep the message; `then(mail, **given)` is called when the answer comes.

        template: of the question, with `mail`, `days` and what is given; days: how long it waits. A message without a
        sender to ask, or too large, is refused. Raises ScriptError for a function or a time that is none.
        """
        run = current()
        name = getattr(then, "__name__", "")
        if run.functions.get(name) is not then:
            raise ScriptError(f"then: expected a function of the script's own, found {then!a:.100}")
        if not isinstance(days, int) or not 1 <= days <= MOST_DAYS:
            raise ScriptError(f"days: expected 1 to {MOST_DAYS}, found {days!a:.20}")
        raw, envelope = inside(mail)
        to = envelope.original_recipient or next(iter(envelope.recipients), "")
        if refusal := _refusal(len(raw), envelope.sender, to):
            run.add(Reject(*refusal))
            return
        token = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        text: Text | Rendered = render(template, {**given, "mail": mail, "days": days}) if template else _default(mail)
        waits = {_PER: list(run.per), **given}
        captures = [part for key, value in waits.items() for part in (key, stored.to_text(value))]
        run.add(Ask(_digest(token), name, tuple(captures), str(days)))
        local, _, host = to.rpartition("@")
        line = subject if isinstance(subject, HeaderText) else HeaderText(subject or "Please confirm: " + mail.subject)
        run.add(Reply(body_text(text), line.text, f"{local.partition('+')[0]}+confirm-{token}@{host}"))
        run.asked = True


confirm = _Confirm()


def token_of(address: str) -> str | None:
    """Return the token in an address that a question was sent from, None where it is none. address: in lower case."""
    found = _ADDRESS.fullmatch(address)
    return None if found is None else found[1]


def redeem(token: str, answer: Mail, run: Collected) -> Waiting | None:
    """Return what waits for a token; None where this script did not ask with it, has its answer, or asked too long ago.

    An answer that no person wrote is none: the question still waits.
    """
    found = run.memory.question(_digest(token))
    if found is None:
        return None
    if not answer.sender or answer.kinds & {"auto-reply", "bounce", "bulk", "list"}:
        return Waiting(None)
    given = {key: stored.from_text(value) for key, value in zip(found.captures[::2], found.captures[1::2], strict=True)}
    per = given.pop(_PER, [])
    then = run.functions.get(found.then)
    if then is None:
        raise ScriptError(f"a sender has confirmed, and the script has no function {found.then!r} any more")
    run.add(Answered(_digest(token)))
    run.about = _digest(token)
    envelope = Envelope(sender=found.sender, recipients=(found.original,), original_recipient=found.original)
    return Waiting(then, found.raw, envelope, tuple(per), given)


def _refusal(size: int, sender: str, to: str) -> tuple[str, str] | None:
    """Return why a message's sender cannot be asked, as status and text; None where it can."""
    if size > _LONGEST:
        return "5.3.4", "This message is too large to be confirmed"
    try:
        Address(sender)
        Address(to)
    except ValueError:
        return "5.1.7", "This message has no sender who could be asked"
    return None


def _default(mail: Mail) -> Text:
    return _TEXT + "  Subject: " + mail.subject + "\n"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("ascii")).hexdigest()
