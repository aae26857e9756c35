"""What a site's script asks for that has no place in-line, found where it is written, before any message comes.

Must never: be taken for a wall. What cannot be seen here is refused when it is asked for, and once more where the plan
is read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from milterapp.rules.problem import Place, Problem
from milterapp.script.actions import IN_LINE, KINDS, NO_PLACE

__all__ = ["out_of_place"]

_PACKAGE = "milterapp.script"
_NAMES = frozenset({"confirm", "output", "route", "site", "stateless", "store"})
_METHODS = frozenset(word for word, kind in KINDS.items() if kind not in IN_LINE)


def out_of_place(tree: ast.Module, file: str) -> Iterator[Problem]:
    """Yield a problem for each name imported from milterapp.script, and each method of the mail, that has no place."""
    mails = {_mail_of(one) for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)} - {""}
    everything = False
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == _PACKAGE:
            everything = everything or any(one.name == "*" for one in node.names)
            yield from (_problem(file, one, one.name) for one in node.names if one.name in _NAMES)
        elif isinstance(node, ast.Attribute) and node.attr in _METHODS and _name_of(node.value) in mails:
            yield _problem(file, node, f"{_name_of(node.value)}.{node.attr}")
    if everything:
        used = (one for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load))
        yield from (_problem(file, one, one.id) for one in used if one.id in _NAMES)


def _mail_of(function: ast.FunctionDef) -> str:
    """Return the name under which main has the mail, "" for another function."""
    given = function.args.args
    return given[0].arg if function.name == "main" and given else ""


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _problem(file: str, node: ast.expr | ast.alias, word: str) -> Problem:
    return Problem(Place(file, node.lineno, node.col_offset + 1), f"`{word}` {NO_PLACE}")
