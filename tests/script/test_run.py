"""Scripts for one message: what they can ask of it, what their actions become, and what a failure tells its author."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.limits import Limits
from milterapp.script import memory as remembering
from milterapp.script.actions import (
    Action,
    Defer,
    Discard,
    File,
    Forward,
    Header,
    Keep,
    Output,
    Reject,
    Reply,
    Send,
    Store,
)
from milterapp.script.load import MODULES
from milterapp.script.memory import Asked, Question, Remembered
from milterapp.script.plan import Failure, Plan, PlanError, decode, encode
from milterapp.script.run import Job, run, work
from tests.script.sample import FILE, MESSAGE, failed, job, planned
from tests.script.test_routes import BLOG

HEAD = "from milterapp.script import *\n"


def script(body: str) -> str:
    """Return a plain script with this body."""
    return HEAD + "def main(mail):\n" + "".join(f"    {line}\n" for line in body.splitlines())


EDITS = """\
mail.add_header('X-A', mail.subject)
mail.set_header('X-B', Untrusted('a\\r\\nBcc: b'))
mail.remove_header('X-C')
mail.prefix_subject('[x]')
"""

ACTIONS: dict[str, tuple[str, list[Action]]] = {
    "nothing": ("pass", []),
    "keep": ("mail.keep()", [Keep()]),
    "file": ("mail.file('Lists/Python')", [File(("Lists", "Python"))]),
    "file-mailbox": ("mail.file(Mailbox('Lists', mail.subject), copy=True)", [File(("Lists", "Grüße"), copy=True)]),
    "forward": ("mail.forward('a@example.org')", [Forward("a@example.org")]),
    "forward-address": ("mail.forward(Address('a@example.org'), copy=True)", [Forward("a@example.org", copy=True)]),
    "forward-as": (
        "mail.forward('a@b.example', sender='me+x@b.example')",
        [Forward("a@b.example", False, "me+x@b.example")],
    ),
    "reply-as": ("mail.reply(text='a', sender=Address('me+x@b.example'))", [Reply("a", "", "me+x@b.example")]),
    "send-as": (
        "mail.send(to='a@b.example', subject='s', text='t', sender='me+x@b.example')",
        [Send(("a@b.example",), "s", "t", "me+x@b.example")],
    ),
    "reply": ("mail.reply(text='a\\r\\nb')", [Reply("a\nb")]),
    "reply-of-both": (
        "mail.reply(text='You said ' + mail.text, subject='Re: ' + mail.subject)",
        [Reply("You said hello\nworld\n", "Re: Grüße")],
    ),
    "send": (
        "mail.send(to=['a@example.org', Address('b@example.org')], subject=mail.subject, text='x')",
        [Send(("a@example.org", "b@example.org"), "Grüße", "x")],
    ),
    "send-one": ("mail.send(to='a@example.org', subject='', text='')", [Send(("a@example.org",), "", "")]),
    "reject": ("mail.reject('No such page')", [Reject("5.7.1", "No such page")]),
    "reject-status": ("mail.reject('5.1.1 No such page')", [Reject("5.1.1", "No such page")]),
    "reject-of-both": ("mail.reject('No ' + mail.subject)", [Reject("5.7.1", "No Gr??e")]),
    "reject-status-of-theirs": ("mail.reject(Untrusted('4.0.0 x'))", [Reject("5.7.1", "4.0.0 x")]),
    "defer": ("mail.defer('4.3.0 Later')", [Defer("4.3.0", "Later")]),
    "discard": ("mail.discard()", [Discard()]),
    "headers": (
        EDITS,
        [
            Header("add_header", "X-A", "Grüße"),
            Header("set_header", "X-B", "a Bcc: b"),
            Header("remove_header", "X-C"),
            Header("prefix_subject", "Subject", "[x]"),
        ],
    ),
    "store": ("store['a'] = mail.sender", [Store("a", False, '["u","joerg@example.org"]')]),
    "store-theirs": ("store[mail.sender] = 1", [Store("joerg@example.org", True, "1")]),
    "store-forget": ("store['a'] = 1\ndel store['a']", [Store("a", False, "1"), Store("a", False, None)]),
    "output": ("output['a/b.html'] = '<p>'\ndel output['c']", [Output("a/b.html", "<p>"), Output("c", None)]),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_actions(name: str) -> None:
    """Each action becomes its value, text from the message encoded for its place, and survives the pipe."""
    body, want = ACTIONS[name]
    plan = planned(script(body))
    assert list(plan.actions) == want
    assert decode(encode(plan)) == plan


REFUSED = {
    "forward-to-sender": ("mail.forward(mail.sender)", "TaintError", "cannot be an address to send to"),
    "send-to-sender": ("mail.send(to=mail.sender, subject='', text='')", "TaintError", "an address to send to"),
    "send-to-one-of": ("mail.send(to=[mail.sender], subject='', text='')", "TaintError", "an address to send to"),
    "reply-as-sender": ("mail.reply(text='', sender=mail.sender)", "TaintError", "an address to send to"),
    "reply-as-nobody": ("mail.reply(text='', sender='a')", "ValueError", "is no address"),
    "file-subject": ("mail.file(mail.subject)", "TaintError", "cannot be a folder"),
    "header-name": ("mail.add_header(mail.subject, 'a')", "TaintError", "a header field's name"),
    "output-name": ("output[mail.subject] = 'a'", "TaintError", "a file's name"),
    "output-text": ("output['a'] = mail.text", "TaintError", "written to a file"),
    "f-string": ("mail.reply(text=f'You said {mail.text}')", "TaintError", "put into a string"),
    "open": ("open(mail.subject)", "TaintError", "a path"),
    "no-address": ("mail.forward('a')", "ValueError", "is no address"),
    "folder-up": ("mail.file('../a')", "ValueError", "cannot be a folder's name"),
    "output-up": ("output['../a'] = ''", "ValueError", "expected names of"),
    "reject-for-now": ("mail.reject('4.7.1 no')", "ValueError", "expected a status as 5.7.1"),
    "store-object": ("store['a'] = object()", "TypeError", "cannot be stored"),
    "store-missing": ("store['a']", "KeyError", "a"),
    "delete-missing": ("del store['a']", "KeyError", "a"),
    "confirm": ("confirm.ask(mail, then=len)", "ScriptError", "expected a function of the script's own"),
    "confirm-days": ("confirm.ask(mail, then=main, days=99)", "ScriptError", "expected 1 to 90"),
    "template": ("template('a.html')", "ScriptError", "template 'a.html': No such file"),
    "template-name": ("template('../a.html')", "ScriptError", "expected a template's name"),
    "template-of-mail": ("template(mail.subject)", "TaintError", "a template's name"),
    "two-verdicts": ("mail.reject('a')\nmail.discard()", "ScriptError", "there is one verdict"),
    "reject-and-file": ("mail.file('a')\nmail.reject('a')", "ScriptError", "not delivered"),
    "too-many": ("while True: mail.keep()", "ScriptError", "more than 500 actions"),
    "too-many-recipients": (
        "mail.send(to=['a@example.org'] * 21, subject='', text='')",
        "ScriptError",
        "more than 20 recipients",
    ),
    "main-returns": ("return mail", "ScriptError", "main returned something"),
    "exit": ("raise SystemExit(0)", "SystemExit", "0"),
    "recursion": ("def again(): again()\nagain()", "RecursionError", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    """What cannot be asked for ends the script at its own line, and nothing it asked for before stands."""
    body, kind, said = REFUSED[name]
    failure = failed(script("mail.reply(text='before')\n" + body))
    assert failure.kind == kind
    assert said in failure.text
    assert "milterapp/script/" not in failure.trace  # its author sees the script, not us


def test_a_failure_shows_its_line() -> None:
    """The traceback has the script's lines, calls included, and the error, with the ways out."""
    failure = failed(script("greet(mail.subject)") + "def greet(text):\n    return ''.join(['a', text])\n")
    marks = re.compile(r" *[~^]+")  # below a line, under what failed in it; not the same in each version of Python
    assert [line for line in failure.trace.splitlines() if not marks.fullmatch(line)] == [
        "Traceback (most recent call last):",
        f'  File "{FILE}", line 3, in main',
        "    greet(mail.subject)",
        f'  File "{FILE}", line 5, in greet',
        "    return ''.join(['a', text])",
        "TypeError: sequence item 1: expected str instance, Untrusted found",
        failure.trace.splitlines()[-1],
    ]
    assert failure.trace.splitlines()[-1].startswith("Ways out: value.fullmatch(PATTERN)")


