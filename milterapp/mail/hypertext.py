"""HTML as a reader sees it: its text with block elements as line ends, and the targets of its links.

Must never: run anything, fetch anything, raise on what stands there (only LimitHit), or take more than linear time.
"""

from __future__ import annotations

import re
from html.entities import html5

from milterapp.mail.limits import LimitHit

__all__ = ["MOST_CHARACTERS", "insertion_points", "links", "to_text", "unescape"]

MOST_CHARACTERS = 16 << 20
_MOST_TAGS = 100_000
# Nothing here can fail after having read far: what is not closed goes on to the end, as it does in browsers.
_HIDDEN = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))"
    r"|<(?P<raw>script|style|title|noembed|noframes)\b[^>]*+(?:>|\Z).*?(?:</(?P=raw)\b[^>]*+(?:>|\Z)|\Z)"
    r"|<[!?][^>]*+(?:>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_BLOCK = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|"
    "form|h[1-6]|head|header|hr|html|legend|li|main|menu|nav|ol|option|p|pre|section|summary|table|tbody|tfoot|thead|"
    "tr|ul"
)
# A quote has a meaning only behind `=`; elsewhere in a tag browsers read it as a character.
_REST = r"(?:[^>=]++|=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z))?+)*+(?:>|\Z)"
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK})(?=[\s/>]){_REST}", re.IGNORECASE)
_CELL_TAG = re.compile(rf"</?t[dh](?=[\s/>]){_REST}", re.IGNORECASE)
_TAG = re.compile(rf"</?[a-zA-Z]{_REST}")
_BODY = re.compile(rf"<body(?=[\s/>]){_REST}", re.IGNORECASE)
_HEAD = re.compile(rf"</head(?=[\s/>]){_REST}|<html(?=[\s/>]){_REST}", re.IGNORECASE)
_BODY_END = re.compile(r"</body(?=[\s/>])", re.IGNORECASE)
_HTML_END = re.compile(r"</html(?=[\s/>])", re.IGNORECASE)
_NOTHING = re.compile(r"[\0\s]*+")
_ENTITY = re.compile(
    r"&(?:#(?P<decimal>[0-9]{1,8})|#[xX](?P<hex>[0-9a-fA-F]{1,7})|(?P<name>[A-Za-z][A-Za-z0-9]{1,31}));?"
)
_VALUE = re.compile(r"=\s*+(?:\"([^\"]{1,1024})|'([^']{1,1024})|([^\s>\"']{1,1024}))")
_LINKING = ("href", "src", "action", "background")
_MOST_VALUES = 200_000


def to_text(html: str) -> str:
    """Return the text of an HTML page; scripts, styles and comments are left out. Raises LimitHit."""
    if len(html) > MOST_CHARACTERS:
        raise LimitHit(f"more than {MOST_CHARACTERS} characters of HTML")
    if html.count("<") > _MOST_TAGS:
        raise LimitHit(f"more than {_MOST_TAGS} HTML tags")
    text = _squeezed(html.replace("\n", " ").replace("\t", " ").replace("\r", " ").replace("\f", " "), " ", 1)
    if "<" in text:
        text = _HIDDEN.sub("", text)
        text = _BLOCK_TAG.sub("\n", text)
        text = _TAG.sub("", _CELL_TAG.sub(" ", text))
        text = _squeezed(text, " ", 1).replace("\n ", "\n").replace(" \n", "\n")
    return unescape(_squeezed(text, "\n", 2)).strip()


def _squeezed(text: str, char: str, most: int) -> str:
    """Return text with at most so many of a character in a row, without a list of what stands between them."""
    while char * (most + 1) in text:
        text = text.replace(char * (most + 1), char * most)
    return text


def unescape(text: str) -> str:
    """Return text with its character references replaced; those of no meaning stay."""
    if "&" not in text:
        return text
    if text.count("&") > _MOST_TAGS:
        raise LimitHit(f"more than {_MOST_TAGS} HTML character references")
    return _ENTITY.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    name = match["name"]
    if name is not None:
        whole = match[0]
        return html5.get(name + ";" if whole.endswith(";") else name, whole)
    code = int(match["decimal"]) if match["decimal"] is not None else int(match["hex"], 16)
    if 0x80 <= code <= 0x9F:
        return bytes([code]).decode("cp1252", "replace")
    if not 0 < code < 0x110000 or 0xD800 <= code < 0xE000:
        return "\ufffd"
    return chr(code)


def insertion_points(html: str) -> tuple[int, int]:
    """Return where what is shown begins and where it ends: behind `<body…>`, before the last `</body>`.

    Those in comments, scripts and the like do not count. Raises LimitHit.
    """
    if len(html) > MOST_CHARACTERS:
        raise LimitHit(f"more than {MOST_CHARACTERS} characters of HTML")
    if html.count("<") > _MOST_TAGS:
        raise LimitHit(f"more than {_MOST_TAGS} HTML tags")
    seen = _HIDDEN.sub(lambda match: "\0" * len(match[0]), html)
    begin = _BODY.search(seen)
    heads = [] if begin else list(_HEAD.finditer(seen))
    start = begin.end() if begin else heads[-1].end() if heads else _NOTHING.match(seen).end()  # type: ignore[union-attr]
    for pattern in (_BODY_END, _HTML_END):
        ends = [match.start() for match in pattern.finditer(seen, start)]
        if ends:
            return start, ends[-1]
    return start, len(html)


def links(html: str) -> tuple[str, ...]:
    """Return the addresses that the page's attributes point at, in order, each once. Raises LimitHit."""
    if html.count("=") > _MOST_VALUES:
        raise LimitHit(f"more than {_MOST_VALUES} HTML attributes")
    found: dict[str, None] = {}
    for match in _VALUE.finditer(html):
        at = match.start()
        if html[max(0, at - 16) : at].rstrip().lower().endswith(_LINKING):
            found[unescape(match[1] or match[2] or match[3]).strip()] = None
    found.pop("", None)
    return tuple(found)
