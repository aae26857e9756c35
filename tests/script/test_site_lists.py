"""`site`: what a script may ask of the site's lists, and that a list gives nothing away but the answer."""

from __future__ import annotations

import json

import pytest

from milterapp.rules.lists import NamedList
from milterapp.rules.membership import Membership
from milterapp.script.actions import Forward, Reply
from milterapp.script.memory import Asked, Remembered, answer
from milterapp.script.plan import PlanError
from tests.script.sample import failed, planned

LISTS = {
    "partners": ("ann@a.example", ".b.example", "c.example", "*@d?.example"),
    "words": ("Invoice", "pay*", "R&D"),
    "networks": ("192.0.2.0/24", "2001:db8::/32"),
    "mixed": ("192.0.2.7", "office"),
}


def memory() -> Asked:
    """Return a memory on the other side of a pipe that has the lists above."""
    known = Remembered(lists=Membership({name: NamedList.of(name, entries) for name, entries in LISTS.items()}))
    return Asked(lambda question: answer(known, question))


HOLDS = {
    "the address": ("partners", "ann@a.example", True),
    "in other case": ("partners", "Ann@A.EXAMPLE", True),
    "with a detail": ("partners", "ann+x@a.example", True),
    "another at that host": ("partners", "bob@a.example", False),
    "below a domain": ("partners", "x@y.b.example", True),
    "at that domain": ("partners", "x@c.example", True),
    "below one that is that one alone": ("partners", "x@y.c.example", False),
    "a domain": ("partners", "y.b.example", True),
    "a glob": ("partners", "x@d1.example", True),
    "a glob that does not fit": ("partners", "x@d12.example", False),
    "a word": ("words", "INVOICE", True),
    "part of a word": ("words", "Invoices", False),
    "a word by a glob": ("words", "payment", True),
    "in a network": ("networks", "192.0.2.200", True),
    "out of it": ("networks", "192.0.3.1", False),
    "IPv6": ("networks", "2001:db8::1", True),
    "an address among words": ("mixed", "192.0.2.7", False),
    "a word among addresses": ("mixed", "Office", True),
    "nothing": ("words", "", False),
    "longer than any": ("words", "x" * 5000, False),
}


@pytest.mark.parametrize(("name", "value", "wanted"), HOLDS.values(), ids=HOLDS)
def test_what_a_list_holds(name: str, value: str, wanted: bool) -> None:
    """A list holds what a condition with `in` would find in it, whether the value is the script's or the message's."""
    for made in (repr(value), f"Untrusted({value!r})"):
        text = f"from milterapp.script import *\ndef main(mail):\n    mail.reply(text=str({made} in site[{name!r}]))\n"
        assert planned(text, memory()).actions == (Reply(str(wanted)),)


@pytest.mark.parametrize(
    ("sender", "to"),
    [
        pytest.param("Ann+x@A.example", "ann@a.example", id="an address of the list"),
        pytest.param("x@y.b.example", None, id="covered by a domain"),
        pytest.param("x@z.example", None, id="not in it"),
    ],
)
def test_a_list_gives_its_own_entry(sender: str, to: str | None) -> None:
    """What `lookup` gives is the list's text, so mail may be sent there; what only its domain covers has none."""
    text = """
    from milterapp.script import *
    def main(mail):
        to = mail.sender.lookup(site["partners"])
        if to is not None:
            mail.forward(Address(to))
    """
    assert planned(text, memory(), sender=sender).actions == (() if to is None else (Forward(to),))


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("site['partner']", "the site has no list 'partner'; it has partners, words, networks, mixed"),
        ("site[mail.subject]", "came from the message and cannot be the name of a list"),
        ("list(site['partners'])", "not iterable"),
        ("site['partners'].entries", "no attribute"),
        ("site.lists", "no attribute"),
    ],
)
def test_what_is_refused(use: str, why: str) -> None:
    """A list that is not there is named with those that are; no list is handed out."""
    found = failed(f"from milterapp.script import *\ndef main(mail):\n    {use}\n", memory())
    assert why in found.text or why in found.trace


def test_a_site_without_lists() -> None:
    """There it says that there are none."""
    found = failed("from milterapp.script import *\ndef main(mail):\n    site['a']\n")
    assert found.text == "the site has no list 'a'; it has none"


@pytest.mark.parametrize(
    "question",
    [["lists", "x"], ["listed", "x"], ["listed", ["other", "x"]], ["listed", ["words", 1]], ["listed", ["words"]],
     ["listed", ["words", "\ud800"]]],
)  # fmt: skip
def test_questions_that_are_none(question: object) -> None:
    """What a script process asks is believed as little as what it answers."""
    known = Remembered(lists=Membership({"words": NamedList.of("words", ["a"])}))
    with pytest.raises(PlanError):
        answer(known, json.dumps(question).encode("ascii"))


def test_a_long_list_is_not_read_again() -> None:
    """A list is read as each type once, however often it is asked."""
    found = Membership({"long": NamedList.of("long", [f"a{at}@example.org" for at in range(1000)])})
    assert found.holds("long", "a999@example.org")
    named = found.lists["long"]
    named.entries = ()  # what was read stays
    assert found.holds("long", "a998@example.org")
    assert found.entry("long", "a1@example.org") is None  # what was not is not there
