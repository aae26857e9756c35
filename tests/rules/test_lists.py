"""Tests of milterapp.rules.lists and matcher: tables that answer for all tests at once."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.mail.domains import ascii_domain
from milterapp.rules.folding import address_forms, domain_levels, fold
from milterapp.rules.lists import NamedList, network_of
from milterapp.rules.matcher import MATCHERS, Matcher

# name: (kind, entries, value, whether it is in)
ENTRIES = {
    "address": ("address", ["a@example.org"], "A@Example.Org", True),
    "address with detail": ("address", ["a@example.org"], "a+x@example.org", True),
    "another address": ("address", ["a@example.org"], "b@example.org", False),
    "domain of an address": ("address", ["example.org"], "b@example.org", True),
    "domain alone": ("address", ["example.org"], "b@mx.example.org", False),
    "domain and below": ("address", [".example.org"], "b@mx.example.org", True),
    "domain of below": ("address", [".example.org"], "b@example.org", True),
    "sharp s of a domain, in ASCII": ("address", ["a@straße.de"], "a@xn--strae-oqa.de", True),
    "sharp s of a domain is not ss": ("address", ["a@straße.de"], "a@strasse.de", False),
    "ss of a domain is not sharp s": ("address", [".strasse.de"], "a@mx.straße.de", False),
    "not a suffix of letters": ("address", [".example.org"], "b@notexample.org", False),
    "glob of addresses": ("address", ["*-bounces@*.example.org"], "x-bounces@l.example.org", True),
    "glob of domains": ("address", ["mail?.example.org"], "x@mail1.example.org", True),
    "domains": ("domain", [".example.org", "b.example"], "mx.Example.org.", True),
    "another domain": ("domain", ["example.org"], "mx.example.org", False),
    "words": ("text", ["Hello"], "hello", True),
    "words are whole": ("text", ["Hello"], "hello there", False),
    "glob of words": ("text", ["hel*"], "Hello there", True),
    "network": ("network", ["192.0.2.0/25"], "192.0.2.7", True),
    "outside the network": ("network", ["192.0.2.0/25"], "192.0.2.200", False),
    "network of six": ("network", ["2001:db8::/32"], "2001:db8::1", True),
    "mapped": ("network", ["192.0.2.0/25"], "::ffff:192.0.2.7", True),
    "everything": ("network", ["0.0.0.0/0"], "198.51.100.1", True),
    "everything of four": ("network", ["0.0.0.0/0"], "2001:db8::1", False),
    "no address": ("network", ["0.0.0.0/0"], "unknown", False),
}


def list_of(entries: list[str]) -> NamedList:
    """Return a list."""
    return NamedList("l", "f", tuple(entries), tuple(range(1, len(entries) + 1)))


@pytest.mark.parametrize(("kind", "entries", "value", "wanted"), ENTRIES.values(), ids=ENTRIES)
def test_an_entry(kind: str, entries: list[str], value: str, wanted: bool) -> None:
    """A list has the type of the condition that asks it."""
    typed, problems = list_of(entries).as_kind(kind)
    assert problems == []
    matcher = MATCHERS[kind]()
    matcher.enter_list(typed, 5)
    matcher.seal()
    assert (matcher.match(value, "+") == {5}) is wanted


WRONG = {
    "address as domain": ("domain", "a@example.org"),
    "no local part": ("address", "@example.org"),
    "no network": ("network", "example.org"),
    "host bits": ("network", "192.0.2.1/24"),
}


@pytest.mark.parametrize(("kind", "entry"), WRONG.values(), ids=WRONG)
def test_an_entry_of_another_type(kind: str, entry: str) -> None:
    """An entry that does not fit is a problem at its place, told once."""
    named = list_of(["x" if kind != "network" else "192.0.2.1", entry])
    _, problems = named.as_kind(kind)
    assert [problem.place.line for problem in problems] == [2]
    assert named.as_kind(kind)[1] == []


def test_a_list_file() -> None:
    """Blank lines and comments of a list's file are no entries, and places count them."""
    named = NamedList.from_file("l", "f", b"# x\r\n\r\na@b.example\r\n  c.example  \n")
    assert list(named) == ["a@b.example", "c.example"]
    assert str(named.place(1)) == "f:4:1"
    with pytest.raises(ValueError, match="f:2: byte 0xff"):
        NamedList.from_file("l", "f", b"a\n\xff\n")


def test_a_long_list_loads_in_time() -> None:
    """A hundred thousand entries cost a second at most, once."""
    source = "".join(f"user{at}@host{at % 977}.example.org\n" for at in range(100_000)).encode()
    begun = time.process_time()
    typed, problems = NamedList.from_file("l", "f", source).as_kind("address")
    assert time.process_time() - begun < 1.0
    assert problems == []
    assert typed.holds("user77@host77.example.org", address_forms("user77@host77.example.org", "+"))


def test_networks() -> None:
    """A network is itself, in brackets too; host bits are shown without."""
    assert str(network_of("[2001:db8::1]")) == "2001:db8::1/128"
    with pytest.raises(ValueError, match=r"did you mean '192\.0\.2\.0/24'"):
        network_of("192.0.2.9/24")


TEXTS = st.text("aAbé.@-+ß\u0301", max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=5), TEXTS, st.booleans())
def test_tables_answer_as_the_operators_mean(literals: list[str], value: str, case: bool) -> None:
    """`is`, `starts`, `ends` and `contains` of many literals are what they are of each."""
    import unicodedata

    view = (lambda text: unicodedata.normalize("NFC", text)) if case else fold
    matcher = Matcher()
    wanted = set()
    for at, literal in enumerate(literals):
        matcher.enter_same(literal, 4 * at, case=case)
        matcher.enter_start(literal, 4 * at + 1, case=case)
        matcher.enter_end(literal, 4 * at + 2, case=case)
        matcher.enter_part(literal, 4 * at + 3, case=case)
        found, sought = view(value), view(literal)
        tests = (found == sought, found.startswith(sought), found.endswith(sought), sought in found)
        wanted |= {4 * at + test for test, holds in enumerate(tests) if holds}
    matcher.seal()
    assert matcher.match(value, "+") == wanted


def test_folding() -> None:
    """Case and composition do not count, in domains neither does the final dot nor the way IDNA writes them."""
    assert fold("STRASSE") == fold("Straße")
    assert fold("Cafe\u0301") == fold("CAFÉ")
    assert ascii_domain("Bücher.Example.") == "xn--bcher-kva.example"
    assert ascii_domain("a..b") == "a..b"
    assert domain_levels("a.b.c") == ["a.b.c", "b.c", "c"]
    assert len(domain_levels("a." * 5000)) <= 128


ADDRESSES = {
    "plain": ("Bob@Example.org", ("bob@example.org",)),
    "detail": ("bob+x@example.org", ("bob+x@example.org", "bob@example.org")),
    "delimiter first": ("+x@example.org", ("+x@example.org",)),
    "no domain": ("bob", ("@bob",)),
}


@pytest.mark.parametrize(("address", "wanted"), list(ADDRESSES.values())[:3], ids=list(ADDRESSES)[:3])
def test_the_forms_of_an_address(address: str, wanted: tuple[str, ...]) -> None:
    """An address is found as it stands and without its detail."""
    assert address_forms(address, "+") == wanted
