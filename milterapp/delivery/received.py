"""What tells one message from another where no MTA gives its queue id: the topmost Received field.

Must never: look beyond the header's first 64 KiB, or give two different messages one name.

The field is written by the MTA that delivers, new for each message; a retry brings the same. A sender who forges what
stands in it gains nothing: the digest of the message, this field included, is part of the journal's key.
Source: RFC 5321 section 4.4.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets

__all__ = ["LONGEST", "queue_id"]

LONGEST = 64 * 1024  # bytes of the message that are looked at
_FIELD = re.compile(rb"(?i)(?:\A|(?<=\n))received[ \t]*:((?:[^\n]*\n)(?:[ \t][^\n]*\n)*)")
_ID = re.compile(rb"\sid\s+([0-9A-Za-z][0-9A-Za-z.-]{3,63})(?=[\s;]|$)")


def queue_id(message: int) -> str:
    """Return the id that the topmost Received field of the message names, or one made from that field.

    Without such a field it is a new one each time: a retry then does again what was done, and no mail is lost.
    message: a descriptor.
    """
    head = os.pread(message, LONGEST, 0).partition(b"\n\n")[0] + b"\n"
    field = _FIELD.search(head.partition(b"\n\r\n")[0] + b"\n")
    if field is None:
        return f"N{secrets.token_hex(12)}"
    found = _ID.search(field[1].partition(b";")[0])
    return found[1].decode("ascii") if found else f"R{hashlib.sha256(field[1]).hexdigest()[:24]}"
