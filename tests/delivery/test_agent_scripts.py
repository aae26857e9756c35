"""Rules that run scripts, carried out by a real agent with a real uid: what they become, and what a failure leaves."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import sandbox
from tests.delivery.agent_process import MESSAGE, UID, Person, Start, Submit

pytestmark = pytest.mark.root

RULES = "rules:\n  - name: page\n    then:\n      script: apps/page.py\n  - name: rest\n    then:\n      file: Rest\n"
HEAD = "from milterapp.script import *\n"
SCRIPT = ".milterapp/apps/page.py"
COUNTER = """
@route("{page}@{host}")
def START(mail, page, host):
    store["count"] = store.get("count", 0) + 1
    store[mail.sender] = mail.subject
    output[f"{page}.html"] = f"<p>{store['count']}</p>"
    mail.reply(text=f"{page} is open, {store['count']}")
    mail.file("Pages")
    return OPEN

@route("{page}@{host}")
def OPEN(mail, page, host):
    store["count"] = store["count"] + 1
    del output[f"{page}.html"]
    mail.send(to="carol@example.org", subject="Seen " + mail.subject, text=f"{store['count']}")
    mail.discard()
    return START
"""


def with_script(person: Person, body: str, rules: str = RULES) -> None:
    """Give the person rules that run a script."""
    person.write(rules)
    person.write(HEAD + body, SCRIPT)


def plain(*lines: str) -> str:
    """Return a plain script with these lines."""
    return "def main(mail):\n" + "".join(f"    {line}\n" for line in lines)


def memory(person: Person) -> dict[str, list[tuple[Any, ...]]]:
    """Return what is remembered."""
    with closing(sqlite3.connect(f"file:{person.home}/.milterapp/scripts.sqlite?mode=ro", uri=True)) as found:
        return {
            "states": found.execute("SELECT script, sender, per, state FROM states").fetchall(),
            "stored": found.execute("SELECT key, marked, value FROM stored ORDER BY key").fetchall(),
            "outputs": found.execute("SELECT * FROM outputs").fetchall(),
        }


def test_an_application_over_two_messages(person: Person, start: Start) -> None:
    """State, stored values, files, mail and the message itself: all is done, and the next message finds it."""
    with_script(person, COUNTER)
    submit = Submit()
    agent = start()
    result = agent.deliver(submit, queue_id="4A")
    assert (result.status, submit.kinds) == ("ok", ["REPLY"])
    assert submit.asked[0].fields == {
        "rule": "", "subject": "", "text": "info is open, 1", "step": "0", "script": "apps/page.py", "from": "",
    }  # fmt: skip
    assert len(person.mail("Maildir/.Pages")) == 1
    page = person.home / ".milterapp/output/apps/page/info.html"
    assert page.read_text() == "<p>1</p>"
    assert (page.stat().st_uid, stat.S_IMODE(page.stat().st_mode)) == (UID, 0o644)
    assert memory(person) == {
        "states": [("apps/page.py", "ann@example.org", "[]", "OPEN")],
        "stored": [("ann@example.org", 1, '["u","hello"]'), ("count", 0, "1")],
        "outputs": [],
    }
    assert result.event["scripts"] == ["apps/page.py OPEN"]
    again = agent.deliver(submit, queue_id="4B")
    assert (again.status, submit.kinds) == ("ok", ["REPLY", "SEND"])
    assert submit.asked[1].fields["to"] == "carol@example.org"
    assert (submit.asked[1].fields["subject"], submit.asked[1].fields["text"]) == ("Seen hello", "2")
    assert not page.exists()
    assert memory(person)["states"] == []  # START is where everybody begins
    assert memory(person)["stored"][1] == ("count", 0, "2")
    assert person.mail("Maildir/.Rest") == []


ACTIONS = {
    "nothing": (plain("pass"), "ok", [], ["Rest"]),
    "keep": (plain("mail.keep()"), "ok", ["KEEP"], []),
    "file": (plain("mail.file('A/B')"), "ok", [], ["A.B"]),
    "a copy": (plain("mail.file('A', copy=True)"), "ok", [], ["A", "Rest"]),
    "forward": (plain("mail.forward('carol@example.org')"), "ok", ["FORWARD"], []),
    "reject": (plain("mail.reject('5.1.1 No such page')"), "reject", [], []),
    "defer": (plain("mail.defer('4.3.0 Later')"), "defer", [], []),
    "discard": (plain("mail.discard()"), "ok", [], []),
    "no route": ("@route('other@{host}')\ndef START(mail, host): mail.discard()\n", "ok", [], ["Rest"]),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_actions(person: Person, start: Start, name: str) -> None:
    """What a script asks for becomes of the message as if rules had."""
    script, status, kinds, folders = ACTIONS[name]
    with_script(person, script)
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.kinds) == (status, kinds), result
    maildir = person.home / "Maildir"
    found = [path.name[1:] for path in sorted(maildir.iterdir()) if path.name[0] == "."] if maildir.exists() else []
    assert found == folders
    if status == "reject":
        assert result.text == "5.1.1 No such page"


def test_edits(person: Person, start: Start) -> None:
    """Edits of a script stand in what is delivered."""
    with_script(person, plain("mail.add_header('X-Page', mail.subject)", "mail.file('A')"))
    assert start().deliver(Submit()).status == "ok"
    assert b"\nX-Page: hello\n\nhi\n" in person.mail("Maildir/.A")[0]


def test_a_retry_runs_nothing_and_repeats_nothing(person: Person, start: Start) -> None:
    """What was decided stands: the script is not run again, though its delivery was not done the first time."""
    with_script(person, COUNTER)
    failing = Submit({"REPLY": ("FAILED", "Postfix is away")})
    agent = start()
    first = agent.deliver(failing)
    assert (first.status, first.text) == ("defer", "reply: Postfix is away")
    assert memory(person)["stored"][1] == ("count", 0, "1")
    person.write("def main(mail): mail.discard()\n", SCRIPT)
    submit = Submit()
    result = agent.deliver(submit)
    assert (result.status, result.event["retry"], submit.kinds) == ("ok", True, ["REPLY"])
    assert memory(person)["stored"][1] == ("count", 0, "1")
    assert len(person.mail("Maildir/.Pages")) == 1


def test_a_crash_before_the_journal_knew(person: Person, start: Start) -> None:
    """Where changes were made and the journal does not have the decision, a retry takes it from beside the changes."""
    with_script(person, COUNTER)
    agent = start()
    result = agent.deliver(Submit())
    assert result.status == "ok", result
    with closing(sqlite3.connect(person.home / ".milterapp/journal.sqlite", isolation_level=None)) as journal:
        journal.execute("DELETE FROM prepared")
        journal.execute("DELETE FROM done")
    (filed,) = (person.home / "Maildir/.Pages/new").iterdir()
    filed.rename(filed.with_name("1" + filed.name[1:].replace(filed.name[1:10], "000000000", 1)))  # long ago
    result = start().deliver(Submit())
    assert (result.status, result.event["retry"]) == ("ok", True)
    assert memory(person)["stored"][1] == ("count", 0, "1")
    assert len(person.mail("Maildir/.Pages")) == 1


def test_records_are_let_go_once_the_journal_has_them(person: Person, start: Start) -> None:
    """What stands beside the changes for a crash takes no room for long; the last one stays."""
    with_script(person, plain("store['a'] = 1", "mail.file('A')"))
    agent = start()
    for number in range(22):
        assert agent.deliver(Submit(), queue_id=f"4{number:02}").status == "ok"
    with closing(sqlite3.connect(f"file:{person.home}/.milterapp/scripts.sqlite?mode=ro", uri=True)) as found:
        kept = found.execute("SELECT COUNT(*), SUM(record != '') FROM committed").fetchone()
    assert kept == (22, 2)


FAILS = {
    "raises": (plain("store['a'] = 1", "raise ValueError('no')"), "ValueError: no"),
    "taint": (plain("mail.forward(mail.sender)"), "Ways out: value.fullmatch(PATTERN)"),
    "no Python": ("def main(mail)\n", "no Python: expected ':'"),
    "a problem": ("def main(): ...\n", "main takes one argument"),
    "an endless loop": (plain("while True: pass"), "time: the script took more than"),
    "its process leaves": (plain("__import__('typing').sys.modules['os']._exit(0)"), "crashed: the script process"),
    "a long reply": (plain("mail.reply(text='x' * 50_000)"), "reply: a text of more than 40960 bytes"),
    "a file and a folder": (plain("output['a'] = ''", "output['a/b'] = ''"), "'a' as a file and as a folder"),
    "a lost state": (COUNTER.replace("OPEN", "SHUT"), "the sender is in the state OPEN"),
}


@pytest.mark.parametrize("name", FAILS)
def test_a_script_that_fails(person: Person, start: Start, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It leaves nothing behind, the message waits, and its author is told once, with what to run to see it again."""
    body, said = FAILS[name]
    if name == "an endless loop":  # a second for the script, and the whole deadline for all else
        monkeypatch.setattr(sandbox, "Bounds", partial(sandbox.Bounds, wall=1.0))
    agent = start()
    if name == "a lost state":
        with_script(person, COUNTER)
        assert agent.deliver(Submit(), queue_id="40").status == "ok"
    with_script(person, body)
    submit = Submit()
    result = agent.deliver(submit)
    assert result.status == "defer", result
    assert "apps/page.py" in result.text
    assert submit.kinds == ["NOTICE"]
    assert submit.asked[0].fields["subject"] == "Your script apps/page.py failed"
    text = submit.asked[0].fields["text"]
    assert said in text
    command = text.splitlines()[-1].strip()
    assert command.startswith("milterapp test --sender=ann@example.org --recipient=bob@x.org < ~/.milterapp/failed/")
    saved = person.home / command.partition("~/")[2]
    assert saved.read_bytes().endswith(MESSAGE.partition(b"\n")[2])
    for queue_id in ("4A", "4B"):  # tried again, and another message with the same failure
        assert agent.deliver(submit, queue_id=queue_id).status == "defer"
    assert submit.kinds == ["NOTICE"]
    assert all(one[0] != "a" for one in memory(person)["stored"])
    assert not (person.home / "Maildir/.Rest").exists()


