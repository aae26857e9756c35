"""Reading tests from nodes: what stands below a condition, to operators, with every slip noted.

Must never: let a test through that asks nothing, or one whose values are not of the condition's kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from milterapp.mail.domains import ascii_domain
from milterapp.rules.decode import MISSING, Decoder, Missing
from milterapp.rules.lists import NamedList, network_of
from milterapp.rules.looseness import loose
from milterapp.rules.matcher import LIST_KINDS
from milterapp.rules.nodes import Items, Node, Text, kind_of, quoted
from milterapp.rules.nodes import Mapping as MappingNode
from milterapp.rules.operators import OPERATORS, SUBTESTS, In, Operator, Test, TestNumber
from milterapp.rules.patterns import MAX_LOOSE, check
from milterapp.rules.placeholders import Template, parse_template
from milterapp.rules.problem import Place, Problem, near_miss
from milterapp.rules.units import parse_bool, parse_count, parse_number, parse_size

__all__ = [
    "CAN", "TEMPORARY", "Allowed", "RuleDecoder", "read_malformed", "read_number", "read_test", "too_much",
]  # fmt: skip

TEXT = ("is", "contains", "starts", "ends", "glob", "regex", "in")
ALLOWED = {
    "text": (*TEXT, "over", "under"),
    "domain": TEXT,
    "address": TEXT,
    "localpart": TEXT,
    "network": ("is", "in"),
}
# The kind of each part of an address.
PARTS = {"address": "text", "localpart": "localpart", "detail": "text", "domain": "domain", "name": "text"}


_MOST_ARGUMENTS = 50  # of a program
_LONGEST_ARGUMENT = 4096  # bytes, as mail.values.Program.argument cuts it
_MOST_WRITTEN = 24 * 1024  # bytes of all of them as a rule writes them; values from the message have as much beside
TEMPORARY = 75  # EX_TEMPFAIL of sysexits(3): a program's status that says nothing of the message

# The words, of actions and conditions, that only an edge that knows them can carry out or answer. All others any can.
CAN = frozenset((
    "prepend_header", "banner", "footer", "drop_attachments", "replace_body", "set_sender", "add_recipient",
    "remove_recipient", "transport", "vacation", "pipe", "filter", "flag", "log", "rate", "duplicate", "command",
    "script",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the edge can do, of CAN, and what the site allows. authserv_ids: whose Authentication-Results are believed;
    programs: names of those that rules may start; plain: those of them that take no options from rules. flags_kept:
    `keep` carries flags.
    """

    can: frozenset[str] = CAN
    authserv_ids: tuple[str, ...] = ()
    programs: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    flags_kept: bool = True


ALL = Allowed()

# A script, by its path from the rules.
_SCRIPT = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,99}/){0,4}[A-Za-z0-9_][A-Za-z0-9._-]{0,95}\.py")


