"""What a YAML document is made of: texts, lists and mappings, each with its place. Every scalar is a text.

Must never: guess a type from how a text looks; `on`, `22:30` and `no` are what they look like until a schema says more.
"""

from __future__ import annotations

from dataclasses import dataclass

from milterapp.rules.problem import Place

__all__ = ["Items", "Mapping", "Node", "Text", "kind_of", "quoted"]


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar. style: "" plain, its quote, or "|" or ">" for a block; escaped: double-quoted with a backslash."""

    value: str
    place: Place
    style: str = ""
    escaped: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list. flow: written in brackets."""

    items: tuple[Node, ...]
    place: Place
    flow: bool = False


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping, its keys in their order and each one once. flow: written in braces."""

    pairs: tuple[tuple[Text, Node], ...]
    place: Place
    flow: bool = False

    def get(self, key: str) -> Node | None:
        """Return the value of a key, or None."""
        return next((value for name, value in self.pairs if name.value == key), None)


Node = Text | Items | Mapping

KINDS: dict[type[Node], str] = {Text: "a text", Items: "a list", Mapping: "a mapping"}


def kind_of(node: Node) -> str:
    """Return what a node is, as a problem names it; a short text is shown."""
    if isinstance(node, Text) and len(node.value) <= 60 and "\n" not in node.value:
        return repr(node.value)
    return KINDS[type(node)]


def quoted(text: str) -> str:
    """Return a text as YAML takes it literally: in single quotes, those inside doubled."""
    return "'" + text.replace("'", "''") + "'"
