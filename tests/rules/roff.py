"""Docstrings as the manual page has them: the same words in roff."""

from __future__ import annotations

import inspect
import textwrap


def escaped(text: str) -> str:
    """Return text that roff shows as it is."""
    return (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    )


def inline(text: str) -> str:
    """Return running text in roff: what stands in backticks is bold."""
    parts = text.split("`")
    return "".join(f"\\fB{escaped(part)}\\fR" if at % 2 else part.replace("\\", "\\e") for at, part in enumerate(parts))


def paragraph(docstring: str | None) -> str:
    """Return a docstring as a filled paragraph, each line at most 110 characters."""
    words = inline(" ".join(inspect.cleandoc(docstring or "").split()))
    lines = textwrap.wrap(words, 110, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\\&" + line if line[0] in ".'" else line for line in lines)


def block(text: str) -> str:
    """Return an example, line for line."""
    lines = [escaped(line) for line in textwrap.dedent(text).strip("\n").splitlines()]
    return "\n".join(
        [".PP", ".RS 4", ".EX", *("\\&" + line if line[:1] in ".'" else line for line in lines), ".EE", ".RE"]
    )
