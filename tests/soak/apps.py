"""Does an application of rules/apps keep its word while everything is killed at random around them?

    packaging/world .venv/bin/python -m tests.soak.apps blog|list [--messages N] [--blows M] [--seed S]

Twenty senders speak to bob's application over SMTP, in rounds: they write, and most answer the questions they get.
Meanwhile every process of milterapp and of Postfix is killed again and again. After each round, with the queue empty, a
model says which pages and comments are there, or who is subscribed and what each subscriber got. Exits 1 where anything
else is so.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import smtplib
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from email import message_from_bytes, policy
from pathlib import Path

from tests.postfix.harness import Site, in_world, message
from tests.postfix.mailboxes import header
from tests.soak.chaos import BLOWS, SETTINGS, Blows
from tests.soak.host_ledger import marked_ids, queue_id

__all__ = ["KINDS", "main", "soak"]

APPS = Path(__file__).parents[2] / "rules/apps"
FOLDER = Path("/home/bob/.milterapp")
CONFIGURATION = "delivery:\n  script_messages: 100000\nsubmit:\n  script_replies: 1000\n  daily_replies: 100000\n"
SENDERS = [f"s{number}@home.example" for number in range(20)]
_KILLS = {name: often for name, often in BLOWS.items() if name != "disk"}
_AHEAD = 4  # blows that messages may be ahead of
_TOKEN = re.compile(r"subject: ([0-9]+\.[0-9]+)")


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

    def say(self, to: str, sender: str) -> list[str]:
        """Send a message as an SMTP client does, again, with another subject, until it is taken; return the subjects.

        The last is of the one that was taken; of the others nobody knows.
        """
        self.messages += 1
        until = time.monotonic() + 180
        tokens: list[str] = []
        while True:
            tokens.append(f"{self.messages}.{len(tokens)}")
            data = message(tokens[-1], f"text {tokens[-1]} end\n", to=to, **{"from": f"<{sender}>"})
            self.sent[tokens[-1]] = sender
            try:
                if self.site.send(data, [to], sender=sender).code == 250:
                    return tokens
                del self.sent[tokens.pop()]
            except (OSError, smtplib.SMTPException):
                pass
            assert time.monotonic() < until, "a message is not taken"
            time.sleep(0.05)

    def say_all(self, orders: Mapping[str, str]) -> dict[str, list[str]]:
        """Have each sender write to an address under blows, and wait for the end of both; return the subjects."""
        said = {}
        with Blows(self.site, self.dice.randrange(1 << 30), _KILLS) as struck:
            for number, (sender, to) in enumerate(orders.items()):
                said[sender] = self.say(to, sender)
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
        said = self.say_all(orders)
        found = self.questions()
        for sender, tokens in said.items():
            why = f"no question to {sender} about {tokens[-1]} to {orders[sender]}"
            self.expect(why, tokens[-1] in found)
        return {sender: tokens[-1] for sender, tokens in said.items() if tokens[-1] in found}

    def answer(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Have most senders answer; return those that did, with what they confirmed."""
        found = self.questions()
        some = {sender: token for sender, token in asked.items() if self.dice.random() < 0.85}
        self.say_all({sender: found[token] for sender, token in some.items()})
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


def blog(talk: Talk, more: Callable[[], bool]) -> None:
    """Posts, comments and deletions, a kind a round."""
    pages: dict[str, tuple[str, str]] = {}
    comments: dict[str, set[str]] = defaultdict(set)
    while more():
        kind = talk.dice.choice(["post", "post", "comment", "delete"]) if pages else "post"
        orders, meant = {}, {}
        for number, sender in enumerate(SENDERS):
            own = f"p{number}"
            page = own if kind == "post" else talk.dice.choice(sorted(pages)) if kind == "comment" else own
            if kind != "delete" or (own in pages and talk.dice.random() < 0.4):
                meant[sender] = page
                orders[sender] = f"bob+{page}{'' if kind == 'post' else '-' + kind}@example.org"
        for sender, token in talk.answer(talk.ask(orders)).items():
            page = meant[sender]
            if kind == "post":
                pages[page] = sender, token
            elif kind == "comment":
                comments[page].add(token)
            else:
                del pages[page]
                comments.pop(page, None)
        there = {path.stem: path.read_text() for path in (FOLDER / "output/blog/pages").glob("*.html")}
        talk.expect(f"pages: {sorted(there)} for {sorted(pages)}", there.keys() == pages.keys())
        index = (FOLDER / "output/blog/index.html").read_text()
        talk.expect("the index", set(re.findall(r'pages/(p[0-9]+)\.html"', index)) == pages.keys())
        for page, (_, token) in pages.items():
            talk.expect(f"{page} is not of {token}", f"<h1>{token}</h1>" in there.get(page, ""))
            shown = Counter(re.findall(r"<p>text ([0-9.]+) end\n</p>", there.get(page, "").partition("<h2>")[2]))
            talk.expect(f"comments on {page}: {shown}", shown == Counter(comments[page]))


