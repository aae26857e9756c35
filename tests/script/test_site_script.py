"""Scripts of the site's rules: what they may ask for, and that all else is refused where it stands."""

from __future__ import annotations

import json

import pytest

from milterapp.mail.envelope import Envelope
from milterapp.script.actions import Action, Defer, Discard, Header, Reject
from milterapp.script.examining import examine, serve_examination, to_examine
from milterapp.script.memory import Remembered
from milterapp.script.plan import Failure, Plan, decode
from milterapp.script.run import Job, run, serve, to_bytes

ENVELOPE = Envelope(sender="ann@example.net", recipients=("bob@example.org", "carol@example.org"))


def told(body: str, *, site: bool = True, head: str = "") -> Plan | Failure:
    """Run the lines as main, with a memory that holds a value."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"{head}def main(mail):\n{lines}".encode()
    job = Job(source, "filter.py", b"Subject: x\r\n\r\nhi\r\n", ENVELOPE, site=site, checked=True)
    return run(job, Remembered(values={"k": (False, '"1"')}))


MAY: dict[str, tuple[str, Action]] = {
    "reject": ('mail.reject("5.7.1 No")', Reject("5.7.1", "No")),
    "defer": ('mail.defer("4.7.1 Later")', Defer("4.7.1", "Later")),
    "discard": ("mail.discard()", Discard()),
    "add_header": ('mail.add_header("X-A", mail.subject)', Header("add_header", "X-A", "x")),
    "set_header": ('mail.set_header("X-A", "b")', Header("set_header", "X-A", "b")),
    "remove_header": ('mail.remove_header("X-A")', Header("remove_header", "X-A")),
    "prefix_subject": ('mail.prefix_subject("[x]")', Header("prefix_subject", "Subject", "[x]")),
}


@pytest.mark.parametrize("name", MAY)
def test_what_it_may_ask_for(name: str) -> None:
    """Verdicts that site rules have, and edits of the header, are in its plan."""
    body, action = MAY[name]
    assert told(body) == Plan((action,))


IMPORT = "from milterapp.script import *\n"
MAY_NOT = {
    "keep": ("mail.keep()", "`keep`"),
    "file": ('mail.file("A")', "`file`"),
    "forward": ('mail.forward("a@b.example")', "`forward`"),
    "reply": ('mail.reply(text="x")', "`reply`"),
    "send": ('mail.send(to="a@b.example", subject="x", text="y")', "`send`"),
    "store": ('store["a"] = 1', "`store`"),
    "store, read": ('store.get("k")', "`store`"),
    "store, listed": ("store.keys()", "`store`"),
    "output": ('output["a.html"] = "x"', "`output`"),
}


@pytest.mark.parametrize("name", MAY_NOT)
def test_what_has_no_place(name: str) -> None:
    """All that is to be done once is refused at the script's own line, by a sentence that says what is left; where a
    person's script asks, it is not.
    """
    body, word = MAY_NOT[name]
    found = told(f"mail.add_header('X-A', 'a')\n{body}", head=IMPORT)
    assert isinstance(found, Failure)
    assert (found.kind, word in found.text) == ("ScriptError", True)
    assert 'File "filter.py", line 4, in main' in found.trace
    assert isinstance(told(body, site=False, head=IMPORT), Plan)


SEEN = {
    "nothing": ("def main(mail):\n    mail.reject('no')\n", []),
    "a method": ("def main(m):\n    m.reply(text='x')\n", [(2, 5, "`m.reply`")]),
    "several": ("def main(m):\n    m.file('x')\n    m.keep()\n", [(2, 5, "`m.file`"), (3, 5, "`m.keep`")]),
    "an import": ("from milterapp.script import store\ndef main(m): ...\n", [(1, 30, "`store`")]),
    "everything": (
        "from milterapp.script import *\ndef main(m):\n    output['a'] = 'b'\n", [(3, 5, "`output`")]
    ),
    "everything, and nothing used": ("from milterapp.script import *\ndef main(m): ...\n", []),
    "another's method": ("def main(m):\n    x = []\n    x.reply = 1\n", []),
    "routes": (
        "from milterapp.script import route\n@route('a@{host}')\ndef START(mail, host): ...\n",
        [(1, 1, "a site script is one function main(mail)"), (1, 30, "`route`")],
    ),
    "no main": ("def other(mail): ...\n", [(1, 1, "expected a function main(mail)")]),
    "no Python": ("def main(mail)\n", [(1, 15, "no Python")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_what_can_be_seen_before(name: str) -> None:
    """What has no place is named with its line and column before any message comes."""
    source, wanted = SEEN[name]
    found = json.loads(examine(source.encode(), "filter.py", site=True))
    assert [(line, column) for line, column, _ in found] == [(line, column) for line, column, _ in wanted]
    assert all(part in text for (_, _, text), (_, _, part) in zip(found, wanted, strict=True))


def test_a_persons_script_may() -> None:
    """The same source has no problem among a person's rules."""
    assert examine(SEEN["several"][0].encode(), "filter.py") == b"[]"


def test_a_job_comes_through_as_it_is() -> None:
    """A job as bytes is the same job, the site's or a person's; so is a script to be examined."""
    source = b"def main(mail):\n    mail.reply(text=mail.subject)\n"
    for site in (True, False):
        job = Job(source, "a/filter.py", b"Subject: \xff\r\n\r\n", ENVELOPE, site=site, checked=True)
        found = decode(serve(to_bytes(job), lambda _: b"null"))
        assert isinstance(found, Failure) is site
    assert json.loads(serve_examination(to_examine(source, "a/filter.py"), lambda _: b""))[0][:2] == [2, 5]


def test_an_address_with_a_token_is_no_answer_to_a_question() -> None:
    """What looks like an answer to `confirm` is a message like any other in-line."""
    envelope = Envelope(sender="a@b.example", recipients=(f"page+confirm-{'a' * 32}@example.org",))
    job = Job(b"def main(mail):\n    mail.discard()\n", "f.py", b"\r\n", envelope, site=True)
    assert run(job, Remembered()) == Plan((Discard(),))
