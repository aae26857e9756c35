"""Whom a bounce without a report is about, by the words of the mail servers that write such bounces.

Must never: hand a message to the library: it gets a small one of our own making, of short lines and plain text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from email.message import Message  # the container alone; nothing is parsed with it
from typing import TYPE_CHECKING

from milterapp.mail import address, hypertext

if TYPE_CHECKING:
    from milterapp.mail.message import Mail
    from milterapp.mail.mime import Part

__all__ = ["recipients_of"]

_MOST_PARTS = 10
_MOST_TEXT = 32 * 1024  # characters of all parts
_LONGEST_LINE = 400  # some patterns of the library take time with the square of it
_HEADER = ("from", "subject", "x-mailer")
_PLAIN_VALUE = re.compile(r"[^()\"\\\r\n\x00-\x1f\x7f-\U0010ffff]*")
# Where the words end and the returned message begins.
_RETURNED = re.compile(
    r"^[ \t>*-]{0,40}(?:(?:original message|returned mail|(?:the )?(?:header|text|body|copy) of (?:the|your) "
    r"(?:original )?message|below this line is a copy|message headers?|undelivered message|unsent message"
    r"|message contents?)"
    r"|(?:received|return-path|message-id|dkim-signature):\s)",
    re.IGNORECASE | re.MULTILINE,
)
_ADDRESS = re.compile(
    r"[<\s:'\"(]([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,9})"
)
_NEAR = 3  # lines around a reason in which an address is the one that failed
_REASON = re.compile(
    r"(?<![0-9.])[45]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])|(?<![0-9.])[45][0-5][0-9](?=[ -])|user unknown"
    r"|unknown user|no such"
    r"|unknown (?:recipient|address)|mailbox (?:is )?(?:full|unavailable)|over quota|quota exceeded|does ?n[o']t exist"
    r"|not (?:be )?(?:delivered|found|deliver|listed)|undeliver|could ?n[o']t|failed|failure|rejected|unreachable"
    r"|timed out"
    r"|unable to|host unknown|invalid (?:recipient|address)|refused|disabled|following (?:address|recipient|user)",
    re.IGNORECASE,
)
_MOST_LINES = 400


def recipients_of(mail: Mail) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return (addresses that may work later, addresses that failed, the words). Raises LimitHit."""
    named = tuple(dict.fromkeys(one.address for one in mail.addresses("x-failed-recipients") if one.domain))
    texts = _texts(mail)
    said = "\n".join(text for _, text in texts)
    if named:
        return (), named[:1000], said
    temporary, permanent = _by_library(_small(mail, texts))
    if not temporary and not permanent:
        permanent = _near_a_reason(mail, said)
    return temporary, permanent, said


def _texts(mail: Mail) -> list[tuple[Part, str]]:
    """Return the first text parts, as text in short lines."""
    found = []
    left = _MOST_TEXT
    for part in mail.parts:
        if part.depth and part.type in ("message/rfc822", "message/global", "text/rfc822-headers"):
            break  # what was returned is not what is said about it
        if not part.type.startswith(("text/", "message/")) or part.is_multipart or left <= 0:
            continue
        if len(part.body) > 8 * _MOST_TEXT:
            text = bytes(part.body[:left]).decode("latin-1")
        else:
            text = hypertext.to_text(part.text) if part.type == "text/html" else part.text
        text = "\n".join(line[:_LONGEST_LINE] for line in text[:left].splitlines()) + "\n"
        left -= len(text)
        found.append((part, text))
        if len(found) == _MOST_PARTS:
            break
    return found


def _small(mail: Mail, texts: Iterable[tuple[Part, str]]) -> Message:
    """Return the message that the library gets to see."""
    root = Message()
    for name in _HEADER:
        for value in mail.values(name)[:1]:
            match = _PLAIN_VALUE.match(value[:200])
            root[name] = match[0] if match else ""
    first = mail.parts[0].type
    children: list[Message | str] = [_child(part, text) for part, text in texts]
    if first.startswith("multipart/") and children:
        root["Content-Type"] = first if first in ("multipart/mixed", "multipart/report") else "multipart/mixed"
        root.set_payload(children)
    else:
        root["Content-Type"] = "text/plain"
        root.set_payload("".join(text for _, text in texts))
    return root


def _child(part: Part, text: str) -> Message:
    child = Message()
    child["Content-Type"] = "text/plain"
    if any(one.text.strip().lower() == "notification" for one in part.fields("content-description")):
        child["Content-Description"] = "Notification"
    child.set_payload(text.encode("ascii", "replace").decode("ascii"))
    return child


def _by_library(small: Message) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from flufl.bounce import all_failures  # 85 ms, and few messages are bounces

    logging.getLogger("flufl.bounce").disabled = True  # it reports each detector, and its own faults, there
    try:
        temporary, permanent = all_failures(small)
    except (ValueError, TypeError, AttributeError, IndexError, LookupError, AssertionError):  # it knows no odd bounces
        return (), ()
    return _clean(temporary), _clean(permanent)


def _clean(found: Iterable[bytes]) -> tuple[str, ...]:
    """Return what are addresses of what the library found, in a settled order."""
    addresses = (address.parse(one.decode("ascii", "replace")[:400]) for one in found)
    return tuple(sorted({one[0].address for one in addresses if one and one[0].domain}))[:1000]


def _near_a_reason(mail: Mail, said: str) -> tuple[str, ...]:
    """Return the first address that stands where the words say why, and is not whom the bounce is from or to."""
    end = _RETURNED.search(said)
    lines = said[: end.start() if end else len(said)].splitlines()[:_MOST_LINES]
    own = {one.address.lower() for one in mail.addresses("from", "to", "reply-to", "sender")}
    reasons = [number for number, line in enumerate(lines) if _REASON.search(line)]
    for number in reasons:
        for line in lines[max(0, number - 1) : number + _NEAR]:
            for match in _ADDRESS.finditer(" " + line):
                if match[1].lower() not in own and not match[1].lower().startswith(("postmaster@", "mailer-daemon@")):
                    return (match[1],)
    return ()
