"""The text of a message as its reader sees it: the text parts decoded, unwrapped and freed of HTML.

Must never: read a part that is an attachment, or raise on what a part holds (only LimitHit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from milterapp.mail import hypertext
from milterapp.mail.limits import LimitHit
from milterapp.mail.mime import Part

__all__ = ["html_of", "text_of", "unflow"]

_MOST_FLOWED = 200_000


def unflow(text: str, *, delete_blank: bool) -> str:
    """Return format=flowed text (RFC 3676) with its paragraphs on one line each. Raises LimitHit."""
    if " \n" not in text:
        return text
    if text.count("\n") > _MOST_FLOWED:
        raise LimitHit(f"more than {_MOST_FLOWED} lines of flowed text")
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


def text_of(parts: Iterable[Part]) -> str:
    """Return the text parts, HTML as its text, joined by line ends. Raises LimitHit."""
    return "\n".join(_collect(parts, "text/", _read))


def html_of(parts: Iterable[Part]) -> str:
    """Return the source of the HTML parts, joined by line ends. Raises LimitHit."""
    return "\n".join(_collect(parts, "text/html", _source))


def _collect(parts: Iterable[Part], kind: str, read: Callable[[Part], str]) -> list[str]:
    wanted = [part for part in parts if part.is_text and part.type.startswith(kind)]
    found: list[str] = []
    length = 0
    for part in wanted:
        most = part.budget.limits.text_bytes
        if len(wanted) > 1:  # joining makes a second copy
            most //= 2
        if length + len(part.body) > most:
            raise LimitHit(f"more than {most} bytes of text")
        text = read(part)
        length += len(text)
        found.append(text)
    return found


def _source(part: Part) -> str:
    if len(part.body) > hypertext.MOST_CHARACTERS:
        raise LimitHit(f"more than {hypertext.MOST_CHARACTERS} bytes of HTML")
    return part.text


def _read(part: Part) -> str:
    if part.type == "text/html":
        return hypertext.to_text(_source(part))
    value = part.content_types[0] if part.content_types else None
    if value is not None and value.first("format").lower() == "flowed":
        return unflow(part.text, delete_blank=value.first("delsp").lower() == "yes")
    return part.text