class RuleDecoder(Decoder):
    """A decoder that knows the rule file's lists, whether its rules are the site's, and what the site allows."""

    def __init__(
        self,
        problems: list[Problem],
        *,
        site: bool,
        hooks: Mapping[Any, Callable[..., Any]],
        allowed: Allowed = ALL,
        read_script: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(problems, hooks)
        self.read_script = read_script
        self.site = site
        self.allowed = allowed
        self.long_texts = False  # what is read now is asked of a whole body
        self.lists: dict[str, NamedList] = {}

    def may(self, place: Place, what: str, word: str) -> bool:
        """Return whether the edge can do what this word says; note a problem where it cannot."""
        if word not in CAN or word in self.allowed.can:
            return True
        self.fail(place, f"the {what} {word!r} cannot be used here yet")
        return False

    def program(self, node: Node) -> str | Missing:
        """Return the name of a program that the site allows."""
        name = self.text(node)
        if isinstance(name, Missing) or name in self.allowed.programs:
            return name
        known = ", ".join(sorted(self.allowed.programs))
        allows = f"it allows {known}{near_miss(name, self.allowed.programs)}" if known else "it allows none"
        return self.fail(node.place, f"the site does not allow the program {name!r}; {allows}")

    def no_options(self, place: Place, program: str, arguments: Iterable[str]) -> bool:
        """Note an argument that begins with `-`, to a program that takes no options from rules; return whether none."""
        wrong = next((one for one in arguments if one.startswith("-")), "") if program in self.allowed.plain else ""
        if wrong:
            self.fail(place, f"the argument {wrong!r}: rules may give {program!r} no options, those are the site's")
        return not wrong

    def script(self, node: Node) -> str | Missing:
        """Return the name of a script that can be read."""
        name = self.text(node)
        if isinstance(name, Missing):
            return name
        if not _SCRIPT.fullmatch(name):
            return self.fail(node.place, f"found {name!r}, expected a script such as 'blog.py' or 'blog/blog.py'")
        if self.read_script is None:
            return self.fail(node.place, f"the script {name!r}: no files are read here")
        try:
            self.read_script(name)
        except OSError as error:
            return self.fail(node.place, f"the script {name!r} cannot be read: {error.strerror or error}")
        return name

    def named_list(self, node: Text) -> NamedList | None:
        """Return the list of that name."""
        found = self.lists.get(node.value)
        if found is None:
            known = f"; known: {', '.join(self.lists)}" if self.lists else "; there are no lists"
            self.fail(node.place, f"no list {node.value!r}{near_miss(node.value, self.lists) or known}")
        return found

    def template(self, node: Node) -> Template | Missing:
        """Return a text with values in it."""
        text = self.text(node)
        if isinstance(text, Missing):
            return text
        try:
            return parse_template(text)
        except ValueError as error:
            return self.fail(node.place, str(error))


def read_number(node: Node, decoder: Decoder, *, size: bool) -> TestNumber | Missing:
    """Read a test of a number: a plain one, or `is`, `over` and `under`. size: units are taken."""
    parse = parse_size if size else parse_count

    def number(value: Node) -> int | None:
        text = decoder.text(value)
        if isinstance(text, Missing):
            return None
        try:
            return parse(text)
        except ValueError as error:
            decoder.fail(value.place, str(error))
            return None

    if not isinstance(node, MappingNode):
        found = [number(item) for item in (node.items if isinstance(node, Items) else (node,))]
        return MISSING if None in found else TestNumber(is_=tuple(one for one in found if one is not None))
    values: dict[str, Any] = {}
    for key, value in node.pairs:
        if key.value not in ("is", "over", "under"):
            hint = near_miss(key.value, ("is", "over", "under"))
            decoder.fail(key.place, f"unknown operator {key.value!r}{hint}; expected is, over or under")
        elif (one := number(value)) is not None:
            values["is_" if key.value == "is" else key.value] = (one,) if key.value == "is" else one
    return TestNumber(**values) if values else MISSING


def read_malformed(node: Node, decoder: RuleDecoder) -> Test | Missing:
    """Read `yes` and `no` as whether there is any reason, anything else as a test of the reasons."""
    if isinstance(node, Text):
        try:
            return Test(exists=parse_bool(node.value))
        except ValueError:
            return decoder.fail(node.place, f"found {node.value!r}, expected yes, no or a test such as {{contains: …}}")
    return read_test(node, decoder, "text")


def read_test(node: Node, decoder: RuleDecoder, kind: str, parts: Mapping[str, str] | None = None) -> Test | Missing:
    """Read what stands below a condition.

    kind: of the value itself, a key of ALLOWED, or "" where only its parts can be asked. parts: those of an occurrence
    that have a test of their own, with their kinds. Returns MISSING where a problem leaves nothing to ask.
    """
    if parts is None:
        parts = PARTS if kind == "address" else {}
    if not isinstance(node, MappingNode):
        if not kind:
            return decoder.fail(node.place, f"found {kind_of(node)}, expected a mapping of {', '.join(parts)}")
        one = _operator("is", node, decoder, kind, case=False)
        return MISSING if one is None else Test((("", (one,)),))
    case = _flag(node, "case", decoder) or False
    exists = _flag(node, "exists", decoder)
    own: list[Operator] = []
    found: list[tuple[str, tuple[Operator, ...]]] = []
    count: TestNumber | None = None
    allowed = ALLOWED.get(kind, ())
    failed = False
    for key, value in node.pairs:
        word = key.value
        if word in ("case", "exists"):
            continue
        if word == "count":
            number = read_number(value, decoder, size=False)
            count = None if isinstance(number, Missing) else number
            failed = failed or count is None
        elif word in parts:
            below = _part(value, decoder, parts[word], case=case)
            failed = failed or below is None
            found += [] if below is None else [(word, below)]
        elif word in allowed:
            one = _operator(word, value, decoder, kind, case=case)
            failed = failed or one is None
            own += [one] if one else []
        else:
            known = (*allowed, *parts, "exists", "count", *(("case",) if kind != "network" else ()))
            elsewhere = word in OPERATORS or word in SUBTESTS
            what, hint = ("operator here", "") if elsewhere else ("operator", near_miss(word, known))
            decoder.fail(key.place, f"unknown {what}: {word!r}{hint}; known: {', '.join(known)}")
            failed = True
    if own:
        found.insert(0, ("", tuple(own)))
    if failed:
        return MISSING
    if not found and exists is None and count is None:
        return decoder.fail(node.place, "nothing is asked here, expected an operator such as contains")
    if exists is False and (found or count is not None):
        return decoder.fail(node.place, "`exists: no` beside another operator, expected it alone; see `not`")
    return Test(tuple(found), exists, count)


def _part(node: Node, decoder: RuleDecoder, kind: str, *, case: bool) -> tuple[Operator, ...] | None:
    if not isinstance(node, MappingNode):
        one = _operator("is", node, decoder, kind, case=case)
        return None if one is None else (one,)
    case = _flag(node, "case", decoder) or case
    exists = _flag(node, "exists", decoder)
    if exists is False:
        decoder.fail(node.place, "`exists: no` of a part, expected `exists: yes` or nothing; see `not`")
        return None
    allowed = ALLOWED[kind]
    found: list[Operator] = []
    failed = False
    for key, value in node.pairs:
        if key.value in ("case", "exists"):
            continue
        if key.value not in allowed:
            known = (*allowed, "exists", "case")
            hint = near_miss(key.value, known)
            decoder.fail(key.place, f"unknown operator {key.value!r}{hint}; known: {', '.join(known)}")
            failed = True
            continue
        one = _operator(key.value, value, decoder, kind, case=case)
        failed = failed or one is None
        found += [one] if one else []
    if not found and not failed and not exists:
        decoder.fail(node.place, "nothing is asked here, expected an operator such as contains")
        failed = True
    return None if failed else tuple(found)


def _flag(node: MappingNode, key: str, decoder: RuleDecoder) -> bool | None:
    value = node.get(key)
    found = None if value is None else decoder.scalar(value, bool)
    return None if isinstance(found, Missing) else found


def _operator(word: str, node: Node, decoder: RuleDecoder, kind: str, *, case: bool) -> Operator | None:
    texts = _texts(node, decoder)
    if texts is None:
        return None
    if word == "in":
        return _in(texts, decoder, kind)
    made = OPERATORS[word]
    good = True
    for text in texts:
        try:
            if made.pattern and text.escaped:
                raise ValueError(
                    f"a backslash in a double-quoted pattern; write it in single quotes, thus: {_resaid(text.value)}"
                )
            _check(word, text.value, kind, decoder)
        except ValueError as error:
            decoder.fail(text.place, str(error))
            good = False
    values = tuple(_number(text.value) if word in ("over", "under") else text.value for text in texts)
    return made(values, case) if good else None


def _resaid(value: str) -> str:
    """Return the pattern as it was meant: what double quotes made of `\\b` put back."""
    for char, meant in (("\b", r"\b"), ("\t", r"\t"), ("\n", r"\n"), ("\f", r"\f"), ("\v", r"\v"), ("\a", r"\a")):
        value = value.replace(char, meant)
    return quoted(value)


def _texts(node: Node, decoder: RuleDecoder) -> list[Text] | None:
    if isinstance(node, Text):
        return [node]
    if isinstance(node, MappingNode):
        decoder.fail(node.place, f"found {kind_of(node)}, expected a text or a list of texts")
        return None
    if node.flow and len(node.items) == 1 and isinstance(node.items[0], Text):
        inside = node.items[0].value
        decoder.fail(
            node.place,
            f"a list of one, {inside!r}; for the brackets quote it, thus: {quoted(f'[{inside}]')};"
            f" for the text alone leave them out",
        )
        return None
    wrong = [item for item in node.items if not isinstance(item, Text)]
    for item in wrong:
        decoder.fail(item.place, f"found {kind_of(item)}, expected a text")
    return None if wrong else [item for item in node.items if isinstance(item, Text)]


def _number(text: str) -> str:
    try:
        return str(parse_number(text))
    except ValueError:
        return str(parse_size(text))


def _check(word: str, value: str, kind: str, decoder: RuleDecoder) -> None:
    """Raise ValueError unless the value is one that the operator can have under this kind of condition."""
    if word == "regex":
        check(value)
    if word in ("regex", "glob") and decoder.long_texts:
        places = loose(value) if word == "regex" else value.count("?")
        if places > MAX_LOOSE:
            raise ValueError(
                f"the pattern {value[:60]!r} is too dear for a whole body: {places} places that are no fixed character,"
                f" counted repetitions counted out, expected at most {MAX_LOOSE}"
            )
    if word == "regex":
        return
    if word in ("over", "under"):
        _number(value)
    elif word == "is" and kind == "network":
        try:
            network_of(value)
        except ValueError as error:
            raise ValueError(str(error) + _in_hint(value, decoder)) from None
    elif word == "is" and kind == "address":
        if value == "<>":
            raise ValueError("the null sender has no address, expected {exists: no}")
        if "@" not in value:
            hint = _in_hint(value, decoder)
            domain = f", did you mean {{domain: {value}}}?" if "." in value else ""
            raise ValueError(f"{value!r} is no address, expected one such as bob@example.org{hint or domain}")
    elif word == "is" and kind == "domain" and "@" in value:
        raise ValueError(f"{value!r} is an address, expected a domain such as {ascii_domain(value.rpartition('@')[2])}")


def _in_hint(value: str, decoder: RuleDecoder) -> str:
    if value in decoder.lists:
        return f", did you mean {{in: {value}}}?"
    near = near_miss(value, decoder.lists)
    return near.replace("'", "{in: ", 1).replace("'", "}", 1) if near else ""


def _in(texts: list[Text], decoder: RuleDecoder, kind: str) -> Operator | None:
    lists = []
    for text in texts:
        named = decoder.named_list(text)
        if named is not None:
            typed, problems = named.as_kind(LIST_KINDS[kind])
            decoder.problems.extend(problems)
            lists.append(typed)
    return In(tuple(text.value for text in texts), lists=tuple(lists)) if len(lists) == len(texts) else None


def too_much(arguments: Iterable[str]) -> str:
    """Return what is wrong with a program's arguments as a rule writes them, values left out; "" for nothing."""
    sizes = [len(one.encode("utf-8", "replace")) for one in arguments]
    if len(sizes) > _MOST_ARGUMENTS:
        return f"more than {_MOST_ARGUMENTS} arguments"
    if max(sizes, default=0) > _LONGEST_ARGUMENT:
        return f"an argument of more than {_LONGEST_ARGUMENT} bytes"
    return f"arguments of more than {_MOST_WRITTEN} bytes together" if sum(sizes) > _MOST_WRITTEN else ""