def test_a_taint_error_names_the_scripts_line() -> None:
    """Also where the str was wanted by ours or by Python's library."""
    assert failed(script("\nmail.forward(mail.sender)")).text.startswith(f"{FILE}:4: Untrusted('joerg@example.org')")


def test_load_problems_are_a_failure() -> None:
    """A script that cannot be loaded fails with all of its problems."""
    failure = failed("def main(mail, a): ...\n")
    place = f"{FILE}:1:1"
    assert failure == Failure("Problem", f"{place}: main takes one argument, the mail", failure.trace, place)


@pytest.mark.parametrize("word", ["page", 'File "x", line 1', 'a: b\n  File "x", line 1, in x'])
def test_the_place_of_a_failure_has_no_word_of_the_message(word: str) -> None:
    """Whatever the text of an exception is, its place is the line of the script; another line is another place."""
    failure = failed(script(f"raise KeyError({word!r}) from ValueError({word!r})"))
    assert (failure.kind, failure.place) == ("KeyError", f"{FILE}:3")
    assert failed(script(f"\nraise ValueError({word!r})")).place == f"{FILE}:4"


def test_a_limit_of_ours() -> None:
    """A bound on reading the message is told apart from a fault of the script."""
    one = job(script("mail.attachments"))
    small = Job(one.source, one.file, one.raw, one.envelope, Limits(message_bytes=10))
    found = run(small, Remembered())
    assert isinstance(found, Failure)
    assert found.kind == "LimitHit"


