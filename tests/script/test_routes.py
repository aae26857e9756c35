"""Routes: what matches what, with which captures; and every application that is not clear is a load error."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.script.load import load
from milterapp.script.memory import Remembered
from milterapp.script.routes import RouteError, parse
from tests.script.sample import FILE, failed, planned

MATCHES = [
    pytest.param("{page}@{host}", "a@example.org", {"page": "a", "host": "example.org"}, id="plain"),
    pytest.param("{page}@{host}", "a.b-c_1@h", {"page": "a.b-c_1", "host": "h"}, id="signs"),
    pytest.param("{page}@{host}", "-a@example.org", None, id="dash first"),
    pytest.param("{page}@{host}", ".a@example.org", None, id="dot first"),
    pytest.param("{page}@{host}", "../a@example.org", None, id="slash"),
    pytest.param("{page}@{host}", "a+b@example.org", None, id="plus"),
    pytest.param("{page}@{host}", "é@example.org", None, id="not ASCII"),
    pytest.param("{page}@{host}", "a@example.org\n", None, id="line end"),
    pytest.param("{page}@{host}", "a@-example.org", None, id="host with a dash"),
    pytest.param("{page}@{host}", "a@b@example.org", None, id="two at signs"),
    pytest.param("{page}@{host}", "a", None, id="no host"),
    pytest.param("{page}@{host}", "a" * 400 + "@h", None, id="too long"),
    pytest.param("help@example.org", "help@example.org", {}, id="no capture"),
    pytest.param("help@example.org", "help@examplexorg", None, id="dots are dots"),
    pytest.param("Help@Example.ORG", "help@example.org", {}, id="case"),
    pytest.param("{list}-{n:[0-9]+}@{host}", "a-1-2@h", {"list": "a-1", "n": "2", "host": "h"}, id="as it fits"),
    pytest.param("{a}-{b}@{host}", "x-y-z@h", {"a": "x", "b": "y-z", "host": "h"}, id="as short as it can"),
    pytest.param("{a:x*}{b:[a-z]+}@h", None, None, id="nothing between"),
    pytest.param("{page}-{do:delete|hide}@h", "a-hide@h", {"page": "a", "do": "hide"}, id="alternatives"),
    pytest.param("{page}-{action:delete|hide}@{host}", "a-hidden@h", None, id="alternatives end"),
    pytest.param("{token:[0-9a-f]{4}}@{host}", "12ab@h", {"token": "12ab", "host": "h"}, id="braces in a pattern"),
    pytest.param("{x:.*}@{host}", "a@b@h", None, id="a pattern that takes the at sign"),
    pytest.param("alice+{page}@example.org", "alice+x@example.org", {"page": "x"}, id="extension"),
    pytest.param("{n:(a|b)c}@{host}", "ac@h", {"n": "ac", "host": "h"}, id="a group of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "address", "want"), MATCHES)
def test_matches(text: str, address: str | None, want: dict[str, str] | None) -> None:
    """A route matches the whole address, each capture takes as little as the rest allows."""
    if address is None:
        with pytest.raises(RouteError):
            parse(text)
        return
    assert parse(text).match(address) == want


@given(st.text(max_size=40), st.text(max_size=20))
def test_captures_are_bounded(local: str, host: str) -> None:
    """Whatever the address, an untyped capture is what its pattern says: nothing that a path or a page fears."""
    found = parse("{page}@{host}").match(f"{local}@{host}".lower())
    if found is not None:
        assert set(found["page"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        assert found["page"][0] not in "._-"
        assert set(found["host"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


BAD_ROUTES = [
    pytest.param("{page}", "expected an address", id="no at sign"),
    pytest.param("{page@{host}", "cannot be a capture's name|without its", id="open brace"),
    pytest.param("page}@{host}", "without its '{'", id="close brace"),
    pytest.param("{a}@{b}@{c}", "a second '@'", id="two at signs"),
    pytest.param("{a}{b}@{host}", "ambiguous", id="captures side by side"),
    pytest.param("{a}-{a}@{host}", "again", id="a name twice"),
    pytest.param("{1a}@{host}", "cannot be a capture's name", id="no name"),
    pytest.param("{}@{host}", "cannot be a capture's name", id="empty"),
    pytest.param("{a:}@{host}", "expected a pattern", id="empty pattern"),
    pytest.param("{a:(}@{host}", "parenthesis", id="broken pattern"),
    pytest.param("{a:(?=b)}@{host}", "look-ahead", id="look-ahead"),
    pytest.param("{a:(?P<b>c)}@{host}", "named groups", id="named group"),
]


@pytest.mark.parametrize(("text", "said"), BAD_ROUTES)
def test_what_is_no_route(text: str, said: str) -> None:
    """A route that cannot be one says what was found."""
    with pytest.raises(RouteError, match=said):
        parse(text)


HEAD = "from milterapp.script import route, stateless\n"
LOAD_ERRORS = {
    "the same route twice": (
        """
        @route("{page}@{host}")
        @route("{page}@{host}")
        def START(mail, page, host): ...
        """,
        "4:1: '{page}@{host}' is ambiguous: '{page}@{host}' in line 3",
    ),
    "the same under other names": (
        """
        @route("{page}@{host}")
        @route("{topic}@{host}")
        def START(mail, host, page=None, topic=None): ...
        """,
        "4:1: '{topic}@{host}' is ambiguous",
    ),
    "never reached": (
        """
        @route("{page}@{host}")
        @route("{page}-{action:delete}@{host}")
        def START(mail, page, host, action=None): ...
        """,
        "4:1: '{page}-{action:delete}@{host}' is ambiguous",
    ),
    "two stateless": (
        """
        @stateless
        @route("{list}-bounce@{host}")
        def one(mail, list, host): ...
        @stateless
        @route("{name}-bounce@{host}")
        def other(mail, name, host): ...
        """,
        "7:1: '{name}-bounce@{host}' is ambiguous",
    ),
    "no START": (
        """
        @route("{page}@{host}")
        def POSTING(mail, page, host): ...
        """,
        "3:1: no function is named START",
    ),
    "a state without a route": (
        """
        @route("{page}@{host}")
        def START(mail, page, host):
            if page == "a":
                return publish

        def publish(mail): ...
        """,
        "6:9: publish is no state",
    ),
    "a stateless state": (
        """
        @route("{page}@{host}")
        def START(mail, page, host):
            return bounce
        @stateless
        @route("bounce-{page}@{host}")
        def bounce(mail, page, host): ...
        """,
        "5:5: bounce is no state",
    ),
    "a broken route": (
        """
        @route("{page}")
        def START(mail, page): ...
        """,
        "3:1: '{page}': expected an address",
    ),
    "no parameter": (
        """
        @route("{page}@{host}")
        def START(mail, page): ...
        """,
        "3:1: '{page}@{host}': START has no parameter 'host'",
    ),
    "no capture": (
        """
        @route("{page}@{host}")
        def START(mail, page, host, action): ...
        """,
        "3:1: '{page}@{host}': START needs 'action'",
    ),
    "no mail": (
        """
        @route("help@example.org")
        def START(): ...
        """,
        "3:1: 'help@example.org': START has no parameter for the mail",
    ),
    "a capture named as the mail": (
        """
        @route("{mail}@{host}")
        def START(mail, host): ...
        """,
        "3:1: '{mail}@{host}': START has no parameter 'mail'",
    ),
    "per of no capture": (
        """
        @route("{page}@{host}", per=("list",))
        def START(mail, page, host): ...
        """,
        "3:1: '{page}@{host}': per='list' is none",
    ),
    "two per": (
        """
        @route("{list}@{host}", per=("list",))
        def START(mail, list, host): ...
        @route("{list}@{host}")
        def POSTING(mail, list, host): ...
        """,
        "5:1: '{list}@{host}': per=()",
    ),
    "stateless alone": (
        """
        @stateless
        def START(mail): ...
        """,
        "3:1: START is stateless and has no @route",
    ),
    "main and routes": (
        """
        def main(mail): ...
        @route("{page}@{host}")
        def START(mail, page, host): ...
        """,
        "3:1: a script has main, or routes",
    ),
    "neither": ("a = []", "1:1: expected a function main(mail)"),
    "main of two": ("def main(mail, more): ...", "2:1: main takes one argument"),
    "no Python": ("def main(mail:", "2:9: no Python"),
    "a NUL": ("a = '\0'", "no Python"),
    "raises": ("x = 1\nraise ValueError('a\\nb')", "3:1: ValueError: a b"),
    "exits": ("raise SystemExit(0)", "2:1: SystemExit: 0"),
    "action while loading": (
        "from milterapp.script import store\nstore['a'] = 1",
        "3:1: ScriptError: there is a message",
    ),
}


@pytest.mark.parametrize("name", LOAD_ERRORS)
def test_load_errors(name: str) -> None:
    """What is not clear is an error when the script is loaded, with its file and line."""
    source, want = LOAD_ERRORS[name]
    body = textwrap.dedent(source).removeprefix("\n")
    lines = "\n" if "\n" in source.strip() and source.startswith("\n") else ""
    script, problems = load((HEAD + lines + body).encode(), FILE)
    assert script is None
    assert any(want in str(one) for one in problems), [str(one) for one in problems]
    assert all(one.place.file == FILE for one in problems)


BLOG = """
from milterapp.script import route, stateless