def test_lists_of_the_site(person: Person, start: Start) -> None:
    """A script asks the site's lists as they stand now, also where its process stays from one message to the next."""
    rules = Path(tempfile.mkdtemp(prefix="site-", dir="/etc"))
    try:
        rules.chmod(0o755)
        site = rules / "before.yaml"
        entries = "lists:\n  partners: [{}]\nrules:\n  - name: none\n    if: {{subject: never}}\n    then: stop\n"
        with_script(person, plain("if mail.sender in site['partners']:", "    mail.file('Partners')"))
        agent = start(rules_before=str(site))
        for number, (entry, folder) in enumerate((("x@y.example", "Rest"), (".example.org", "Partners")) * 2):
            site.write_text(entries.format(entry) + "# " + "x" * 2 * number)  # never of one size
            result = agent.deliver(Submit(), queue_id=f"4A{number}")
            assert (result.status, result.event["deliveries"][0]["folder"]) == ("ok", folder)
    finally:
        shutil.rmtree(rules)


SORRY = """
@route("{page}@{host}")
def START(mail, page, host):
    store["count"] = 1
    mail.file("Pages")
    raise ValueError("no")

@route("{page}@{host}")
def ERROR(mail, page, host):
    mail.reply(text="Sorry")
    mail.discard()
    if "again" in mail.subject:
        return START
"""


