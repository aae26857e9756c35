"""Bounded YAML: bytes to nodes with their places, and every slip that YAML would let pass as a problem.

Must never: raise on what a file holds, expand an alias, give a scalar a type, or let a slip become an empty value.
"""

from __future__ import annotations

from typing import Any

import yaml

from milterapp.rules.decode import decode
from milterapp.rules.nodes import Items, Mapping, Node, Text, quoted
from milterapp.rules.problem import Place, Problem

__all__ = ["MAX_DEPTH", "MAX_EVENTS", "MAX_PROBLEMS", "MAX_SIZE", "decode", "parse"]

MAX_SIZE = 4 * 1024 * 1024
MAX_DEPTH = 50
MAX_EVENTS = 200_000
MAX_PROBLEMS = 100

# The C scanner is fed event by event and left at the first one too deep: its composer recurses without a bound.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What libyaml says, and what the person who wrote the file can do about it.
REMEDIES = {
    "mapping values are not allowed": "a second ': ' in one line; quote the value that holds it, thus: 'a: b'",
    "could not find expected ':'": "expected `key: value`",
    "did not find expected key": "expected `key: value` here, indented as its neighbours; quote a value that begins"
    " with a bracket, a brace or a quote",
    "did not find expected '-' indicator": "expected `- …` here, indented as its neighbours",
    "did not find expected ',' or ']'": "a list in brackets that is not closed; quote a value that begins with '['",
    "did not find expected ',' or '}'": "a mapping in braces that is not closed; quote a value that begins with '{'",
    "found unexpected end of stream": "a quote that is not closed",
    "found unknown escape character": "a backslash in double quotes; use single quotes",
    "while scanning an anchor": "a value that begins with '&'; quote it",
    "while scanning an alias": "a value that begins with '*'; quote it",
    "while scanning a tag": "a value that begins with '!'; quote it",
    "exceeded maximum nesting depth": f"nested deeper than {MAX_DEPTH} levels",  # of libyaml's own, which looks ahead
    "while scanning a directive": "a line that begins with '%'; quote it",
}