@route("{page}@{host}")
def START(mail, page, host):
    mail.reply(text="START " + page)
    if page == "go":
        return POSTING

@route("{page}-{action:delete}@{host}")
@route("{page}@{host}")
def POSTING(mail, page, host, action=None):
    mail.reply(text=f"POSTING {page} {action}")
    return START if action else POSTING

@stateless
@route("{page}-help@{host}")
def help(mail, page, host):
    mail.reply(text="help " + page)
"""
STATES = [
    pytest.param("", "x@h", ["START x"], "", id="start"),
    pytest.param("", "go@h", ["START go"], "POSTING", id="next state"),
    pytest.param("POSTING", "x@h", ["POSTING x None"], "", id="the same state"),
    pytest.param("POSTING", "x-delete@h", ["POSTING x delete"], "START", id="the first route"),
    pytest.param("POSTING", "x-help@h", ["help x"], "", id="stateless"),
    pytest.param("START", "go-delete@h", ["START go-delete"], "", id="no such route there"),
    pytest.param("", "GO@H", ["START go"], "POSTING", id="case"),
]


@pytest.mark.parametrize(("state", "to", "said", "after"), STATES)
def test_states(state: str, to: str, said: list[str], after: str) -> None:
    """The function that the sender's state names is called with its captures, what it returns is the next state."""
    plan = planned(BLOG, Remembered({(): state} if state else {}), to=to)
    assert [getattr(one, "text", None) for one in plan.actions] == said
    assert plan.state == after
    assert plan.routed


