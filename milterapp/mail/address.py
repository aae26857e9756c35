"""Address lists of header fields (RFC 5322 section 3.4 with its obsolete forms), read in one linear pass.

Must never: raise on what a field holds (only LimitHit), backtrack, or decode before the list has been taken apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from milterapp.mail import words
from milterapp.mail.limits import LimitHit

__all__ = ["Address", "parse"]

# Longest run of each kind of token; possessive, so that each character is looked at once.
_TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]++)"
    r'|(?P<quoted>"(?:[^"\\]|\\.)*+")'
    r"|(?P<literal>\[[^\[\]\\<>,\"]*+\])"
    r'|(?P<atom>[^ \t\r\n"()<>,;:@\[\]\\.]++)'
    r"|(?P<special>.)",
    re.DOTALL,
)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_PAREN = re.compile(r"[()\\]")
_DOT_ATOM = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]++(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,.\"]++)*+")


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox. display: decoded name or comment; local: unquoted; domain: as it came; "" where there is none."""

    display: str
    local: str
    domain: str

    @property
    def address(self) -> str:
        """`local@domain`, the local part quoted where it has to be; the local part alone without a domain."""
        local = self.local
        if not _DOT_ATOM.fullmatch(local):
            local = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{local}@{self.domain}" if self.domain else self.local

    def __str__(self) -> str:
        return self.address


def parse(text: str, most: int = 10_000) -> tuple[Address, ...]:
    """Return the mailboxes of an address list: groups flattened, routes dropped, names decoded, in their order.

    text: a field's value unfolded and *not* decoded. What is no address is a display name alone. An unclosed quote or
    comment is read as if it were no quote and no comment, so that no address hides behind it.
    Raises LimitHit for more than `most` of them.
    """
    reader = _Reader(most)
    reader.read(text)
    found = reader.found
    hidden = [one for one in found if not one.domain and "@" in one.display]
    if hidden and "=?" in text:  # an address inside an encoded word: some readers decode first and parse then
        for one in hidden:
            reader.read(one.display)
    return tuple(reader.found)


class _Reader:
    """The state of one pass. words: tokens (kind, text) outside angle brackets; angle: those inside, None before."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: list[Address] = []
        self.words: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.angle: list[tuple[str, str]] | None = None
        self.inside = False

    def read(self, text: str) -> None:
        """Take one list apart."""
        at, end = 0, len(text)
        quotes = comments = True  # False once one of them turned out not to be closed
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:  # cannot be: the last alternative takes any character
                break
            kind, piece = match.lastgroup or "special", match[0]
            at = match.end()
            if kind == "quoted" and quotes:
                piece = _QUOTED_PAIR.sub(r"\1", piece[1:-1])
            elif kind == "quoted":
                kind, piece, at = "special", piece[0], match.start() + 1
            if kind != "special":
                (self.angle if self.inside and self.angle is not None else self.words).append((kind, piece))
            elif piece == "(" and comments:
                closed = _comment_end(text, at)
                if closed < 0:
                    comments = False
                else:
                    self.comments.append(text[at : closed - 1])
                    at = closed
            elif piece == '"':
                quotes = False
            else:
                self.special(piece)
        self.flush()

    def special(self, char: str) -> None:
        """Act on one character with a meaning of its own."""
        if char == "<":
            if self.angle is not None:
                self.flush()
            self.angle, self.inside = [], True
        elif char == ">":
            self.inside = False
        elif char == ";" or (char == "," and not (self.inside and self.angle and self.angle[0][1] == "@")):
            self.flush()
        elif char == ":" and self.inside and self.angle:
            self.angle.clear()  # the route of RFC 821, `@a,@b:`
        elif char == ":" and ("special", "@") not in self.words:
            self.words.clear()  # the name of a group
            self.comments.clear()
        elif char not in "()\\":
            (self.angle if self.inside and self.angle is not None else self.words).append(("special", char))

    def flush(self) -> None:
        """End one mailbox."""
        tokens, angle, comments = self.words, self.angle, self.comments
        self.words, self.angle, self.comments, self.inside = [], None, [], False
        if angle is None:
            tokens, local, domain = _spec(tokens)
        else:
            _, local, domain = _spec(angle)
            if not domain and not local:
                local = _join(angle)
        display = _join(tokens)
        if not display and comments:
            display = " ".join(comments)
        if angle is None and not domain and not local:
            if not display:
                return
            if len([kind for kind, _ in tokens if kind != "blank"]) == 1 and "=?" not in display:
                display, local = "", display
        if display or local or domain:
            if len(self.found) >= self.most:
                raise LimitHit(f"more than {self.most} addresses in one field")
            self.found.append(Address(words.decode(display), local, domain))


def _comment_end(text: str, at: int) -> int:
    """Return where the comment ends whose `(` stands before `at`, -1 where it is not closed."""
    depth = 1
    while match := _PAREN.search(text, at):
        at = match.end()
        char = match[0]
        if char == "\\":
            at += 1
        elif char == "(":
            depth += 1
        else:
            depth -= 1
            if not depth:
                return at
    return -1


def _join(tokens: list[tuple[str, str]]) -> str:
    return "".join(" " if kind == "blank" else token for kind, token in tokens).strip()


def _spec(tokens: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], str, str]:
    """Return (what is left, local part, domain) around the last `@`; blanks may stand next to `@` and dots only."""
    at = len(tokens) - 1
    while at >= 0 and tokens[at] != ("special", "@"):
        at -= 1
    if at < 0:
        return tokens, "", ""
    first = _run(tokens, at - 1, -1)
    last = _run(tokens, at + 1, 1)
    local = "".join(token for kind, token in tokens[first + 1 : at] if kind != "blank")
    domain = "".join(token for kind, token in tokens[at + 1 : last] if kind != "blank")
    return tokens[: first + 1] + tokens[last:], local, domain


def _run(tokens: list[tuple[str, str]], at: int, step: int) -> int:
    """Return the index just past the dot-separated words that begin at `at` and go on in that direction."""
    past = at
    dot = True  # at the `@` itself a blank may follow, as it may next to a dot
    blank = False
    while 0 <= at < len(tokens):
        kind, piece = tokens[at]
        if kind == "blank":
            blank = True
        elif piece == "." and kind == "special":
            dot, blank, past = True, False, at + step
        elif kind == "special" or (blank and not dot):
            break
        else:
            dot, blank, past = False, False, at + step
        at += step
    return past
