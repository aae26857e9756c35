"""The links of a message and the hosts they lead to, as a browser would read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.limits import LimitHit
from milterapp.mail.links import found_in, host
from milterapp.mail.message import Mail


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("https://example.org/x?y#z", "example.org"),
        ("HTTP://Example.ORG:8080", "example.org"),
        ("http://user:pass@example.org/@x", "example.org"),
        ("https://good.example@evil.example/", "evil.example"),
        ("https:\\\\example.org\\x", "example.org"),
        ("https://%65xample.org", "example.org"),
        ("ht\ntps://exam\u200bple.org.", "example.org"),
        ("http://[2001:db8::1]:80/", "2001:db8::1"),
        ("//example.org/x", "example.org"),
        ("www.example.org/x", "www.example.org"),
        ("mailto:a@example.org", ""),
        ("data:text/html,x", ""),
        ("cid:x@example.org", ""),
        ("relative/path", ""),
        ("#top", ""),
        ("", ""),
    ],
)
def test_host(link: str, name: str) -> None:
    """The host is the one a click would go to."""
    assert host(link) == name


def test_links_of_a_message() -> None:
    """Links stand in the text and behind what the HTML shows."""
    html = '<a href="https://evil.example/x">https://good.example</a> see www.example.net, (http://example.org/).'
    one = Mail(b"Content-Type: text/html\n\n" + html.encode())
    assert one.urls == ("https://good.example", "www.example.net", "http://example.org/", "https://evil.example/x")
    assert one.url_hosts == ("good.example", "www.example.net", "example.org", "evil.example")


@given(st.text(alphabet="htps:/\\@[]%4.wa?#\n\u200b", max_size=60))
def test_no_text_raises(text: str) -> None:
    """Any text is a link of some kind, or none."""
    found_in(text, f'<a href="{text}">')
    host(text)


def test_links_are_bounded() -> None:
    """More links than anybody clicks are "could not tell"."""
    with pytest.raises(LimitHit, match="more than 10000 links"):
        found_in("http://a " * 10_001, "")
