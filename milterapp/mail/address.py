"""Address lists of header fields (RFC 5322 section 3.4 with its obsolete forms), read in one linear pass.

Must never: raise on what a field holds (only LimitHit), backtrack, or decode before the list has been taken apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from milterapp.mail import words
from milterapp.mail.limits import LimitHit

__all__ = ["Address", "Reader", "parse"]

_ATOM = r"[^\x00-\x20\x7f()<>\[\]:;@\\\",.]++"
_DOTTED = rf"{_ATOM}(?:\.{_ATOM})*"
# One whole mailbox as nearly all mail writes it, and what ends it; anything else is taken apart token by token.
_ORDINARY = re.compile(
    rf"[ \t]*+(?:(?:\"(?P<quoted>[^\"\\]*+)\"[ \t]*+|(?P<phrase>[^\x00-\x1f\x7f()<>\[\]:;@\\,\"]++))?"
    rf"<(?P<local>{_DOTTED})@(?P<domain>{_DOTTED})>"
    rf"|(?P<bare_local>{_DOTTED})@(?P<bare_domain>{_DOTTED}))[ \t]*+(?:,|\Z)"
)
# Otherwise the longest run of each kind of token; possessive, so that each character is looked at once.
_QUOTED = r'(?P<quoted>"[^"\\]*+(?:\\.[^"\\]*+)*+")|'
_UNQUOTED = (
    r"(?P<blank>[ \t\r\n]++)"
    r"|(?P<literal>\[[^\[\]\\<>,\"]*+\])"
    r"|(?P<atom>[^ \t\r\n\"()<>,;:@\[\]\\.]++)"
    r"|(?P<special>.)"
)
_TOKEN = re.compile(_QUOTED + _UNQUOTED, re.DOTALL)
_TOKEN_WITHOUT_QUOTES = re.compile(_UNQUOTED, re.DOTALL)
_PIECES_AN_ADDRESS = 5
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_PAREN = re.compile(r"[()\\]")
_UNQUOTED_LOCAL = re.compile(_ATOM.replace(r",.", ","))  # dots at odd places need no quotes in practice


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
        if not _UNQUOTED_LOCAL.fullmatch(local):
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
    reader = Reader(most)
    reader.read(text)
    return tuple(reader.found)


class Reader:
    """Reads any number of lists under one bound: `most` addresses, and five times as many odd words and signs.

    found: the addresses so far.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: list[Address] = []
        self._pieces = 0
        self._hit = ""
        self._clear()

    def _clear(self) -> None:
        """Begin a mailbox. words: tokens (kind, text) outside angle brackets; angle: those inside, None before."""
        self._words: list[tuple[str, str]] = []
        self._comments: list[str] = []
        self._angle: list[tuple[str, str]] | None = None
        self._inside = self._at = False

    def read(self, text: str) -> None:
        """Add the addresses of one list, unfolded and not decoded. Raises LimitHit, and from then on at once."""
        if self._hit:
            raise LimitHit(self._hit)
        first = len(self.found)
        try:
            self._read(text)
            if "=?" in text:  # an address inside an encoded word: some readers decode first and parse then
                for one in self.found[first:]:
                    if not one.domain and "@" in one.display:
                        self._read(one.display)
        except LimitHit as limit:
            self._hit = str(limit)
            raise

    def _read(self, text: str) -> None:
        at, end = 0, len(text)
        closed = True  # False once a quote or a comment turned out not to be closed
        while at < end:
            ordinary = _ORDINARY.match(text, at) if closed else None
            if ordinary is None:
                at, closed = self._odd(text, at)
                continue
            at = ordinary.end()
            quoted, phrase, local, domain, bare_local, bare_domain = ordinary.groups()
            if local is None:
                self._add(Address("", bare_local, bare_domain))
            else:
                display = quoted if quoted is not None else phrase or ""
                self._add(Address(words.decode(display.strip(" \t")), local, domain))

    def _odd(self, text: str, at: int) -> tuple[int, bool]:
        """Read on, token by token, to the next comma; return (where to go on, whether all was closed so far)."""
        end = len(text)
        match_token = _TOKEN.match
        quotes = comments = True
        while at < end:
            self._pieces += 1
            if self._pieces > self.most * _PIECES_AN_ADDRESS:
                raise LimitHit(f"more than {self.most * _PIECES_AN_ADDRESS} words and signs in address lists")
            match = match_token(text, at)
            if match is None:  # cannot be: the last alternative takes any character
                break
            kind, piece = match.lastgroup or "", match[0]
            at = match.end()
            if kind == "quoted":
                self._take(kind, _QUOTED_PAIR.sub(r"\1", piece[1:-1]))
            elif kind != "special":
                self._take(kind, piece)
            elif piece == "(" and comments:
                after = _comment_end(text, at)
                comments = after >= 0
                if comments:
                    self._comments.append(text[at : after - 1])
                    at = after
            elif piece == '"':
                quotes, match_token = False, _TOKEN_WITHOUT_QUOTES.match
            elif self._special(piece) and quotes and comments:
                return at, True
        self._flush()
        return at, quotes and comments

    def _take(self, kind: str, piece: str) -> None:
        (self._angle if self._inside and self._angle is not None else self._words).append((kind, piece))

    def _special(self, char: str) -> bool:
        """Act on one character with a meaning of its own; return whether it ended a mailbox."""
        if char == "<":
            if self._angle is not None:
                self._flush()
            self._angle, self._inside = [], True
        elif char == ">":
            self._inside = False
        elif char == ";" or (char == "," and not (self._inside and self._angle and self._angle[0][1] == "@")):
            self._flush()
            return True
        elif char == ":" and self._inside and self._angle:
            self._angle.clear()  # the route of RFC 821, `@a,@b:`
        elif char == ":" and not self._at:
            self._clear()  # what came was the name of a group
        elif char not in '()\\"':
            self._at = self._at or char == "@"
            self._take("special", char)
        return False

    def _flush(self) -> None:
        """End one mailbox. Addresses that stand before it without a comma, or unquoted as its name, count as well."""
        tokens, angle, comments = self._words, self._angle, self._comments
        self._clear()
        if not tokens and not angle and not comments:
            return
        if angle is None:
            rest, local, domain = _spec(tokens)
        else:
            rest, (_, local, domain) = tokens, _spec(angle)
            local = local if local or domain else _join(angle)
        display = _join(rest) or " ".join(comments).strip()
        if angle is None and not domain and not local and [kind for kind, _ in rest if kind != "blank"] == ["atom"]:
            display, local = (display, "") if "=?" in display else ("", display)
        if display or local or domain:
            self._add(Address(words.decode(display), local, domain))
        while ("special", "@") in rest:
            rest, local, domain = _spec(rest)
            if local and domain:
                self._add(Address("", local, domain))

    def _add(self, one: Address) -> None:
        if len(self.found) >= self.most:
            raise LimitHit(f"more than {self.most} addresses")
        self.found.append(one)


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
