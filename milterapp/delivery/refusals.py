"""Whether a personal `reject` may come back to the sender (RFC 5429): only where that is likely who sent the message.

Must never: let a refusal go to an address that the site's own servers found forged. What may not be refused is kept: a
check that erred, as SPF does about mail that was passed on, would else make mail vanish with nobody told.

The message was accepted by SMTP long ago, so a refusal is a notice of Postfix's to the envelope sender. Postfix sends
none to the null sender, and one for each refusal, however often a delivery is tried.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from milterapp.mail.auth import Result, auth
from milterapp.mail.envelope import Envelope, split_address
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision, Reply, Verdict
from milterapp.rules.deliveries import Keep, SendReply, Vacation

__all__ = ["WORDS", "answered", "doubt"]

WORDS = ("always", "likely", "proven", "never")
_FORGED = {"spf": ("fail", "softfail"), "dmarc": ("fail",)}
_ABOUT = {"spf": "smtp.mailfrom", "dkim": "header.d", "dmarc": "header.from"}


def answered(decision: Decision, mail: Mail, envelope: Envelope, word: str, authserv_ids: Collection[str]) -> Decision:
    """Return the decision as it is carried out: a refusal that may not come back as a keep, the reason in its log.

    What is kept has the edits and filters of all rules; where the refusal stands and nothing is delivered, they go.
    Copies that were made of the message stay, answers to its sender do not. word: the site's, of WORDS.
    """
    if decision.verdict is not Verdict.REJECT:
        return decision
    if not (reason := doubt(mail, envelope, word, authserv_ids)):
        return decision if decision.deliveries else replace(decision, edits=(), filters=())
    said = f"kept, not rejected{_words(decision.reply)}: {reason}"
    deliveries = tuple(one for one in decision.deliveries if not isinstance(one, SendReply | Vacation))
    return replace(
        decision, verdict=Verdict.NONE, reply=None, deliveries=(*deliveries, Keep()), log=(*decision.log, said)
    )  # fmt: skip


def doubt(mail: Mail, envelope: Envelope, word: str, authserv_ids: Collection[str]) -> str:
    """Return why a refusal may not come back, "" where it may. authserv_ids: whose Authentication-Results count."""
    if word == "never":
        return "this site tells no sender"
    if word == "always" or not envelope.sender:
        return ""
    try:
        found = auth(mail, authserv_ids)
    except LimitHit as limit:
        return f"the header cannot be read whole: {limit}"
    results = [one for method in ("spf", "dkim", "dmarc") for one in found.get(method, ())]
    domain = split_address(envelope.sender)[1].lower().rstrip(".")
    if any(one.result == "pass" and _is_about(one, domain) for one in results):
        return ""
    if word == "proven" and not envelope.local:
        return "nothing proves that the envelope sender sent it"
    forged = next((one for one in results if one.result in _FORGED.get(one.method, ())), None)
    return f"the envelope sender is likely forged ({forged.method}={forged.result})" if forged else ""


def _is_about(one: Result, domain: str) -> bool:
    """Tell whether a result is about the sender's domain, or, of a signature, a domain above it."""
    value = one.property(_ABOUT[one.method]).lower().rstrip(".")
    named = split_address(value)[1] or value
    return bool(named) and (domain == named or (one.method != "spf" and "." in named and domain.endswith(f".{named}")))


def _words(reply: Reply | None) -> str:
    return f" ({reply.status} {reply.line})" if reply is not None else ""
