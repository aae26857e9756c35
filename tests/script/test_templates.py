"""`template`: values encoded for their place, whatever they are; places where no encoding is enough; what is no str."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given

from milterapp.script import ScriptError, Untrusted, output, template
from milterapp.script.actions import Output
from milterapp.script.context import Collected, running
from milterapp.script.memory import Remembered
from milterapp.script.templates import places
from milterapp.script.untrusted import reveal
from milterapp.script.values import Address, Rendered, body_text, header_name
from tests.script.test_untrusted import HOSTILE

U: Any = Untrusted("<b onclick='x'>&\"")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder of templates, for a run that is under way."""
    with tempfile.TemporaryDirectory() as made, running(Collected(Remembered(), folder=made)):
        yield Path(made)


def rendered(folder: Path, source: str, name: str = "a.html", **values: Any) -> str:
    """Return what a template gives."""
    (folder / name).write_text(source)
    return template(name, **values).text


EXPRESSIONS = {
    "value": ("${x}", html.escape(reveal(U)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")),
    "upper": ("${x|upper}", "&lt;B ONCLICK=&#39;X&#39;&gt;&amp;&#34;"),
    "length": ("${x|length}", "17"),
    "slice": ("${x[:2]}", "&lt;b"),
    "method": ("${x.upper()[:2]}", "&lt;B"),
    "plus": ("${'<i>' + x[:1]}", "&lt;i&gt;&lt;"),
    "join": ("${[x[:1], '<']|join('>')}", "&lt;&gt;&lt;"),
    "loop": ("{% for c in x[:2] %}(${c}){% endfor %}", "(&lt;)(b)"),
    "test": ("{% if '<b' in x %}yes{% endif %}", "yes"),
    "attribute": ('<a title="${x}">', '<a title="&lt;b onclick=&#39;x&#39;&gt;&amp;&#34;">'),
    "url": ('<a href="${u|url}">', '<a href="#">'),
    "url-good": ('<a href="${v|url}">', '<a href="https://example.org/?a=1&amp;b=2">'),
    "url-within": ('<a href="/p/${x[:2]}">', '<a href="/p/&lt;b">'),
    "macro": ("{% macro m(a) %}<i>${a}</i>{% endmacro %}${m(x[:2])}", "<i>&lt;b</i>"),
    "set": ("{% set y %}<i>${x[:2]}</i>{% endset %}${y}", "<i>&lt;b</i>"),
    "braces": ("{x} $x {{x}}", "{x} $x {{x}}"),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_values_in_pages(folder: Path, name: str) -> None:
    """However a value comes into a page, it comes escaped."""
    source, want = EXPRESSIONS[name]
    values: Any = {"u": Untrusted("JavaScript:alert(1)"), "v": Untrusted("https://example.org/?a=1&b=2")}
    assert rendered(folder, source, x=U, **values) == want


FAULTS: dict[str, tuple[str, type[Exception], str]] = {
    "undefined": ("${y}", jinja2.UndefinedError, "'y' is undefined"),
    "safe": ("${x|safe}", jinja2.TemplateError, "No filter named 'safe'"),
    "syntax": ("${x", jinja2.TemplateError, "unexpected end of template"),
    "underscores": ("${x.__class__}", jinja2.TemplateError, "access to attribute '__class__'"),
    "include-above": ("{% include '../b.html' %}", ScriptError, "expected a template's name"),
    "include-text": ("{% include 'b.txt' %}", ScriptError, "ends in .html, as this one's does"),
    "include-of-mail": ("{% include x %}", TypeError, "Untrusted"),
    "script": ("<script>var a = '${x}';</script>", ScriptError, "a.html:1: a value in <script>"),
    "style": ("\n<style>a {color: ${x}}</style>", ScriptError, "a.html:2: a value in <style>"),
    "event": ("<a onclick='f(\"${x}\")'>", ScriptError, "a value in the attribute onclick"),
    "style-of-one": ('<a style="color: ${x}">', ScriptError, "a value in the attribute style"),
    "bare": ("<a title=${x}>", ScriptError, "attribute without quotes"),
    "in-a-tag": ("<a ${x}>", ScriptError, "a value within a tag"),
    "address": ('<a href="${x}">', ScriptError, "write ${x|url}"),
    "comment": ("<!-- ${x} -->", ScriptError, "a value in a comment"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(folder: Path, name: str) -> None:
    """What cannot be had, and places where escaping is not enough, are errors that say so."""
    source, kind, said = FAULTS[name]
    with pytest.raises(kind, match=re.escape(said)):
        rendered(folder, source, x=U)


class _Seen(HTMLParser):
    """What a reader of a page sees: tags, and the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[Any] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Take text."""
        self.text += data


@given(HOSTILE)
def test_any_text_in_a_page(text: str) -> None:
    """A reader of the page finds the page's own tags, and the value where it was put, whatever it is."""
    value = Untrusted(text)
    with tempfile.TemporaryDirectory() as made, running(Collected(Remembered(), folder=made)):
        page = rendered(Path(made), '<p class="k" title="${x}">[${x}]<a href="${x|url}">z</a></p>', x=value)
    seen = _Seen()
    seen.feed(page)
    seen.close()
    (p, attributes), (a, link) = seen.tags
    assert (p, a) == ("p", "a")
    assert set(attributes) == {"class", "title"}
    assert set(link) == {"href"}
    scheme, colon, _ = (link["href"] or "").partition(":")
    assert not colon or scheme.lower() in ("http", "https", "mailto")
    assert not (link["href"] or "").startswith("//")
    if "\r" not in reveal(value) and "\0" not in reveal(value):
        assert seen.text == f"[{reveal(value)}]z"
        assert attributes["title"] == reveal(value)


@given(HOSTILE)
def test_any_text_in_a_text(text: str) -> None:
    """In a text a value stands as it is; as a mail's text its control characters are gone."""
    with tempfile.TemporaryDirectory() as made, running(Collected(Remembered(), folder=made)):
        (Path(made) / "a.txt").write_text("> ${x}\n")
        made_of = template("a.txt", x=Untrusted(text))
    assert made_of.text == f"> {reveal(Untrusted(text))}\n"
    shown = body_text(made_of)
    assert all(char in "\t\n" or not ("\0" <= char < " " or "\x7f" <= char < "\xa0") for char in shown)


def test_what_it_gives_is_no_str(folder: Path) -> None:
    """It goes to a file, a text or another page; not where a str could be an address, a name or a key."""
    (folder / "a.txt").write_text("${x}")
    (folder / "p.html").write_text("<i>${x}</i>")
    made: Any = template("a.txt", x=Untrusted("eve@example.org"))
    page = template("p.html", x=U[:2])
    for taker in (str, Address, header_name, lambda one: f"{one}", lambda one: "a" + one, open):
        with pytest.raises(TypeError):
            taker(made)
    assert rendered(folder, "${p}${t}", p=page, t=made) == "<i>&lt;b</i>eve@example.org"
    assert rendered(folder, "${t}", "b.txt", t=made) == "eve@example.org"
    with pytest.raises(ScriptError, match="a page cannot stand in a text"):
        rendered(folder, "${p}", "b.txt", p=page)
    with running(Collected(Remembered())) as run:
        output["a.html"] = page
        assert run.actions == [Output("a.html", "<i>&lt;b</i>")]
    assert len(page) == 12
    assert repr(page) == "Rendered(12 characters)"
    assert isinstance(page, Rendered)


def test_what_a_template_can_be(folder: Path) -> None:
    """A plain file of text, not too large; below the script's folder, in folders of it too."""
    (folder / "parts").mkdir()
    (folder / "parts/head.html").write_text("<h1>${x}</h1>\n")
    assert rendered(folder, "{% include 'parts/head.html' %}!", x=U[:1]) == "<h1>&lt;</h1>\n!"
    (folder / "big.txt").write_bytes(b"x" * (256 * 1024 + 1))
    (folder / "latin.txt").write_bytes(b"\xe9")
    (folder / "link.txt").symlink_to("/etc/passwd")
    (folder / "folder.txt").mkdir()
    for name, said in (
        ("big.txt", "larger than"),
        ("latin.txt", "no UTF-8"),
        ("link.txt", "symbolic"),
        ("folder.txt", "no plain file|Is a directory"),
        ("none.txt", "No such file"),
    ):
        with pytest.raises(ScriptError, match=said):
            template(name)


@given(HOSTILE)
def test_any_source_can_be_looked_at(text: str) -> None:
    """Looking for places ends, with whatever page."""
    places("<a href=" + text + "<script" + text + "${" + text)
