"""Named lists: entries inline or from a file, typed by the condition that uses them, looked up in constant time.

Must never: cost a message more for a longer list, or drop an entry that does not fit its type in silence.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from milterapp.mail.domains import ascii_domain
from milterapp.rules.folding import domain_levels, fold
from milterapp.rules.patterns import PatternSet, from_glob
from milterapp.rules.problem import Place, Problem

__all__ = ["KINDS", "AddressList", "DomainList", "NamedList", "NetworkList", "TypedList", "WordList", "network_of"]

MAX_ENTRIES = 1_000_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network_of(text: str) -> Network:
    """Return an address or network, an IPv4-mapped one as IPv4. Raises ValueError with what was expected."""
    try:
        network = ipaddress.ip_network(text.removeprefix("[").removesuffix("]"), strict=True)
    except ValueError as error:
        hint = ""
        if "host bits" in str(error):
            hint = f", did you mean {str(ipaddress.ip_network(text, strict=False))!r}?"
        raise ValueError(f"found {text!r}, expected an IP address or network such as 192.0.2.0/24{hint}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


class TypedList:
    """A list read as one type. holds(value, forms): whether the value is in it."""

    expected = "a text"

    def add(self, entry: str) -> None:
        """Take one entry; raises ValueError with what was expected."""
        raise NotImplementedError

    def seal(self) -> None:
        """Make ready for look-ups, once every entry is in."""

    def holds(self, value: str, forms: tuple[str, ...]) -> bool:
        """Return whether the list holds the value; forms: the folded ways to write it."""
        raise NotImplementedError


class _Globs:
    """The entries of a list that hold `*` or `?`, in one pass."""

    def __init__(self) -> None:
        self._globs: list[str] = []
        self._set: PatternSet | None = None

    def take(self, entry: str) -> bool:
        if "*" not in entry and "?" not in entry:
            return False
        self._globs.append(entry)
        return True

    def seal(self) -> None:
        if self._globs:
            self._set = PatternSet((from_glob(glob, case=False), (0,)) for glob in self._globs)

    def match(self, value: str) -> bool:
        if self._set is None:
            return False
        hits: set[int] = set()
        self._set.match(value.encode(), hits)
        return bool(hits)


class WordList(TypedList):
    """Texts, compared whole and without regard to case; an entry with `*` or `?` is a glob."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._globs = _Globs()

    def add(self, entry: str) -> None:
        """Take one entry."""
        if not self._globs.take(entry):
            self._words.add(fold(entry))

    def seal(self) -> None:
        """Compile the globs."""
        self._globs.seal()

    def holds(self, value: str, forms: tuple[str, ...]) -> bool:
        """Return whether the list holds the value."""
        return any(form in self._words for form in forms) or self._globs.match(value)


class DomainList(TypedList):
    """Domains: `example.org` is that one, `.example.org` it and all below; an entry with `*` or `?` is a glob."""

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._below: set[str] = set()
        self._globs = _Globs()

    def add(self, entry: str) -> None:
        """Take one entry; raises ValueError for an address."""
        if "@" in entry:
            raise ValueError(f"found {entry!r}, expected a domain such as example.org or .example.org")
        if self._globs.take(entry):
            return
        (self._below if entry.startswith(".") else self._exact).add(ascii_domain(entry.removeprefix(".")))

    def seal(self) -> None:
        """Compile the globs."""
        self._globs.seal()

    def holds(self, value: str, forms: tuple[str, ...]) -> bool:  # noqa: ARG002 - of use to addresses only
        """Return whether the list holds the domain or, with a leading dot, one above it."""
        domain = ascii_domain(value)
        return (
            domain in self._exact
            or (bool(self._below) and not self._below.isdisjoint(domain_levels(domain)))
            or self._globs.match(domain)
        )


