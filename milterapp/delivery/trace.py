"""The header fields by which a mail loop is known, put back where an edit or a filter took them away.

Received is what Postfix counts (hopcount_limit, RFC 5321 section 6.3). Delivered-To is what submit and local(8) know a
second sight by: a forward needs it, while local(8) bounces what is handed back with one of its own.
Must never: put a field in that the message did not come with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from milterapp.mail.fields import Field
from milterapp.mail.message import Mail

__all__ = ["FORWARDED", "HANDED_BACK", "missing"]

FORWARDED, HANDED_BACK = ("received", "delivered-to"), ("received",)


def missing(came: Mail, goes: Mail, names: Collection[str]) -> bytes:
    """Return the fields that a message came with and goes without, as they came and in their order, to stand before it.

    names: of the fields, in lower case. Folding is no difference. Raises LimitHit where a header hits a limit.
    """
    kept = Counter(_words(one) for one in goes.header if one.name.lower() in names)
    found = []
    for one in came.header:
        if one.name.lower() in names:
            if kept[_words(one)]:
                kept[_words(one)] -= 1
            else:
                found.append(one.raw.rstrip(b"\r\n") + b"\r\n")
    return b"".join(found)


def _words(field: Field) -> tuple[bytes, ...]:
    return field.name.lower().encode(), *field.value.split()
