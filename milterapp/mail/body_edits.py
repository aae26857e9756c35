"""Edits of the body: which bytes of the message become which others, and what its MIME fields must say then.

Must never: touch a part that no edit names, or a signed or encrypted one where the edit does not say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from milterapp.mail import header_edits, part_text, transfer
from milterapp.mail.edit_kinds import (
    Banner,
    BodyEdit,
    DropAttachments,
    Edit,
    Footer,
    HeaderEdit,
    RemoveHeader,
    ReplaceBody,
    SetHeader,
)
from milterapp.mail.fields import Header
from milterapp.mail.limits import LimitHit
from milterapp.mail.part_text import Insertion, Rewritten
from milterapp.mail.signatures import protection

if TYPE_CHECKING:
    from milterapp.mail.message import Mail
    from milterapp.mail.mime import Part

__all__ = ["Plan", "Span", "plan"]

_UNEDITABLE = frozenset(
    ("two boundaries", "a multipart without a boundary", "a multipart without its boundary lines", "two content types")
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the message from start to before end, and what stands there instead."""

    start: int
    end: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """header: edits of the message's own MIME fields; spans: in order, none over another; notes: what was not done."""

    header: tuple[HeaderEdit, ...] = ()
    spans: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Work:
    """What the edits of one message come to."""

    mail: Mail
    line_end: bytes
    dropped: dict[int, str] = field(default_factory=dict)  # the note that replaces a part, by the part's number
    inserted: dict[int, Insertion] = field(default_factory=dict)
    added: Insertion | None = None  # texts for which there is no part
    notes: list[str] = field(default_factory=list)

    def into(self, part: Part) -> Insertion:
        """Return what goes into a part so far."""
        return self.inserted.setdefault(part.number, Insertion(part))


def plan(mail: Mail, edits: Sequence[Edit]) -> Plan:
    """Return what the edits of the body do; those of the header are ignored.

    An edit before a ReplaceBody is void. Raises ValueError for a body that is not known but must be, LimitHit.
    """
    wanted = [edit for edit in edits if isinstance(edit, BodyEdit)]
    if not wanted:
        return Plan()
    replacing = [at for at, edit in enumerate(wanted) if isinstance(edit, ReplaceBody)]
    if replacing:
        wanted = wanted[replacing[-1] :]
        return _whole(mail, wanted[0].text, wanted)  # type: ignore[union-attr]
    if not mail.complete:
        raise ValueError("edits of a body that is not known")
    work = _Work(mail, _line_end(mail))
    for edit in wanted:
        if isinstance(edit, DropAttachments):
            _drop(work, edit)
    if 0 in work.dropped:
        return _whole(mail, work.dropped[0], wanted)
    for edit in wanted:
        if isinstance(edit, (Banner, Footer)):
            _say(work, edit)
    return _carried_out(work)


def _line_end(mail: Mail) -> bytes:
    """Return the line end of the body, the header's where it has none."""
    for start in (mail.body_start, 0):
        first = mail.raw.find(b"\n", start)
        if first > 0:
            return b"\r\n" if mail.raw[first - 1] == 0x0D else b"\n"
    return b"\n"


def _whole(mail: Mail, text: str, edits: Sequence[BodyEdit]) -> Plan:
    """Return the plan that leaves one text of the whole message, with the banners and footers."""
    said = [edit for edit in edits if isinstance(edit, (Banner, Footer)) and edit.only != "html"]
    above = [edit.text for edit in reversed(said) if isinstance(edit, Banner)]
    below = [edit.text for edit in said if isinstance(edit, Footer)]
    new = part_text.plain_text([*above, text, *below], _line_end(mail))
    others = dict.fromkeys(one.name.lower() for one in mail.header if one.name.lower().startswith("content-"))
    gone = [RemoveHeader(name) for name in others if name not in ("content-type", "content-transfer-encoding")]
    return Plan((*_mime_fields(mail, new), *gone), (Span(mail.body_start, len(mail.raw), new.body),))


