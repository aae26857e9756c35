"""The applications of rules/apps behind a real Postfix, in the sandbox, as bob's: asked by mail, answered by mail."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header
from tests.soak import apps

pytestmark = [pytest.mark.root, pytest.mark.postfix]

APPS = Path(__file__).parents[2] / "rules/apps"
OUTPUT = Path("/home/bob/.milterapp/output")
ANN, DORA = "ann@home.example", "dora@home.example"


def application(site: Site, name: str, **change: str) -> None:
    """Give bob an application, with names in its script changed."""
    site.rules("bob", (APPS / name / "rules.yaml").read_text())
    for file in (APPS / name).iterdir():
        if file.suffix in (".html", ".txt") or file.name == f"{name}.py":
            text = file.read_text()
            for old, new in change.items() if file.suffix == ".py" else ():
                assert re.search(rf"^{old} = .*$", text, re.MULTILINE)
                text = re.sub(rf"^{old} = .*$", f"{old} = {new}", text, flags=re.MULTILINE)
            site.script("bob", file.name, text)


class Post:
    """What people outside send to bob's application, and what they get."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.seen: set[bytes] = set(site.elsewhere())

    def say(self, to: str, sender: str = ANN, text: str = "hello\n", subject: str = "Hi") -> list[bytes]:
        """Send a message; return what leaves the host because of it."""
        raw = message(subject, text, to=to, **{"from": f"Somebody <{sender}>"})
        answer = self.site.send(raw, [to], sender=sender)
        assert answer.code == 250, answer
        self.site.settle()
        new = [one for one in self.site.elsewhere() if one not in self.seen]
        self.seen |= set(new)
        return new

    def confirm(self, to: str, sender: str = ANN, text: str = "hello\n", subject: str = "Hi") -> list[bytes]:
        """Send a message, and answer the question; return what leaves then."""
        (question,) = self.say(to, sender, text, subject)
        assert header(question, "X-Original-To") == [sender]
        assert header(question, "Return-Path") == ["<>"]
        (back,) = header(question, "From")
        return self.say(back, sender, "yes\n", "Re: it")


def text_of(raw: bytes) -> str:
    """Return a message's text."""
    found = message_from_bytes(raw, policy=policy.default).get_content()
    assert isinstance(found, str)
    return found


def test_blog(site: Site) -> None:
    """A post and a comment appear once confirmed, and are gone once deleted; nothing is left in bob's mailbox."""
    application(site, "blog")
    post = Post(site)
    (said,) = post.confirm("bob+first@example.org", text="One & two\n", subject="My <first>")
    assert text_of(said) == "Your page first is there.\n"
    page = OUTPUT / "blog/pages/first.html"
    assert "<h1>My &lt;first&gt;</h1>" in page.read_text()
    post.confirm("bob+first-comment@example.org", DORA, "Well <said>\n")
    assert "<p>Well &lt;said&gt;\n</p>" in page.read_text()
    (said,) = post.confirm("bob+first-delete@example.org", DORA)
    assert text_of(said) == "There is no page first of yours.\n"
    post.confirm("bob+first-delete@example.org")
    assert not page.exists()
    assert "first" not in (OUTPUT / "blog/index.html").read_text()
    assert site.inbox("bob") == []


def test_list(site: Site) -> None:
    """Two subscribe, a post reaches both and the archive; who bounces is left out; a stranger's post comes back."""
    application(site, "list")
    post = Post(site)
    for sender in (ANN, DORA):
        post.confirm("bob+dev-subscribe@example.org", sender)
    letters = post.confirm("bob+dev@example.org", ANN, "the news\n")
    assert sorted(header(one, "X-Original-To")[0] for one in letters) == [ANN, DORA]
    for one in letters:
        assert header(one, "List-Id") == ["Development <dev.bob.example.org>"]
        assert header(one, "List-Post") == ["<mailto:bob+dev@example.org>"]
        assert text_of(one) == "the news\n"
    assert len(site.folders("bob")["Lists/dev"]) == 1
    (bounces,) = (
        header(one, "Return-Path")[0].strip("<>") for one in letters if header(one, "X-Original-To") == [DORA]
    )
    report = (
        f"--x\n\nno\n--x\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; home.example\n\n"
        f"Final-Recipient: rfc822; {DORA}\nAction: failed\nStatus: 5.1.1\n\n--x--\n"
    )
    kind = "multipart/report; report-type=delivery-status; boundary=x"
    for number in range(2):
        raw = message(f"Undelivered {number}", report, to=bounces, **{"content-type": kind})
        assert site.send(raw, [bounces], sender="").code == 250
    site.settle()
    letters = post.confirm("bob+dev@example.org", ANN, "more news\n")
    assert [header(one, "X-Original-To")[0] for one in letters] == [ANN]
    assert site.inbox("bob") == []


def test_mask(site: Site) -> None:
    """Mail comes to the owner, the answer goes out as the alias, and nothing in it is the owner's."""
    application(site, "mask", OWNER='Address("dora@home.example")')
    post = Post(site)
    (came,) = post.say("bob+shop@example.org", "joe@shop.example", "Your order\n")
    assert header(came, "X-Original-To") == [DORA]
    (back,) = header(came, "Reply-To")
    (sent,) = post.say(back, DORA, f"I am {DORA}, you {back}\n", f"from {DORA}")
    assert header(sent, "X-Original-To") == ["joe@shop.example"]
    assert header(sent, "From") == ["bob+shop@example.org"]
    assert text_of(sent) == "I am bob+shop@example.org, you bob+shop@example.org\n"
    assert b"home.example" not in sent.lower()
    assert site.inbox("bob") == []


@pytest.mark.parametrize("name", apps.KINDS)
def test_under_blows(site: Site, name: str) -> None:
    """Twenty senders speak to it while everything is killed at random: a model knows what is there and who got what."""
    talk = apps.soak(site, name, messages=60, blows=12, seed=3)
    assert talk.defects == []
    assert talk.blows.total() >= 12
