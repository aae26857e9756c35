"""The recipients of virtual domains: a file of the site's, from an address to uid, gid and home.

Must never: be believed where anybody but root could have written it, or say "unknown" where it cannot be read (the
mail would go past that person's rules).

A line is `ADDRESS UID GID HOME`; `@DOMAIN` stands for all addresses of a domain that have no line. Several addresses
may have one home, and then are one person, called by the first of them. Several homes may share one uid: `confined`
keeps them apart, so none may lie within another, or where everybody may read.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from milterapp.delivery.confined import SYSTEM
from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import split_address, split_detail

__all__ = ["MapError", "Person", "Recipients", "key_of", "parse"]

_LARGEST = 64 << 20  # bytes of the file
_LONGEST = 4096  # bytes of a line
_NO_ID = 2**32 - 2
_MOST_PROBLEMS = 20


class MapError(Exception):
    """The file cannot be used; str() says where and why, a line for each problem."""


@dataclass(frozen=True, slots=True)
class Person:
    """Whom an address belongs to. name: the first address that has this home."""

    name: str
    uid: int
    gid: int
    home: str


class Recipients:
    """The file, read again when it changed. path: from `/`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._people: dict[str, Person] = {}

    def find(self, recipient: str, delimiter: str) -> tuple[Person, str] | None:
        """Return the person and the extension, None for an unknown recipient. Raises MapError or OSError.

        The address as it stands comes before the one without its extension, and that before its domain.
        """
        self.read()
        local, domain = split_address(recipient)
        if not local or not domain:
            return None
        if found := self._people.get(key_of(local, domain)):
            return found, ""
        user, extension = split_detail(unquoted(local), delimiter)
        if extension and (found := self._people.get(key_of(user, domain))):
            return found, extension.lower()
        found = self._people.get(key_of("", domain))
        return (found, extension.lower()) if found else None

    def read(self) -> Collection[Person]:
        """Read the file where it changed; return who has each address. Raises MapError or OSError."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            stamp = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
            if stamp == self._stamp:
                return self._people.values()
            self._stamp, self._people = (), {}
            if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
                raise MapError(f"{self._path}: expected a plain file of root's that nobody else can write")
            if found.st_size > _LARGEST:
                raise MapError(f"{self._path}: {found.st_size} bytes, at most {_LARGEST} are read")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(_LARGEST + 1)
        finally:
            os.close(descriptor)
        people, problems = parse(data, self._path)
        if problems:
            raise MapError("\n".join(problems))
        self._stamp, self._people = stamp, people
        return people.values()


def unquoted(local: str) -> str:
    """Return a local part without the quotes and backslashes of RFC 5321 section 4.1.2, as pipe(8)'s flag q adds."""
    if len(local) < 2 or not (local.startswith('"') and local.endswith('"')):
        return local
    out, escaped = [], False
    for char in local[1:-1]:
        if char == "\\" and not escaped:
            escaped = True
        else:
            out.append(char)
            escaped = False
    return "".join(out)


def key_of(local: str, domain: str) -> str:
    """Return an address comparable: unquoted, in one case and one form of Unicode, its domain in ASCII (RFC 5890)."""
    local = unicodedata.normalize("NFC", unquoted(local)).lower()
    return f"{local}@{ascii_domain(domain)}"


def parse(data: bytes, path: str) -> tuple[dict[str, Person], list[str]]:
    """Return who has each address, by key_of, and the problems, `path:line: found, expected`, 20 at most."""
    people: dict[str, Person] = {}
    homes: dict[str, Person] = {}
    problems: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            local, domain, uid, gid, home = _line(line)
            key = key_of(local, domain)
            person = homes.setdefault(home, Person(f"{local}@{domain}", uid, gid, home))
            if key in people:
                raise ValueError(f"{local}@{domain} has a line before")
            if (person.uid, person.gid) != (uid, gid):
                raise ValueError(f"the home of {person.name} with another uid or gid, expected one of its own")
            people[key] = person
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            if len(problems) == _MOST_PROBLEMS:
                return {}, problems
    problems += [f"{path}: {one}" for one in _within(homes)]
    return people, problems[:_MOST_PROBLEMS]


def _line(line: bytes) -> tuple[str, str, int, int, str]:
    """Return local part, domain, uid, gid and home. Raises ValueError."""
    if len(line) > _LONGEST:
        raise ValueError(f"a line of {len(line)} bytes, expected at most {_LONGEST}")
    text = line.decode("utf-8", "strict").strip()  # a UnicodeDecodeError is a ValueError
    end = 0
    if text.startswith('"'):  # a quoted local part may hold blanks
        end = 1
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
    while end < len(text) and text[end] not in " \t":
        end += 1
    address, fields = text[:end], text[end:].split(None, 2)
    local, domain = split_address(address)
    if not domain or any(ord(char) < 32 or ord(char) == 127 for char in text.replace("\t", " ")):
        raise ValueError(f"found {address[:80]!a}, expected an address or @DOMAIN")
    if len(fields) != 3:
        raise ValueError(f"found {len(fields)} fields after the address, expected uid, gid and home")
    ids = [int(one) if one.isascii() and one.isdigit() and len(one) < 11 else 0 for one in fields[:2]]
    if not all(0 < one < _NO_ID for one in ids):
        raise ValueError(f"found {fields[0][:20]!a} and {fields[1][:20]!a}, expected uid and gid as numbers above 0")
    home = fields[2]
    if not home.startswith("/") or os.path.normpath(home) != home or home.startswith("//") or home == "/":
        raise ValueError(f"found {home[:80]!a}, expected a home: a path from `/` without `..` or a `/` too much")
    if open_to_all := next((one for one in SYSTEM if f"{home}/".startswith(f"{one}/")), ""):
        raise ValueError(f"found a home below {open_to_all}, expected one where no other recipient may read")
    return local, domain, ids[0], ids[1], home


def _within(homes: dict[str, Person]) -> Iterator[str]:
    """Say which homes lie within another."""
    for home, person in homes.items():
        above = os.path.dirname(home)
        while above != "/":
            if above in homes:
                yield f"the home of {person.name} lies within that of {homes[above].name}, expected neither to"
                break
            above = os.path.dirname(above)
