"""What the command line prints for people: a dry run, a diff, and colour where it is wanted.

Must never: let a character of a message reach a terminal that could do more there than be read.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import unicodedata

from milterapp.commands.envelope import Assumed
from milterapp.rules.decision import Decision
from milterapp.rules.explain import explain

__all__ = ["colour_wanted", "decision", "diff", "printable"]

_CONTEXT = 2
_STYLES = (  # a line's sign, and its style as ECMA-48 numbers it
    (re.compile(r": matched( \(observes only\))?$"), "32"),
    (re.compile(r"^(could not tell|verdict: (reject|defer))"), "1;31"),
    (re.compile(r"^(verdict|delivery|edit|recipient )"), "1"),
    (re.compile(r": did not match$|^    "), "2"),
)


def colour_wanted() -> bool:
    """Tell whether standard output is a terminal that shows colour, and nobody asked for none (no-color.org)."""
    shown = sys.stdout is not None and sys.stdout.isatty()
    return shown and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def printable(text: str) -> str:
    """Return the text with every character that is not for reading as its escape: controls, bidi, surrogates."""
    return "".join(
        char if char == "\t" or unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def decision(decided: Decision, assumed: Assumed, *, colour: bool) -> str:
    """Return a dry run as text: the envelope it assumed, each rule and why, then what would become of the message."""
    envelope = assumed.envelope
    lines = [f"from <{envelope.sender}> to {', '.join(f'<{one}>' for one in envelope.recipients) or 'nobody'}"]
    if assumed.notes:
        lines[0] += f" ({'; '.join(assumed.notes)})"
    lines += ["", *explain(decided).splitlines()]
    shown = [printable(line) for line in lines]
    return "\n".join(map(_coloured, shown) if colour else shown)


def _coloured(line: str) -> str:
    """Return a line of a dry run in colour: what counts stands out, what did not match steps back."""
    style = next((style for sign, style in _STYLES if sign.search(line)), "")
    return f"\x1b[{style}m{line}\x1b[0m" if style else line


def diff(before: bytes, after: bytes) -> str:
    """Return what edits changed as a unified diff; bytes that are no UTF-8 are shown as escapes. "" for no change."""
    if before == after:
        return ""
    old, new = _lines(before), _lines(after)
    same = 0  # lines at the end, which difflib need not look at: a body may be long
    while same < min(len(old), len(new)) and old[-1 - same] == new[-1 - same]:
        same += 1
    cut = max(same - _CONTEXT, 0)
    old, new = old[: len(old) - cut], new[: len(new) - cut]
    return "\n".join(difflib.unified_diff(old, new, "as it came", "as edited", n=_CONTEXT, lineterm=""))


def _lines(message: bytes) -> list[str]:
    """Return the lines without their ends: an edit never changes those."""
    return [
        printable(line.decode("utf-8", "backslashreplace")) for line in message.replace(b"\r\n", b"\n").split(b"\n")
    ]
