"""Matching: every test on one part of one field, answered together, once for each value.

Must never: look at a value once a test, where a table or a pattern set can answer for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import split_detail
from milterapp.rules.folding import address_forms, domain_levels, fold, plain
from milterapp.rules.lists import TypedList, network_of
from milterapp.rules.long_text import LONG, RawText, encoded
from milterapp.rules.patterns import PatternSet, escape

__all__ = ["LIST_KINDS", "MATCHERS", "AddressMatcher", "DomainMatcher", "LocalpartMatcher", "Matcher", "NetworkMatcher"]

Numbers = dict[str, list[int]]


class Matcher:
    """Tests of texts. Each test has a number; match(value) gives the numbers of those that hold.

    The enter_… methods take tests in until seal(); from then on the matcher is read only and may be shared.
    """

    def __init__(self) -> None:
        self._same: Numbers = {}
        self._same_case: Numbers = {}
        self._starts: dict[int, Numbers] = {}
        self._starts_case: dict[int, Numbers] = {}
        self._ends: dict[int, Numbers] = {}
        self._ends_case: dict[int, Numbers] = {}
        self._folded: Numbers = {}
        self._patterns: Numbers = {}
        self._lists: dict[int, tuple[TypedList, list[int]]] = {}
        self._checks: list[tuple[Callable[[str], bool], int]] = []
        self._sets_only = False
        self._folded_set: PatternSet | None = None
        self._pattern_set: PatternSet | None = None

    def enter_same(self, literal: str, number: int, *, case: bool) -> None:
        """Take a test for the whole value."""
        if case:
            self._same_case.setdefault(plain(literal), []).append(number)
        else:
            self._same.setdefault(self.fold(literal), []).append(number)

    def enter_start(self, literal: str, number: int, *, case: bool) -> None:
        """Take a test for how the value begins."""
        key = plain(literal) if case else fold(literal)
        table = self._starts_case if case else self._starts
        table.setdefault(len(key), {}).setdefault(key, []).append(number)

    def enter_end(self, literal: str, number: int, *, case: bool) -> None:
        """Take a test for how the value ends."""
        key = plain(literal) if case else fold(literal)
        table = self._ends_case if case else self._ends
        table.setdefault(len(key), {}).setdefault(key, []).append(number)

    def enter_part(self, literal: str, number: int, *, case: bool) -> None:
        """Take a test for a text anywhere in the value."""
        if case:
            self.enter_pattern(escape(plain(literal)), number)
        else:
            self._folded.setdefault(escape(fold(literal)), []).append(number)

    def enter_pattern(self, pattern: str, number: int) -> None:
        """Take a pattern of RE2, its flags in it."""
        self._patterns.setdefault(pattern, []).append(number)

    def enter_list(self, entries: TypedList, number: int) -> None:
        """Take a test for a list."""
        self._lists.setdefault(id(entries), (entries, []))[1].append(number)

    def enter_check(self, check: Callable[[str], bool], number: int) -> None:
        """Take a test that no table can answer."""
        self._checks.append((check, number))

    def seal(self) -> None:
        """Compile the pattern sets."""
        tables = (self._same, self._same_case, self._starts, self._starts_case, self._ends, self._ends_case)
        self._sets_only = type(self) is Matcher and not any((*tables, self._lists, self._checks))
        if self._folded:
            folded = [(pattern, tuple(numbers)) for pattern, numbers in self._folded.items()]
            self._folded_set = PatternSet(folded, literal=True)
        if self._patterns:
            self._pattern_set = PatternSet((pattern, tuple(numbers)) for pattern, numbers in self._patterns.items())

    def match(self, value: str | RawText, delimiter: str) -> set[int]:
        """Return the numbers of the tests that hold for the value. delimiter: splits off an address's detail."""
        hits: set[int] = set()
        if len(value) > LONG and self._sets_only:
            if self._folded_set is not None:
                self._folded_set.match(encoded(value, fold), hits)
            if self._pattern_set is not None:
                self._pattern_set.match(encoded(value, plain), hits)
            return hits
        value = str(value)
        forms = self.forms(value, delimiter)
        folded, value = forms[0], plain(value)
        if self._same:
            self.same(forms, hits)
        if self._same_case and (numbers := self._same_case.get(value)):
            hits.update(numbers)
        for table, text in ((self._starts, folded), (self._starts_case, value)):
            for length, keys in table.items():
                if numbers := keys.get(text[:length]):
                    hits.update(numbers)
        for table, text in ((self._ends, folded), (self._ends_case, value)):
            for length, keys in table.items():
                if len(text) >= length and (numbers := keys.get(text[len(text) - length :])):
                    hits.update(numbers)
        if self._folded_set is not None:
            self._folded_set.match(folded.encode(), hits)
        if self._pattern_set is not None:
            self._pattern_set.match(value.encode(), hits)
        for entries, numbers in self._lists.values():
            if entries.holds(value, forms):
                hits.update(numbers)
        for check, number in self._checks:
            if check(value):
                hits.add(number)
        return hits

    def fold(self, literal: str) -> str:
        """Return a literal as `is` compares it."""
        return fold(literal)

    def forms(self, value: str, delimiter: str) -> tuple[str, ...]:  # noqa: ARG002 - of use to addresses only
        """Return the ways a value may be written in a rule, folded; the first is the value as it stands."""
        return (fold(value),)

    def same(self, forms: tuple[str, ...], hits: set[int]) -> None:
        """Add the tests for the whole value that hold."""
        for form in forms:
            if numbers := self._same.get(form):
                hits.update(numbers)


