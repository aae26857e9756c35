"""Every place that a script can put a message's text into: what takes it encodes it, and everything else refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from milterapp.mail.envelope import Envelope
from milterapp.mail.message import Mail as Message
from milterapp.script import HeaderText, Mailbox, TaintError, Untrusted, confirm, output, store, template
from milterapp.script.actions import File, Header, Reject, Reply, Send
from milterapp.script.context import Collected, running
from milterapp.script.mail import Mail
from milterapp.script.memory import Remembered
from milterapp.script.plan import Plan, PlanError, check, decode, encode
from milterapp.script.untrusted import reveal
from tests.script.sample import MESSAGE
from tests.script.test_untrusted import HOSTILE


def then(mail: Mail) -> None:
    """Stand for a function of a script's."""


ENVELOPE = Envelope(sender="joerg@example.org", recipients=("bob@example.com",), original_recipient="bob+x@example.com")
TAKES: dict[str, Callable[[Mail, Any], object]] = {
    "reject": lambda mail, value: mail.reject(value),
    "defer": lambda mail, value: mail.defer(value),
    "reply": lambda mail, value: mail.reply(text=value),
    "reply subject": lambda mail, value: mail.reply(text="", subject=value),
    "send": lambda mail, value: mail.send(to="a@example.org", subject=value, text=value),
    "add_header": lambda mail, value: mail.add_header("X-A", value),
    "set_header": lambda mail, value: mail.set_header("Subject", HeaderText("[x] ", value)),
    "prefix_subject": lambda mail, value: mail.prefix_subject(value),
    "file": lambda mail, value: mail.file(Mailbox("Lists", value)),
    "store": lambda mail, value: store.__setitem__("a", [value, {"b": value}]),
    "confirm subject": lambda mail, value: confirm.ask(mail, then=then, subject=value),
    "confirm value": lambda mail, value: confirm.ask(mail, then=then, value=value),
}
REFUSES: dict[str, Callable[[Mail, Any], object]] = {
    "forward": lambda mail, value: mail.forward(value),
    "forward as": lambda mail, value: mail.forward("a@example.org", sender=value),
    "send to": lambda mail, value: mail.send(to=value, subject="", text=""),
    "send to several": lambda mail, value: mail.send(to=["a@example.org", value], subject="", text=""),
    "reply as": lambda mail, value: mail.reply(text="", sender=value),
    "file": lambda mail, value: mail.file(value),
    "header name": lambda mail, value: mail.add_header(value, "a"),
    "remove_header": lambda mail, value: mail.remove_header(value),
    "header asked": lambda mail, value: mail.header(value),
    "addresses asked": lambda mail, value: mail.addresses(value),
    "output name": lambda mail, value: output.__setitem__(value, "a"),
    "output text": lambda mail, value: output.__setitem__("a", value),
    "output gone": lambda mail, value: output.__delitem__(value),
    "template": lambda mail, value: template(value),
    "store table": lambda mail, value: store.__setitem__("a", {value: 1}),
}


def run() -> tuple[Collected, Mail]:
    """Return a run that has begun, and its mail."""
    collected = Collected(Remembered(), functions={"then": then})
    return collected, Mail(Message(MESSAGE), ENVELOPE, collected)


@pytest.mark.parametrize("name", TAKES)
@given(HOSTILE)
def test_what_takes_it_encodes_it(name: str, text: str) -> None:
    """Whatever the text is, it makes an action that can be carried out: one line stays one, one level stays one."""
    collected, mail = run()
    with running(collected):
        if name == "defer" or len(text) <= 400:
            TAKES[name](mail, Untrusted(text))
    plan = Plan(tuple(collected.actions))
    check(plan)
    assert decode(encode(plan)) == plan
    for one in plan.actions:
        if isinstance(one, Reject):
            assert re.fullmatch(r"[ -~]{1,400}", one.text)
        if isinstance(one, Reply | Send):
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", one.text)
            assert one.subject.isprintable()
        if isinstance(one, Header):
            assert one.value.isprintable()
            one.edit  # noqa: B018 - it can be made
        if isinstance(one, File):
            assert one.folder[0] == "Lists"
            assert len(one.folder) == 2
            assert not re.search(r"[/\x00-\x1f]|^\.", one.folder[1])


@pytest.mark.parametrize("name", REFUSES)
@given(HOSTILE)
def test_what_wants_plain_text_refuses_it(name: str, text: str) -> None:
    """Whatever the text is, also where it would do no harm: with its value, the line, and the three ways out."""
    collected, mail = run()
    with running(collected), pytest.raises(TaintError) as caught:
        REFUSES[name](mail, Untrusted(text))
    said = str(caught.value)
    assert re.match(rf"{re.escape(__file__)}:\d+: Untrusted\(", said)
    assert all(way in said for way in ("fullmatch(PATTERN)", "lookup(TABLE)", "Mailbox(…), HeaderText(…)"))
    assert collected.actions == []


@given(HOSTILE)
def test_a_key_of_the_store(text: str) -> None:
    """A text of a message can be a key, comes back marked, and is found again; an empty one, or a long one, is none."""
    value = Untrusted(text)
    collected, _ = run()
    with running(collected):
        if not 0 < len(value) <= 500:
            with pytest.raises((ValueError, PlanError)):
                store[value] = 1
            return
        store[value] = value
        (key,) = store.keys()
        assert isinstance(key, Untrusted)
        assert reveal(key) == reveal(value)
        assert isinstance(store[value], Untrusted)
        assert value in store
        del store[value]
        assert value not in store
