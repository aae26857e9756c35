"""Text that came from a message: it compares, searches, splits and joins, and nothing that wants a str takes it.

Must never: be a str, or give its text to what asks by a protocol (str(), a format, a path, a number, bytes, a hash).

A subclass of str fails open: f-strings, join and most of C see its text and lose the mark. This is no str, so all of
them refuse it, with what to do instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, Protocol, SupportsIndex, runtime_checkable

import re2

from milterapp.rules import patterns

__all__ = ["WAYS_OUT", "Match", "TaintError", "Text", "Untrusted", "reveal"]

WAYS_OUT = (
    "Ways out: value.fullmatch(PATTERN) gives plain text that a pattern of yours bounds; value.lookup(TABLE) gives"
    " what your own table holds; Mailbox(…), HeaderText(…) and the texts of replies take it as it is and encode it."
)
_SHOWN = 60  # characters of a value in an error
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = "-packages" + os.sep
_PYTHON = os.path.dirname(os.path.abspath(os.__file__))


class TaintError(TypeError):
    """Text from a message came where plain text is needed; str() names the value, the line and the ways out."""


def _caller() -> str:
    """Return `file:line: ` of the nearest frame that is neither Python's nor ours, "" where there is none."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - where the script stands is known nowhere else
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_OURS + os.sep, _PYTHON + os.sep, "<frozen")) and _LIBRARIES not in name:
            return f"{name}:{frame.f_lineno}: "
        frame = frame.f_back
    return ""


def _refuse(wanted: str) -> Callable[..., NoReturn]:
    """Return a method that refuses; wanted: for what the value was asked."""

    def method(self: Untrusted, *_: object, **__: object) -> NoReturn:
        raise refusal(self, wanted)

    return method


def refusal(value: Untrusted, wanted: str) -> TaintError:
    """Return the error for a value that stands where it may not, to be raised."""
    return TaintError(f"{_caller()}{value!r} came from the message and cannot be {wanted}. {WAYS_OUT}")


@runtime_checkable
class Findable(Protocol):
    """What is looked a text up in, though it is no table: a list of the site's."""

    def get(self, value: str) -> str | None:
        """Return its own entry that is the text, None where it has none."""


