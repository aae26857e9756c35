"""Edits of the header: what each field becomes, in the message itself and as a milter's calls.

Must never: re-encode, refold or reorder a field that no edit names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from milterapp.mail import values, words
from milterapp.mail.edit_kinds import AddHeader, Edit, PrefixSubject, PrependHeader, RemoveHeader, SetHeader
from milterapp.mail.fields import Field, Header

__all__ = ["HeaderChange", "Planned", "changes", "fold", "plan", "render", "touched"]

_LINE = 78  # RFC 5322 section 2.1.1: where what we write is folded
_REPLY = re.compile(r"(?:(?:re|aw|sv|antw|fwd?|wg|tr)\s*+(?:\[[0-9]{1,3}\])?:\s*+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """One change of the header, to be carried out in its turn.

    occurrence: which field of that name, from 1; 0 is a new field: at the end of the header, or above it all (`first`).
    value: one line of ASCII, encoded, not folded; None deletes the field.
    """

    name: str
    occurrence: int
    value: str | None
    first: bool = False


@dataclass(slots=True)
class Planned:
    """A field as the edits leave it. came: as it was, None for a new one; value: None as it came; gone: removed.

    first: a new one that stands above those that came.
    """

    name: str
    occurrence: int
    came: Field | None = None
    value: str | None = None
    gone: bool = False
    first: bool = False

    @property
    def text(self) -> str:
        """The decoded value by now."""
        if self.value is None:
            return self.came.text if self.came else ""
        return words.decode(self.value)


def changes(planned: Sequence[Planned]) -> tuple[HeaderChange, ...]:
    """Return what to change, in an order in which it can be: from the last field up, then what is new."""
    changed = [one for one in planned if one.came is not None and (one.gone or one.value is not None)]
    new = [one for one in planned if one.came is None and not one.gone]
    return tuple(
        [HeaderChange(one.name, one.occurrence, None if one.gone else one.value) for one in reversed(changed)]
        + [HeaderChange(one.name, 0, one.value) for one in new if not one.first]
        + [HeaderChange(one.name, 0, one.value, first=True) for one in reversed(new) if one.first]
    )


def plan(fields: Sequence[Field], edits: Sequence[Edit]) -> list[Planned]:
    """Return the header as the edits of it leave it, those of the body ignored. Raises ValueError for a bad name."""
    counts: dict[str, int] = {}
    planned = []
    for field in fields:
        key = field.name.lower()
        counts[key] = counts.get(key, 0) + 1
        planned.append(Planned(field.name, counts[key], field))
    for edit in edits:
        if isinstance(edit, AddHeader):
            planned.append(_new(edit.name, edit.value))
        elif isinstance(edit, PrependHeader):
            planned.insert(0, _new(edit.name, edit.value, first=True))
        elif isinstance(edit, SetHeader):
            _set(planned, edit)
        elif isinstance(edit, RemoveHeader):
            for one in _named(planned, edit.name):
                if edit.occurrences is None or one.occurrence in edit.occurrences:
                    one.gone = True
        elif isinstance(edit, PrefixSubject):
            _prefix(planned, edit.prefix)
    return planned


def render(source: bytes, start: int, header: Header, planned: Sequence[Planned], line_end: bytes) -> list[bytes]:
    """Return the header that stands in source[start:header.end] as planned, what stands before its fields included."""
    out = [source[start : header.fields[0].span[0] if header.fields else header.end]]
    for one in planned:
        if one.gone:
            continue
        if one.came is not None and one.value is None:
            out.append(one.came.raw)
            continue
        if out[-1] and out[-1][-1] != 0x0A:  # a field that the end of the message cut off
            out.append(line_end)
        ends = line_end if one.came is None else (b"\r\n" if one.came.raw.endswith(b"\r\n") else b"\n")
        out.append(fold(one.name, one.value or "", ends))
    return out


def touched(planned: Sequence[Planned]) -> bool:
    """Return whether any field is not as it came."""
    return any(one.came is None or one.value is not None or one.gone for one in planned)


def _named(planned: list[Planned], name: str) -> list[Planned]:
    return [one for one in planned if not one.gone and one.name.lower() == name.lower()]


def _new(name: str, value: str, *, first: bool = False) -> Planned:
    return Planned(values.HeaderText.name(name), 0, None, values.HeaderText.encode(value, name), first=first)


def _set(planned: list[Planned], edit: SetHeader) -> None:
    found = _named(planned, edit.name)
    if not found:
        planned.append(_new(edit.name, edit.value))
        return
    if found[0].text != edit.value:
        found[0].value = values.HeaderText.encode(edit.value, edit.name)
    for one in found[1:]:
        one.gone = True


def _prefix(planned: list[Planned], prefix: str) -> None:
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


def fold(name: str, value: str, line_end: bytes) -> bytes:
    """Return a field as bytes, folded at its blanks where it is long; a word that does not fit stays whole."""
    lines: list[str] = []
    line = name + ":"
    for word in value.split(" "):
        if len(line) + 1 + len(word) > _LINE and word and line.strip() and line != name + ":":
            lines.append(line)
            line = ""
        line += " " + word
    lines.append(line)
    return line_end.join(one.encode("ascii", "replace") for one in lines) + line_end
