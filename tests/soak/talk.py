"""What is said to an application while everything is killed around it, and what is heard from it.

Must never: take a shortcut past Postfix, or wait without a deadline.
"""

from __future__ import annotations

import random
import re
import smtplib
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header
from tests.soak.chaos import BLOWS, Blows
from tests.soak.host_ledger import marked_ids, queue_id

__all__ = ["FOLDER", "Order", "Talk", "text_of"]

FOLDER = Path("/home/bob/.milterapp")
_KILLS = {name: often for name, often in BLOWS.items() if name != "disk"}
_AHEAD = 4  # blows that messages may be ahead of
_TOKEN = re.compile(r"\b[Ss]ubject: ([0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True)
class Order:
    """A message to be written. more: text after its first line; fields: as of harness.message()."""

    sender: str
    to: str
    more: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    helo: str = "client.example"


class Talk:
    """What was said to an application, and heard from it. sent: tokens that Postfix may have, with their senders."""

    def __init__(self, site: Site, seed: int, often: float) -> None:
        """often: blows for a message."""
        self.site = site
        self.often = often
        self.blows: Counter[str] = Counter()
        self.dice = random.Random(seed)
        self.sent: dict[str, str] = {}
        self.defects: list[str] = []
        self.messages = self.gap = 0

    def say(self, order: Order) -> list[str]:
        """Send a message as an SMTP client does, again, with another subject, until it is taken; return the subjects.

        The last is of the one that was taken; of the others nobody knows.
        """
        self.messages += 1
        until = time.monotonic() + 180
        tokens: list[str] = []
        while True:
            tokens.append(f"{self.messages}.{len(tokens)}")
            text = f"text {tokens[-1]} end\n{order.more}"
            data = message(tokens[-1], text, **{"to": order.to, "from": f"<{order.sender}>", **order.fields})
            self.sent[tokens[-1]] = order.sender
            try:
                if self.site.send(data, [order.to], sender=order.sender, helo=order.helo).code == 250:
                    return tokens
                del self.sent[tokens.pop()]
            except (OSError, smtplib.SMTPException):
                pass
            assert time.monotonic() < until, "a message is not taken"
            time.sleep(0.05)

    def say_all(self, orders: Sequence[Order]) -> list[list[str]]:
        """Have all of them written under blows, and wait for the end of both; return the subjects of each."""
        said = []
        with Blows(self.site, self.dice.randrange(1 << 30), _KILLS) as struck:
            for number, order in enumerate(orders):
                said.append(self.say(order))
                self.site.wait(lambda: struck.due(int(self.often * number) - _AHEAD), "the next blow", 300)  # noqa: B023
            self.site.wait(lambda: struck.due(round(self.often * len(orders))), "the last blow", 300)
        self.blows += struck.counts
        self.site.settle(300)
        return said

    def questions(self) -> dict[str, str]:
        """Return where the question about each message came from, by its subject."""
        found: dict[str, str] = {}
        for one in self.site.elsewhere():
            (origin,) = header(one, "From") or [""]
            if "+confirm-" in origin and (token := _TOKEN.search(text_of(one))):
                self.expect("a question to somebody else", header(one, "X-Original-To") == [self.sent[token[1]]])
                self.expect(f"two questions about {token[1]}", found.setdefault(token[1], origin) == origin)
        return found

    def ask(self, orders: Mapping[str, str]) -> dict[str, str]:
        """Have each sender write to an address; return one question of each, by sender, once all have come."""
        said = self.say_all([Order(sender, to) for sender, to in orders.items()])
        found = self.questions()
        asked: dict[str, str] = {}
        for (sender, to), (*_, token) in zip(orders.items(), said, strict=True):
            self.expect(f"no question to {sender} about {token} to {to}", token in found)
            asked |= {sender: token} if token in found else {}
        return asked

    def answer(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Have most senders answer; return those that did, with what they confirmed."""
        found = self.questions()
        some = {sender: token for sender, token in asked.items() if self.dice.random() < 0.85}
        self.say_all([Order(sender, found[token]) for sender, token in some.items()])
        return some

    def stored(self) -> dict[str, str]:
        """Return what the application stored, as it is written."""
        with closing(sqlite3.connect(f"file:{FOLDER}/scripts.sqlite?mode=ro", uri=True)) as found:
            return dict(found.execute("SELECT key, value FROM stored").fetchall())

    def expect(self, what: str, so: object) -> None:
        """Note a defect where something is not so."""
        self.defects += [] if so else [what]

    def once(self, what: str, found: list[bytes]) -> None:
        """Expect one letter, or several of which Postfix took the others in the gap that milterapp-submit(8) names."""
        ids = {queue_id(one) for one in found}
        marked = set(marked_ids(self.site.service_log("submit").splitlines()))
        self.expect(f"{what}: {len(found)} times", ids and len(ids & marked) <= 1)
        self.gap += len(ids) > 1


def text_of(raw: bytes) -> str:
    """Return the text of a letter."""
    found = message_from_bytes(raw, policy=policy.default).get_content()
    return found if isinstance(found, str) else ""
