"""Does an application of rules/apps keep its word while everything is killed at random around them?

    packaging/world .venv/bin/python -m tests.soak.apps blog|list|mask [--messages N] [--blows M] [--seed S]

Twenty senders speak to bob's application over SMTP, in rounds: they write, and most answer the questions they get.
Meanwhile every process of milterapp and of Postfix is killed again and again. After each round, with the queue empty, a
model says which pages and comments are there, who is subscribed and what each subscriber got, or what reached whom
through which alias. Exits 1 where anything else is so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.postfix.harness import Site, in_world, running
from tests.postfix.mailboxes import header
from tests.soak.chaos import SETTINGS
from tests.soak.mask import OWNER, mask
from tests.soak.talk import FOLDER, Talk

__all__ = ["KINDS", "main", "soak"]

APPS = Path(__file__).parents[2] / "rules/apps"
CONFIGURATION = "delivery:\n  script_messages: 100000\nsubmit:\n  script_replies: 1000\n  daily_replies: 100000\n"
SENDERS = [f"s{number}@home.example" for number in range(20)]


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


KINDS: Mapping[str, Callable[[Talk, Callable[[], bool]], None]] = {"blog": blog, "list": mailing_list, "mask": mask}


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
                site.script("bob", file.name, file.read_text().replace("owner@home.example", OWNER))
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
    begun = time.monotonic()
    with running() as site:
        talk = soak(site, options.app, options.messages, options.blows, options.seed)
    struck = ", ".join(f"{count} {kind}" for kind, count in sorted(talk.blows.items()))
    print(f"blows: {talk.blows.total()}: {struck}")
    print(f"{options.app}: {talk.messages} messages, {talk.gap} letters sent again in the gap")
    print(*talk.defects[:20], f"{len(talk.defects)} defects, {time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if talk.defects else 0


if __name__ == "__main__":
    sys.exit(main())
