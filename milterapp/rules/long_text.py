"""Texts of megabytes, folded and encoded piece by piece, so that asking patterns about one makes one copy, not four.

Must never: say other than folding the whole text would, but where over a thousand characters in a row compose.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator

__all__ = ["LONG", "RawText", "encoded"]

LONG = 1 << 20  # characters, from which on a text is taken in pieces
_STARTER = 0x300  # below it no character composes with the one before it (Unicode normalization, NFC)
_BACK = 1000  # characters looked through for such a one


class RawText:
    """The text that bytes are in UTF-8, lines ending in LF, what is no UTF-8 replaced; made when it is asked for."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    def __str__(self) -> str:
        return self._raw.replace(b"\r\n", b"\n").decode("utf-8", "replace")

    def pieces(self) -> Iterator[str]:
        """Yield the text, a few at a time."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        at, length = 0, len(self._raw)
        while at < length:
            stop = min(at + LONG, length)
            if self._raw[stop - 1 : stop + 1] == b"\r\n":
                stop += 1
            yield decoder.decode(self._raw[at:stop].replace(b"\r\n", b"\n"), stop == length)
            at = stop


def encoded(text: str | RawText, form: Callable[[str], str]) -> bytearray:
    """Return form(text) in UTF-8. form: one that changes a character by itself or composes it with those before it."""
    pieces = text.pieces() if isinstance(text, RawText) else (text[at : at + LONG] for at in range(0, len(text), LONG))
    found = bytearray()
    for piece in _whole(pieces):
        found += form(piece).encode("utf-8", "replace")
    return found


def _whole(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces cut where nothing composes over the cut."""
    rest = ""
    for piece in pieces:
        text = rest + piece if rest else piece
        last = len(text) - 1
        cut = next(
            (at for at in range(last, max(-1, last - _BACK), -1) if ord(text[at]) < _STARTER),
            last + 1 if last >= _BACK else 0,
        )
        rest = text[cut:]
        yield text[:cut]
    if rest:
        yield rest
