"""The mailing list, spoken to: `pytest rules/apps/list` with milterapp installed."""

from pathlib import Path

import pytest

DEV = "lists+dev@example.org"
FIELDS = {
    "List-Id": "Development <dev.lists.example.org>",
    "List-Post": "<mailto:lists+dev@example.org>",
    "List-Subscribe": "<mailto:lists+dev-subscribe@example.org>",
    "List-Unsubscribe": "<mailto:lists+dev-unsubscribe@example.org>",
    "List-Help": "<mailto:lists@example.org>",
}


@pytest.fixture
def lists(mailapp):
    """Give a list with two subscribers."""
    made = mailapp(Path(__file__).with_name("list.py"), user="lists@example.org")
    for sender in ("ann@a.example", "bo@b.example"):
        order(made, "subscribe", sender)
    return made


def order(lists, action, sender):
    """Order something, and answer the question; return what comes back."""
    asked = lists.say(f"lists+dev-{action}@example.org", sender=sender)
    return lists.answer(asked.letter).letter


def post(lists, sender="ann@a.example"):
    """Post, and confirm it; return what leaves."""
    return lists.answer(lists.say(DEV, "news\n", sender=sender, subject="Hi").letter).letters


def test_subscribing_needs_an_answer(lists):
    """A state and a member only once it is answered; nobody is subscribed by somebody else."""
    asked = lists.say("lists+dev-subscribe@example.org", sender="cy@c.example")
    assert lists.state("cy@c.example", "dev") == "START"
    lists.answer(asked.letter)
    assert lists.state("cy@c.example", "dev") == "MEMBER"
    assert lists.state("cy@c.example", "news") == "START"
    assert list(lists.stored("members/dev")) == ["ann@a.example", "bo@b.example", "cy@c.example"]


def test_a_post_reaches_every_subscriber(lists):
    """With the fields of RFC 2369 and RFC 2919, from an address for each one's bounces, and into the archive."""
    letters = post(lists)
    assert [one.to for one in letters] == ["ann@a.example", "bo@b.example"]
    for name, value in FIELDS.items():
        assert [one.header(name) for one in letters] == [value, value]
    assert len({one.sender for one in letters}) == 2
    assert all(one.sender.startswith("lists+dev-bounce-") for one in letters)
    assert letters[0].text == "news\n"
    (filed,) = lists.folders["Lists/dev"]
    assert b"List-Id: Development" in filed
    assert lists.inbox == []


def test_leaving(lists):
    """Who has left gets nothing and cannot post; nobody is thrown out by a forged order."""
    lists.say("lists+dev-unsubscribe@example.org", sender="bo@b.example")
    assert len(post(lists)) == 2
    assert "no subscriber" in order(lists, "unsubscribe", "bo@b.example").text
    assert [one.to for one in post(lists)] == ["ann@a.example"]
    assert lists.say(DEV, sender="bo@b.example").refused.startswith("5.7.1 You are no subscriber")


def test_an_address_that_bounces(lists):
    """After two bounces for good it gets nothing more, until it subscribes again; a full mailbox does not count."""
    letter = post(lists)[1]
    for status in ("5.1.1", "5.2.2", "4.4.1"):
        lists.bounce(letter, status)
    assert len(post(lists)) == 2
    lists.bounce(letter, "5.1.1")
    assert [one.to for one in post(lists)] == ["ann@a.example"]
    order(lists, "subscribe", "bo@b.example")
    assert [one.to for one in post(lists)] == ["ann@a.example", "bo@b.example"]


def test_a_bounce_that_is_none(lists):
    """Somebody's mail to a bounce address, or one with another key, disables nobody."""
    letter = post(lists)[1]
    for _ in range(3):
        lists.say(letter.sender, "I am a bounce\n", sender="eve@e.example")
        lists.bounce(type(letter)("lists+dev-bounce-0123456789abcdef@example.org", letter.to, b""))
    assert len(post(lists)) == 2
    assert lists.inbox == []


REFUSED = {
    "forged From": {"From": "bo@b.example"},
    "two in From": {"From": "ann@a.example, bo@b.example"},
    "its own post": {"List-Id": "<dev.lists.example.org>"},
    "another list's": {"List-Id": "<other.example.net>"},
    "bulk": {"Precedence": "bulk"},
    "vacation": {"Auto-Submitted": "auto-replied"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_loops_and_forged_senders(lists, name):
    """They reach nobody, not even with a question."""
    said = lists.say(DEV, sender="ann@a.example", headers=REFUSED[name])
    assert said.letters == []
    assert not said.kept
    assert bool(said.refused) == (name != "vacation")