def test_error_answers_in_the_place_of_what_failed(person: Person, start: Start) -> None:
    """Nothing of the function that raised is done, its author is told once, and what ERROR asks for is done once."""
    with_script(person, SORRY)
    submit = Submit()
    agent = start()
    for queue_id in ("4A", "4A", "4B"):  # a retry, and another message of the same sender
        result = agent.deliver(submit, queue_id=queue_id)
        assert (result.status, result.event["verdict"]) == ("ok", "discard")
    assert submit.kinds == ["NOTICE", "REPLY", "REPLY"]
    letter = submit.asked[0].fields["text"]
    assert "Its function ERROR answered then. You are told of this failure once." in letter
    assert "ValueError: no" in letter
    assert memory(person) == {
        "states": [("apps/page.py", "ann@example.org", "[]", "ERROR")], "stored": [], "outputs": [],
    }  # fmt: skip
    assert not (person.home / "Maildir").exists()
    agent.deliver(submit, MESSAGE.replace(b"hello", b"again"), queue_id="4C")
    assert memory(person)["states"] == []
    agent.deliver(submit, queue_id="4D")  # failed anew, as before: no news
    assert submit.kinds == ["NOTICE", *["REPLY"] * 4]


def test_an_error_that_fails_as_well_leaves_nothing_behind(person: Person, start: Start) -> None:
    """Where ERROR raises too, the message waits as if there were none, and the one letter tells of both."""
    with_script(person, SORRY.replace("    mail.discard()\n", "    mail.discard()\n    1 / 0\n"))
    submit = Submit()
    agent = start()
    assert [agent.deliver(submit, queue_id=one).status for one in ("4A", "4A")] == ["defer", "defer"]
    assert submit.kinds == ["NOTICE"]
    letter = submit.asked[0].fields["text"]
    assert "The message waits, and is tried again." in letter
    assert letter.index("ValueError: no") < letter.index("ZeroDivisionError")
    assert memory(person)["states"] == []


