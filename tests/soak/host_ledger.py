"""What went into a mail host and what came out of it: SHA-256 of every message, by mailbox.

Must never: change or move what it reads; it is read when the queue is empty.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from tests.postfix.mailboxes import header

__all__ = ["DEFECTS", "HostLedger", "Sent", "marked_ids", "payload", "queue_id"]

TWO_PASSES = ("bob ", "dave ", "erin ", "elsewhere")  # what comes there passed submit; an agent files all the rest
DEFECTS = ("lost", "corrupted", "doubled", "in a wrong place", "refused without a notice", "bounced")
_QUEUED = re.compile(r"\bid ([0-9A-Za-z]{6,})\b")


@dataclass(frozen=True, slots=True)
class Sent:
    """One attempt to send one message. places: the mailboxes one copy each belongs in; heard: Postfix said 250."""

    token: str
    digest: str
    places: Counter[str]
    refused: bool = False
    heard: bool = True


@dataclass
class HostLedger:
    """All of it: what was sent, what was found of it, and what that says."""

    sent: dict[str, Sent] = field(default_factory=dict)
    found: dict[str, Counter[str]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    copies: int = 0
    unheard: int = 0  # delivered, though the sender did not hear that Postfix had taken it
    gap: int = 0  # doubled, as Postfix took it from submit and the mark was not written
    postfix: int = 0  # doubled by Postfix: one queue file, delivered again when its own process was killed
    notices: int = 0

    def read(self, place: str, messages: Iterable[bytes], marked: Collection[str]) -> None:
        """Take what a mailbox holds. marked: the queue ids that submit logged as sent and marked."""
        copies: dict[str, list[bytes]] = defaultdict(list)
        for message in messages:
            if header(message, "Auto-Submitted") == ["auto-replied"] and not header(message, "X-Token"):
                self._notice(message)
                continue
            (token,) = header(message, "X-Token") or [""]
            copies[token].append(message)
        for token, found in copies.items():
            self._check(place, token, found, marked)

    def close(self) -> None:
        """Look for what is missing."""
        for one in self.sent.values():
            got = self.found.get(one.token, Counter())
            if one.refused:
                if one.heard and not got:
                    self.defects.append(f"refused without a notice: {one.token}")
                continue
            for place, wanted in one.places.items():
                if not got[place] and (one.heard or got):
                    self.defects.append(f"lost: {one.token} of {place} ({wanted} expected)")
                elif got[place] and got[place] < wanted:
                    self.defects.append(f"lost: {one.token}: {got[place]} of {wanted} in {place}")
            self.unheard += not one.heard and bool(got)

    def lines(self) -> list[str]:
        """Return the ledger as text."""
        expected = sum(one.places.total() for one in self.sent.values() if one.heard)
        kinds = Counter(one.partition(":")[0] for one in self.defects)
        heard = sum(one.heard for one in self.sent.values())
        return [
            f"in: {heard} messages taken by Postfix, {expected} copies expected",
            f"    {len(self.sent) - heard} more attempts whose 250 was not heard, {self.unheard} of them taken",
            f"out: {self.copies} copies, {self.notices} notices of a refusal",
            ", ".join(f"{kinds[one]} {one}" for one in DEFECTS),
            f"{self.gap} doubled in the gap; {self.postfix} delivered again by Postfix, as its own process was killed",
        ]

    def _notice(self, message: bytes) -> None:
        found = re.search(rb"^X-Token: (\S+)\r?$", message, re.MULTILINE)
        one = self.sent.get(found[1].decode()) if found else None
        if one is None or not one.refused:
            self.defects.append(f"bounced: {one.token if one else message[-2000:]!r}")
            return
        self.notices += 1
        self.found.setdefault(one.token, Counter())["notice"] += 1

    def _check(self, place: str, token: str, found: list[bytes], marked: Collection[str]) -> None:
        one = self.sent.get(token)
        if one is None:
            self.defects.append(f"corrupted: a message in {place} without a token: {found[0][:200]!r}")
            return
        wanted = one.places[place]
        self.copies += len(found)
        self.found.setdefault(token, Counter())[place] = min(len(found), wanted)
        if not wanted:
            self.defects.append(f"in a wrong place: {token} in {place}")
        for message in found:
            if _digest(message) != one.digest:
                self.defects.append(f"corrupted: {token} in {place}")
        if len(found) > wanted > 0:
            self._doubled(place, token, found, wanted, marked)

    def _doubled(self, place: str, token: str, found: list[bytes], wanted: int, marked: Collection[str]) -> None:
        """Tell what Postfix did twice with one queue file from what we sent twice, and that from a defect."""
        if place not in TWO_PASSES:
            self.defects.append(f"doubled: {token} in {place}")
            return
        queue_ids = [queue_id(message) for message in found]
        different = len(set(queue_ids))
        self.postfix += len(found) - max(different, wanted)
        over = different - wanted
        if over > 0:
            if sum(one in marked for one in set(queue_ids)) > wanted:
                self.defects.append(f"doubled: {token} in {place}: {' '.join(queue_ids)}")
            else:
                self.gap += over


def queue_id(message: bytes) -> str:
    """Return the queue id of the last hop: for what was handed back or forwarded, that of its second queue file."""
    received = header(message, "Received")
    match = _QUEUED.search(received[0]) if received else None
    return match[1] if match else ""


def _digest(message: bytes) -> str:
    body = re.split(rb"\r?\n\r?\n", message, maxsplit=1)[-1].replace(b"\r\n", b"\n").strip(b"\n")
    return hashlib.sha256(body).hexdigest()


def payload(dice: random.Random, most: int) -> tuple[str, str]:
    """Return a body of random lines, and its digest as the ledger takes it."""
    data = dice.randbytes(int(dice.triangular(200, most, 2000)))
    lines = base64.encodebytes(data).decode().strip("\n")
    return lines + "\n", hashlib.sha256(lines.encode()).hexdigest()


def marked_ids(lines: Iterable[str]) -> Iterator[str]:
    """Yield the queue ids that submit logged as done: sent, and their mark on disk."""
    for line in lines:
        if "result=done" in line and (match := re.search(r"\bnew_queue_id=(\w+)", line)):
            yield match[1]