def mailing_list(talk: Talk, more: Callable[[], bool]) -> None:
    """Subscriptions, posts and leaving, a kind a round."""
    members: set[str] = set()
    while more():
        kind = talk.dice.choice(["post", "post", "subscribe", "unsubscribe"]) if members else "subscribe"
        some = [one for one in SENDERS if kind == "subscribe" or (one in members and talk.dice.random() < 0.4)]
        to = f"bob+dev{'' if kind == 'post' else '-' + kind}@example.org"
        confirmed = talk.answer(talk.ask(dict.fromkeys(some, to)))
        if kind == "subscribe":
            members |= set(confirmed)
        elif kind == "unsubscribe":
            members -= set(confirmed)
        else:
            letters = defaultdict(list)
            for one in talk.site.elsewhere():
                if header(one, "List-Id"):
                    letters[header(one, "Subject")[0], header(one, "X-Original-To")[0]].append(one)
            filed = Counter(header(one, "Subject")[0] for one in talk.site.folders("bob").get("Lists/dev", []))
            for token in confirmed.values():
                talk.expect(f"{token} filed {filed[token]} times", filed[token] == 1)
                got = {who for subject, who in letters if subject == token}
                talk.expect(f"{token} reached {got ^ members} too many or too few", got == members)
                for who in got:
                    talk.once(f"{token} to {who}", letters[token, who])
        stored = json.loads(talk.stored().get("members/dev", '["d"]'))
        talk.expect(f"{kind}: other members than {members}", {key for key, _ in stored[1:]} == members)


KINDS: Mapping[str, Callable[[Talk, Callable[[], bool]], None]] = {"blog": blog, "list": mailing_list}


def soak(site: Site, name: str, messages: int, blows: int, seed: int) -> Talk:
    """Speak to an application until so many messages were sent, under about so many blows; return what was said."""
    talk = Talk(site, seed, blows / messages)
    configuration = Path("/etc/milterapp/milterapp.yaml")
    configuration.write_text(CONFIGURATION)
    site.postconf(**SETTINGS)
    site.postfix("reload")
    try:
        for service in ("submit", "monitor"):
            site.stop_service(service)
            site.start_service(service)
        site.rules("bob", (APPS / name / "rules.yaml").read_text())
        for file in (APPS / name).iterdir():
            if file.suffix in (".html", ".txt") or file.name == f"{name}.py":
                site.script("bob", file.name, file.read_text())
        KINDS[name](talk, lambda: talk.messages < messages and not talk.defects)
    finally:
        configuration.unlink()
        site.run("postconf", "-X", *SETTINGS)
        site.postfix("reload", check=False)
        for service in ("submit", "monitor"):
            site.stop_service(service)
            site.start_service(service)
    return talk


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="An application of rules/apps under blows.")
    parser.add_argument("app", choices=KINDS)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--blows", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not in_world():
        parser.error("it kills a whole mail host: run it through packaging/world")
    site = Site()
    begun = time.monotonic()
    try:
        site.install()
        site.attach()
        site.start()
        talk = soak(site, options.app, options.messages, options.blows, options.seed)
    finally:
        site.stop()
    struck = ", ".join(f"{count} {kind}" for kind, count in sorted(talk.blows.items()))
    print(f"blows: {talk.blows.total()}: {struck}")
    print(f"{options.app}: {talk.messages} messages, {talk.gap} letters sent again in the gap")
    print(*talk.defects[:20], f"{len(talk.defects)} defects, {time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if talk.defects else 0


if __name__ == "__main__":
    sys.exit(main())