def test_a_limit_of_ours_is_no_fault_of_the_script(person: Person, start: Start) -> None:
    """Where the message cannot be read within the site's limits it waits, and its author has nothing to mend."""
    with_script(person, plain("mail.text", "mail.discard()"))
    submit = Submit()
    result = start(limits={"decoded_bytes": 1}).deliver(submit)
    assert (result.status, submit.kinds) == ("defer", [])
    assert "LimitHit" in result.text


def test_a_long_failure_is_cut_in_the_middle(person: Person, start: Start) -> None:
    """However much a script says when it fails, the letter holds its beginning and the command."""
    with_script(person, plain("raise ValueError('\u00e9' * 100_000)"))
    submit = Submit()
    assert start().deliver(submit).status == "defer"
    text = submit.asked[0].fields["text"]
    assert len(text.encode()) < 40_000
    assert text.startswith("The script apps/page.py failed")
    assert "milterapp test --sender=" in text.splitlines()[-1]


def test_another_failure_is_told_too(person: Person, start: Start) -> None:
    """A changed script that fails is news; and so is the first failure where the notice could not be sent."""
    with_script(person, plain("raise ValueError('no')"))
    agent = start()
    assert agent.deliver(Submit({"NOTICE": ("FAILED", "away")})).status == "defer"
    submit = Submit()
    assert agent.deliver(submit).status == "defer"
    with_script(person, plain("", "raise ValueError('no')"))
    assert agent.deliver(submit).status == "defer"
    assert submit.kinds == ["NOTICE", "NOTICE"]


CHOSEN = """
PAGES = {"a": 1}
@stateless
@route("{page}@{host}")
def START(mail, page, host):
    if page == "odd": mail.file(int(page))
    raise KeyError(PAGES[page], page) if page in PAGES else ValueError(page + "\\n  File x, line " + page)
"""


def test_senders_do_not_choose_how_often_a_failure_is_told(person: Person, start: Start) -> None:
    """What an exception says is the message's own words: one at one line is one failure. Another kind, or line, is new.

    Of another version of the script all is told again.
    """
    with_script(person, CHOSEN)
    agent, submit = start(), Submit()
    told = []
    for number, page in enumerate(("p0", "p1", "p2", "a", "p3", "odd", "a")):
        assert agent.deliver(submit, queue_id=f"4{number}", original=f"{page}@x.org").status == "defer"
        told.append(len(submit.asked))
    assert told == [1, 1, 1, 2, 2, 3, 3]
    with_script(person, CHOSEN + "\n")
    agent.deliver(submit, queue_id="4Z", original="p4@x.org")
    assert submit.kinds == ["NOTICE"] * 4


def test_an_error_that_fails_later_is_told_too(person: Person, start: Start) -> None:
    """Who knows that a function failed, and that ERROR answered, is told when ERROR fails as well."""
    with_script(person, SORRY.replace("mail.discard()", "mail.discard() if 'hello' in mail.subject else 1 / 0"))
    agent, submit = start(), Submit()
    for queue_id, subject in (("4A", b"hello"), ("4B", b"bye"), ("4C", b"hello"), ("4D", b"bye")):
        agent.deliver(submit, MESSAGE.replace(b"hello", subject), queue_id=queue_id, sender=f"{queue_id}@example.org")
    letters = [one.fields["text"] for one in submit.asked if one.kind == "NOTICE"]
    assert ["ZeroDivisionError" in one for one in letters] == [False, True]


