"""The text of a message as its reader sees it: the text parts decoded, unwrapped and freed of HTML.

Must never: read a part that is an attachment, or raise on what a part holds (only LimitHit).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from milterapp.mail import hypertext
from milterapp.mail.limits import LimitHit
from milterapp.mail.mime import Part

__all__ = ["html_of", "text_of", "unflow"]

_MOST_FLOWED = 200_000
_SOFT_BREAK = re.compile(r"(?m)^(?P<quote>>*+)(?P<line>[^\n]*?) \n(?P=quote)(?!>) ?")
_STUFFED = re.compile(r"(?m)^(>*+) ")


def unflow(text: str, *, delete_blank: bool) -> str:
    """Return format=flowed text (RFC 3676) with its paragraphs on one line each. Raises LimitHit."""
    if text.count(" \n") > _MOST_FLOWED:
        raise LimitHit(f"more than {_MOST_FLOWED} flowed lines")
    out: list[str] = []
    depth, open_paragraph = -1, False
    for line in text.split("\n"):
        bare = line.lstrip(">")
        quotes = len(line) - len(bare)
        bare = bare.removeprefix(" ")
        soft = bare.endswith(" ") and bare != "-- "
        kept = bare[:-1] if soft and delete_blank else bare
        if open_paragraph and quotes == depth and bare != "-- ":
            out.append(kept)
        else:
            if out:
                out.append("\n")
            out.append((">" * quotes + " " + kept) if quotes else kept)
        depth, open_paragraph = quotes, soft
    return "".join(out)


def _texts(parts: Iterable[Part]) -> Iterator[tuple[Part, str]]:
    for part in parts:
        if part.type.startswith("text/") and not part.is_attachment:
            yield part, part.text


def text_of(parts: Iterable[Part]) -> str:
    """Return the text parts, HTML as its text, joined by line ends. Raises LimitHit."""
    found = []
    for part, text in _texts(parts):
        value = part.content_types[0] if part.content_types else None
        if part.type == "text/html":
            found.append(hypertext.to_text(text))
        elif value is not None and value.first("format").lower() == "flowed":
            found.append(unflow(text, delete_blank=value.first("delsp").lower() == "yes"))
        else:
            found.append(text)
    return _join(found, parts)


def html_of(parts: Iterable[Part]) -> str:
    """Return the source of the HTML parts, joined by line ends. Raises LimitHit."""
    return _join([text for part, text in _texts(parts) if part.type == "text/html"], parts)


def _join(found: list[str], parts: Iterable[Part]) -> str:
    if len(found) == 1:
        return found[0]
    for part in parts:  # joining makes a second copy, which counts as much as the first
        part.budget.spend("decoded", sum(map(len, found)), part.budget.limits.decoded_bytes, "decoded bytes")
        break
    return "\n".join(found)
