"""Bounces read: which recipients a message could not be delivered to, whether for good, and why.

Must never: take a message for a bounce that does not look like one by its header, give the library anything but a
small message of our own making, or raise on what a message holds (only LimitHit).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milterapp.mail import address, kinds
from milterapp.mail.fields import scan
from milterapp.mail.limits import Limits

if TYPE_CHECKING:
    from milterapp.mail.message import Mail
    from milterapp.mail.mime import Part

__all__ = ["HARD", "SOFT", "Bounce", "Failed", "bounce"]

HARD, SOFT = "hard", "soft"
_REPORTS = ("message/delivery-status", "message/global-delivery-status")
_LONGEST = 256 * 1024  # bytes read of one report
_MOST_BLOCKS = 1000
_MOST_TEXTS = 3
_EMPTY_LINES = re.compile(rb"\r?\n[ \t]*\r?\n[\s]*")
_STATUS = re.compile(r"(?<![0-9.])([245])[.]([0-9]{1,3})[.]([0-9]{1,3})(?![0-9.])")  # RFC 3463 section 2
_REPLY = re.compile(r"(?<![0-9.])([45])[0-5][0-9](?=[ -])")  # RFC 5321 section 4.2
_FULL = "5.2.2"  # RFC 3463 section 3.3: a full mailbox says 5, and has room again tomorrow
_ACTIONS = {"failed": HARD, "failure": HARD, "fail": HARD, "error": HARD, "delayed": SOFT}
_WAITING = re.compile(r"\bwarning|delay|deferred|retried|still trying|temporar", re.IGNORECASE)  # in a subject
_LIMITS = Limits(header_fields=200, header_bytes=_LONGEST)


@dataclass(frozen=True, slots=True)
class Failed:
    """One recipient. status: RFC 3463, "" where none is known; action: RFC 3464 section 2.3.3, lower case, or "".

    recipient: the address as it failed; original: as the sender wrote it, "" where the report does not say.
    diagnostic: what the other server said, on one line.
    """

    recipient: str
    kind: str
    status: str = ""
    action: str = ""
    original: str = ""
    diagnostic: str = ""
    remote: str = ""


@dataclass(frozen=True, slots=True)
class Bounce:
    """A bounce. kind: hard (give the address up) or soft (it may work later); failed: () where none could be read.

    standard: whether it is a delivery status notification of RFC 3464.
    """

    kind: str
    failed: tuple[Failed, ...] = ()
    standard: bool = False

    @property
    def recipient(self) -> str:
        """The first recipient that failed, "" where none could be read."""
        return self.failed[0].recipient if self.failed else ""

    @property
    def recipients(self) -> tuple[str, ...]:
        """Every recipient that failed, each once."""
        return tuple(dict.fromkeys(one.recipient for one in self.failed))

    @property
    def status(self) -> str:
        """The first status, "" where none is known."""
        return next((one.status for one in self.failed if one.status), "")


def bounce(mail: Mail) -> Bounce | None:
    """Return what a bounce says, None for a message that is none. Raises LimitHit.

    A report (RFC 3464) is believed first; without one, the fields and the words that mail servers bounce with.
    A report that everything was delivered is no bounce.
    """
    if not kinds.looks_like_bounce(mail):
        return None
    own = list(_own_parts(mail))
    reports = [part for part in own if part.type in _REPORTS]
    texts = [part for part in own if part.type == "text/plain"][:_MOST_TEXTS]  # some forget what MIME asks for
    blocks = [block for part in reports or texts for block in _blocks(part)]
    failed = tuple(one for block in blocks if (one := _failed(block)) is not None)
    if failed:
        kind = HARD if any(one.kind == HARD for one in failed) else SOFT
        return Bounce(kind, failed, standard=bool(reports))
    if reports and any(
        block.get("action", "").strip().lower() in ("delivered", "relayed", "expanded") for block in blocks
    ):
        return None
    return _by_words(mail)


def _own_parts(mail: Mail) -> Iterator[Part]:
    """Give the parts that are not of a message attached to it: what was returned may be a bounce itself."""
    inside = -1
    for part in mail.parts:
        if 0 <= inside < part.depth:
            continue
        inside = part.depth if part.type in ("message/rfc822", "message/global") else -1
        yield part


def _blocks(part: Part) -> Iterator[dict[str, str]]:
    """Give the groups of fields of a report (RFC 3464 section 2.1) by lower-case name, the message's own too."""
    content = bytes(part.content[:_LONGEST])
    start = 0
    for count, gap in enumerate([*_EMPTY_LINES.finditer(content), None]):
        end = gap.start() if gap else len(content)
        block = content[start:end]
        if count == _MOST_BLOCKS:
            return
        if block.count(b"\n") <= _LIMITS.header_fields:
            found = {one.name.lower(): one.text for one in reversed(scan(block.lstrip(), _LIMITS).fields)}
            if found:
                yield found
        start = gap.end() if gap else end


def _failed(block: dict[str, str]) -> Failed | None:
    word = (block.get("action", "").replace("(", " ").split() or [""])[0].strip(";,.").lower()
    final, original = _address(block.get("final-recipient", "")), _address(block.get("original-recipient", ""))
    if word not in _ACTIONS or not (final or original):
        return None
    diagnostic = block.get("diagnostic-code", "").partition(";")[2].strip()[:1000]
    status = _status(block.get("status", "")) or _status(diagnostic)
    kind = SOFT if _ACTIONS[word] == SOFT else _kind(status, diagnostic)
    remote = block.get("remote-mta", "").partition(";")[2].strip()[:255]
    return Failed(final or original, kind, status, word, original, diagnostic, remote)


def _address(value: str) -> str:
    """Return the address of `rfc822; address` (RFC 3464 section 2.3.1), "" where there is none."""
    text = (value.partition(";")[2] or value).strip()[:400]
    found = address.parse(text)
    return found[0].address if found and found[0].domain else ""


def _status(text: str) -> str:
    match = _STATUS.search(text[:1000])
    return ".".join(str(int(one)) for one in match.groups()) if match else ""


def _kind(status: str, words: str) -> str:
    """Return whether a failure is for good: by its status, else by the reply code in what was said, else it is."""
    if status:
        return SOFT if status == _FULL or status.startswith("4") else HARD
    match = _REPLY.search(words[:4000])
    return SOFT if match and match[1] == "4" else HARD


def _by_words(mail: Mail) -> Bounce:
    from milterapp.mail.bounce_words import recipients_of  # it needs `email`, and few messages come here

    temporary, permanent, said = recipients_of(mail)
    status = _status_of(said)
    waiting = (temporary and not permanent) or (not status and _WAITING.search(mail.subject or ""))
    kind = SOFT if waiting else _kind(status, said)
    failed = [Failed(one, kind, status) for one in permanent]
    failed += [Failed(one, SOFT, status) for one in temporary if one not in permanent]
    return Bounce(kind, tuple(failed))


def _status_of(said: str) -> str:
    """Return the first status in the words that is of a failure."""
    for match in _STATUS.finditer(said[:8000]):
        if match[1] != "2":
            return ".".join(str(int(one)) for one in match.groups())
    return ""
