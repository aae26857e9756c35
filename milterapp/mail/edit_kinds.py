"""What edits of a message there are: plain values, which a record of a decision can hold.

Must never: do anything; `edits` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "AddHeader",
    "Banner",
    "BodyEdit",
    "DropAttachments",
    "Edit",
    "Footer",
    "HeaderEdit",
    "PrefixSubject",
    "PrependHeader",
    "RemoveHeader",
    "ReplaceBody",
    "SetHeader",
]


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Append a header field at the end of the header. name: RFC 5322 field name; value: one line of text."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "add_header", "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class PrependHeader:
    """Put a header field above all others."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "prepend_header", "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class SetHeader:
    """Give the first field of that name this value and remove the others; without one, append it."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "set_header", "name": self.name, "value": self.value}


@dataclass(frozen=True, slots=True)
class RemoveHeader:
    """Remove fields of that name: those whose places are named, else every one.

    occurrences: which of that name in the message as it came, from 1; None for all, those added since too.
    """

    name: str
    occurrences: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        found: dict[str, Any] = {"action": "remove_header", "name": self.name}
        return found if self.occurrences is None else found | {"occurrences": list(self.occurrences)}


@dataclass(frozen=True, slots=True)
class PrefixSubject:
    """Put a text and a blank before the decoded subject, once: a subject that has it already is left alone.

    `Re:` and the like may stand before it then. Every Subject of several gets it; without one it becomes the subject.
    """

    prefix: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "prefix_subject", "prefix": self.prefix}


@dataclass(frozen=True, slots=True)
class Banner:
    """Put a text above what the message says, in its text and in its HTML, each in its own charset and encoding.

    html: the same as HTML, for the HTML part; without it the text, escaped. only: "text" or "html" for that alone.
    A signed or encrypted message is left as it is, unless `signed`.
    """

    text: str
    html: str = ""
    only: str = ""
    signed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "banner"} | _said(self)


@dataclass(frozen=True, slots=True)
class Footer:
    """Put a text below what the message says, as a Banner is put above it."""

    text: str
    html: str = ""
    only: str = ""
    signed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "footer"} | _said(self)


@dataclass(frozen=True, slots=True)
class DropAttachments:
    """Take parts out of the message; a text in the place of each says what it was.

    parts: their numbers (mime.Part.number) in the message as it came; note: what the text begins with.
    A part that is text and holds uuencoded files loses those and keeps the text.
    """

    parts: tuple[int, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "drop_attachments", "parts": list(self.parts), "note": self.note}


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """Put a plain text in the place of the whole body, attachments and all."""

    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "replace_body", "text": self.text}


def _said(edit: Banner | Footer) -> dict[str, Any]:
    found: dict[str, Any] = {"text": edit.text}
    for name in ("html", "only", "signed"):
        if getattr(edit, name):
            found[name] = getattr(edit, name)
    return found


HeaderEdit = AddHeader | PrependHeader | SetHeader | RemoveHeader | PrefixSubject
BodyEdit = Banner | Footer | DropAttachments | ReplaceBody
Edit = (
    AddHeader
    | PrependHeader
    | SetHeader
    | RemoveHeader
    | PrefixSubject
    | Banner
    | Footer
    | DropAttachments
    | ReplaceBody
)
