"""Random conversations of 20 senders with each application, every step held against a model of what must be so."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from milterapp.testing import Application, Letter

APPS = Path(__file__).parents[2] / "rules/apps"
SENDERS = [f"s{number}@host{number % 3}.example" for number in range(20)]
MESSAGES = 500
SEEDS = [1, 2]


@contextmanager
def application(name: str) -> Iterator[Application]:
    """Give an application whose user is named like it."""
    with Application(APPS / name / f"{name}.py", user=f"{name}@example.org") as made:
        yield made


class Asked:
    """Questions that wait, each with what its answer means; they are answered in whatever order, some twice."""

    def __init__(self, app: Application, chance: random.Random) -> None:
        self._app, self._chance = app, chance
        self.waiting: list[tuple[Letter, tuple[str, ...]]] = []
        self._answered: list[Letter] = []

    def take(self, letter: Letter, *meaning: str) -> None:
        """Remember a question."""
        assert "+confirm-" in letter.from_
        self.waiting.append((letter, meaning))

    def answer(self) -> tuple[tuple[str, ...], list[Letter]] | None:
        """Answer one, or one again, which does nothing; return what that means, and what left."""
        if self._answered and self._chance.random() < 0.1:
            again = self._app.answer(self._chance.choice(self._answered))
            assert not again.routed
            assert again.letters == []
            return None
        if not self.waiting:
            return None
        letter, meaning = self.waiting.pop(self._chance.randrange(len(self.waiting)))
        self._answered.append(letter)
        return meaning, self._app.answer(letter).letters


@pytest.mark.parametrize("seed", SEEDS)
def test_blog(seed: int) -> None:
    """What is posted is what was confirmed by whom it belongs to, with its comments, and nothing else."""
    chance = random.Random(seed)
    pages: dict[str, tuple[str, str]] = {}  # author and text
    comments: dict[str, list[str]] = {}
    with application("blog") as app:
        asked = Asked(app, chance)
        for number in range(MESSAGES):
            if chance.random() < 0.45 and (answered := asked.answer()):
                action, page, sender, text = answered[0]
                if action == "post" and pages.get(page, (sender, ""))[0] == sender:
                    pages[page] = sender, text
                elif action == "comment" and page in pages:
                    comments.setdefault(page, []).append(text)
                elif action == "delete" and pages.get(page, ("", ""))[0] == sender:
                    del pages[page]
                    comments.pop(page, None)
                assert len(answered[1]) == 1
            else:
                page, sender = f"page{chance.randrange(8)}", chance.choice(SENDERS[: chance.choice([3, 20])])
                action, text = chance.choice(["post", "post", "comment", "delete"]), f"text number {number} <&>"
                to = f"blog+{page}{'' if action == 'post' else '-' + action}@example.org"
                said = app.say(to, text, sender=sender, subject=text)
                if action != "post" and page not in pages:
                    assert said.refused.startswith("5.1.1")
                else:
                    asked.take(said.letter, action, page, sender, text)
            shown = {f"pages/{page}.html" for page in pages}
            assert set(app.outputs) - {"index.html"} == shown
            for page, (_, text) in pages.items():
                html = app.outputs[f"pages/{page}.html"]
                assert f"<h1>{text.replace('<&>', '&lt;&amp;&gt;')}</h1>" in html
                assert html.count("<h3>") == len(comments.get(page, []))
                assert all(one.partition(" <")[0] in html for one in comments.get(page, []))
                assert f'href="pages/{page}.html"' in app.outputs["index.html"]
        assert app.outputs.get("index.html", "").count("<li>") == len(pages)
        assert app.inbox == [] or all(b"+confirm-" in one for one in app.inbox)
        assert pages


@pytest.mark.parametrize("seed", SEEDS)
def test_list(seed: int) -> None:
    """Who is subscribed, and who gets a post, is who confirmed it, has not left, and does not bounce."""
    chance = random.Random(seed)
    members: dict[str, int] = {}  # bounces for good
    posted: list[str] = []
    with application("list") as app:
        asked = Asked(app, chance)
        delivered: list[Letter] = []
        for number in range(MESSAGES):
            sender, dice = chance.choice(SENDERS), chance.random()
            if dice < 0.45 and (answered := asked.answer()):
                (action, who, text), letters = answered
                if action == "subscribe":
                    members[who] = 0
                elif action == "unsubscribe":
                    members.pop(who, None)
                else:
                    assert {one.to for one in letters} == {one for one, count in members.items() if count < 2}
                    assert all(one.text == text and one.header("List-Id") for one in letters)
                    posted.append(text)
                    delivered = letters
            elif dice > 0.85 and delivered:
                letter, status = chance.choice(delivered), chance.choice(["5.1.1", "5.1.1", "4.4.1"])
                app.bounce(letter, status)
                if letter.to in members and status == "5.1.1" and letter.sender in keys(app):
                    members[letter.to] += 1
            elif dice > 0.8:
                forged = {"From": f"<{chance.choice(SENDERS)}>, <x@y.example>"}
                assert app.say("list+dev@example.org", sender=sender, headers=forged).letters == []
            else:
                action = chance.choice(["subscribe", "subscribe", "post", "post", "unsubscribe"])
                to = f"list+dev{'' if action == 'post' else '-' + action}@example.org"
                text = f"text number {number}\n"
                said = app.say(to, text, sender=sender)
                if sender not in members and action != "subscribe":
                    assert said.refused.startswith("5.7.1")
                else:
                    asked.take(said.letter, action, sender, text)
            found = app.stored("members/dev", {})
            assert {one: entry["bounces"] for one, entry in found.items()} == members
            states = {one for one in SENDERS if app.state(one, "dev") == "MEMBER"} if number % 20 == 0 else set(members)
            assert states == set(members)
        assert [one.partition(b"\n\n")[2].decode() for one in app.folders["Lists/dev"]] == posted
        assert any(count >= 2 for count in members.values())
        assert len(posted) > 10


def keys(app: Application) -> set[str]:
    """Return the bounce addresses that stand for somebody now."""
    return {f"list+dev-bounce-{entry['key']}@example.org" for entry in app.stored("members/dev", {}).values()}


@pytest.mark.parametrize("seed", SEEDS)
def test_mask(seed: int) -> None:
    """Each alias carries mail between its first correspondent and the owner, and the owner shows in none of it."""
    chance = random.Random(seed)
    owner = "owner@home.example"
    peers: dict[str, str] = {}
    closed: set[str] = set()
    ways: list[tuple[str, Letter]] = []
    with application("mask") as app:
        asked = Asked(app, chance)
        for number in range(MESSAGES):
            dice, alias, sender = chance.random(), f"a{chance.randrange(30)}", chance.choice(SENDERS)
            text = f"text {number} of {chance.choice(['Owner@Home.Example', owner, 'nobody'])}\n"
            if dice < 0.05:
                asked.take(app.say(f"mask+{alias}-off@example.org", sender=owner).letter, alias)
            elif dice < 0.1 and (answered := asked.answer()):
                closed.add(answered[0][0])
                peers.setdefault(answered[0][0], "")
            elif dice < 0.6 or not ways:
                said = app.say(f"mask+{alias}@example.org", text, sender=sender)
                if alias not in closed and peers.setdefault(alias, sender) == sender:
                    assert (said.letter.to, said.letter.text) == (owner, text)
                    ways.append((alias, said.letter))
                else:
                    assert said.letters == []
                    assert said.refused.startswith("5.1.1")
            else:
                alias, letter = chance.choice(ways)
                quoted = "".join(f"> {line}\n" for line in (letter.from_, text))
                forged = chance.random() < 0.2
                said = app.say(letter.from_, quoted, sender=sender if forged else owner, subject=owner)
                if forged or alias in closed:
                    assert said.letters == []
                else:
                    sent = said.letter
                    assert (sent.to, sent.from_) == (peers[alias], f"mask+{alias}@example.org")
                    key = letter.from_.partition(".")[2].partition("@")[0]
                    assert f"text {number} of" in sent.text
                    assert not any(one in (sent.raw.decode() + sent.text).lower() for one in ("home.example", key))
        assert len(peers) > 10
        assert closed