class DomainMatcher(Matcher):
    """Tests of domains: with a leading dot `is` means the domain and all below it."""

    def fold(self, literal: str) -> str:
        """Return a domain as it compares; the leading dot stays."""
        return "." + ascii_domain(literal[1:]) if literal.startswith(".") else ascii_domain(literal)

    def forms(self, value: str, delimiter: str) -> tuple[str, ...]:  # noqa: ARG002 - of use to addresses only
        """Return the domain as it compares."""
        return (ascii_domain(value),)

    def same(self, forms: tuple[str, ...], hits: set[int]) -> None:
        """Add the tests that name the domain or, with a leading dot, one at or above it."""
        super().same(forms, hits)
        for level in domain_levels(forms[0]):
            if numbers := self._same.get("." + level):
                hits.update(numbers)


class AddressMatcher(Matcher):
    """Tests of addresses: `is` ignores the detail of the message's address, and the case of both parts."""

    def fold(self, literal: str) -> str:
        """Return an address as it compares."""
        return address_forms(literal, "")[0]

    def forms(self, value: str, delimiter: str) -> tuple[str, ...]:
        """Return the address as it stands and without its detail."""
        return address_forms(value, delimiter)


class LocalpartMatcher(Matcher):
    """Tests of local parts: `is` takes them with their detail and without."""

    def forms(self, value: str, delimiter: str) -> tuple[str, ...]:
        """Return the local part as it stands and without its detail."""
        folded = fold(value)
        user, _ = split_detail(folded, delimiter)
        return (folded,) if user == folded else (folded, user)


class NetworkMatcher(Matcher):
    """Tests of client addresses: networks in one look-up for each prefix length that occurs."""

    def __init__(self) -> None:
        super().__init__()
        self._prefixes: dict[tuple[int, int], dict[int, list[int]]] = {}

    def enter_same(self, literal: str, number: int, *, case: bool) -> None:  # noqa: ARG002 - addresses have no case
        """Take an address or network; raises ValueError."""
        network = network_of(literal)
        bits = network.max_prefixlen - network.prefixlen
        table = self._prefixes.setdefault((network.version, bits), {})
        table.setdefault(int(network.network_address) >> bits, []).append(number)

    def match(self, value: str | RawText, delimiter: str) -> set[int]:
        """Return the numbers of the networks that hold the address; what is no address is in none."""
        try:
            address = network_of(str(value))
        except ValueError:
            return set()
        hits = super().match(value, delimiter)
        number = int(address.network_address)
        for (version, bits), table in self._prefixes.items():
            if version == address.version and (numbers := table.get(number >> bits)):
                hits.update(numbers)
        return hits


MATCHERS: dict[str, type[Matcher]] = {
    "text": Matcher,
    "domain": DomainMatcher,
    "address": AddressMatcher,
    "localpart": LocalpartMatcher,
    "network": NetworkMatcher,
}

# The type a list takes, for each kind of test.
LIST_KINDS = {"text": "text", "domain": "domain", "address": "address", "localpart": "text", "network": "network"}