def _mime_fields(mail: Mail, new: Rewritten) -> list[HeaderEdit]:
    fields: list[HeaderEdit] = [SetHeader(name, value) for name, value in new.fields.items()]
    if fields and not mail.raw_values("mime-version"):
        fields.append(SetHeader("MIME-Version", "1.0"))
    return fields


def _drop(work: _Work, edit: DropAttachments) -> None:
    parts = work.mail.parts
    parents = _parents(parts)
    for number in edit.parts:
        if not 0 <= number < len(parts):
            work.notes.append(f"drop_attachments: no part {number}")
            continue
        part = parts[number]
        while part.number and not _can_go(part, parts[parents[part.number]], work.mail):
            part = parts[parents[part.number]]
        lines = [*([edit.note, ""] if edit.note else []), _described(part)]
        if part.is_text and part.type == "text/plain" and transfer.uudecode(part.content):
            said = " ".join(part_text.lines_of(edit.note)) or "An attachment was removed."
            work.into(part).files = said + work.line_end.decode("ascii")
        elif part.number in work.dropped:
            work.dropped[part.number] += "\n" + edit.note
        else:
            work.dropped[part.number] = "\n".join(lines)


def _can_go(part: Part, parent: Part, mail: Mail) -> bool:
    """Return whether a part can go alone: not from a message that somebody encoded, or a multipart without parts."""
    return part.source is mail.raw and not (parent.is_multipart and part.start == parent.header.body)


def _described(part: Part) -> str:
    """Return what a part was in a line: nothing of it ends the line or fills the screen."""
    try:
        size = part.size
    except LimitHit:
        size = len(part.body)
    name = part.names[0] if part.names else "an attachment without a name"
    return f"{_CONTROL.sub('_', name)[:200]} ({_CONTROL.sub('_', part.type)[:100]}, {size} bytes)"


def _say(work: _Work, edit: Banner | Footer) -> None:
    """Find the parts that an edit goes into."""
    word = str(edit.to_json()["action"])
    parts = work.mail.parts
    targets = [part for part in _targets(_children(parts), parts[0]) if part is not None]
    reason = "" if edit.signed else protection(parts, targets)
    if reason:
        work.notes.append(f"{word}: {reason}")
        return
    wanted = [part for part in targets if edit.only != ("text" if part.type == "text/html" else "html")]
    if not targets and edit.only != "html" and _may_add(parts):
        work.added = work.added or Insertion(parts[0])
        _put(work.added, edit)
        return
    kept = [part for part in wanted if not any(_within(part, parts[number]) for number in work.dropped)]
    for part in kept:
        _put(work.into(part), edit)
    if not kept:
        work.notes.append(f"{word}: no text part that could take it")


def _put(where: Insertion, edit: Banner | Footer) -> None:
    if isinstance(edit, Banner):
        where.above.append(edit)
    else:
        where.below.append(edit)


def _parents(parts: Sequence[Part]) -> list[int]:
    """Return the number of the part that each part stands in, -1 for the message."""
    above: list[int] = []
    found = []
    for part in parts:
        del above[part.depth :]
        found.append(above[-1] if above else -1)
        above.append(part.number)
    return found


def _children(parts: Sequence[Part]) -> dict[int, list[Part]]:
    found: dict[int, list[Part]] = {}
    for part, parent in zip(parts, _parents(parts), strict=True):
        found.setdefault(parent, []).append(part)
    return found


def _targets(children: dict[int, list[Part]], part: Part) -> tuple[Part | None, Part | None]:
    """Return the text part and the HTML part that readers show first, as far as there are such."""
    if part.is_attachment or _UNEDITABLE.intersection(part.faults):
        return None, None
    if part.type == "text/plain":
        return part, None
    if part.type == "text/html":
        return None, part
    text = html = None
    if part.is_multipart:
        for child in children.get(part.number, ()):
            found = _targets(children, child)
            text, html = text or found[0], html or found[1]
            if part.type == "multipart/related" or (part.type != "multipart/alternative" and (text or html)):
                break
    return text, html


