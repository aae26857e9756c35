"""`milterapp.testing`: an application spoken to in a test behaves as the agent's, and says so where that would not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from milterapp.testing import Application, ScriptFailedError

HEAD = "from milterapp.script import *\n\ndef main(mail):\n"
ANN = "ann@a.example"

Make = Callable[[str], Application]


@pytest.fixture
def made(tmp_path: Path, mailapp: Any) -> Make:
    """Give what makes an application of the body of main, or of a whole script."""

    def make(text: str) -> Application:
        file = tmp_path / "a.py"
        file.write_text(text if "\n@" in text else HEAD + "".join(f"    {one}\n" for one in text.split("\n")))
        found: Application = mailapp(file, user="bob@example.org")
        return found

    return make


def test_what_becomes_of_a_message(made: Make) -> None:
    """It is kept where nothing else is said, filed as edited, thrown away, or refused."""
    kept = made("mail.add_header('X-A', 'b')")
    assert kept.say("bob+x@example.org", sender=ANN).kept
    assert b"\nX-A: b\n\nhello\n" in kept.inbox[0]
    filed = made("mail.file('A/B')")
    assert not filed.say("bob+x@example.org", sender=ANN).kept
    assert (len(filed.folders["A/B"]), filed.inbox) == (1, [])
    assert made("mail.file('A', copy=True)").say("bob@example.org", sender=ANN).kept
    assert not made("mail.discard()").say("bob@example.org", sender=ANN).kept
    refused = made("mail.reject('5.1.1 No')").say("bob@example.org", sender=ANN)
    assert (refused.refused, refused.kept) == ("5.1.1 No", False)


def test_states_and_stores(made: Make) -> None:
    """They are kept from one message to the next, for each sender; a message that is put off leaves nothing behind."""
    app = made("""from milterapp.script import *
@route("bob+{x}@{host}")
def START(mail, x, host):
    store["n"] = store.get("n", 0) + 1
    output["n.txt"] = str(store["n"])
    return NEXT

@route("bob+{x}@{host}")
def NEXT(mail, x, host):
    mail.defer("later")
""")
    for sender in (ANN, "bo@b.example", ANN):
        said = app.say("bob+x@example.org", sender=sender)
    assert said.refused == "4.7.1 later"
    assert (app.stored("n"), app.outputs, app.keys()) == (2, {"n.txt": "2"}, ["n"])
    assert (app.state("ANN@a.example"), app.state("cy@c.example")) == ("NEXT", "START")
    assert not app.say("other@example.org", sender=ANN).routed


def test_what_leaves(made: Make) -> None:
    """Replies, letters and forwards are the messages that submit would send."""
    app = made("mail.reply(text='Hi')\nmail.send(to='c@c.example', subject='S', text='T', sender='bob+b@example.org')\n"
               "mail.forward('d@d.example')")  # fmt: skip
    letters = app.say("bob+x@example.org", sender=ANN, subject="Q").letters
    reply, letter, forward = letters
    assert (reply.sender, reply.to, reply.subject, reply.text) == ("", ANN, "Re: Q", "Hi\n")
    assert reply.header("Auto-Submitted") == "auto-replied"
    assert (letter.sender, letter.from_, letter.text) == ("bob+b@example.org", "bob+b@example.org", "T\n")
    assert (forward.sender, forward.header("Delivered-To")) == (ANN, "bob@example.org")
    assert app.sent == letters


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"Auto-Submitted": "auto-replied"}, "Auto-Submitted"),
        ({"List-Id": "<a.b>"}, "List-Id"),
        ({"To": "x@y"}, "To, Cc"),
    ],
)
def test_guards(made: Make, fields: dict[str, str], why: str) -> None:
    """What submit would not answer is not answered here, and why is said."""
    said = made("mail.reply(text='Hi')").say("bob@example.org", sender=ANN, headers=fields)
    assert said.letters == []
    assert why in said.unsent[0]


def test_a_forward_that_comes_back(made: Make) -> None:
    """It is not sent a second time."""
    app = made("mail.forward('c@c.example')")
    first = app.say("bob@example.org", sender=ANN).letter
    assert app.deliver(first.raw, sender=ANN, to="bob@example.org").letters == []


FAILS = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "another's address": ("mail.reply(text='', sender='eve@e.example')", "an address of its user's"),
    "a loop": ("mail.send(to='bob+a@example.org', subject='', text='')", "a mail loop"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_fails_the_test(made: Make, name: str) -> None:
    """A script that raises, or asks for what submit refuses, fails whoever spoke to it."""
    body, said = FAILS[name]
    with pytest.raises(ScriptFailedError, match=said):
        made(body).say("bob@example.org", sender=ANN)


def test_the_clock(made: Make) -> None:
    """It stands still until it is moved, and is the script's."""
    app = made("store['at'] = mail.now.isoformat()")
    app.say("bob@example.org", sender=ANN)
    assert app.stored("at") == "2026-05-01T12:00:00+00:00"
    app.later(days=1, hours=2)
    app.say("bob@example.org", sender=ANN)
    assert app.stored("at") == "2026-05-02T14:00:00+00:00"


def test_a_bounce(made: Make) -> None:
    """A letter that comes back is a report that the script can read."""
    app = made("b = mail.bounce\nif b: store['b'] = [b.recipient, b.status, b.hard]\nelse: mail.send(to='c@c.example',"
               " subject='', text='')")  # fmt: skip
    app.bounce(app.say("bob@example.org", sender=ANN).letter, "5.1.2")
    recipient, *rest = app.stored("b")
    assert (recipient == "c@c.example", rest) == (True, ["5.1.2", True])


def test_a_failure_that_error_answers(made: Make) -> None:
    """Where ERROR answers in the place of what failed, the failure is there to be read; without it, it is raised."""
    text = """from milterapp.script import *
@route("bob+{x}@{host}")
def START(mail, x, host):
    raise ValueError("no")
"""
    error = """
@route("bob+{x}@{host}")
def ERROR(mail, x, host):
    mail.reject("5.3.0 Later")
"""
    app = made(text + error)
    said = app.say("bob+x@example.org", sender=ANN)
    assert said.refused == "5.3.0 Later"
    assert "ValueError: no" in said.failed
    assert app.state(ANN) == "ERROR"
    assert app.say("bob+x@example.org", sender=ANN).failed == ""
    with pytest.raises(ScriptFailedError, match="ValueError: no"):
        made(text).say("bob+x@example.org", sender=ANN)


def test_lists_of_the_site(tmp_path: Path, mailapp: Any) -> None:
    """A test gives the lists that the site would have."""
    file = tmp_path / "a.py"
    file.write_text(f"{HEAD}    mail.reject('5.7.1 No') if mail.sender not in site['partners'] else mail.keep()\n")
    app = mailapp(file, user="bob@example.org", site={"partners": [".a.example"]})
    assert app.say("bob@example.org", sender="x@y.a.example").kept
    assert app.say("bob@example.org", sender="x@y.b.example").refused == "5.7.1 No"
