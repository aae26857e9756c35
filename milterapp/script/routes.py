"""Routes: which function of an application answers at which address, and the captures it is given.

Must never: give a capture that its pattern does not bound, or leave to the order of a file which of two routes answers.

A route is the address with captures in braces, `{page}-{action:delete}@{host}`; it matches the whole of the original
recipient, in lower case. A capture takes as little as the rest of the route allows. Routes above one function are
tried from the top.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from milterapp.rules import patterns
from milterapp.rules.problem import Place, Problem

__all__ = ["ERROR", "START", "Application", "Route", "RouteError", "application", "is_state", "parse", "route",
           "stateless"]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

START = "START"  # the state of whoever has none
ERROR = "ERROR"  # what answers where the function of a state raised, and the state of whose message that was
LOCAL = r"[a-z0-9][a-z0-9._-]*?"
HOST = r"[a-z0-9](?:[a-z0-9-]*?[a-z0-9])??(?:\.[a-z0-9](?:[a-z0-9-]*?[a-z0-9])??)*?"
_MOST_ADDRESS = 320
_ROUTES, _STATELESS = "milterapp_routes", "milterapp_stateless"  # attributes of a function
# Texts to try a capture's pattern with, to find routes that are never reached; a pattern's own words come first.
_SAMPLES = ("a", "1", "a1", "abc", "123", "a-b", "a.b", "0123456789abcdef", "0123456789abcdef0123456789abcdef")


class RouteError(ValueError):
    """A route that is none; str() says what was found and expected."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route. text: as written; pattern: RE2, of the whole address; names: its captures; line: where it stands."""

    text: str
    pattern: str
    names: tuple[str, ...]
    samples: tuple[str, ...]
    per: tuple[str, ...] = ()
    line: int = 0

    def match(self, address: str) -> dict[str, str] | None:
        """Return the captures of an address in lower case, None where it does not match."""
        if len(address) > _MOST_ADDRESS:
            return None
        found = patterns.compiled(self.pattern).fullmatch(address)
        captures = {} if found is None else {name: found.group(name) or "" for name in self.names}
        # An own pattern may take an `@`; a capture of both halves of an address is none that anybody means.
        return None if found is None or any("@" in one for one in captures.values()) else captures


def route(address: str, *, per: Iterable[str] = ()) -> Callable[[F], F]:
    """Have a function answer at addresses; per: captures that its state is kept by, beside the sender."""
    line = sys._getframe(1).f_lineno  # noqa: SLF001 - where the decorator stands, for errors

    def mark(function: F) -> F:
        found = function.__dict__.setdefault(_ROUTES, [])
        found.insert(0, (address, (per,) if isinstance(per, str) else tuple(per), line))  # the lowest comes first here
        return function

    return mark


def stateless(function: F) -> F:
    """Have a function's routes answer whatever the sender's state is, also for the null sender."""
    setattr(function, _STATELESS, True)
    return function


def is_state(function: object) -> bool:
    """Return whether a function has routes that a state of its name reaches."""
    marks = getattr(function, "__dict__", {})
    return _ROUTES in marks and _STATELESS not in marks


# Reading a route


