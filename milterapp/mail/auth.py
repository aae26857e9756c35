"""Authentication-Results (RFC 8601): what the site's own mail servers found out about who sent a message.

Must never: believe a field of anybody else's, raise on what a field holds (only LimitHit), or give the parser more
than a bounded text without comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milterapp.mail.message import Mail

__all__ = ["FIELD", "Authenticated", "Result", "auth", "foreign_or_forged", "read"]

FIELD = "Authentication-Results"
_MOST_FIELDS = 50
_LONGEST = 8192  # characters of one field; the parser's time grows with the square
_MOST = 2 * _LONGEST  # characters of all trusted fields
_TOKENS = re.compile(r'[^()"\\]+|\\.|.', re.DOTALL)
_ID = re.compile(r'\s*(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s;"]+))(?P<rest>.*)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found. method: `spf`, `dkim`, `dmarc`, …; result: `pass`, `fail`, `none`, …, both lower case.

    properties: (`smtp.mailfrom`, value) pairs in order, names in lower case; reason: "" without one.
    """

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    authserv_id: str = ""

    def property(self, name: str) -> str:
        """Return the first value of a property such as `header.d`, "" without one."""
        return next((value for found, value in self.properties if found == name.lower()), "")


@dataclass(frozen=True, slots=True)
class Authenticated:
    """results: by method, in the order of the fields, the topmost first; faults: why a trusted field was not read."""

    results: Mapping[str, tuple[Result, ...]]
    faults: tuple[str, ...] = ()


def auth(mail: Mail, authserv_ids: Iterable[str]) -> Mapping[str, tuple[Result, ...]]:
    """Return what the servers of these ids found, by method; {} where they say nothing. Raises LimitHit."""
    return read(mail, authserv_ids).results


def read(mail: Mail, authserv_ids: Iterable[str]) -> Authenticated:
    """Return what `auth` does, and what is malformed about those fields.

    Ids compare without regard to case (RFC 8601 section 2.5). A field that cannot be read, or is of another version
    than 1, says nothing (section 2.2). Raises LimitHit.
    """
    trusted = frozenset(one.strip().lower() for one in authserv_ids)
    found: dict[str, tuple[Result, ...]] = {}
    faults: dict[str, None] = {}
    count = spent = 0
    for text in mail.raw_values(FIELD):
        named = _named(text)
        if named is None or named[0] not in trusted:
            continue
        count += 1
        spent += len(named[1])
        if count > _MOST_FIELDS or spent > _MOST:
            faults["too many Authentication-Results"] = None
            break
        parsed = _parse(named[1])
        if parsed is None:
            faults["Authentication-Results that cannot be read"] = None
            continue
        for one in _results(parsed, named[0]):
            found[one.method] = (*found.get(one.method, ()), one)
    return Authenticated(found, tuple(faults))


def foreign_or_forged(mail: Mail, authserv_id: str) -> tuple[int, ...]:
    """Return which Authentication-Results, from 1, a border must remove (RFC 8601 section 5).

    Those that bear the site's id, which nobody outside may set, and those whose id cannot be read but which name it.
    """
    own = authserv_id.strip().lower()
    found = []
    for number, text in enumerate(mail.raw_values(FIELD), 1):
        named = _named(text)
        if (named is None and own in text.lower()) or (named is not None and named[0] == own):
            found.append(number)
    return tuple(found)


def _named(text: str) -> tuple[str, str] | None:
    """Return the authserv-id of a field, lower case, and what follows it, comments left out; None for no field."""
    if len(text) > _LONGEST:
        return None
    plain = _without_comments(text)
    match = _ID.match(plain) if plain is not None else None
    if match is None:
        return None
    name = match["quoted"] if match["quoted"] is not None else match["plain"]
    return name.strip().lower(), match["rest"]


def _without_comments(text: str) -> str | None:
    """Return a value without its comments (RFC 5322 section 3.2.2), nested ones too; None where one is not closed."""
    out = []
    depth, quoted = 0, False
    for piece in _TOKENS.findall(text):
        if piece == '"' and not depth:
            quoted = not quoted
        elif piece == "(" and not quoted:
            depth += 1
            continue
        elif piece == ")" and not quoted:
            depth -= 1
            if depth < 0:
                return None
            out.append(" ")
            continue
        if not depth:
            out.append(piece)
    return None if depth or quoted else "".join(out)


def _parse(rest: str) -> Any:
    """Return the library's reading of what follows an authserv-id, None where there is none."""
    from authres import FeatureContext  # type: ignore[import-untyped]  # only where a rule asks and a field is there
    from authres.core import AuthResError  # type: ignore[import-untyped]

    try:
        return FeatureContext().header_class.parse_value(FeatureContext(), "x " + rest.rstrip("; \t"))
    except (AuthResError, ValueError, TypeError, AttributeError):  # it has no None checks behind some optional parts
        return None


def _results(parsed: Any, authserv_id: str) -> Iterator[Result]:
    for one in parsed.results:
        if not one.method or not one.result:
            continue
        properties = tuple(
            (f"{each.type}.{each.name}".lower(), str(each.value if each.value is not None else ""))
            for each in one.properties or ()
        )
        yield Result(str(one.method).lower(), str(one.result).lower(), properties, str(one.reason or ""), authserv_id)
