"""Loading a script: compiled, run once in a module of its own, its functions found; everything wrong with it at once.

Must never: be called outside a script process for a script that the caller did not write, or take an import for a
wall (the sandbox is the wall; the list keeps a script to what works in it).
"""

from __future__ import annotations

import ast
import builtins
import functools
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milterapp.rules.problem import Place, Problem, near_miss
from milterapp.script.in_line import out_of_place
from milterapp.script.routes import Application, application, is_state
from milterapp.script.untrusted import TaintError

__all__ = ["MODULES", "Script", "line_of", "load", "trace_of"]

MAIN = "main"
_NAME = "milterapp_user_script"

# What a script may import; a name ending in `.` stands for all below it.
MODULES = frozenset(
    " ".join((
        "__future__ base64 bisect calendar collections collections. copy csv dataclasses datetime decimal difflib",
        "email.utils enum fractions functools hashlib heapq hmac html itertools json math operator random re secrets",
        "statistics string textwrap time types typing unicodedata urllib.parse zoneinfo milterapp.script",
    )).split()
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """A script that can be run: main, or an application of routes; the other is None. functions: its own, by name."""

    file: str
    main: Callable[..., Any] | None
    application: Application | None
    functions: Mapping[str, Callable[..., Any]]


def load(
    source: bytes, file: str, *, checked: bool = False, site: bool = False
) -> tuple[Script | None, tuple[Problem, ...]]:
    """Return the script, None where problems were found that keep it from running. Runs the script's top level.

    checked: this very source was loaded before and had no problems, so what only finds some is left out. site: it is
    the site's, which has no routes and asks for nothing that has no place in-line.
    """
    try:
        tree = None if checked else ast.parse(source, file)
        code = _compiled(source, file) if tree is None else compile(tree, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        place = Place(file, error.lineno or 1, error.offset or 1)
        return None, (Problem(place, f"no Python: {error.msg}"),)
    except (ValueError, RecursionError, MemoryError) as error:
        return None, (Problem(Place(file), f"no Python: {error}"),)
    linecache.cache[file] = (lambda: source.decode("utf-8", "replace"),)  # for tracebacks, read when there is one
    module = types.ModuleType(_NAME)
    module.__file__ = file
    sys.modules[_NAME] = module  # dataclasses look for the module of their class
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _importer(file)}
    try:
        types.FunctionType(code, module.__dict__)()  # the one place that runs what a person wrote
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a script may raise anything, and its author is told
        return None, (Problem(Place(file, line_of(error, file)), _said(error)),)
    return _assemble(module, tree, file, site=site)


@functools.lru_cache(1)
def _compiled(source: bytes, file: str) -> types.CodeType:
    """Return the code of a script, once for the messages that one process does; running it makes all names anew."""
    return compile(source, file, "exec", dont_inherit=True)


def _assemble(
    module: types.ModuleType, tree: ast.Module | None, file: str, *, site: bool
) -> tuple[Script | None, tuple[Problem, ...]]:
    own = [one for one in vars(module).values() if isinstance(one, types.FunctionType)]
    functions = list(dict.fromkeys(one for one in own if one.__code__.co_filename == file))
    found, problems = application(functions, file, checked=tree is None)
    if tree is not None:
        problems += tuple(_returned(tree, vars(module), file))
        problems += tuple(out_of_place(tree, file)) if site else ()
    main = vars(module).get(MAIN)
    has_routes = bool(found.states or found.stateless)
    if has_routes and site:
        problems += (Problem(Place(file), f"a site script is one function {MAIN}(mail), without routes"),)
    elif has_routes and callable(main):
        problems += (_at(main, file, f"a script has {MAIN}, or routes, not both"),)
    elif not has_routes and not isinstance(main, types.FunctionType):
        problems += (Problem(Place(file), f"expected a function {MAIN}(mail), or functions with @route"),)
    elif not has_routes and isinstance(main, types.FunctionType) and main.__code__.co_argcount != 1:
        problems += (_at(main, file, f"{MAIN} takes one argument, the mail"),)
    if problems:
        return None, tuple(sorted(problems))
    by_name = {one.__name__: one for one in functions}
    return Script(file, None if has_routes else main, found if has_routes else None, by_name), ()


def _at(function: Any, file: str, text: str) -> Problem:
    code = getattr(function, "__code__", None)
    return Problem(Place(file, code.co_firstlineno if code else 1), text)


def _returned(tree: ast.Module, names: Mapping[str, Any], file: str) -> Iterator[Problem]:
    """Yield where a route's function returns another function that no state reaches."""
    for top in tree.body:
        if not isinstance(top, ast.FunctionDef) or not is_state(names.get(top.name)):
            continue
        for node in ast.walk(top):
            if not isinstance(node, ast.Return) or not isinstance(node.value, ast.Name):
                continue
            given = names.get(node.value.id)
            if isinstance(given, types.FunctionType) and given.__code__.co_filename == file and not is_state(given):
                text = f"{node.value.id} is no state: expected a function with a @route that is not stateless"
                yield Problem(Place(file, node.lineno, node.col_offset + 1), text)


def _importer(file: str) -> Callable[..., Any]:
    """Return the `__import__` of a script; what it imports imports as ever."""

    def script_import(
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names that Python gives them
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if level:
            raise ImportError(f"{os.path.basename(file)} is a single file: it has nothing to import from with '.'")
        package = name.rpartition(".")[0]
        if name not in MODULES and f"{package}." not in MODULES:
            raise ImportError(
                f"a script cannot import {name!r}{near_miss(name, MODULES)}; milterapp-script(7) lists what"
            )
        return builtins.__import__(name, globals, locals, fromlist, level)

    return script_import


# What went wrong


def line_of(error: BaseException, file: str) -> int:
    """Return the last line of the script that an error passed through."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return lines[-1] if lines else 1


def _said(error: BaseException) -> str:
    """Return an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def trace_of(error: BaseException, file: str, hint: str) -> str:
    """Return the traceback from the script's first line on, without what stands above and below it that is ours."""
    if isinstance(error, TypeError) and not isinstance(error, TaintError) and "Untrusted" in str(error):
        error.add_note(hint)
    shown = traceback.TracebackException.from_exception(error, limit=50)
    frames = list(shown.stack)
    own = [at for at, frame in enumerate(frames) if frame.filename == file]
    shown.stack = traceback.StackSummary.from_list(frames[own[0] : own[-1] + 1] if own else [])
    return "".join(shown.format())
