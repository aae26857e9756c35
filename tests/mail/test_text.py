"""The text of a message is what its reader sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail import hypertext
from milterapp.mail.limits import LimitHit
from milterapp.mail.text import unflow


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("plain  text\n of\tthree", "plain text of three"),
        ("a<br>b<BR/>c", "a\nb\nc"),
        ("<p>a</p><p>b</p>", "a\n\nb"),
        ("a<b>b</b>c", "abc"),
        ("a<!-- x > y -->b<!-->c<!--->d<!-- x --!>e", "abcde"),
        ("a<!-- never closed", "a"),
        ("a<style>x < y { }</style >b<SCRIPT src=x>1<p>2</SCRIPT>c", "abc"),
        ("a<script>never closed", "a"),
        ("<scripty>a</scripty>", "a"),
        ('a<img alt="x > y">b', "ab"),
        ("a<p don't>b</p>c", "a\nb\nc"),
        ('a<x y="never closed>b', "a"),
        ("a <b and c", "a"),
        ("1 < 2 <3 <!doctype html>", "1 < 2 <3"),
        ("&lt;&amp;&gt;&quot;&#65;&#x42;&#x43", '<&>"ABC'),
        ("&nosuch; &ampx; &#0; &#xD800; &#99999999; &#128; &amp", "&nosuch; &ampx; \ufffd \ufffd \ufffd € &"),
        ("<td>a</td><td>b</td>", "a b"),
    ],
)
def test_to_text(html: str, text: str) -> None:
    """Tags go, blocks become lines, references become characters; what is not closed ends as in browsers."""
    assert hypertext.to_text(html) == text


@given(st.text(alphabet="<>!-/&;#x=\"' pbrscriptyle\n1", max_size=80))
def test_no_html_raises(html: str) -> None:
    """Any text is HTML of some kind."""
    hypertext.to_text(html).encode()
    hypertext.links(html)


def test_links() -> None:
    """Targets come in order, each once, with their references resolved."""
    html = "<a href='https://a/?x&amp;y'>b</a><IMG SRC = \"https://c\"><a href=d>e</a><a href='d'>"
    assert hypertext.links(html) == ("https://a/?x&y", "https://c", "d")


@pytest.mark.parametrize(
    "html", ["<b>" * 100_001, "&amp;" * 100_001, " " * (16 * 1024 * 1024 + 1)], ids=["tags", "references", "length"]
)
def test_html_is_bounded(html: str) -> None:
    """More than a reader would wait for is "could not tell"."""
    with pytest.raises(LimitHit, match=r"more than \d+"):
        hypertext.to_text(html)


@pytest.mark.parametrize(
    ("text", "unwrapped"),
    [
        ("a \nb\nc", "a b\nc"),
        ("a \n\nb", "a \nb"),
        ("> a \n> b\nc", "> a b\nc"),
        ("> a \n>> b", "> a \n>> b"),
        ("a\n-- \nb", "a\n-- \nb"),
        (" >a \n b", ">a b"),
        ("a \n-- \nb", "a \n-- \nb"),
    ],
)
def test_unflow(text: str, unwrapped: str) -> None:
    """Soft line ends go, the signature's does not, nor one between two depths of quoting."""
    assert unflow(text, delete_blank=False) == unwrapped


def test_flowed_text_is_bounded() -> None:
    """More lines than any letter has are "could not tell"."""
    with pytest.raises(LimitHit, match="lines of flowed text"):
        unflow("a \n" * 200_001, delete_blank=True)