@pytest.mark.parametrize("keep", ["maildir", "postfix"])
def test_two_scripts_that_fail_with_one_message(person: Person, start: Start, keep: str) -> None:
    """Their author is told of each, once."""
    body = SORRY.replace("    mail.discard()\n", "")
    with_script(
        person, body, f"{RULES}  - name: b\n    then:\n      script: apps/b.py\n".replace("file: Rest", "tag: x")
    )
    person.write(HEAD + body, ".milterapp/apps/b.py")
    submit, agent = Submit(), start(keep=keep)
    for queue_id in ("4A", "4A", "4B"):
        agent.deliver(submit, queue_id=queue_id)
    subjects = [one.partition(b"Subject: ")[2].partition(b"\n")[0].decode() for one in person.mail()]
    subjects += [one.fields["subject"] for one in submit.asked if one.kind == "NOTICE"]
    assert sorted(subject for subject in subjects if "failed" in subject) == [
        "Your script apps/b.py failed", "Your script apps/page.py failed",
    ]  # fmt: skip


def test_the_notice_in_a_maildir(person: Person, start: Start) -> None:
    """Where the site keeps mail in the Maildir, the notice lies there."""
    with_script(person, plain("raise ValueError('no')"))
    submit = Submit()
    assert start(keep="maildir").deliver(submit).status == "defer"
    (notice,) = person.mail("Maildir")
    assert submit.kinds == []
    assert b"Auto-Submitted: auto-generated\n" in notice
    assert b"ValueError: no" in notice


def test_a_site_that_keeps_what_rules_cannot_tell(person: Person, start: Start) -> None:
    """With broken_rules: keep the message is kept, and the author told."""
    with_script(person, plain("raise ValueError('no')"))
    submit = Submit()
    assert start(broken_rules="keep").deliver(submit).status == "ok"
    assert sorted(submit.kinds) == ["KEEP", "NOTICE"]


def test_below_the_floor_no_script_runs(person: Person, start: Start) -> None:
    """Where this machine enforces less than the site wants, the mail is kept, and the log says why."""
    from milterapp.delivery import sandbox_level

    with_script(person, plain("mail.discard()"))
    submit = Submit()
    low = sandbox_level.level_of(0, has_seccomp=True)
    real = sandbox.probe
    try:
        sandbox.probe = lambda: low  # type: ignore[assignment]  # for the agent that is forked now
        result = start().deliver(submit)
    finally:
        sandbox.probe = real
    assert (result.status, submit.kinds) == ("ok", ["KEEP"])
    assert "below the site's floor (good)" in result.event["could_not_tell"]


def _linked(path: Path) -> None:
    path.rename(path.parent / "x")
    path.symlink_to("x")


def _given_away(path: Path) -> None:
    os.chown(path, UID + 1, UID)
    path.chmod(0o644)


UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (_linked, "Too many levels"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "foreign": (_given_away, "belongs to another user"),
    "writable": (lambda path: path.chmod(0o666), "can be written by others"),
    "a hard link": (lambda path: os.link(path, path.parent / "y"), "has a second name"),
    "its folder writable": (lambda path: path.parent.chmod(0o777), "can be written by others"),
    "its folder a link": (lambda path: _linked(path.parent), "Not a directory"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_script_that_others_could_have_written(person: Person, start: Start, name: str) -> None:
    """It is checked as rule files are: such a one makes the rules unusable, with the place where they name it."""
    change, why = UNSAFE[name]
    with_script(person, plain("mail.discard()"))
    change(person.home / SCRIPT)
    result = start().deliver(Submit())
    assert result.status == "defer"
    assert "~/.milterapp/rules.yaml:4:15: the script 'apps/page.py' cannot be read" in result.text
    assert why in result.text


def test_a_changed_script_is_read_again(person: Person, start: Start) -> None:
    """An agent that stays warm takes the new script with the next message."""
    with_script(person, plain("mail.file('A')"))
    agent = start()
    assert agent.deliver(Submit(), queue_id="4A").status == "ok"
    person.write(plain("mail.file('B')"), SCRIPT)
    assert agent.deliver(Submit(), queue_id="4B").status == "ok"
    assert (len(person.mail("Maildir/.A")), len(person.mail("Maildir/.B"))) == (1, 1)


ASKS = """
import typing
context = typing.sys.modules["milterapp.script.context"]
actions = typing.sys.modules["milterapp.script.actions"]
run = typing.sys.modules["milterapp.script.plan"]

@route("page@{host}")
def START(mail, host):
    context.current().add(actions.Ask("d" * 64, "publish", ("host", host)))
    mail.reply(text="Really?", sender="bob+d@x.org")
    mail.discard()

@stateless
@route("bob+d@{host}")
def answer(mail, host):
    found = context.current().memory.question("d" * 64)
    if found is None:
        return mail.reject("5.1.1 Nobody asked")
    context.current().add(actions.Answered("d" * 64))
    mail.add_header("X-Asked", found.then + " " + found.captures[1])
    mail.file("Published")
    context.current().about = "d" * 64
"""


def test_a_question_and_its_answer(person: Person, start: Start) -> None:
    """The message that was asked about is kept, once, and what becomes of it is decided with the answer."""
    with_script(person, ASKS)
    agent, submit = start(), Submit()
    first = MESSAGE.replace(b"hi", b"the original \xff\0")
    assert agent.deliver(submit, first, queue_id="4A", original="page@x.org").status == "ok"
    assert (submit.kinds, submit.asked[0].fields["from"]) == (["REPLY"], "bob+d@x.org")
    answered = agent.deliver(submit, queue_id="4B", original="bob+d@x.org")
    assert answered.status == "ok", answered
    (published,) = person.mail("Maildir/.Published")
    assert published.endswith(b"\nX-Asked: publish x.org\n\nthe original \xff\0\n")
    assert b"X-Original-To: bob+d@x.org\n" in published
    again = agent.deliver(submit, queue_id="4C", original="bob+d@x.org")
    assert (again.status, again.text) == ("reject", "5.1.1 Nobody asked")


def test_a_message_too_long_to_be_kept(person: Person, start: Start) -> None:
    """A question about it cannot be asked, and its author is told."""
    with_script(person, ASKS)
    submit = Submit()
    assert start().deliver(submit, MESSAGE + b"x" * (1 << 20), original="page@x.org").status == "defer"
    assert "ask: the message is longer than 1048576 bytes" in submit.asked[0].fields["text"]


def test_nothing_of_one_message_is_left_for_the_next(person: Person, start: Start) -> None:
    """One process may do both, but the script is loaded anew: what it kept in its own names is gone."""
    with_script(person, "SEEN = []\n" + plain("SEEN.append(1)", "mail.file('A')", "store['seen'] = len(SEEN)"))
    agent = start()
    for number in range(3):
        assert agent.deliver(Submit(), queue_id=f"4{number}").status == "ok"
    assert memory(person)["stored"] == [("seen", 0, "1")]


ONCE = "os = __import__('typing').sys.modules['os']"
LEFT = {
    "leaves": "os._exit(0) if hasattr(os, 'was') else setattr(os, 'was', 1)",
    "raises": "1 / (not hasattr(os, 'was')) and setattr(os, 'was', 1)",
    "speaks": "os.write(3, b'x') if hasattr(os, 'was') else setattr(os, 'was', 1)",
}


@pytest.mark.parametrize("name", LEFT)
def test_no_message_fails_for_what_another_left(person: Person, start: Start, name: str) -> None:
    """A failure in a process that did another message is tried again in one of its own; only that counts."""
    with_script(person, plain(ONCE, LEFT[name], "mail.file('A')"))
    agent = start()
    submit = Submit()
    assert [agent.deliver(submit, queue_id=f"4{number}").status for number in range(4)] == ["ok"] * 4
    assert submit.kinds == []
    assert len(person.mail("Maildir/.A")) == 4


def test_a_large_message_has_a_process_of_its_own(person: Person, start: Start) -> None:
    """It is not sent through a pipe; what becomes of it is the same."""
    with_script(person, plain("mail.file('A')", "store['size'] = mail.size"))
    big = MESSAGE + b"x" * 2_000_000
    assert start().deliver(Submit(), big).status == "ok"
    assert memory(person)["stored"] == [("size", 0, str(len(big)))]


READS = {
    "beside": ("words.txt", True),
    "the rules": ("rules.yaml", True),
    "the journal": ("journal.sqlite", False),
    "its memory": ("scripts.sqlite", False),
    "hidden": (".secret", False),
    "a folder beside": ("apps/page.py", False),
    "the mailbox": ("../Maildir/.A/new", False),
}


@pytest.mark.parametrize("name", READS)
def test_what_a_script_beside_the_rules_can_read(person: Person, start: Start, name: str) -> None:
    """Plain files beside it, and nothing of what is remembered there."""
    path, readable = READS[name]
    person.write(RULES.replace("apps/page.py", "page.py"))
    for other in ("words.txt", ".secret", "apps/page.py"):
        person.write("text", f".milterapp/{other}")
    person.write(plain("mail.file('A')"), ".milterapp/page.py")
    agent = start()
    assert agent.deliver(Submit(), queue_id="4A").status == "ok"
    if name == "its memory":
        with_script(person, plain("store['a'] = 1"))
        assert agent.deliver(Submit(), queue_id="40").status == "ok"
        person.write(RULES.replace("apps/page.py", "page.py"))
    body = plain(
        "os = __import__('typing').sys.modules['os']",
        f"os.close(os.open({path!r}, os.O_RDONLY))",
        "mail.file('B')",
    )
    person.write(body, ".milterapp/page.py")
    result = agent.deliver(Submit(), queue_id="4B")
    assert (result.status == "ok") is readable, result
    assert readable or "PermissionError" in result.text


def test_messages_a_day(person: Person, start: Start) -> None:
    """A user's scripts cause no more mails in a day than the site allows; what is over it waits, changing nothing."""
    with_script(person, plain("store['n'] = store.get('n', 0) + 1", "mail.reply(text='a')", "mail.discard()"))
    agent = start(script_messages=2)
    submit = Submit()
    statuses = [agent.deliver(submit, queue_id=f"4{n}").status for n in range(3)]
    assert statuses == ["ok", "ok", "defer"]
    assert submit.kinds == ["REPLY", "REPLY"]
    assert memory(person)["stored"] == [("n", 0, "2")]


def test_recipients_a_message(person: Person, start: Start) -> None:
    """A script that sends to more than the site allows has failed."""
    with_script(person, plain("mail.send(to=['a@b.example', 'c@d.example'], subject='', text='')"))
    submit = Submit()
    result = start(script_recipients=1).deliver(submit)
    assert (result.status, submit.kinds) == ("defer", ["NOTICE"])
    assert "more than 1 recipients" in submit.asked[0].fields["text"]


def test_a_full_disk_leaves_the_files_for_the_next_try(person: Person, start: Start) -> None:
    """Files that cannot be written now wait with the message, and are written first, in their order."""
    with_script(person, COUNTER)
    place = person.home / ".milterapp/output"
    place.mkdir(mode=0o500)
    os.chown(place, UID, UID)
    agent = start()
    assert agent.deliver(Submit(), queue_id="4A").status == "defer"
    assert len(memory(person)["outputs"]) == 1
    place.chmod(0o700)
    assert agent.deliver(Submit(), queue_id="4A").status == "ok"
    assert (place / "apps/page/info.html").read_text() == "<p>1</p>"
    assert memory(person)["outputs"] == []


def test_an_output_folder_that_is_a_link(person: Person, start: Start) -> None:
    """No link is followed: what the file would be is said in the log, and the rest is done."""
    with_script(person, plain("output['a.html'] = 'x'", "mail.file('A')"))
    (person.base / "elsewhere").mkdir()
    os.chown(person.base / "elsewhere", UID, UID)
    (person.home / ".milterapp/output").symlink_to(person.base / "elsewhere")
    result = start().deliver(Submit())
    assert result.status == "ok"
    assert result.event["outputs"] == ["apps/page/a.html: Not a directory"]
    assert os.listdir(person.base / "elsewhere") == []


def test_one_message_at_a_time(person: Person, start: Start) -> None:
    """While another process handles a message of this user's scripts, the next one waits, and then is deferred."""
    import fcntl

    with_script(person, plain("mail.file('A')"))
    agent = start(deadline=20.0)  # it waits a third of that, and a script may take as long
    assert agent.deliver(Submit(), queue_id="4A").status == "ok"
    with (person.home / ".milterapp/scripts.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = agent.deliver(Submit(), queue_id="4B")
        assert (result.status, "still being handled" in result.text) == ("defer", True)
    assert agent.deliver(Submit(), queue_id="4B").status == "ok"
