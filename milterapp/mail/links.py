"""The links of a message: addresses in its text and its HTML, and the hosts they lead to.

Must never: look a name up, or follow anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from milterapp.mail import hypertext
from milterapp.mail.limits import LimitHit

__all__ = ["found_in", "host"]

_MOST = 10_000
# Each begins with letters of its own, which a search finds fast; what stands before is looked at afterwards.
_ADDRESS = re.compile(r"://([^\s<>\"'\\]{1,1024})")
_WWW = (re.compile(r"www\.[^\s<>\"'\\]{1,1024}"), re.compile(r"WWW\.[^\s<>\"'\\]{1,1024}"))
_SCHEMES = ("https", "http", "ftp")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:")
_INVISIBLE = re.compile(r"[\t\r\n\u00ad\u200b-\u200d\u2060\ufeff]")  # what browsers drop from an address


def found_in(text: str, html: str) -> tuple[str, ...]:
    """Return the addresses in a text and in the attributes of its HTML, each once, in order. Raises LimitHit."""
    found: list[tuple[int, str]] = []
    for match in _at_most(_ADDRESS.finditer(text)):
        at = match.start()
        before = text[max(0, at - 5) : at].lower()
        for scheme in _SCHEMES:
            if before.endswith(scheme):
                found.append((at - len(scheme), text[at - len(scheme) : match.end()]))
                break
    for pattern in _WWW:
        for match in _at_most(pattern.finditer(text)):
            at = match.start()
            if not (at and (text[at - 1].isalnum() or text[at - 1] in "/.-@")):
                found.append((at, match[0]))
    links = dict.fromkeys(link.rstrip(".,;:!?)]}") for _, link in sorted(found))
    links |= dict.fromkeys(hypertext.links(html))
    if len(links) > _MOST:
        raise LimitHit(f"more than {_MOST} links")
    return tuple(links)


def _at_most(found: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    for count, match in enumerate(found):
        if count == _MOST:
            raise LimitHit(f"more than {_MOST} links")
        yield match


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
