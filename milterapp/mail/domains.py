"""Domains in ASCII, so that two spellings of one name compare equal (RFC 5890).

Must never: give two names that anybody may register apart one form. Python's codec is IDNA 2003, which takes ß for ss
and ς for σ, and drops the two joiners; IDNA 2008 has names of their own for them (RFC 5894 section 7.2), and so do we.
"""

from __future__ import annotations

import re
import unicodedata
from encodings.idna import nameprep

__all__ = ["ascii_domain"]

_DOTS = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 section 3.1
_DEVIATIONS = re.compile("([ßς\u200c\u200d])")
_LONGEST = 63  # of a label, RFC 1035 section 2.3.4


def ascii_domain(domain: str) -> str:
    """Return a domain as it compares: lower case, A-labels, no final dot; what is no host's name stays Unicode."""
    if not domain.isascii():
        try:
            domain = ".".join(map(_label, _DOTS.split(domain)))
        except UnicodeError:
            domain = unicodedata.normalize("NFC", domain)
    return domain.lower().removesuffix(".")


def _label(label: str) -> str:
    """Return a label as an A-label. Raises UnicodeError where there is none, or not surely one."""
    if "ẞ" in label:
        raise UnicodeError("a letter that is ss to some (Unicode before 15.1), and ß to others")
    if _DEVIATIONS.search(label):
        parts = (part if _DEVIATIONS.fullmatch(part) else nameprep(part) for part in _DEVIATIONS.split(label))
        found = "xn--" + "".join(parts).encode("punycode").decode("ascii")
    else:
        found = label.encode("idna").decode("ascii")
    if len(found) > _LONGEST or "." in found:
        raise UnicodeError("no label")
    return found
