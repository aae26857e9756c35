"""What a script can want done, one value a thing; each can only be made of what its place takes.

Must never: do anything, or hold Untrusted; a value that exists is one that may be carried out.

Every class raises ValueError with a sentence for what its place does not take: the script meets it at its own line,
and what comes from a script process meets it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from milterapp.mail import edits, values
from milterapp.script import stored

__all__ = ["IN_LINE", "KINDS", "MOST_DAYS", "NO_PLACE", "Action", "Answered", "Ask", "Defer", "Discard", "File",
           "Forward", "Header", "Keep", "Output", "Reject", "Reply", "Send", "Store"]  # fmt: skip

_STATUS = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}")
_LINE = re.compile(r"[\x20-\x7e]{1,400}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,7}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_HEADER = 1000
MOST_DAYS = 90  # for which a question waits
_MOST_KEY = 500


def _line(text: str, most: int = _MOST_HEADER) -> None:
    if len(text) > most or (text and not text.isprintable()):
        raise ValueError(f"expected one line of at most {most} characters")


def _own(address: str) -> None:
    """Raise where it is no address; whether it is the recipient's, submit says."""
    if address:
        values.AddressText.parse(address)


def _body(text: str) -> None:
    if _CONTROL.search(text):
        raise ValueError("a text with control characters")


@dataclass(frozen=True, slots=True)
class Keep:
    """Deliver as Postfix always did."""

    word: ClassVar[str] = "keep"


@dataclass(frozen=True, slots=True)
class File:
    """File into a folder, its levels from the top; with copy, rules go on."""

    word: ClassVar[str] = "file"
    folder: tuple[str, ...]
    copy: bool = False

    def __post_init__(self) -> None:
        if values.Mailbox.parse("/".join(self.folder)) != self.folder:
            raise ValueError("a level of a folder with '/' in it")


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the message on to one address. sender: the envelope's, an address of the recipient's; "" as it came."""

    word: ClassVar[str] = "forward"
    to: str
    copy: bool = False
    sender: str = ""

    def __post_init__(self) -> None:
        values.AddressText.parse(self.to)
        _own(self.sender)


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the envelope sender; subject "" for `Re:` and the message's. sender: as for Forward, in From."""

    word: ClassVar[str] = "reply"
    text: str
    subject: str = ""
    sender: str = ""

    def __post_init__(self) -> None:
        _body(self.text)
        _line(self.subject)
        _own(self.sender)


class _Refusal:
    """What reject and defer have in common."""

    __slots__ = ()
    digit: ClassVar[str]
    status: str
    text: str

    def _check(self) -> None:
        status = _STATUS.fullmatch(self.status)
        if status is None or status[1] != self.digit:
            raise ValueError(f"{self.status[:20]!r}: expected a status as {self.digit}.7.1")
        if not _LINE.fullmatch(self.text):
            raise ValueError("expected one line of at most 400 printable ASCII characters")


@dataclass(frozen=True, slots=True)
class Reject(_Refusal):
    """Refuse the message. status: RFC 3463, of class 5."""

    word: ClassVar[str] = "reject"
    digit: ClassVar[str] = "5"
    status: str
    text: str

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True, slots=True)
class Defer(_Refusal):
    """Have Postfix try again later; nothing else is done."""

    word: ClassVar[str] = "defer"
    digit: ClassVar[str] = "4"
    status: str
    text: str

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True, slots=True)
class Discard:
    """Throw the message away; copies stay."""

    word: ClassVar[str] = "discard"


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message of the script's own, one to each address. sender: as for Forward, in From too."""

    word: ClassVar[str] = "send"
    to: tuple[str, ...]
    subject: str
    text: str
    sender: str = ""

    def __post_init__(self) -> None:
        if not self.to:
            raise ValueError("to nobody")
        for one in self.to:
            values.AddressText.parse(one)
        _line(self.subject)
        _body(self.text)
        _own(self.sender)


@dataclass(frozen=True, slots=True)
class Header:
    """Edit the header. how: a key of HOW; value: "" with remove, and the prefix with prefix_subject."""

    word: ClassVar[str] = "header"
    HOW: ClassVar[tuple[str, ...]] = ("add_header", "set_header", "remove_header", "prefix_subject")
    how: str
    name: str
    value: str = ""

    def __post_init__(self) -> None:
        if self.how not in self.HOW:
            raise ValueError(f"{self.how[:40]!r}: expected one of {', '.join(self.HOW)}")
        values.HeaderText.name(self.name)
        _line(self.value)

    @property
    def edit(self) -> edits.Edit:
        """The edit of the message that this is."""
        if self.how == "add_header":
            return edits.AddHeader(self.name, self.value)
        if self.how == "set_header":
            return edits.SetHeader(self.name, self.value)
        if self.how == "remove_header":
            return edits.RemoveHeader(self.name)
        return edits.PrefixSubject(self.value)


@dataclass(frozen=True, slots=True)
class Store:
    """Keep a value of the script under a key; value: as stored.to_text writes it, None to forget.

    marked: the key came from a message.
    """

    word: ClassVar[str] = "store"
    key: str
    marked: bool
    value: str | None

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= _MOST_KEY:
            raise ValueError(f"a key has 1 to {_MOST_KEY} characters")
        if self.value is not None:
            stored.from_text(self.value)


@dataclass(frozen=True, slots=True)
class Output:
    """Write a file below the script's output folder; text None removes it."""

    word: ClassVar[str] = "output"
    path: str
    text: str | None

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(
                f"{self.path[:80]!r}: expected names of A-Z, a-z, 0-9, '.', '_', '-', with '/' between them"
            )


@dataclass(frozen=True, slots=True)
class Ask:
    """Keep the message until a question about it is answered, for some days. The question itself is a Reply or Send.

    digest: SHA-256 of the token in the question, so that what is stored answers nothing; then: the function to call
    with the message; captures: its arguments, name and value in turn.
    """

    word: ClassVar[str] = "ask"
    digest: str
    then: str
    captures: tuple[str, ...] = ()
    days: str = "7"

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError("a question without the digest of its token")
        if not self.then.isidentifier() or len(self.then) > 100:
            raise ValueError("a question without the function that answers it")
        if len(self.captures) % 2 or len(self.captures) > 40 or any(len(one) > 1000 for one in self.captures):
            raise ValueError("captures: expected at most 20 names with their values")
        if not self.days.isascii() or not self.days.isdigit() or not 1 <= int(self.days) <= MOST_DAYS:
            raise ValueError(f"expected 1 to {MOST_DAYS} days")


@dataclass(frozen=True, slots=True)
class Answered:
    """Forget a question: it was answered, and cannot be again."""

    word: ClassVar[str] = "answered"
    digest: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError("no question")


Action = Keep | File | Forward | Reply | Reject | Defer | Discard | Send | Header | Store | Output | Ask | Answered

KINDS: dict[str, Any] = {
    kind.word: kind
    for kind in (Keep, File, Forward, Reply, Reject, Defer, Discard, Send, Header, Store, Output, Ask, Answered)
}

# What a site's script may ask for. All else would have to be done once, and kept where Postfix keeps the message: the
# milter never learns whether it does.
IN_LINE = (Reject, Defer, Discard, Header)
NO_PLACE = "has no place in a site script, which may reject, defer, discard and edit the header"
