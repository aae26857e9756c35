"""The typed places that text from a message may go to from a script, each with its own encoder (mail.values).

Must never: make an address to send to out of a message's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from milterapp.mail import values
from milterapp.script.untrusted import Text, Untrusted, refusal, reveal

__all__ = ["Address", "HeaderText", "Mailbox", "Rendered", "body_text", "header_name", "plain"]

_MOST_HEADER = 900  # characters of a header field's value
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but TAB and LF


@dataclass(frozen=True, slots=True, init=False)
class Mailbox:
    """A folder: `Mailbox("Lists/Python")`, or `Mailbox("Lists", mail.subject)` with one level of any text.

    Plain text is parsed as in a rule (ValueError where it is no folder); Untrusted text becomes one harmless level.
    """

    levels: tuple[str, ...]

    def __init__(self, *parts: Text) -> None:
        if not parts:
            raise ValueError("a folder needs a name")
        levels: list[str] = []
        for part in parts:
            if isinstance(part, Untrusted):
                levels.append(values.Mailbox.component(reveal(part)))
            else:
                levels += values.Mailbox.parse(plain(part, "a folder"))
        values.Mailbox.parse("/".join(levels))  # the number of levels
        object.__setattr__(self, "levels", tuple(levels))

    def __str__(self) -> str:
        return "/".join(self.levels)


@dataclass(frozen=True, slots=True, init=False)
class HeaderText:
    """One line of text for a header field, whatever it is made of: line ends and control characters become blanks."""

    text: str

    def __init__(self, *parts: Text) -> None:
        found = "".join(reveal(one) for one in parts)[: 4 * _MOST_HEADER]
        found = "".join(char if char.isprintable() else " " for char in found)
        object.__setattr__(self, "text", " ".join(found.split())[:_MOST_HEADER].rstrip())

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, init=False)
class Address:
    """An address to send to, from the script's own text. ValueError for what is none, TaintError for a message's."""

    address: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "address", values.AddressText.parse(plain(text, "an address to send to")))

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True, repr=False)
class Rendered:
    """What a template gave: for a reply's text, a file below output, or another template; nothing else takes it.

    It can hold text of a message, so it is no str. html: it was encoded as HTML.
    """

    text: str
    html: bool

    def __len__(self) -> int:
        return len(self.text)

    def __str__(self) -> str:
        raise TypeError("what a template gave is no str: it goes into output, a reply's text or another template")

    __format__ = __str__  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rendered({len(self.text)} characters)"


def plain(text: object, wanted: str) -> str:
    """Return plain text as it is. Raises TaintError for Untrusted text, TypeError for anything else."""
    if isinstance(text, Untrusted):
        raise refusal(text, wanted)
    if not isinstance(text, str):
        raise TypeError(f"{wanted}: expected text, found {type(text).__name__}")
    return text


def header_name(text: object) -> str:
    """Return a header field's name. Raises TaintError, TypeError or ValueError."""
    return values.HeaderText.name(plain(text, "a header field's name"))


def body_text(text: Text | Rendered) -> str:
    """Return any text as the lines of a body: its line ends are LF, other control characters are U+FFFD."""
    lines = (text.text if isinstance(text, Rendered) else reveal(text)).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("\ufffd", lines.encode("utf-8", "replace").decode())
