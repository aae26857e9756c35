"""The disposable addresses, spoken to: `pytest rules/apps/mask` with milterapp installed."""

from pathlib import Path

import pytest

OWNER = "owner@home.example"
SHOP = "mask+shop@example.org"


@pytest.fixture
def mask(mailapp):
    """Give the application."""
    return mailapp(Path(__file__).with_name("mask.py"), user="mask@example.org")


def test_both_directions(mask):
    """The owner gets what comes, whole; the correspondent gets the answer, and nothing of the owner's."""
    came = mask.say(SHOP, "Your order\n", sender="joe@shop.example", subject="Order").letter
    assert (came.to, came.sender) == (OWNER, "mask+bounce@example.org")
    assert came.text == "Your order\n"
    assert came.header("Reply-To") == came.from_
    text = f"Thanks\n\nOn Friday <{came.from_}> wrote to OWNER@Home.Example:\n> Your order, owner@home.example\n"
    fields = {"Message-ID": "<1@home.example>", "X-Originating-IP": "192.0.2.7", "Received": "from owners-pc"}
    headers = {**fields, "From": f"The Owner <{OWNER}>"}
    sent = mask.say(came.from_, text, sender=OWNER, subject=f"Re: to {OWNER}", headers=headers).letter
    assert (sent.to, sent.sender, sent.from_) == ("joe@shop.example", SHOP, SHOP)
    assert sent.text == f"Thanks\n\nOn Friday <{SHOP}> wrote to {SHOP}:\n> Your order, {SHOP}\n"
    shown = sent.raw.decode().lower()
    key = came.from_.partition(".")[2].partition("@")[0]
    for hidden in ("home.example", "the owner", "owners-pc", "192.0.2.7", key):
        assert hidden not in shown
    assert mask.inbox == []


def test_an_alias_is_for_one_correspondent(mask):
    """Whoever it was passed on to is refused."""
    mask.say(SHOP, sender="joe@shop.example")
    assert mask.say(SHOP, sender="eve@ads.example").refused.startswith("5.1.1")
    assert mask.say("mask+other@example.org", sender="eve@ads.example").letter.to == OWNER


def test_only_the_owner_answers(mask):
    """Without the key, or from another address, nothing goes out."""
    came = mask.say(SHOP, sender="joe@shop.example").letter
    assert mask.say(came.from_, sender="eve@ads.example").refused.startswith("5.1.1")
    assert mask.say("mask+shop.0123456789abcdef@example.org", sender=OWNER).refused.startswith("5.1.1")
    assert len(mask.sent) == 1


def test_writing_first(mask):
    """The owner opens an alias for somebody, once the question is answered; a forged order does nothing."""
    asked = mask.say("mask+tom-to-tom=t.example@example.org", f"Dear Tom,\nI am {OWNER}\n", sender=OWNER)
    assert [one.to for one in asked.letters] == [OWNER]
    first, told = mask.answer(asked.letter).letters
    assert (first.to, first.from_) == ("tom@t.example", "mask+tom@example.org")
    assert first.text == "Dear Tom,\nI am mask+tom@example.org\n"
    assert "mask+tom." in told.text
    assert mask.say("mask+tom@example.org", sender="tom@t.example").letter.to == OWNER
    assert mask.say("mask+x-to-tom=t.example@example.org", sender="eve@e.example").refused.startswith("5.1.1")


def test_closing(mask):
    """A closed alias takes nothing more, in neither direction."""
    came = mask.say(SHOP, sender="joe@shop.example").letter
    mask.answer(mask.say("mask+shop-off@example.org", sender=OWNER).letter)
    assert mask.say(SHOP, sender="joe@shop.example").refused.startswith("5.1.1")
    assert mask.say(came.from_, sender=OWNER).refused.startswith("5.1.1")


def test_what_comes_back(mask):
    """A bounce of what was passed on, which names the owner, and an automatic answer of the owner's reach nobody."""
    came = mask.say(SHOP, sender="joe@shop.example").letter
    assert mask.bounce(came).letters == []
    vacation = {"Auto-Submitted": "auto-replied"}
    assert mask.say(came.from_, "I am away\n", sender=OWNER, headers=vacation).letters == []
    assert mask.say(SHOP, "I am away\n", sender=OWNER, headers=vacation).letters == []
    assert len(mask.sent) == 1


def test_odd_characters(mask):
    """A text whose small letters are longer than its capitals hides nothing from being taken out."""
    came = mask.say(SHOP, sender="joe@shop.example").letter
    sent = mask.say(came.from_, f"\u0130\u0130\u0130 {OWNER} \u0130{OWNER.upper()}", sender=OWNER).letter
    assert "home.example" not in sent.text.lower()
