"""Values from the message in actions: `${from.domain}` and the like, and the texts they stand in.

Must never: give a value to a place without that place's encoder, or an empty text for a value that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from milterapp.mail.address import Address
from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import Stage, split_address, split_detail
from milterapp.rules.facts import Facts
from milterapp.rules.problem import near_miss

__all__ = ["VALUES", "Template", "Value", "one_line", "parse_template", "read_value"]

MAX_VALUE = 2000

Read = Callable[[Facts, str], str | None]


@dataclass(frozen=True, slots=True)
class Value:
    """A value to be put in: word `from` and argument `domain` of `${from.domain}`."""

    word: str
    argument: str = ""

    def __str__(self) -> str:
        return f"${{{self.word}{'.' if self.argument else ''}{self.argument}}}"


@dataclass(frozen=True, slots=True)
class Template:
    """A text with values in it: literal texts and Values in turn."""

    parts: tuple[str | Value, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """The values that have to be there."""
        return tuple(part for part in self.parts if isinstance(part, Value))

    @property
    def literal(self) -> str | None:
        """The text, where no value stands in it."""
        return None if self.values else "".join(map(str, self.parts))

    def fill(self, found: Callable[[Value], str], encode: Callable[[str], str]) -> str:
        """Return the text with each value as `encode` lets it stand there."""
        return "".join(encode(found(part)) if isinstance(part, Value) else part for part in self.parts)


def one_line(text: str) -> str:
    """Return any text as one line without control characters, each run of those one blank; bounded."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:MAX_VALUE]).split())


@dataclass(frozen=True, slots=True)
class Kind:
    """What one word gives. arguments: those it may have, () for none, None for any name; read: the value, or None."""

    stage: Stage
    arguments: tuple[str, ...] | None
    read: Read
    personal: bool = True


def _address(one: Address, part: str, delimiter: str) -> str | None:
    user, detail = split_detail(one.local, delimiter)
    found = {
        "": one.address,
        "address": one.address,
        "localpart": one.local,
        "user": user,
        "detail": detail,
        "domain": ascii_domain(one.domain),
        "name": one.display,
    }[part]
    return found or None


def _field(*names: str) -> Read:
    def read(facts: Facts, part: str) -> str | None:
        found: Sequence[Address] = facts.message.addresses(*names)
        return _address(found[0], part, facts.delimiter) if found else None

    return read


def _envelope(facts: Facts, address: str, part: str) -> str | None:
    local, domain = split_address(address)
    return _address(Address("", local, domain), part, facts.delimiter) if address else None


def _detail(facts: Facts, _: str) -> str | None:
    for address in (facts.recipient, facts.envelope.original_recipient):
        detail = split_detail(split_address(address)[0], facts.delimiter)[1]
        if detail:
            return detail
    return None


NOW = {
    "year": "%Y",
    "month": "%m",
    "day": "%d",
    "hour": "%H",
    "minute": "%M",
    "date": "%Y-%m-%d",
    "time": "%H:%M",
    "week": "%V",
}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _now(facts: Facts, part: str) -> str | None:
    if facts.now is None:
        return None
    return DAYS[facts.now.weekday()] if part == "weekday" else facts.now.strftime(NOW[part])


PARTS = ("", "address", "localpart", "user", "detail", "domain")
NAMED = (*PARTS, "name")
ALONE = ("",)

_DETAILED = Kind(Stage.RCPT, ALONE, _detail)

VALUES: dict[str, Kind] = {
    "client": Kind(Stage.CONNECT, ALONE, lambda facts, _: facts.envelope.client or None),
    "client_name": Kind(Stage.CONNECT, ALONE, lambda facts, _: facts.envelope.client_name or None, personal=False),
    "helo": Kind(Stage.HELO, ALONE, lambda facts, _: facts.envelope.helo or None, personal=False),
    "sender": Kind(Stage.MAIL, PARTS, lambda facts, part: _envelope(facts, facts.envelope.sender, part)),
    "login": Kind(Stage.MAIL, ALONE, lambda facts, _: facts.envelope.login or None, personal=False),
    "recipient": Kind(Stage.RCPT, PARTS, lambda facts, part: _envelope(facts, facts.recipient, part)),
    "detail": _DETAILED,
    "extension": _DETAILED,  # Postfix's word for it
    "from": Kind(Stage.HEADERS, NAMED, _field("From")),
    "to": Kind(Stage.HEADERS, NAMED, _field("To")),
    "cc": Kind(Stage.HEADERS, NAMED, _field("Cc")),
    "reply_to": Kind(Stage.HEADERS, NAMED, _field("Reply-To")),
    "subject": Kind(Stage.HEADERS, ALONE, lambda facts, _: facts.message.subject or None),
    "list_id": Kind(Stage.HEADERS, ALONE, lambda facts, _: next(iter(facts.message.list_ids), None)),
    "message_id": Kind(Stage.HEADERS, ALONE, lambda facts, _: facts.message.message_id or None),
    "header": Kind(Stage.HEADERS, None, lambda facts, name: next(iter(facts.message.values(name)), None) or None),
    "now": Kind(Stage.CONNECT, (*NOW, "weekday"), _now),
    "match": Kind(Stage.CONNECT, None, lambda _facts, _name: None),
}

# Values that are one recipient's, and so cannot stand where all of them are decided for.
ONE_RECIPIENT = frozenset(("recipient", "detail", "extension"))


def read_value(value: Value, facts: Facts) -> str | None:
    """Return what the message has for a value (not for `match`), None where it has nothing; raises LimitHit."""
    return VALUES[value.word].read(facts, value.argument)


def parse_template(text: str) -> Template:
    """Take a text apart at its `${…}`; `$${` is a plain `${`. Raises ValueError with what was expected."""
    parts: list[str | Value] = []
    rest = text
    while True:
        before, opened, after = rest.partition("${")
        if opened and before.endswith("$"):
            _literal(parts, before + "{")
            rest = after
            continue
        _literal(parts, before)
        if not opened:
            return Template(tuple(parts))
        inside, closed, rest = after.partition("}")
        if not closed:
            raise ValueError(f"'${{{inside[:40]}' is not closed, expected '}}'; write '$${{' for a plain '${{'")
        parts.append(_value(inside))


def _literal(parts: list[str | Value], text: str) -> None:
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)


def _value(inside: str) -> Value:
    word, dot, argument = inside.partition(".")
    kind = VALUES.get(word)
    if kind is None:
        raise ValueError(f"unknown value '${{{inside[:40]}}}'{near_miss(word, VALUES)}; known: {', '.join(VALUES)}")
    if kind.arguments is None:
        if not argument or not all(char.isalnum() or char in "_-." for char in argument):
            raise ValueError(f"'${{{inside[:40]}}}', expected a name after '{word}.'")
    elif argument not in kind.arguments or (dot and not argument):
        known = [f"{word}.{one}" if one else word for one in kind.arguments]
        raise ValueError(f"unknown value '${{{inside[:40]}}}'{near_miss(inside, known)}; known: {', '.join(known)}")
    return Value(word, argument)


def values_of(templates: Iterable[Any]) -> tuple[Value, ...]:
    """Return the values of several templates, each once."""
    return tuple(dict.fromkeys(value for template in templates for value in template.values))
