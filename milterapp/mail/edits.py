"""Edits of a message, and carrying them out to the byte: what no edit touched leaves as it came.

Must never: re-encode, refold or reorder a header or a part that no edit names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milterapp.mail import values, words
from milterapp.mail.fields import Field, scan
from milterapp.mail.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from milterapp.mail.message import Mail

__all__ = [
    "AddHeader",
    "Edit",
    "HeaderChange",
    "PrefixSubject",
    "RemoveHeader",
    "SetHeader",
    "apply",
    "header_changes",
    "pieces",
]

_LINE = 78  # RFC 5322 section 2.1.1: where what we write is folded
_REPLY = re.compile(r"(?:(?:re|aw|sv|antw|fwd?|wg|tr)\s*+(?:\[[0-9]{1,3}\])?:\s*+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Append a header field at the end of the header. name: RFC 5322 field name; value: one line of text."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "add_header", "name": self.name, "value": self.value}


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
    """Remove every field of that name."""

    name: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "remove_header", "name": self.name}


@dataclass(frozen=True, slots=True)
class PrefixSubject:
    """Put a text and a blank before the decoded subject, once: a subject that has it already is left alone.

    `Re:` and the like may stand before it then. Every Subject of several gets it; without one it becomes the subject.
    """

    prefix: str

    def to_json(self) -> dict[str, Any]:
        """Return the edit as `--json` prints it."""
        return {"action": "prefix_subject", "prefix": self.prefix}


Edit = AddHeader | SetHeader | RemoveHeader | PrefixSubject


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """One change of the header, to be carried out in its turn.

    occurrence: which field of that name, from 1; 0 appends a new field at the end of the header.
    value: one line of ASCII, encoded, not folded; None deletes the field.
    """

    name: str
    occurrence: int
    value: str | None


@dataclass(slots=True)
class _Planned:
    """A field as the edits leave it. came: as it was, None for a new one; value: None as it came; gone: removed."""

    name: str
    occurrence: int
    came: Field | None = None
    value: str | None = None
    gone: bool = False

    @property
    def text(self) -> str:
        """The decoded value by now."""
        if self.value is None:
            return self.came.text if self.came else ""
        return words.decode(self.value)


def header_changes(mail: Mail, edits: Sequence[Edit]) -> tuple[HeaderChange, ...]:
    """Return what to change in a header, in an order in which it can be: from the last field up, then what is new.

    Raises ValueError for a name that is none (RFC 5322 section 3.6.8), LimitHit.
    """
    planned = _plan(mail.header, edits)
    changed = [one for one in planned if one.came is not None and (one.gone or one.value is not None)]
    new = [one for one in planned if one.came is None and not one.gone]
    return tuple(
        [HeaderChange(one.name, one.occurrence, None if one.gone else one.value) for one in reversed(changed)]
        + [HeaderChange(one.name, 0, one.value) for one in new]
    )


def apply(raw: bytes, edits: Sequence[Edit], limits: Limits = DEFAULT) -> bytes:
    """Return the message as edited: every byte that no edit names as it came, new lines with the message's line end.

    The same message that `header_changes` makes of it. Raises ValueError as that does, LimitHit.
    """
    return b"".join(pieces(raw, edits, limits))


def pieces(raw: bytes, edits: Sequence[Edit], limits: Limits = DEFAULT) -> list[bytes | memoryview]:
    """Return what `apply` does in pieces to be written one after the other, without a copy of the body."""
    header = scan(raw, limits)
    planned = _plan(header.fields, edits)
    if all(one.came is not None and one.value is None and not one.gone for one in planned):
        return [raw]
    first = raw.find(b"\n")
    line_end = b"\r\n" if first > 0 and raw[first - 1] == 0x0D else b"\n"
    out: list[bytes | memoryview] = [raw[: header.fields[0].span[0] if header.fields else header.end]]
    for one in planned:
        if one.gone:
            continue
        if one.came is not None and one.value is None:
            out.append(one.came.raw)
            continue
        if out[-1] and out[-1][-1] != 0x0A:  # a field that the end of the message cut off
            out.append(line_end)
        ends = line_end if one.came is None else (b"\r\n" if one.came.raw.endswith(b"\r\n") else b"\n")
        out.append(_fold(one.name, one.value or "", ends))
    rest = memoryview(raw)[header.end :]
    if bytes(rest[:1]) in (b" ", b"\t") and len(out) > 1:  # a body that would become part of the last field
        out.append(line_end)
    out.append(rest)
    return out


def _plan(fields: Sequence[Field], edits: Sequence[Edit]) -> list[_Planned]:
    counts: dict[str, int] = {}
    planned = []
    for field in fields:
        key = field.name.lower()
        counts[key] = counts.get(key, 0) + 1
        planned.append(_Planned(field.name, counts[key], field))
    for edit in edits:
        if isinstance(edit, AddHeader):
            planned.append(_new(edit.name, edit.value))
        elif isinstance(edit, SetHeader):
            _set(planned, edit)
        elif isinstance(edit, RemoveHeader):
            for one in _named(planned, edit.name):
                one.gone = True
        else:
            _prefix(planned, edit.prefix)
    return planned


def _named(planned: list[_Planned], name: str) -> list[_Planned]:
    return [one for one in planned if not one.gone and one.name.lower() == name.lower()]


def _new(name: str, value: str) -> _Planned:
    return _Planned(values.HeaderText.name(name), 0, None, values.HeaderText.encode(value, name))


def _set(planned: list[_Planned], edit: SetHeader) -> None:
    found = _named(planned, edit.name)
    if not found:
        planned.append(_new(edit.name, edit.value))
        return
    if found[0].text != edit.value:
        found[0].value = values.HeaderText.encode(edit.value, edit.name)
    for one in found[1:]:
        one.gone = True


def _prefix(planned: list[_Planned], prefix: str) -> None:
    found = _named(planned, "subject")
    if not found:
        planned.append(_new("Subject", prefix))
    for one in found:
        text = one.text
        reply = _REPLY.match(text)
        if text.startswith(prefix, reply.end() if reply else 0) or text.startswith(prefix):
            continue
        raw = one.came.raw_text if one.value is None and one.came else one.value or ""
        if not (raw.isascii() and raw.isprintable()):
            one.value = words.encode(f"{prefix} {text}")
        elif words.is_plain(prefix) or not raw.startswith("=?"):
            one.value = f"{words.encode(prefix)} {raw}".rstrip()
        else:  # readers drop the blank between two encoded words, so it goes into the first
            one.value = f"{words.encode(prefix + ' ')} {raw}"


def _fold(name: str, value: str, line_end: bytes) -> bytes:
    """Return a field, folded at its blanks where it is long; a word that does not fit stays whole."""
    lines: list[str] = []
    line = name + ":"
    for word in value.split(" "):
        if len(line) + 1 + len(word) > _LINE and word and line.strip() and line != name + ":":
            lines.append(line)
            line = ""
        line += " " + word
    lines.append(line)
    return line_end.join(one.encode("ascii", "replace") for one in lines) + line_end
