"""The places a value can land in, each with its own encoder, as a parameter has in SQL.

Must never: let text from a message choose a path, end a header field, or become an address to send to by itself.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

from milterapp.mail import address, words

__all__ = [
    "ADDRESS_FIELDS",
    "AddressText",
    "HeaderText",
    "HtmlText",
    "Mailbox",
    "Program",
    "ReplyLine",
    "ReplyText",
]

_MAILBOXES = ("from", "sender", "reply-to", "to", "cc", "bcc")
ADDRESS_FIELDS = frozenset(
    [*_MAILBOXES, *("resent-" + name for name in _MAILBOXES), "return-path", "errors-to", "disposition-notification-to"]
)

_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
_ADDRESS = re.compile(r"[^\x00-\x20\x7f<>()\[\]:;@\\,\"]++@(?:[^\x00-\x20\x7f<>()\[\]:;@\\,\"]++|\[[0-9A-Fa-f:.]++\])")
_MOST_BYTES = 120  # of one level; a Maildir folder is all levels in one file name of at most 255
_MOST_LEVELS = 8
_RESERVED = frozenset(("cur", "new", "tmp"))  # what a Maildir holds itself
_PROGRAM = re.compile(r"(?:/[A-Za-z0-9_+@:=,~ -][^/\x00-\x1f\x7f]*|/\.[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*)+")
_PROGRAM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_MOST_ARGUMENT = 4096  # bytes
_MOST_TEXT = 10_000  # characters of one value in a text
_MOST_REPLY = 400  # characters of one value in an SMTP reply, whose lines have at most 512 bytes
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSAFE = re.compile(r"[/\\\x00*%]")


class Mailbox:
    """A folder name: levels from the top, each one path component that no store can take for anything else."""

    @staticmethod
    def parse(text: str) -> tuple[str, ...]:
        """Return the levels of a folder as a rule writes it, `Lists/Python`. Raises ValueError with a sentence."""
        levels = tuple(text.split("/"))
        if not text.strip():
            raise ValueError("a folder needs a name")
        if len(levels) > _MOST_LEVELS:
            raise ValueError(f"a folder of {len(levels)} levels, at most {_MOST_LEVELS} are possible")
        for level in levels:
            if not level:
                raise ValueError("a folder begins and ends with a name, with one '/' between two levels")
            if level != Mailbox.component(level):
                raise ValueError(f"{level!r} cannot be a folder's name, {Mailbox.component(level)!r} could")
        return levels

    @staticmethod
    def component(untrusted: str) -> str:
        """Return any text as one level: never empty, hidden, `..`, too long, or more than one. Never fails."""
        text = unicodedata.normalize("NFC", untrusted[:1000].encode("utf-8", "replace").decode("utf-8"))
        text = "".join(char if unicodedata.category(char)[0] != "C" else "_" for char in text)
        text = _UNSAFE.sub("_", " ".join(text.split()))
        if text[:1] in (".", "-", "~", "#"):
            text = "_" + text[1:]
        text = text.encode("utf-8")[:_MOST_BYTES].decode("utf-8", "ignore").rstrip(" .")
        return "_" + text if not text or text.lower() in _RESERVED else text


class HeaderText:
    """Text for a header field: one line whatever it holds, encoded (RFC 2047) where it is not plain ASCII."""

    @staticmethod
    def name(text: str) -> str:
        """Return a field name as a rule writes it. Raises ValueError with a sentence."""
        if not _FIELD_NAME.fullmatch(text):
            raise ValueError(
                f"{text[:80]!r} cannot be a header field's name: at most 76 printable ASCII, no blank or ':'"
            )
        return text

    @staticmethod
    def encode(untrusted: str, name: str = "") -> str:
        """Return any text as a field's value of one line in ASCII; addresses stay addresses. Never fails."""
        if name.lower() in ADDRESS_FIELDS:
            return AddressText.encode(untrusted)
        return words.encode(untrusted, len(name) + 2).strip()


class AddressText:
    """Mail addresses, to send to and for header fields that hold them."""

    @staticmethod
    def parse(text: str) -> str:
        """Return one address to send to, as a rule writes it. Raises ValueError with a sentence."""
        shaped = _ADDRESS.fullmatch(text) and text.isprintable() and len(text) <= 320
        if not shaped or text.startswith("-") or ".." in text.rpartition("@")[2]:
            raise ValueError(f"{text[:80]!r} is no address, name@example.org is one")
        return text

    @staticmethod
    def encode(untrusted: str) -> str:
        """Return any address list as a field's value of one line in ASCII, names encoded. Never fails."""
        if words.is_plain(untrusted):
            return untrusted.strip()
        found = address.parse(untrusted[:10_000].replace("\r", " ").replace("\n", " "))
        out = []
        for one in found:
            where = one.address if words.is_plain(one.address) else ""
            if one.display and where:
                out.append(f"{_phrase(one.display)} <{where}>")
            else:
                out.append(where or _phrase(one.display or one.local))
        return ", ".join(out)


class Program:
    """A program and its arguments: a list of words, never a command line."""

    @staticmethod
    def parse(text: str) -> str:
        """Return a program as a rule writes it: a name the site knows it by, or an absolute path without `..`.

        Raises ValueError with a sentence.
        """
        if len(text) > 1024 or not (_PROGRAM_NAME.fullmatch(text) or _PROGRAM.fullmatch(text)):
            raise ValueError(f"{text[:80]!r} is no program: give its name, or its path from `/`, and arguments apart")
        return text

    @staticmethod
    def argument(untrusted: str, *, at_start: bool = True) -> str:
        """Return any text as one argument, or as a part of one: no control character, bounded. Never fails.

        at_start: nothing of the rule's own stands before it in the argument, so that a leading `-` is no option, and a
        leading `@` or `+` no file and no command of programs that know such.
        """
        text = untrusted[:_MOST_ARGUMENT].encode("utf-8", "replace").decode("utf-8")
        text = "".join(char if unicodedata.category(char)[0] != "C" and char.isprintable() else " " for char in text)
        text = "_" + text if at_start and text.startswith(("-", "+", "@")) else text
        return text.encode("utf-8")[:_MOST_ARGUMENT].decode("utf-8", "ignore")


class ReplyText:
    """Text in a mail that we write: a reply, a banner, a footer, a note. Its lines stay lines."""

    @staticmethod
    def encode(untrusted: str) -> str:
        """Return any text with LF as its line ends and no other control character but tabs, bounded. Never fails."""
        text = untrusted[:_MOST_TEXT].replace("\r\n", "\n").replace("\r", "\n")
        return _NO_TEXT.sub("\ufffd", text)


class HtmlText:
    """Text in HTML that we write: text, whatever brackets it holds, in an attribute between quotes too."""

    @staticmethod
    def encode(untrusted: str) -> str:
        """Return any text as HTML that shows it, bounded. Never fails."""
        return escape(ReplyText.encode(untrusted)).replace("\n", "<br>\n")


class ReplyLine:
    """Text in an SMTP reply (RFC 5321 section 4.2): printable ASCII on one line."""

    @staticmethod
    def encode(untrusted: str) -> str:
        """Return any text as one line, `?` for what is no ASCII, bounded. Never fails."""
        line = " ".join(untrusted[:_MOST_REPLY].split())
        return "".join(char if " " <= char <= "~" else "?" for char in line)


def _phrase(text: str) -> str:
    encoded = words.encode(text).strip()
    if encoded != text or re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*", text):
        return encoded
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