class Untrusted:
    """Text that came from a message. Lone surrogates become `?`, so that it can always be encoded.

    What str has and is missing here would give the text away, or is not worth having.
    """

    __slots__ = ("__text",)
    __text: str

    def __init__(self, text: Text) -> None:
        text = reveal(text)
        object.__setattr__(self, "_Untrusted__text", text.encode("utf-8", "replace").decode())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Untrusted text cannot be changed")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __repr__(self) -> str:
        """One line of ASCII, bounded: harmless in a log."""
        text = self.__text
        return f"Untrusted({text[:_SHOWN]!a}{'...' if len(text) > _SHOWN else ''})"

    __str__ = _refuse("used as a str")
    __format__ = _refuse("put into a string")
    __fspath__ = _refuse("a path")
    __bytes__ = _refuse("turned into bytes")
    __index__ = _refuse("a number")
    __int__ = _refuse("a number")
    __float__ = _refuse("a number")
    __complex__ = _refuse("a number")
    __hash__ = _refuse("a key")
    __mod__ = _refuse("a format")
    __rmod__ = _refuse("put into a string")
    __reduce_ex__ = _refuse("pickled")
    __getstate__ = _refuse("pickled")

    def __getattr__(self, name: str) -> NoReturn:
        extra = f" {WAYS_OUT}" if hasattr(str, name) else ""
        raise AttributeError(f"{_caller() if extra else ''}Untrusted text has no {name!r}.{extra}")

    def __copy__(self) -> Untrusted:
        return self

    def __deepcopy__(self, memo: object) -> Untrusted:
        return self

    # Compare

    def __eq__(self, other: object) -> bool:
        return self.__text == reveal(other) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __lt__(self, other: Text) -> bool:
        return self.__text < reveal(other) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __le__(self, other: Text) -> bool:
        return self.__text <= reveal(other) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __gt__(self, other: Text) -> bool:
        return self.__text > reveal(other) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __ge__(self, other: Text) -> bool:
        return self.__text >= reveal(other) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __len__(self) -> int:
        return len(self.__text)

    # Search

    def __contains__(self, other: Text) -> bool:
        return reveal(other) in self.__text

    def startswith(self, prefix: Text | tuple[Text, ...]) -> bool:
        """As str has it."""
        return self.__text.startswith(_several(prefix))

    def endswith(self, suffix: Text | tuple[Text, ...]) -> bool:
        """As str has it."""
        return self.__text.endswith(_several(suffix))

    def find(self, part: Text, start: int | None = None, end: int | None = None) -> int:
        """As str has it."""
        return self.__text.find(reveal(part), start, end)

    def rfind(self, part: Text, start: int | None = None, end: int | None = None) -> int:
        """As str has it."""
        return self.__text.rfind(reveal(part), start, end)

    def count(self, part: Text) -> int:
        """As str has it."""
        return self.__text.count(reveal(part))

    def isascii(self) -> bool:
        """As str has it."""
        return self.__text.isascii()

    def isdigit(self) -> bool:
        """As str has it."""
        return self.__text.isdigit()

    def isalpha(self) -> bool:
        """As str has it."""
        return self.__text.isalpha()

    def isalnum(self) -> bool:
        """As str has it."""
        return self.__text.isalnum()

    def isspace(self) -> bool:
        """As str has it."""
        return self.__text.isspace()

    def search(self, pattern: str) -> bool:
        """Return whether an RE2 pattern is found anywhere. Raises ValueError for a pattern that is none."""
        return _compiled(pattern).search(self.__text) is not None

    # Split and join: what comes of it is Untrusted again

    def __getitem__(self, at: SupportsIndex | slice) -> Untrusted:
        return Untrusted(self.__text[at])

    def __iter__(self) -> Iterator[Untrusted]:
        return map(Untrusted, self.__text)

    def __add__(self, other: Text) -> Untrusted:
        return Untrusted(self.__text + reveal(other)) if isinstance(other, (str, Untrusted)) else NotImplemented

    def __radd__(self, other: Text) -> Untrusted:
        return Untrusted(reveal(other) + self.__text) if isinstance(other, (str, Untrusted)) else NotImplemented

    def split(self, separator: Text | None = None, most: int = -1) -> list[Untrusted]:
        """As str has it."""
        return _marked(self.__text.split(None if separator is None else reveal(separator), most))

    def rsplit(self, separator: Text | None = None, most: int = -1) -> list[Untrusted]:
        """As str has it."""
        return _marked(self.__text.rsplit(None if separator is None else reveal(separator), most))

    def splitlines(self) -> list[Untrusted]:
        """As str has it."""
        return _marked(self.__text.splitlines())

    def partition(self, separator: Text) -> tuple[Untrusted, Untrusted, Untrusted]:
        """As str has it."""
        before, found, after = self.__text.partition(reveal(separator))
        return Untrusted(before), Untrusted(found), Untrusted(after)

    def rpartition(self, separator: Text) -> tuple[Untrusted, Untrusted, Untrusted]:
        """As str has it."""
        before, found, after = self.__text.rpartition(reveal(separator))
        return Untrusted(before), Untrusted(found), Untrusted(after)

    def strip(self, characters: str | None = None) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.strip(characters))

    def lstrip(self, characters: str | None = None) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.lstrip(characters))

    def rstrip(self, characters: str | None = None) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.rstrip(characters))

    def lower(self) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.lower())

    def upper(self) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.upper())

    def casefold(self) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.casefold())

    def replace(self, old: Text, new: Text, most: int = -1) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.replace(reveal(old), reveal(new), most))

    def removeprefix(self, prefix: Text) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.removeprefix(reveal(prefix)))

    def removesuffix(self, suffix: Text) -> Untrusted:
        """As str has it."""
        return Untrusted(self.__text.removesuffix(reveal(suffix)))

    def join(self, parts: Collection[Text]) -> Untrusted:
        """As str has it; `Untrusted("")` joins parts of both kinds."""
        return Untrusted(self.__text.join(reveal(one) for one in parts))

    # The ways out

    def fullmatch(self, pattern: str) -> Match | None:
        """Return what an RE2 pattern that fits the whole value finds, as plain text; None where it does not fit.

        The pattern bounds what comes out. Raises ValueError for a pattern that is none.
        """
        found = _compiled(pattern).fullmatch(self.__text)
        return None if found is None else Match(found)

    def lookup(self, table: Mapping[str, Any] | Collection[str] | Findable) -> Any:
        """Return what a table holds under this value, or a collection's own equal member; None where it has none."""
        if isinstance(table, (str, bytes)):
            raise TypeError("lookup takes a table or a collection of texts, not one text")
        if isinstance(table, Mapping | Findable):
            return table.get(self.__text)
        return next((one for one in table if type(one) is str and one == self.__text), None)


Text = str | Untrusted


class Match:
    """What a pattern found, as plain text: `match[0]` the whole, `match[1]` and `match["name"]` its groups."""

    __slots__ = ("_found",)

    def __init__(self, found: Any) -> None:
        self._found = found

    def __getitem__(self, group: int | str) -> str:
        try:
            return self._found.group(group) or ""
        except (re2.error, LookupError):
            raise IndexError(f"the pattern has no group {group!r}") from None

    def __str__(self) -> str:
        return self[0]

    def __repr__(self) -> str:
        return f"Match({self[0]!a})"


def reveal(text: object) -> str:
    """Return the text of either kind: for places that encode. Raises TypeError for anything else."""
    if isinstance(text, Untrusted):
        return text._Untrusted__text  # noqa: SLF001 - the one door, and this is its name
    if isinstance(text, str):
        return text
    raise TypeError(f"expected text, found {type(text).__name__}")


def _several(texts: Text | tuple[Text, ...]) -> str | tuple[str, ...]:
    return tuple(map(reveal, texts)) if isinstance(texts, tuple) else reveal(texts)


def _marked(texts: list[str]) -> list[Untrusted]:
    return [Untrusted(one) for one in texts]


def _compiled(pattern: str) -> Any:
    """Return an author's pattern, compiled. Raises TaintError for a message's, ValueError for one that is none."""
    given: object = pattern
    if isinstance(given, Untrusted):
        raise refusal(given, "a pattern")
    patterns.check(pattern)
    return patterns.compiled(pattern)
