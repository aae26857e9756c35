"""Whether a message is signed or encrypted, by its parts: S/MIME, PGP/MIME and PGP in the text itself.

Must never: verify or decrypt anything; this says what an edit would break.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milterapp.mail.mime import Part

__all__ = ["protection"]

_SIGNED, _ENCRYPTED = "a signed message", "an encrypted message"
_TYPES = {
    "multipart/signed": _SIGNED,
    "application/pkcs7-signature": _SIGNED,
    "application/x-pkcs7-signature": _SIGNED,
    "application/pgp-signature": _SIGNED,
    "multipart/encrypted": _ENCRYPTED,
    "application/pgp-encrypted": _ENCRYPTED,
    "application/pkcs7-mime": _ENCRYPTED,
    "application/x-pkcs7-mime": _ENCRYPTED,
}
_ARMOUR = re.compile(rb"^-----BEGIN PGP (SIGNED )?MESSAGE-----", re.MULTILINE)


def protection(parts: Sequence[Part], texts: Iterable[Part]) -> str:
    """Return `a signed message`, `an encrypted message` or "". texts: parts to look into. Raises LimitHit.

    What stands in an attached message does not count.
    """
    inside = -1  # depth of the attached message we are in
    for part in parts:
        if 0 <= inside < part.depth:
            continue
        inside = part.depth if part.type.startswith("message/") else -1
        for value in part.content_types:
            if value.word in _TYPES:
                plain = value.first("smime-type").lower() == "signed-data"
                return _SIGNED if plain else _TYPES[value.word]
    for part in texts:
        match = _ARMOUR.search(part.content)
        if match:
            return _SIGNED if match[1] else _ENCRYPTED
    return ""
