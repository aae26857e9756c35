"""Does a script's application still know what happened to it, with everything killed at random around it?

    packaging/world .venv/bin/python -m tests.soak.scripted [--messages N] [--blows M] [--seed S]

Twenty senders write to one application at a time of their own, over SMTP. For each message it counts, notes the token
it saw, changes the sender's state, writes two files, answers and files the message. Meanwhile every process of
milterapp and of Postfix is killed again and again. When the queue is empty a model says what must be remembered, where
each sender stands, and that each message was filed and answered once. Exits 1 where anything else is so.
"""

from __future__ import annotations

import argparse
import random
import re
import smtplib
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.postfix.harness import Site, in_world, message, running
from tests.postfix.mailboxes import header
from tests.soak.chaos import BLOWS, SETTINGS, Blows
from tests.soak.host_ledger import marked_ids, queue_id

__all__ = ["Model", "main", "soak"]

RULES = "rules:\n  - name: talk\n    if:\n      recipient: {detail: talk}\n    then:\n      script: talk/talk.py\n"
SCRIPT = """
from milterapp.script import *

def heard(mail, next):
    token = mail.subject.fullmatch("[0-9]+[.][0-9]+")[0]
    store["seen/" + token] = store.get("seen/" + token, 0) + 1
    store["count"] = store.get("count", 0) + 1
    output["count.html"] = str(store["count"])
    output[f"last/{store['count'] % 5}.html"] = token
    mail.reply(text=token)
    mail.file("Talk")
    return next

@route("bob+talk@{host}")
def START(mail, host):
    return heard(mail, OTHER)

@route("bob+talk@{host}")
def OTHER(mail, host):
    return heard(mail, START)
"""
CONFIGURATION = "delivery:\n  script_messages: 100000\nsubmit:\n  script_replies: 1000\n  daily_replies: 100000\n"
FOLDER = Path("/home/bob/.milterapp")
SENDERS = 20
_KILLS = {name: often for name, often in BLOWS.items() if name != "disk"}
_AHEAD = 4  # blows that messages may be ahead of


@dataclass
class Model:
    """What was sent, by token: the sender, and whether Postfix was heard to take it; and what is wrong in the end."""

    sent: dict[str, tuple[str, bool]] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    seen: int = 0
    gap: int = 0

    def judge(self, site: Site) -> None:
        """Hold everything that can be seen against what was sent."""
        with closing(sqlite3.connect(f"file:{FOLDER}/scripts.sqlite?mode=ro", uri=True)) as found:
            stored = dict(found.execute("SELECT key, value FROM stored").fetchall())
            states = dict(found.execute("SELECT sender, state FROM states").fetchall())
            waiting = found.execute("SELECT COUNT(*) FROM outputs").fetchone()[0]
        seen = {key.removeprefix("seen/"): value for key, value in stored.items() if key.startswith("seen/")}
        self.seen = len(seen)
        self._expect("lost", {one for one, (_, heard) in self.sent.items() if heard} - seen.keys())
        self._expect("unknown", seen.keys() - self.sent.keys())
        self._expect("handled more than once", {one for one, value in seen.items() if value != "1"})
        self._expect("a count that is no count", {stored["count"]} - {str(len(seen))})
        self._expect("files that wait", {str(waiting)} - {"0"})
        shown = (FOLDER / "output/talk/talk/count.html").read_text()
        self._expect("an old page", {shown} - {str(len(seen))})
        times = Counter(self.sent[one][0] for one in seen)
        for sender in {sender for sender, _ in self.sent.values()}:
            want = "OTHER" if times[sender] % 2 else ""
            self._expect(f"{sender} in another state than {want or 'START'}", {states.get(sender, "")} - {want})
        filed = Counter(header(one, "Subject")[0] for one in site.folders("bob").get("Talk", []))
        self._expect("not filed once", {one for one in seen.keys() | filed.keys() if filed[one] != 1})
        self._expect("kept as well", {str(len(site.inbox("bob")))} - {"0"})
        self._answers(site, set(seen))

    def _answers(self, site: Site, seen: set[str]) -> None:
        marked = set(marked_ids(site.service_log("submit").splitlines()))
        answers = defaultdict(set)
        for one in site.elsewhere():
            token = re.split(rb"\r?\n\r?\n", one, maxsplit=1)[1].strip().decode()
            if header(one, "X-Original-To") != [self.sent.get(token, ("",))[0]]:
                self.defects.append(f"an answer to somebody else: {token}")
            answers[token].add(queue_id(one))
        self._expect("not answered", seen - answers.keys())
        self._expect("answered and not seen", answers.keys() - seen)
        for token, ids in answers.items():
            if len(ids) > 1:
                self.gap += 1
                self._expect("answered twice outside the gap", {token} if len(ids & marked) > 1 else set())

    def _expect(self, what: str, found: set[str]) -> None:
        self.defects += [f"{what}: {', '.join(sorted(found)[:10])}"] if found else []


def _send(site: Site, model: Model, number: int, sender: str) -> None:
    """Send one message as an SMTP client does: again, as another one for the model, until it is taken."""
    until = time.monotonic() + 180
    for attempt in range(1_000_000):
        token = f"{number}.{attempt}"
        data = message(token, "hello\n", to="bob+talk@example.org")
        try:
            answer = site.send(data, ["bob+talk@example.org"], sender=sender)
            model.sent[token] = (sender, answer.code == 250)  # what was refused may have been taken all the same
            if answer.code == 250:
                return
        except (OSError, smtplib.SMTPException):
            model.sent[token] = (sender, False)
        assert time.monotonic() < until, f"message {number} is not taken"
        time.sleep(0.05)


def soak(site: Site, messages: int, blows: int, seed: int) -> tuple[Model, Counter[str]]:
    """Send so many messages under so many blows, wait until the queue is empty; return the model, judged, and blows."""
    dice, model = random.Random(seed), Model()
    configuration = Path("/etc/milterapp/milterapp.yaml")
    configuration.write_text(CONFIGURATION)
    site.postconf(**SETTINGS)
    site.postfix("reload")
    try:
        for service in ("submit", "monitor"):
            site.stop_service(service)
            site.start_service(service)
        site.rules("bob", RULES)
        site.script("bob", "talk/talk.py", SCRIPT)
        with Blows(site, seed, _KILLS) as struck:
            for number in range(messages):
                _send(site, model, number, f"s{dice.randrange(SENDERS)}@home.example")
                site.wait(lambda: struck.due(blows * number // messages - _AHEAD), "the next blow", 120)  # noqa: B023
            site.wait(lambda: struck.due(blows), "the last blow", 120)
        site.settle(300)
        model.judge(site)
    finally:
        configuration.unlink()
        site.run("postconf", "-X", *SETTINGS)
        site.postfix("reload", check=False)
        for service in ("submit", "monitor"):
            site.stop_service(service)
            site.start_service(service)
    return model, struck.counts


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="An application of a script under blows.")
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--blows", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not in_world():
        parser.error("it kills a whole mail host: run it through packaging/world")
    begun = time.monotonic()
    with running() as site:
        model, blows = soak(site, options.messages, options.blows, options.seed)
    print(f"blows: {blows.total()}: {', '.join(f'{count} {name}' for name, count in sorted(blows.items()))}")
    heard = sum(heard for _, heard in model.sent.values())
    print(f"{heard} messages taken by Postfix, {model.seen} handled, each once; {model.gap} answered again in the gap")
    print(*model.defects, f"{len(model.defects)} defects, {time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if model.defects else 0


if __name__ == "__main__":
    sys.exit(main())