def test_no_route() -> None:
    """An address of no route, or of none in that state, is not the application's; nor is a null sender's mail."""
    for to, sender in (("a+b@h", "j@example.org"), ("x@h", "")):
        plan = planned(BLOG, to=to, sender=sender)
        assert not plan.routed
    assert planned(BLOG, to="x-help@h", sender="").routed


def test_a_state_that_is_gone() -> None:
    """Where the author renamed a state that senders are in, it is an error and not a new start."""
    assert "the sender is in the state EDITING" in failed(BLOG, Remembered({(): "EDITING"}), to="x@h").text


PER = """
from milterapp.script import route

@route("{list}-subscribe@{host}", per=["list"])
def START(mail, list, host):
    return SUBSCRIBED

@route("{list}@{host}", per="list")
def SUBSCRIBED(mail, list, host):
    mail.reply(text="posted to " + list)
"""


def test_state_for_each_capture() -> None:
    """With per, a sender has a state for each of its values."""
    plan = planned(PER, to="dev-subscribe@h")
    assert (plan.state, plan.per) == ("SUBSCRIBED", ("dev",))
    memory = Remembered({("dev",): "SUBSCRIBED"})
    assert planned(PER, memory, to="dev@h").actions
    assert not planned(PER, memory, to="users@h").routed


RETURNS = """
from milterapp.script import route, stateless
@route("{what}@{host}")
def START(mail, what, host):
    return {"text": "POSTING", "number": 1, "lambda": lambda: 0}[what]
@stateless
@route("{what}-now@{host}")
def now(mail, what, host):
    return "x"
"""


@pytest.mark.parametrize("to", ["text@h", "number@h", "lambda@h", "a-now@h"])
def test_what_is_no_next_state(to: str) -> None:
    """Only a function with a route is a state, and only a state has a next one."""
    assert failed(RETURNS, to=to).kind == "ScriptError"