def parse(source: bytes, file: str, *, allow_empty: bool = False) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document into nodes.

    source: the file, UTF-8, at most MAX_SIZE bytes. file: its name as problems show it. allow_empty: whether `''`,
    `[]` and `{}` may stand (a plain empty value never may). Returns (root, problems); the root is None where the
    document is empty or could not be read to its end. Never raises for what the file holds.
    """
    if len(source) > MAX_SIZE:
        return None, [Problem(Place(file), f"{len(source)} bytes, expected at most {MAX_SIZE}")]
    try:
        text = source.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = source[: error.start]
        place = Place(file, before.count(b"\n") + 1, len(before) - before.rfind(b"\n"))
        return None, [Problem(place, f"byte 0x{source[error.start]:02x}, expected UTF-8 text")]
    return _Builder(text, file, allow_empty=allow_empty).build()


class _Halt(Exception):  # noqa: N818 - nothing went wrong with us: the document may not be read further
    """The document cannot be read to its end; the problem is already noted."""


class _Builder:
    """One pass over the events of one document, with an explicit stack: nothing here recurses."""

    def __init__(self, text: str, file: str, *, allow_empty: bool) -> None:
        self.text = text
        self.file = file
        self.allow_empty = allow_empty
        self.problems: list[Problem] = []

    def build(self) -> tuple[Node | None, list[Problem]]:
        loader = None
        try:
            loader = LOADER(self.text)
            return self._events(loader), self.problems
        except _Halt:
            return None, self.problems
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._note(self._place(mark) if mark else Place(self.file), self._syntax(error))
            return None, self.problems
        except yaml.reader.ReaderError as error:
            at = error.position if isinstance(error.position, int) else 0
            before = self.text[:at]
            place = Place(self.file, before.count("\n") + 1, at - before.rfind("\n"))
            code = error.character if isinstance(error.character, int) else ord(error.character)
            self._note(place, f"the character U+{code:04X}, expected printable text")
            return None, self.problems
        finally:
            if loader is not None:
                loader.dispose()

    def _events(self, loader: Any) -> Node | None:
        root: Node | None = None
        documents = 0
        # Each open collection: its start event, and its nodes so far (a mapping's keys and values in turn).
        stack: list[tuple[Any, list[Node]]] = []
        for _ in range(MAX_EVENTS):
            event = loader.get_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                done: Node = self._scalar(event, stack)
            elif kind is yaml.SequenceStartEvent or kind is yaml.MappingStartEvent:
                self._plain_start(event)
                stack.append((event, []))
                if len(stack) > MAX_DEPTH:
                    self._halt(event, f"nested deeper than {MAX_DEPTH} levels")
                continue
            elif kind is yaml.SequenceEndEvent:
                start, nodes = stack.pop()
                self._not_empty(start, nodes, "list")
                done = Items(tuple(nodes), self._place(start.start_mark), flow=bool(start.flow_style))
            elif kind is yaml.MappingEndEvent:
                start, nodes = stack.pop()
                self._not_empty(start, nodes, "mapping")
                done = Mapping(self._pairs(nodes), self._place(start.start_mark), flow=bool(start.flow_style))
            elif kind is yaml.AliasEvent:
                word = f"*{event.anchor}"
                self._note(self._place(event.start_mark), f"the alias {word}, expected a value; {_thus(word)}")
                done = Text(word, self._place(event.start_mark))
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    self._halt(event, "a second document, expected one; remove the line `---`")
                if event.version or event.tags:
                    self._halt(event, "a line that begins with '%', expected `key: value`")
                continue
            elif kind is yaml.StreamEndEvent:
                return root
            else:
                continue
            if stack:
                stack[-1][1].append(done)
            elif not (isinstance(done, Text) and not done.value):
                root = done
        self.problems.append(Problem(Place(self.file), f"more than {MAX_EVENTS} values and brackets"))
        raise _Halt

    def _scalar(self, event: Any, stack: list[tuple[Any, list[Node]]]) -> Text:
        value: str = event.value
        place = self._place(event.start_mark)
        style: str = event.style or ""
        if event.anchor is not None or event.tag is not None:
            self._plain_start(event)
        if not value:
            is_value = bool(stack) and (type(stack[-1][0]) is yaml.SequenceStartEvent or len(stack[-1][1]) % 2 == 1)
            if is_value or style:
                self._empty(stack, place, style)
        elif style == "":
            end = event.end_mark.index
            after = self.text[end : end + 2]
            if len(after) == 2 and after[0] in " \t" and after[1] == "#":
                line = self.text[end:].split("\n", 1)[0].rstrip("\r")
                self._note(
                    place,
                    f"the value {value!r} ends where ` #` begins a comment; to keep all of it, {_thus(value + line)};"
                    " for a comment put two blanks before the `#`",
                )
        escaped = style == '"' and "\\" in self.text[event.start_mark.index : event.end_mark.index]
        return Text(value, place, style, escaped)

    def _empty(self, stack: list[tuple[Any, list[Node]]], place: Place, style: str) -> None:
        if style:
            if not self.allow_empty:
                self._note(place, f"an empty text ({style}{style}), expected a value; leave the key out instead")
            return
        start, nodes = stack[-1] if stack else (None, [])
        key = nodes[-1].value if nodes and isinstance(nodes[-1], Text) else ""
        if start is None or type(start) is yaml.SequenceStartEvent:
            self._note(place, "nothing after `-`, expected a value")
        elif start.flow_style and len(nodes) >= 3 and isinstance(nodes[-2], Text):
            # {reject: 5.7.1 Sorry, no}: the comma ended the value and made a key of the rest.
            whole = f"{nodes[-2].value}, {key}"
            self._note(place, f"{key!r} has no value: in braces a comma ends a plain value; {_thus(whole)}")
        elif start.flow_style:
            self._note(place, f"{key!r} in braces has no value; {_thus('{' + key + '}')}")
        else:
            self._note(place, f"{key!r} has no value, expected one; leave the key out instead")

    def _plain_start(self, event: Any) -> None:
        for sign, word in (("&", event.anchor), ("!", event.tag)):
            if word is not None:
                begin = event.start_mark.index
                shown = self.text[begin : begin + 60].split("\n", 1)[0].rstrip()
                name = "an anchor" if sign == "&" else "a tag"
                self._note(self._place(event.start_mark), f"{name} ({sign}…), expected a value; {_thus(shown)}")

    def _not_empty(self, start: Any, nodes: list[Node], what: str) -> None:
        if not nodes and not self.allow_empty:
            self._note(self._place(start.start_mark), f"an empty {what}, expected a value; leave the key out instead")

    def _pairs(self, nodes: list[Node]) -> tuple[tuple[Text, Node], ...]:
        pairs: dict[str, tuple[Text, Node]] = {}
        for key, value in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key, Text):
                self._note(key.place, "a list or mapping as a key, expected a word; quote it")
            elif key.value in pairs:
                first = pairs[key.value][0].place
                self._note(key.place, f"the key {key.value!r} a second time, first on line {first.line}")
            elif not key.value:
                self._note(key.place, "an empty key, expected a word")
            else:
                pairs[key.value] = (key, value)
        return tuple(pairs.values())

    def _syntax(self, error: yaml.MarkedYAMLError) -> str:
        said = f"{error.context or ''}; {error.problem or ''}".strip("; ")
        if error.problem_mark is not None and "cannot start any token" in said:
            char = self.text[error.problem_mark.index : error.problem_mark.index + 1]
            if char == "\t":
                return "a tab, expected blanks: YAML is indented with blanks"
            rest = self.text[error.problem_mark.index :].split("\n", 1)[0].rstrip()
            return f"a value that begins with {char!r}; {_thus(rest)}"
        return next((remedy for sign, remedy in REMEDIES.items() if sign in said), said)

    def _halt(self, event: Any, text: str) -> None:
        self._note(self._place(event.start_mark), text)
        raise _Halt

    def _note(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems.append(Problem(place, f"more than {MAX_PROBLEMS} problems, the rest was not read"))
            raise _Halt

    def _place(self, mark: Any) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1)


def _thus(value: str) -> str:
    return f"quote it, thus: {quoted(value)}"
