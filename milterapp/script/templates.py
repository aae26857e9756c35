"""`template`: texts and pages with places for values, `${name}`, each value encoded for its place (Jinja2's sandbox).

Must never: put a value into a page unescaped, read a template that is not below the script's folder, or give a str.

The kind is in the name: `.html` is escaped, `.txt` is not. Of a page, the places of values are looked at before it is
used: none in a script, a style or an attribute without quotes, where escaping is not enough, and in the beginning of an
address only behind the filter `url`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from milterapp.script.context import ScriptError, current
from milterapp.script.untrusted import Untrusted, refusal, reveal
from milterapp.script.values import Address, HeaderText, Rendered, plain

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

__all__ = ["places", "render", "template"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,3}\.(html|txt)")
_MOST = 256 * 1024  # bytes of a template
_URL = re.compile(r"(?:https?://|mailto:)[^\x00-\x20]*|[A-Za-z0-9_.~/?#&=%+-]*", re.IGNORECASE)
_URLS = frozenset({"href", "src", "action", "formaction", "cite", "poster", "data", "xlink:href", "background", "ping"})
_UNSAFE = frozenset({"style", "srcdoc", "srcset"})
_TOKEN = re.compile(
    r"""(?P<comment><!--.*?(?:-->|\Z))|(?P<raw><(script|style|textarea|title)\b)|(?P<tag><[a-z/!])""",
    re.IGNORECASE | re.DOTALL,
)


def template(name: str, **values: Any) -> Rendered:
    """Return a template of the script's folder with these values in it.

    name: its path from there, ending in .html or .txt. Raises ScriptError for one that cannot be had, Jinja2's errors
    for one that is none.
    """
    return render(name, values)


def render(name: str, values: Mapping[str, Any]) -> Rendered:
    """Return a template with these values in it, as template does."""
    found = _NAME.fullmatch(plain(name, "a template's name"))
    if found is None:
        raise ScriptError(f"{name[:80]!r}: expected a template's name that ends in .html or .txt, as page.html")
    environment = _environment(found[1], current().folder)
    return Rendered(environment.get_template(name).render(values), found[1] == "html")


@cache
def _environment(kind: str, folder: str) -> SandboxedEnvironment:
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    def load(name: str) -> tuple[str, None, Callable[[], bool]]:
        return _read(name, kind, folder), None, lambda: False

    def final(value: Any) -> Any:
        if isinstance(value, Untrusted):
            return reveal(value)
        if isinstance(value, Rendered):
            if kind == "html":
                return Markup(value.text) if value.html else value.text  # noqa: S704 - it was escaped when it was made
            if value.html:
                raise ScriptError("a page cannot stand in a text")
            return value.text
        if isinstance(value, Address | HeaderText):
            return str(value)
        return value

    made = ImmutableSandboxedEnvironment(
        variable_start_string="${",
        variable_end_string="}",
        autoescape=kind == "html",
        undefined=StrictUndefined,
        finalize=final,
        loader=FunctionLoader(load),
        auto_reload=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for unsafe in ("safe", "mark_safe", "tojson", "xmlattr", "urlize", "forceescape"):
        made.filters.pop(unsafe, None)
    # Filters of Jinja2's want a str: what a message brought goes into them as one, and is escaped when it comes out.
    for filter_name, function in list(made.filters.items()):
        made.filters[filter_name] = _revealing(function)
    made.filters["url"] = _url
    return made


def _revealing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any, **named: Any) -> Any:
        return function(*map(_revealed, values), **{name: _revealed(one) for name, one in named.items()})

    if (wants := getattr(function, "jinja_pass_arg", None)) is not None:
        call.jinja_pass_arg = wants  # type: ignore[attr-defined]  # Jinja2's own mark, of what it is called with first
    return call


def _revealed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_revealed(one) for one in value]
    return reveal(value) if isinstance(value, Untrusted) else value


def _url(value: Any) -> str:
    """Return an address that a link can have, `#` where it is none: no `javascript:`."""
    text = reveal(value) if isinstance(value, str | Untrusted) else str(value)
    return text if _URL.fullmatch(text) and not text.startswith("//") else "#"


def _read(name: str, kind: str, folder: str) -> str:
    """Return a template's source. Raises ScriptError."""
    given: object = name
    if isinstance(given, Untrusted):
        raise refusal(given, "a template's name")
    if not _NAME.fullmatch(name) or not name.endswith("." + kind):
        raise ScriptError(f"{name[:80]!r}: expected a template's name that ends in .{kind}, as this one's does")
    try:
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ScriptError(f"template {name!r}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ScriptError(f"template {name!r}: no plain file")
    with open(descriptor, "rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise ScriptError(f"template {name!r}: larger than {_MOST} bytes")
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ScriptError(f"template {name!r}: no UTF-8") from None
    if kind == "html":
        for line, fault in places(source):
            raise ScriptError(f"{name}:{line}: {fault}")
    return source


def places(source: str) -> list[tuple[int, str]]:
    """Return the line and fault of each value in a page that stands where escaping does not make it harmless."""
    source = re.sub(r"\{#.*?#\}|\{%.*?%\}", lambda found: re.sub(r"[^\n]", " ", found[0]), source, flags=re.DOTALL)
    faults: list[tuple[int, str]] = []
    at = 0

    def fault(where: int, text: str) -> None:
        faults.append((source.count("\n", 0, where) + 1, text))

    while found := _TOKEN.search(source, at):
        at = found.end()
        if found["comment"]:
            if "${" in found[0]:
                fault(found.start(), "a value in a comment; take it out")
        else:
            at = _tag(source, at, fault)
        if found["raw"]:
            end = re.compile(rf"</{found[3]}", re.IGNORECASE).search(source, at)
            stop = end.start() if end else len(source)
            if "${" in source[at:stop] and found[3].lower() in ("script", "style"):
                fault(source.index("${", at), f"a value in <{found[3].lower()}>, where no escaping is enough")
            at = stop
    return faults


_ATTRIBUTE = re.compile(r"""([^\s=<>"'/]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))|\$\{|>""", re.DOTALL)


def _tag(source: str, at: int, fault: Callable[[int, str], None]) -> int:
    """Look at one tag's attributes, from behind its `<x` on; return where it ends."""
    while found := _ATTRIBUTE.search(source, at):
        at = found.end()
        if found[0] == ">":
            return at
        if found[0] == "${":
            fault(found.start(), "a value within a tag; put it into an attribute with quotes")
            continue
        name, bare = found[1].lower(), found[4]
        quoted = found[2] if found[2] is not None else found[3] or ""
        if "${" in name or (bare and "${" in bare):
            fault(found.start(), "a value in an attribute without quotes; put them round it")
        elif "${" in quoted and (name in _UNSAFE or name.startswith("on")):
            fault(found.start(), f"a value in the attribute {name}, where no escaping is enough")
        elif name in _URLS and quoted.lstrip().startswith("${"):
            expression = quoted.lstrip()[2:].partition("}")[0]
            if not re.search(r"\|\s*url\s*\Z", expression):
                fault(found.start(), f"an address in {name} that a value begins; write ${{{expression.strip()}|url}}")
    return len(source)
