"""Carrying edits out to the byte: what no edit touched leaves as it came.

Must never: re-encode, refold or reorder a header or a part that no edit names.
"""

from __future__ import annotations

from collections.abc import Sequence

from milterapp.mail import body_edits, header_edits
from milterapp.mail.edit_kinds import (
    AddHeader,
    Banner,
    BodyEdit,
    DropAttachments,
    Edit,
    Footer,
    PrefixSubject,
    PrependHeader,
    RemoveHeader,
    ReplaceBody,
    SetHeader,
)
from milterapp.mail.fields import scan
from milterapp.mail.header_edits import HeaderChange
from milterapp.mail.limits import DEFAULT, Limits
from milterapp.mail.message import Mail

__all__ = [
    "AddHeader",
    "Banner",
    "DropAttachments",
    "Edit",
    "Footer",
    "HeaderChange",
    "PrefixSubject",
    "PrependHeader",
    "RemoveHeader",
    "ReplaceBody",
    "SetHeader",
    "apply",
    "body_change",
    "edits_body",
    "header_changes",
    "notes",
    "pieces",
]


def edits_body(edits: Sequence[Edit]) -> bool:
    """Return whether any of the edits is one of the body, so that the body must be known to carry them out."""
    return any(isinstance(edit, BodyEdit) for edit in edits)


def header_changes(mail: Mail, edits: Sequence[Edit]) -> tuple[HeaderChange, ...]:
    """Return what to change in a header, in an order in which it can be: from the last field up, then what is new.

    What edits of the body make of the message's own MIME fields is among it. Raises ValueError for a name that is
    none (RFC 5322 section 3.6.8) and for an edit of a body that is not known, LimitHit.
    """
    return header_edits.changes(header_edits.plan(mail.header, (*edits, *body_edits.plan(mail, edits).header)))


def body_change(mail: Mail, edits: Sequence[Edit]) -> bytes | None:
    """Return the whole body as edited, None where it stays as it came. Raises as header_changes does."""
    spans = body_edits.plan(mail, edits).spans
    return b"".join(_body(mail.raw, mail.body_start, spans)) if spans else None


def notes(mail: Mail, edits: Sequence[Edit]) -> tuple[str, ...]:
    """Return which edits of the body could not be carried out, and why, as `banner: a signed message`."""
    return body_edits.plan(mail, edits).notes


def apply(raw: bytes, edits: Sequence[Edit], limits: Limits = DEFAULT) -> bytes:
    """Return the message as edited: every byte that no edit names as it came, new lines with the message's line end.

    The same message that `header_changes` and `body_change` make of it. Raises ValueError as they do, LimitHit.
    """
    return b"".join(pieces(raw, edits, limits))


def pieces(raw: bytes, edits: Sequence[Edit], limits: Limits = DEFAULT) -> list[bytes | memoryview]:
    """Return what `apply` does in pieces to be written one after the other, without a copy of the body."""
    body = body_edits.plan(Mail(raw, limits), edits) if edits_body(edits) else body_edits.Plan()
    header = scan(raw, limits)
    planned = header_edits.plan(header.fields, (*edits, *body.header))
    if not body.spans and not header_edits.touched(planned):
        return [raw]
    first = raw.find(b"\n")
    line_end = b"\r\n" if first > 0 and raw[first - 1] == 0x0D else b"\n"
    out: list[bytes | memoryview] = [*header_edits.render(raw, 0, header, planned, line_end)]
    if body.spans:
        if out[-1] and out[-1][-1] != 0x0A:
            out.append(line_end)
        out.append(raw[header.end : header.body] or line_end)
        return out + _body(raw, header.body, body.spans)
    rest = memoryview(raw)[header.end :]
    if bytes(rest[:1]) in (b" ", b"\t") and len(out) > 1:  # a body that would become part of the last field
        out.append(line_end)
    out.append(rest)
    return out


def _body(raw: bytes, start: int, spans: Sequence[body_edits.Span]) -> list[bytes | memoryview]:
    view = memoryview(raw)
    out: list[bytes | memoryview] = []
    for span in spans:
        out += [view[start : span.start], span.data]
        start = span.end
    return [*out, view[start:]]