def parse(text: str, per: tuple[str, ...] = (), line: int = 0, *, checked: bool = False) -> Route:
    """Return a route. Raises RouteError. checked: it is known to be one."""
    if not isinstance(text, str):
        raise RouteError(f"a route is a text, found {type(text).__name__}")
    pattern, names, samples = "", [], [""]
    rest, captured, at_sign = text, False, False
    while rest:
        literal, brace, rest = rest.partition("{")
        literal = literal.lower()
        if "}" in literal:
            raise RouteError(f"{text!r}: a '}}' without its '{{'")
        if literal.count("@") + at_sign > 1:
            raise RouteError(f"{text!r}: a second '@'")
        at_sign = at_sign or "@" in literal
        pattern += patterns.escape(literal)
        samples = [one + literal for one in samples]
        if not brace:
            break
        if captured and not literal:
            raise RouteError(f"{text!r}: nothing stands between two captures, so where one ends is ambiguous")
        inside, rest = _braces(text, rest)
        name, colon, own = inside.partition(":")
        if not name.isidentifier() or not name.isascii() or name in names:
            raise RouteError(f"{text!r}: {name!r} cannot be a capture's name{' again' if name in names else ''}")
        names.append(name)
        if not checked:
            _check_own(text, name, own if colon else None)
            samples = [one + more for one in samples for more in _samples(own, at_sign)][:8]
        pattern += f"(?P<{name}>{f'(?:{own})' if colon else HOST if at_sign else LOCAL})"
        captured = True
    if not at_sign:
        raise RouteError(f"{text!r}: expected an address with '@', as '{{page}}@{{host}}'")
    if missing := [one for one in per if one not in names]:
        raise RouteError(f"{text!r}: per={missing[0]!r} is none of its captures")
    try:
        if not checked:
            patterns.check(pattern)
    except ValueError as error:
        raise RouteError(f"{text!r}: {error}") from None
    return Route(text, pattern, tuple(names), tuple(samples), per, line)


def _braces(text: str, rest: str) -> tuple[str, str]:
    """Return what stands up to the brace that closes, and what follows it."""
    depth = 1
    for at, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if not depth:
            return rest[:at], rest[at + 1 :]
    raise RouteError(f"{text!r}: a '{{' without its '}}'")


def _check_own(text: str, name: str, pattern: str | None) -> None:
    """Raise RouteError where a capture's own pattern, None without one, is none."""
    if pattern is None:
        return
    try:
        patterns.check(pattern)
    except ValueError as error:
        raise RouteError(f"{text!r}: {name}: {error}") from None
    if not pattern:
        raise RouteError(f"{text!r}: {name}: expected a pattern behind the ':'")
    if patterns.group_names(pattern):
        raise RouteError(f"{text!r}: {name}: a pattern with named groups; the capture is the name")


def _samples(pattern: str, at_sign: bool) -> list[str]:  # noqa: FBT001 - which half of the address
    """Return a few texts that a capture takes; none where it is not found out."""
    if not pattern:
        return ["example.org"] if at_sign else ["a"]
    words = [one for one in pattern.split("|") if one.isalnum()]
    compiled = patterns.compiled(pattern)
    return [one for one in (*words, *_SAMPLES) if compiled.fullmatch(one)][:4]


# An application


@dataclass(frozen=True, slots=True)
class Application:
    """The functions of a script that answer, each with its routes, in the order of the file."""

    stateless: tuple[tuple[Callable[..., Any], tuple[Route, ...]], ...]
    states: tuple[tuple[Callable[..., Any], tuple[Route, ...]], ...]

    def state_names(self) -> tuple[str, ...]:
        """Return the names of the states."""
        return tuple(function.__name__ for function, _ in self.states)

    def find_stateless(self, address: str) -> tuple[Callable[..., Any], dict[str, str]] | None:
        """Return the function that answers whatever the state, with its captures."""
        return next(_matches(self.stateless, address), None)  # type: ignore[call-overload, no-any-return]

    def candidates(self, address: str) -> list[tuple[Callable[..., Any], dict[str, str], tuple[str, ...]]]:
        """Return each state's function that has a route for the address, with captures and the values of `per`."""
        return [
            (function, found, tuple(found[name] for name in routes[0].per))
            for function, routes in self.states
            for found in [_first(routes, address)]
            if found is not None
        ]


def _first(routes: Sequence[Route], address: str) -> dict[str, str] | None:
    return next((found for one in routes if (found := one.match(address)) is not None), None)


def _matches(functions: Iterable[tuple[Callable[..., Any], tuple[Route, ...]]], address: str) -> Iterable[Any]:
    return ((function, found) for function, routes in functions if (found := _first(routes, address)) is not None)