def _may_add(parts: Sequence[Part]) -> bool:
    """Return whether a text part can be put before the others: in a sound multipart/mixed that has none."""
    first = parts[0]
    return first.type == "multipart/mixed" and not first.faults and len(parts) > 1 and not protection(parts, ())


def _within(part: Part, outer: Part) -> bool:
    return part.source is outer.source and outer.start <= part.start and part.end <= outer.end


def _carried_out(work: _Work) -> Plan:
    mail = work.mail
    header: list[HeaderEdit] = []
    spans = list(_dropped(work))
    for number in sorted(work.inserted):
        wanted = work.inserted[number]
        new = part_text.inserted(wanted, work.line_end)
        if new is None:
            work.notes.append(f"{_words(wanted)}: a text part in an unknown transfer encoding")
        elif number:
            spans += _part_spans(wanted.part, new, work.line_end)
        else:
            header += _mime_fields(mail, new)
            spans.append(Span(mail.body_start, len(mail.raw), new.body))
    if work.added is not None:
        spans.append(_added(work, work.added))
    return Plan(tuple(header), tuple(sorted(spans, key=lambda span: span.start)), tuple(work.notes))


def _words(wanted: Insertion) -> str:
    found = [*(["banner"] if wanted.above else []), *(["footer"] if wanted.below else [])]
    return ", ".join(found or ["drop_attachments"])


def _dropped(work: _Work) -> Iterator[Span]:
    """Give the spans of what is dropped: of parts in one another, or over one another, a single one."""
    parts = work.mail.parts
    ranges = sorted((parts[number].start, parts[number].end, number) for number in work.dropped)
    at = 0
    while at < len(ranges):
        start, end, number = ranges[at]
        notes = [work.dropped[number]]
        at += 1
        while at < len(ranges) and ranges[at][0] < end:
            notes.append(work.dropped[ranges[at][2]])
            end = max(end, ranges[at][1])
            at += 1
        new = part_text.plain_text(["\n".join(dict.fromkeys(notes))], work.line_end)
        yield Span(start, end, _part(new, work.line_end).removesuffix(work.line_end))


def _part(new: Rewritten, line_end: bytes) -> bytes:
    lines = [f"{name}: {value}".encode("ascii") + line_end for name, value in new.fields.items()]
    return b"".join([*lines, b"Content-Disposition: inline", line_end, line_end, new.body])


def _part_spans(part: Part, new: Rewritten, line_end: bytes) -> Iterator[Span]:
    """Give the spans of a part: its header, where that changes or has no end, and its body."""
    header: Header = part.header
    edits: list[HeaderEdit] = [SetHeader(name, value) for name, value in new.fields.items()]
    edits += [RemoveHeader(one.name) for one in header.fields if one.name.lower() == "content-md5"]
    if edits or header.end == header.body:
        planned = header_edits.plan(header.fields, edits)
        whole = b"".join(header_edits.render(part.source, part.start, header, planned, line_end))
        if whole and not whole.endswith(b"\n"):
            whole += line_end
        yield Span(part.start, header.body, whole + (part.source[header.end : header.body] or line_end))
    yield Span(header.body, part.end, new.body)


def _added(work: _Work, wanted: Insertion) -> Span:
    """Return the span of a text part before the first part of a message that has none."""
    new = part_text.plain_text(
        [*(edit.text for edit in reversed(wanted.above)), *(edit.text for edit in wanted.below)], work.line_end
    )
    boundary = work.mail.parts[0].content_types[0].first("boundary").rstrip().encode("utf-8", "replace")
    start = work.mail.parts[1].start
    return Span(start, start, _part(new, work.line_end) + b"--" + boundary + work.line_end)
