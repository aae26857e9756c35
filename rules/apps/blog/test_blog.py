"""The blog, spoken to: `pytest rules/apps/blog` with milterapp installed."""

from pathlib import Path

import pytest

FIRST, INDEX = "pages/first.html", "index.html"
ANN = {"From": "Ann <ann@a.example>"}


@pytest.fixture
def blog(mailapp):
    """Give a blog with nothing in it."""
    return mailapp(Path(__file__).with_name("blog.py"), user="blog@example.org")


def post(blog, page="first", text="Hello\n\nworld\n", sender="ann@a.example", subject="My <first>", action=""):
    """Write, and answer the question; return what comes back."""
    asked = blog.say(f"blog+{page}{action}@example.org", text, sender=sender, subject=subject, headers=ANN)
    return blog.answer(asked.letter).letter


def test_a_post_appears_once_its_sender_confirmed(blog):
    """Nothing is there before; then the page and the index are, escaped, without an address of the author's."""
    began = blog.now
    asked = blog.say("blog+first@example.org", "Hello\n", sender="ann@a.example", subject="My <first>", headers=ANN)
    assert blog.outputs == {}
    assert "post: first" in asked.letter.text
    assert blog.answer(asked.letter).letter.text == "Your page first is there.\n"
    assert "<h1>My &lt;first&gt;</h1>" in blog.outputs[FIRST]
    days = began, blog.now  # two of them where midnight comes between, on a real host
    assert any(f"Ann, {day:%Y-%m-%d}" in blog.outputs[FIRST] for day in days)
    assert 'href="pages/first.html">My &lt;first&gt;</a>, Ann' in blog.outputs[INDEX]
    assert "a.example" not in "".join(blog.outputs.values())
    assert blog.inbox == []


def test_a_question_is_answered_once(blog):
    """A second yes posts nothing, and one after three days neither."""
    asked = blog.say("blog+first@example.org", sender="ann@a.example")
    blog.later(days=4)
    assert not blog.answer(asked.letter).routed
    asked = blog.say("blog+first@example.org", sender="ann@a.example")
    assert blog.answer(asked.letter).routed
    assert not blog.answer(asked.letter).routed


def test_a_page_is_its_authors(blog):
    """The author changes and deletes it, nobody else does."""
    post(blog)
    assert "somebody else's" in post(blog, sender="eve@e.example", text="mine").text
    assert "no page first of yours" in post(blog, sender="eve@e.example", action="-delete").text
    assert "world" in blog.outputs[FIRST]
    post(blog, text="changed", sender="Ann@A.example")
    assert "changed" in blog.outputs[FIRST]
    assert post(blog, action="-delete").text == "Your page first is gone.\n"
    assert list(blog.outputs) == [INDEX]
    assert "first" not in blog.outputs[INDEX]


def test_comments(blog):
    """A confirmed comment stands below its page; where there is no page, it is refused."""
    assert blog.say("blog+none-comment@example.org", sender="bo@b.example").refused.startswith("5.1.1")
    post(blog)
    post(blog, text="<script>alert(1)</script>\n", sender="bo@b.example", action="-comment")
    assert "<p>&lt;script&gt;alert(1)&lt;/script&gt;\n</p>" in blog.outputs[FIRST]


def test_machines_are_not_asked(blog):
    """A list or an automatic answer gets no question, and posts nothing."""
    said = blog.say("blog+first@example.org", sender="ann@a.example", headers={"Auto-Submitted": "auto-replied"})
    assert said.letters == []
    assert blog.outputs == {}