def application(
    functions: Iterable[Callable[..., Any]], file: str, *, checked: bool = False
) -> tuple[Application, tuple[Problem, ...]]:
    """Return the application that a script's functions make up, and everything that is wrong with it.

    functions: all of the script's own; those without a route are passed over. checked: nothing is, as is known.
    """
    problems: list[Problem] = []
    by_kind: dict[bool, list[tuple[Callable[..., Any], tuple[Route, ...]]]] = {True: [], False: []}
    own = list(functions)
    marked = [one for one in own if _ROUTES in one.__dict__ or _STATELESS in one.__dict__]
    for function in sorted(marked, key=lambda one: one.__code__.co_firstlineno):
        by_kind[_STATELESS in function.__dict__].append(
            (function, _routes_of(function, file, problems, checked=checked))
        )
    made = Application(tuple(by_kind[True]), tuple(by_kind[False]))
    if not checked:
        problems += _unreachable(made, file)
        problems += _states(made, file)
        if marked and ERROR not in made.state_names():
            problems += [_no_error(one, file) for one in own if one.__name__ == ERROR]
    return made, tuple(sorted(problems))


def _problem(file: str, line: int, text: str) -> Problem:
    return Problem(Place(file, line), text)


def _routes_of(function: Callable[..., Any], file: str, problems: list[Problem], *, checked: bool) -> tuple[Route, ...]:
    found = []
    for text, per, line in function.__dict__.get(_ROUTES, ()):
        try:
            one = parse(text, per, line, checked=checked)
        except RouteError as error:
            problems.append(_problem(file, line, str(error)))
            continue
        found.append(one)
        if not checked:
            problems += [_problem(file, line, f"{text!r}: {fault}") for fault in _parameters(function, one)]
    if not function.__dict__.get(_ROUTES):
        problems.append(
            _problem(file, function.__code__.co_firstlineno, f"{function.__name__} is stateless and has no @route")
        )
    return tuple(found)


def _parameters(function: Callable[..., Any], one: Route) -> list[str]:
    """Return what is wrong between a route's captures and its function's parameters."""
    code = function.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    optional = code.co_varnames[code.co_argcount - len(function.__defaults__ or ()) : code.co_argcount]
    optional += tuple(function.__kwdefaults__ or ())
    if not known[:1] or code.co_argcount < 1:
        return [f"{function.__name__} has no parameter for the mail"]
    takes_any = code.co_flags & 0x08  # CO_VARKEYWORDS
    faults = [f"{function.__name__} has no parameter {name!r}" for name in one.names
              if name == known[0] or (name not in known[1:] and not takes_any)]  # fmt: skip
    faults += [f"{function.__name__} needs {name!r}, which is none of the captures" for name in known[1:]
               if name not in one.names and name not in optional]  # fmt: skip
    return faults


def _unreachable(made: Application, file: str) -> list[Problem]:
    """Return the routes that an earlier one takes everything from, within one function and among the stateless ones."""
    pools = [[one for _, routes in made.stateless for one in routes], *([*routes] for _, routes in made.states)]
    problems = []
    for pool in pools:
        for at, later in enumerate(pool):
            for earlier in pool[:at]:
                taken = [one for one in later.samples if earlier.match(one) is not None]
                if later.pattern == earlier.pattern or (later.samples and len(taken) == len(later.samples)):
                    text = f"{later.text!r} is ambiguous: {earlier.text!r} in line {earlier.line} answers there first"
                    problems.append(_problem(file, later.line, text))
                    break
    return problems


def _states(made: Application, file: str) -> list[Problem]:
    """Return what is wrong with the states as a whole."""
    problems = []
    routes = [one for _, several in made.states for one in several]
    for one in routes:
        if one.per != routes[0].per:
            text = f"{one.text!r}: per={one.per!r}, but {routes[0].per!r} in line {routes[0].line}; one script has one"
            problems.append(_problem(file, one.line, text))
    if made.states and START not in made.state_names():
        first = made.states[0][0]
        text = f"no function is named {START}, the state of a sender who has none yet"
        problems.append(_problem(file, first.__code__.co_firstlineno, text))
    return problems


def _no_error(function: Callable[..., Any], file: str) -> Problem:
    what = "is stateless" if _STATELESS in function.__dict__ else "has no @route"
    text = f"{ERROR} {what}, expected routes at which it answers, as a state, where another function has failed"
    return _problem(file, function.__code__.co_firstlineno, text)
