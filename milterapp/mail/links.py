"""The links of a message: addresses in its text and its HTML, and the hosts they lead to.

Must never: look a name up, or follow anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from milterapp.mail import hypertext
from milterapp.mail.limits import LimitHit

__all__ = ["found_in", "host"]

_MOST = 10_000
_IN_TEXT = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'\\]{1,2048}|\bwww\.[^\s<>\"'\\]{1,2048}", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:")
_INVISIBLE = re.compile(r"[\t\r\n\u00ad\u200b-\u200d\u2060\ufeff]")  # what browsers drop from an address


def found_in(text: str, html: str) -> tuple[str, ...]:
    """Return the addresses in a text and in the attributes of its HTML, each once, in order. Raises LimitHit."""
    found = dict.fromkeys(one.rstrip(".,;:!?)]}") for one in _at_most(_IN_TEXT.findall(text)))
    for one in _at_most(hypertext.links(html)):
        found[one] = None
    return tuple(found)


def _at_most(found: Iterable[str]) -> tuple[str, ...]:
    listed = tuple(found)
    if len(listed) > _MOST:
        raise LimitHit(f"more than {_MOST} links")
    return listed


def host(link: str) -> str:
    """Return the host a link leads to, lower case, without port, "" where it leads to none (RFC 3986 section 3.2).

    As browsers read it: `\\` counts as `/`, escapes in the host are resolved, a name in front of `@` is dropped.
    """
    link = _INVISIBLE.sub("", link).strip()
    scheme = _SCHEME.match(link)
    if scheme:
        if scheme[0].lower() in ("mailto:", "data:", "cid:", "tel:", "javascript:"):
            return ""
        link = link[scheme.end() :]
    elif link[:4].lower() == "www.":
        link = "//" + link
    if not link.replace("\\", "/").startswith("//"):
        return ""
    authority = re.split(r"[/?#\\]", link.lstrip("/\\"), maxsplit=1)[0]
    name = unquote(authority.rpartition("@")[2])
    name = name.partition("]")[0].lstrip("[") if name.startswith("[") else name.partition(":")[0]
    return name.strip().rstrip(".").lower()