QUESTIONS = {
    "sender": ("mail.sender", "Untrusted('joerg@example.org')"),
    "recipient": ("mail.recipient", "Untrusted('page@example.com')"),
    "subject": ("mail.subject", "Untrusted('Gr\\xfc\\xdfe')"),
    "header": ("mail.header('subject')", "Untrusted('Gr\\xfc\\xdfe')"),
    "no-header": ("mail.header('x')", "Untrusted('')"),
    "headers": ("mail.headers('to')", "(Untrusted('page@example.com'),)"),
    "from": ("mail.from_[0].name", "Untrusted('J\\xf6rg')"),
    "from-address": ("mail.from_[0].address", "Untrusted('joerg@example.org')"),
    "from-parts": ("[mail.from_[0].local, mail.to[0].domain]", "[Untrusted('joerg'), Untrusted('example.com')]"),
    "cc": ("[mail.cc, mail.reply_to]", "[(), ()]"),
    "list-id": ("mail.list_id", "Untrusted('')"),
    "message-id": ("mail.message_id", "Untrusted('<1@example.org>')"),
    "in-reply-to": ("mail.in_reply_to", "(Untrusted('<0@example.com>'),)"),
    "kinds": ("mail.kinds", "frozenset()"),
    "malformed": ("mail.malformed", "False"),
    "size": ("mail.size", str(len(MESSAGE))),
    "text": ("mail.text", "Untrusted('hello\\nworld\\n')"),
    "html": ("mail.html", "Untrusted('')"),
    "attachments": ("mail.attachments", "()"),
    "bounce": ("mail.bounce", "None"),
    "itself": ("mail", f"Mail({len(MESSAGE)} bytes)"),
    "fullmatch": ("mail.sender.fullmatch('([a-z]+)@.*')[1]", "'joerg'"),
    "lookup": ("mail.sender.lookup({'joerg@example.org': 7})", "7"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions(name: str) -> None:
    """What a script asks of a message, it gets decoded, and Untrusted where it is the message's text."""
    question, want = QUESTIONS[name]
    assert planned(script(f"mail.reply(text=repr({question}))")).actions == (Reply(want),)


ATTACHED = b"""\
From: a@example.org
Content-Type: multipart/mixed; boundary=x

--x

text
--x
Content-Type: text/csv
Content-Disposition: attachment; filename="../a.csv"

1,2
--x--
"""


def test_attachments() -> None:
    """Names, type, size and text of an attachment."""
    body = "a, = mail.attachments\nmail.reply(text=repr((a.name, a.names, a.type, a.size, a.text)))"
    (reply,) = planned(script(body), raw=ATTACHED).actions
    assert isinstance(reply, Reply)
    name = "Untrusted('../a.csv')"
    assert reply.text == f"({name}, ({name},), Untrusted('text/csv'), 3, Untrusted('1,2'))"


def report(*fields: str) -> bytes:
    """Return a delivery report with these fields of one recipient."""
    lines = "\n".join(fields)
    return (
        "From: MAILER-DAEMON@example.org\nContent-Type: multipart/report; report-type=delivery-status; boundary=x\n\n"
        "--x\n\nIt did not work.\n--x\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example.org\n\n"
        f"{lines}\n\n--x--\n"
    ).encode()


HARD = "Final-Recipient: rfc822; bob@example.net"
BOUNCES = {
    "hard": ((HARD, "Action: failed", "Status: 5.1.1"), "('5.1.1', True)"),
    "long-status": ((HARD, "Action: failed", "Status: 5.7.26"), "('5.7.26', True)"),
    "status-with-text": ((HARD, "Action: Failed", "Status: 5.1.1 (no such user)"), "('5.1.1', True)"),
    "full": ((HARD, "Action: failed", "Status: 5.2.2"), "('5.2.2', False)"),
    "given-up": ((HARD, "Action: failed", "Status: 4.4.7"), "('4.4.7', False)"),
    "delayed": ((HARD, "Action: delayed", "Status: 4.4.1"), "('4.4.1', False)"),
    "delayed-with-five": ((HARD, "Action: delayed", "Status: 5.1.1"), "('4.1.1', False)"),
    "no-status": ((HARD, "Action: failed"), "('', False)"),
    "odd-status": ((HARD, "Action: failed", "Status: 5.1.1.1"), "('', False)"),
    "folded": (("Final-Recipient: rfc822;\n bob@example.net", "Action: failed", "Status: 5.0.0"), "('5.0.0', True)"),
    "original": (("Original-Recipient: rfc822;bob@example.net", "Action: failed", "Status: 5.0.0"), "('5.0.0', True)"),
    "second": ((HARD, "Action: delayed", "", HARD, "Action: failed", "Status: 5.1.1"), "('5.1.1', True)"),
    "delivered": ((HARD, "Action: delivered", "Status: 2.0.0"), None),
    "no-recipient": (("Action: failed", "Status: 5.1.1"), None),
    "no-fields": (("hello",), None),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNCES)
def test_bounces(name: str) -> None:
    """A delivery report says which address failed and whether for good; anything else is no bounce."""
    fields, want = BOUNCES[name]
    body = "b = mail.bounce\nmail.reply(text=repr(b and (b.status, b.hard)) + repr(b and b.recipient))"
    (reply,) = planned(script(body), raw=report(*fields)).actions
    assert isinstance(reply, Reply)
    assert reply.text == ("NoneNone" if want is None else f"{want}Untrusted('bob@example.net')")


@given(
    st.lists(st.sampled_from([HARD, "Action: failed", "Status: 5.1.1", "", " x", ":", "\x00", "Status:"]), max_size=8)
)
def test_any_report(fields: list[str]) -> None:
    """However broken a report is, asking for it does not fail."""
    planned(script("mail.bounce"), raw=report(*fields))


STORED = Remembered(
    values={"a": (False, "1"), "b@example.org": (True, '["u","x"]')},
    questions={"d" * 64: Question("publish", ("page", "x"), "ann@example.org", "page@example.com", b"\xff\0")},
)
STORE = {
    "value": ("store['a']", "1"),
    "marked": ("store['b@example.org']", "Untrusted('x')"),
    "by-untrusted": ("store[Untrusted('a')]", "1"),
    "get": ("[store.get('a'), store.get('z'), store.get('z', 2)]", "[1, None, 2]"),
    "in": ("['a' in store, 'z' in store]", "[True, False]"),
    "keys": ("store.keys()", "['a', Untrusted('b@example.org')]"),
    "keys-prefix": ("store.keys('b')", "[Untrusted('b@example.org')]"),
    "iterate": ("list(store)", "['a', Untrusted('b@example.org')]"),
    "own-change": ("[store.__setitem__('a', [2]), store['a'], store.keys('a')]", "[None, [2], ['a']]"),
    "question": (
        "__import__('typing').sys.modules['milterapp.script.context'].current().memory.question('d' * 64).raw",
        r"b'\xff\x00'",
    ),
    "no-question": (
        "__import__('typing').sys.modules['milterapp.script.context'].current().memory.question('')",
        "None",
    ),
    "own-forgetting": ("[store.__delitem__('a'), 'a' in store, store.keys('a')]", "[None, False, []]"),
}


@pytest.mark.parametrize("name", STORE)
@pytest.mark.parametrize("asked", [False, True], ids=["here", "asked"])
def test_store(name: str, asked: bool) -> None:
    """A script reads what is stored and what it has just stored, in this process or by asking."""
    expression, want = STORE[name]
    memory = Asked(partial(remembering.answer, STORED)) if asked else STORED
    (*_, reply) = planned(script(f"mail.reply(text=repr({expression}))"), memory).actions
    assert reply == Reply(want)


WRONG = {
    "empty": b"",
    "a table": b"{}",
    "nothing asked about": b'["value"]',
    "a number": b'["value",1]',
    "too much": b'["value","a","b"]',
    "state of a text": b'["state","a"]',
    "state of a number": b'["state",[1]]',
    "state of many": b'["state",["","","","","","","","","","",""]]',
    "another kind": b'["drop","a"]',
    "too long": b'["value","' + b"a" * 600 + b'"]',
    "surrogate": b'["value","\\ud800"]',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("question", WRONG.values(), ids=list(WRONG))
def test_questions_that_are_none(question: bytes) -> None:
    """The answering side takes three kinds of question and no other."""
    with pytest.raises(PlanError):
        remembering.answer(STORED, question)


OPENERS = """
    os os.path io sys socket subprocess ctypes multiprocessing threading asyncio shutil pathlib tempfile sqlite3 pty
    importlib pickle urllib.request http.client smtplib builtins signal resource mmap milterapp milterapp.mail
    milterapp.delivery.sandbox
"""


@pytest.mark.parametrize("name", OPENERS.split())
def test_imports_that_a_script_has_no_use_for(name: str) -> None:
    """What opens, starts or reaches things is not imported; the error says where the list is."""
    failure = failed(script(f"import {name}"))
    assert failure.kind == "ImportError"
    assert f"a script cannot import {name!r}" in failure.text
    assert failed(script("from . import x")).kind == "ImportError"


@pytest.mark.parametrize("name", sorted(one for one in MODULES if not one.endswith(".")))
def test_imports(name: str) -> None:
    """Every module of the list is there."""
    assert planned(script(f"import {name}")) == Plan()


def test_a_dataclass_works() -> None:
    """What looks for its own module finds it."""
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    assert planned(source + "def main(mail):\n    assert A(1).x == 1") == Plan()


@pytest.mark.parametrize("to", ["x@h", "go@h", "x-delete@h", "x-help@h", "a+b@h"])
@pytest.mark.parametrize("state", ["", "POSTING"])
def test_a_script_checked_before_does_the_same(to: str, state: str) -> None:
    """What is left out for a script known to have no problems changes nothing."""
    one, stored = job(BLOG, to=to), Remembered({(): state})
    assert run(replace(one, checked=True), stored) == run(one, stored)


def test_work_is_what_a_script_process_does() -> None:
    """As bytes, with the memory behind a question, it is the same plan."""
    one = job(script("store['a'] = store['a'] + 1\nmail.file('x')"))
    answer = partial(remembering.answer, STORED)
    assert decode(work(one)(answer)) == run(one, STORED) == Plan((Store("a", False, "2"), File(("x",))))