class AddressList(DomainList):
    """Addresses, and domains as in DomainList; an address in the list means it with any detail."""

    def __init__(self) -> None:
        super().__init__()
        self._addresses: dict[str, str] = {}  # as it compares, and as it stands

    def add(self, entry: str) -> None:
        """Take one entry."""
        local, at, domain = entry.rpartition("@")
        if at and "*" not in entry and "?" not in entry:
            if not local or not domain:
                raise ValueError(f"found {entry!r}, expected an address such as bob@example.org or a domain")
            form = f"{fold(local)}@{ascii_domain(domain)}"
            self._addresses.setdefault(form, form if form == entry else entry)  # one text in memory, where it will do
        elif at:
            self._globs.take(entry)
        else:
            super().add(entry)

    def entry(self, form: str) -> str | None:
        """Return the list's own entry that is this address, as it stands; None where it has the domain alone."""
        return self._addresses.get(form)

    def holds(self, value: str, forms: tuple[str, ...]) -> bool:
        """Return whether the list holds the address or its domain."""
        named = any(form in self._addresses for form in forms)
        return named or super().holds(value.rpartition("@")[2], forms) or any(map(self._globs.match, forms))


class NetworkList(TypedList):
    """IP addresses and networks, looked up by prefix: one look-up for each prefix length that occurs."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}

    def add(self, entry: str) -> None:
        """Take one entry; raises ValueError for what is no network."""
        network = network_of(entry)
        bits = network.max_prefixlen - network.prefixlen
        self._prefixes.setdefault((network.version, bits), set()).add(int(network.network_address) >> bits)

    def holds(self, value: str, forms: tuple[str, ...]) -> bool:  # noqa: ARG002 - of use to addresses only
        """Return whether the address is in one of the networks; what is no address is in none."""
        try:
            address = network_of(value)
        except ValueError:
            return False
        number = int(address.network_address)
        return any(
            version == address.version and (number >> bits) in prefixes
            for (version, bits), prefixes in self._prefixes.items()
        )


KINDS: dict[str, type[TypedList]] = {
    "text": WordList,
    "domain": DomainList,
    "address": AddressList,
    "network": NetworkList,
}


@dataclass(slots=True, eq=False)
class NamedList:
    """A list as it stands in a file: its entries with their lines, and each type it was asked for so far.

    columns: of inline entries; entries of a file begin in column 1.
    """

    name: str
    file: str
    entries: tuple[str, ...]
    lines: tuple[int, ...]
    columns: tuple[int, ...] = ()
    typed: dict[str, TypedList] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, entries: Iterable[str]) -> NamedList:
        """Return a list that stands in no file."""
        found = tuple(entries)
        return cls(name, "", found, (0,) * len(found))

    @classmethod
    def from_file(cls, name: str, file: str, source: bytes) -> NamedList:
        """Read one entry a line; blank lines and those that begin with `#` do not count. Raises ValueError."""
        try:
            text = source.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = source.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{file}:{line}: byte 0x{source[error.start]:02x}, expected UTF-8 text") from None
        found = [
            (stripped, number)
            for number, line in enumerate(text.split("\n"), 1)
            if (stripped := line.strip()) and not stripped.startswith("#")
        ]
        if len(found) > MAX_ENTRIES:
            raise ValueError(f"{file}: {len(found)} entries, expected at most {MAX_ENTRIES}")
        return cls(name, file, tuple(entry for entry, _ in found), tuple(line for _, line in found))

    def as_kind(self, kind: str) -> tuple[TypedList, list[Problem]]:
        """Return the list read as one of KINDS, and a problem for each entry that does not fit it."""
        if kind in self.typed:
            return self.typed[kind], []
        made = KINDS[kind]()
        problems = []
        for at, entry in enumerate(self.entries):
            try:
                made.add(entry)
            except ValueError as error:
                problems.append(Problem(self.place(at), f"in the list {self.name!r}: {error}"))
                if len(problems) >= 20:
                    break
        made.seal()
        self.typed[kind] = made
        return made, problems

    def place(self, at: int) -> Place:
        """Return where an entry stands."""
        return Place(self.file, self.lines[at], self.columns[at] if self.columns else 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)
