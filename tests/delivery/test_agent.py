"""The agent with a real uid: what each Decision becomes, what a retry repeats, and that every fault defers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from milterapp.delivery import wire
from tests.delivery.agent_process import JOB, MESSAGE, UID, AgentProcess, Person, Start, Submit

pytestmark = pytest.mark.root

FILE = "rules:\n  - name: lists\n    then:\n      file: Lists/Python\n"
FORWARD = "rules:\n  - name: on\n    then:\n      forward: carol@example.org\n"
COPY = "rules:\n  - name: on\n    then:\n      forward: {to: carol@example.org, copy: true}\n"
REPLY = "rules:\n  - name: away\n    then:\n      reply: I am away.\n"
REJECT = "rules:\n  - name: no\n    then:\n      reject: 5.7.1 I do not read advertisements\n"
DISCARD = "rules:\n  - name: no\n    then: discard\n"
DEFER = "rules:\n  - name: later\n    then: defer\n"
EDIT = "rules:\n  - name: mark\n    then:\n      - add_header: {X-Mark: seen}\n"
LOG = "rules:\n  - name: note\n    then:\n      log: of ${subject}\n"
STAMPED = MESSAGE.replace(b"From:", b"X-Original-To: info@x.org\nDelivered-To: bob@x.org\nFrom:", 1)


def test_without_rules_the_mail_is_kept(person: Person, start: Start) -> None:
    """A user without rules gets the mail handed back as it came, and nothing is left in the home."""
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.kinds, submit.asked[0].message) == ("ok", ["KEEP"], None)
    assert os.listdir(person.home) == []


def test_an_account_without_a_home_keeps(start: Start) -> None:
    """An account whose home is /nonexistent has no rules."""
    submit = Submit()
    assert start(home="/nonexistent").deliver(submit).status == "ok"
    assert submit.kinds == ["KEEP"]


def in_its_place(home: Path, make: Callable[[Path], object]) -> None:
    """Put something else where a home was."""
    home.rename(f"{home}.away")
    make(home)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda home: os.rename(home, str(home) + ".away"), "No such file", id="missing"),
        pytest.param(lambda home: os.chown(home, UID + 1, UID), "another user", id="foreign"),
        pytest.param(lambda home: os.chmod(home, 0o1700), "sticky", id="sticky"),
        pytest.param(lambda home: os.chmod(home, 0), "Permission denied", id="closed"),
        pytest.param(lambda home: in_its_place(home, os.mkfifo), "Not a directory", id="a FIFO"),
        pytest.param(lambda home: in_its_place(home, Path.touch), "Not a directory", id="a file"),
        pytest.param(lambda home: in_its_place(home, lambda at: at.symlink_to("no")), "No such file", id="a dead link"),
    ],
)
def test_a_home_that_cannot_be_used_defers(
    person: Person, start: Start, change: Callable[[Path], None], why: str
) -> None:
    """A home that is missing, foreign, sticky, closed or no folder defers the mail; nothing is asked of submit."""
    person.write(FILE)
    os.chmod(person.home, 0o755)
    change(person.home)
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.asked) == ("defer", [])
    assert why in result.text


def test_file(person: Person, start: Start) -> None:
    """`file` puts the message with its trace fields into the folder, as the user, and nothing else happens."""
    person.write(FILE)
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.asked) == ("ok", [])
    assert person.mail("Maildir/.Lists.Python") == [STAMPED]
    assert {path.stat().st_uid for path in person.home.rglob("*")} == {UID}
    assert result.event["rules"] == ["lists"]
    assert result.event["deliveries"] == [{"action": "file", "folder": "Lists/Python", "copy": False}]
    assert (person.home / ".milterapp/journal.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("subject", "logged"),
    [
        pytest.param("hello", "of hello", id="plain"),
        pytest.param("a\n b\x1b[1m", "of a b", id="control characters"),
        pytest.param("x" * 5000, "of " + "x" * 197, id="long"),
    ],
)
def test_log(person: Person, start: Start, subject: str, logged: str) -> None:
    """What a rule logs stands in the event, one bounded line of it, whatever the message puts there."""
    person.write(LOG)
    result = start().deliver(Submit(), f"Subject: {subject}\n\nhello\n".encode())
    assert result.status == "ok"
    (line,) = result.event["log"]
    assert line.startswith(logged)
    assert line.isprintable()
    assert len(line) <= 200


def test_flag(person: Person, start: Start) -> None:
    """`flag` beside `file` makes the message flagged in its folder; a retry whose mark was lost files no second one."""
    person.write("rules:\n  - name: it\n    then:\n      - file: A\n      - flag: [seen, flagged]\n")
    submit = Submit()
    agent = start()
    result = agent.deliver(submit)
    assert (result.status, submit.asked) == ("ok", [])
    assert result.event["deliveries"][0]["flags"] == ["flagged", "seen"]
    _forget_marks(person)
    assert agent.deliver(submit).status == "ok"
    (path,) = (person.home / "Maildir/.A/cur").iterdir()
    assert path.name.endswith(".milterapp:2,FS")
    assert path.read_bytes() == STAMPED
    assert list((person.home / "Maildir/.A/new").iterdir()) == []


def test_flag_beside_keep(person: Person, start: Start) -> None:
    """With `keep: maildir` a kept message carries flags; where Postfix keeps it, the rules are refused."""
    person.write("rules:\n  - name: it\n    then:\n      - flag: seen\n      - keep\n")
    agent = start(keep="maildir")
    result = agent.deliver(Submit())
    assert (result.status, result.event["deliveries"]) == (
        "ok",
        [{"action": "keep", "implicit": False, "flags": ["seen"]}],
    )
    _forget_marks(person)
    assert agent.deliver(Submit()).status == "ok"
    (path,) = (person.home / "Maildir/cur").iterdir()
    assert path.name.endswith(".milterapp:2,S")
    submit = Submit()
    result = start().deliver(submit, queue_id="4B")
    assert (result.status, submit.kinds) == ("defer", ["NOTICE"])
    assert "rules.yaml:4:9: `flag` beside `keep`" in result.text


NOT_MADE = "rules:\n  - name: it\n    then:\n      file: {folder: Lists/Python, create: false}\n"


def test_a_folder_that_is_not_to_be_made(person: Person, start: Start) -> None:
    """With `create: false` a missing folder is not made and the message is kept, once; one that is there is used."""
    person.write(NOT_MADE)
    submit, agent = Submit(), start()
    result = agent.deliver(submit)
    assert (result.status, submit.kinds) == ("ok", ["KEEP"])
    assert result.event["outcomes"]["0"] == "refused there is no folder Lists.Python"
    assert not (person.home / "Maildir/.Lists.Python").exists()
    start().deliver(Submit(), MESSAGE, queue_id="4B")
    person.write(FILE)
    agent.deliver(submit, queue_id="4C")
    assert len(person.mail("Maildir/.Lists.Python")) == 1
    assert agent.deliver(submit).status == "ok"  # a retry looks for no folder
    assert (submit.kinds, len(person.mail("Maildir/.Lists.Python"))) == (["KEEP"], 1)
    person.write(NOT_MADE)
    agent.deliver(submit, queue_id="4D")
    assert (submit.kinds, len(person.mail("Maildir/.Lists.Python"))) == (["KEEP"], 2)


def test_a_copy_into_a_folder_that_is_not_there(person: Person, start: Start) -> None:
    """A copy for which there is no folder is none; the message is kept once."""
    person.write(NOT_MADE.replace("false}", "false, copy: true}"))
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    assert submit.kinds == ["KEEP"]


def test_vacation(person: Person, start: Start) -> None:
    """`vacation` asks submit for one reply with all that the rule says, once the message is kept."""
    person.write(
        "rules:\n  - name: away\n    then:\n      vacation: {text: Away, days: 3, from: info@x.org, handle: h,"
        " addresses: [x@a.example, y@a.example]}\n"
        "  - name: more\n    then:\n      vacation: Gone\n"
    )
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.kinds) == ("ok", ["KEEP", "REPLY"])
    assert submit.asked[1].fields == {
        "rule": "away", "subject": "", "text": "Away", "step": "0", "days": "3", "handle": "h", "from": "info@x.org",
        "addresses": "x@a.example\ny@a.example",
    }  # fmt: skip
    assert result.event["outcomes"]["1"] == "refused another vacation answers this message"


def test_no_vacation_with_a_reject(person: Person, start: Start) -> None:
    """A message that another rule rejects is not answered as well."""
    person.write("rules:\n  - name: away\n    then:\n      vacation: Away\n" + REJECT.partition("rules:\n")[2])
    submit = Submit()
    assert start().deliver(submit).status == "reject"
    assert submit.asked == []


FORGED = b"Authentication-Results: mx.x.org; spf=fail smtp.mailfrom=ann@example.org\n" + MESSAGE


def test_a_refusal_of_what_was_forged_is_a_keep(person: Person, start: Start) -> None:
    """Where the sender is likely forged, a reject is no notice: the message is kept, once, and the event says why."""
    copied = "rules:\n  - name: all\n    then:\n      - file: {folder: All, copy: true}\n      - vacation: Away\n"
    person.write(copied + REJECT.partition("rules:\n")[2])
    submit, agent = Submit(), start(authserv_ids=("mx.x.org",))
    results = [agent.deliver(submit, FORGED) for _ in range(2)]
    assert [one.status for one in results] == ["ok", "ok"]
    assert (submit.kinds, len(person.mail("Maildir/.All"))) == (["KEEP"], 1)
    assert results[0].event["log"] == [
        "kept, not rejected (5.7.1 I do not read advertisements): the envelope sender is likely forged (spf=fail)"
    ]
    assert agent.deliver(Submit(), MESSAGE, queue_id="4B").status == "reject"
    assert start(authserv_ids=("mx.x.org",), reject="always").deliver(submit, FORGED, queue_id="4C").status == "reject"


def test_no_log_without_one(person: Person, start: Start) -> None:
    """Rules that log nothing leave no such word in the event."""
    person.write(FILE)
    assert "log" not in start().deliver(Submit()).event


def test_an_implicit_keep(person: Person, start: Start) -> None:
    """Rules that say nothing about the message keep it."""
    person.write(FILE.replace("    then", "    if:\n      subject: other\n    then"))
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    assert submit.kinds == ["KEEP"]


def test_forward(person: Person, start: Start) -> None:
    """`forward` asks submit for it and is no keep; the step names the delivery."""
    person.write(FORWARD)
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    assert [(one.kind, one.fields) for one in submit.asked] == [("FORWARD", {"to": "carol@example.org", "step": "0"})]


@pytest.mark.parametrize(
    ("rules", "kinds"),
    [
        pytest.param(FORWARD, ["FORWARD", "KEEP"], id="a forward becomes a keep"),
        pytest.param(COPY, ["FORWARD", "KEEP"], id="beside a copy the keep was there"),
        pytest.param(REPLY, ["KEEP", "REPLY"], id="a reply"),
    ],
)
def test_what_submit_refuses_loses_nothing(person: Person, start: Start, rules: str, kinds: list[str]) -> None:
    """A forward refused by policy is kept instead, a refused reply is none; either way the mail is delivered, once."""
    person.write(rules)
    submit = Submit({"FORWARD": ("REFUSED", "mail forwarding loop"), "REPLY": ("REFUSED", "a list")})
    agent = start()
    result = agent.deliver(submit)
    assert (result.status, submit.kinds) == ("ok", kinds)
    assert "refused" in str(result.event["outcomes"])
    assert agent.deliver(submit).status == "ok"
    assert submit.kinds == kinds


def test_a_refused_keep_defers(start: Start) -> None:
    """Keeping cannot be refused for good: whatever submit says, Postfix keeps the mail."""
    submit = Submit({"KEEP": ("REFUSED", "no")})
    assert start().deliver(submit).status == "defer"


@pytest.mark.parametrize("rules", ["", EDIT], ids=["without rules", "with rules"])
def test_keep_into_the_maildir(person: Person, start: Start, rules: str) -> None:
    """With `keep: maildir` what is kept is in the inbox of the Maildir, once over any number of attempts."""
    if rules:
        person.write(rules)
    submit, agent = Submit(), start(keep="maildir")
    assert [agent.deliver(submit).status for _ in range(3)] == ["ok"] * 3
    (kept,) = person.mail()
    assert (b"X-Mark: seen\n" in kept) is bool(rules)
    assert kept.replace(b"X-Mark: seen\n", b"") == STAMPED
    assert submit.asked == []


def test_a_kept_message_that_was_read_is_not_kept_again(person: Person, start: Start) -> None:
    """Where the mark was lost after filing, a retry finds the message in cur, whatever flags its reader gave it."""
    submit, agent = Submit(), start(keep="maildir")
    assert agent.deliver(submit).status == "ok"
    (filed,) = (person.home / "Maildir/new").iterdir()
    filed.rename(person.home / "Maildir/cur" / f"{filed.name}:2,S")
    _forget_marks(person)
    assert agent.deliver(submit).status == "ok"
    assert len(person.mail()) == 1


def test_a_refused_forward_is_kept_in_the_maildir(person: Person, start: Start) -> None:
    """With `keep: maildir` a forward that policy refuses ends in the inbox."""
    person.write(FORWARD)
    submit, agent = Submit({"FORWARD": ("REFUSED", "mail forwarding loop")}), start(keep="maildir")
    assert [agent.deliver(submit).status for _ in range(2)] == ["ok"] * 2
    assert (submit.kinds, person.mail()) == (["FORWARD"], [STAMPED])


TWO = "forward: [carol@example.org, dave@example.org]"
NOWHERE = "file: {folder: A, create: false}"
LOOP = {"FORWARD": ("REFUSED", "mail forwarding loop")}


def then(*actions: str) -> str:
    """Return one rule with these actions."""
    return "rules:\n  - name: it\n    then:\n" + "".join(f"      - {one}\n" for one in actions)


@pytest.mark.parametrize("keep", ["maildir", "postfix", "lmtp:unix:/x"])
@pytest.mark.parametrize(
    "actions",
    [
        pytest.param((TWO,), id="two forwards"),
        pytest.param((NOWHERE, NOWHERE.replace("A", "B")), id="two missing folders"),
        pytest.param((NOWHERE, TWO), id="a missing folder and two forwards"),
        pytest.param(("keep", TWO), id="beside a keep"),
        pytest.param((TWO, "keep"), id="before a keep"),
    ],
)
def test_one_message_is_kept_once(person: Person, start: Start, actions: tuple[str, ...], keep: str) -> None:
    """However many deliveries become a keep, beside one or not, there is one of them, over any number of attempts."""
    person.write(then(*actions))
    submit, agent = Submit(dict(LOOP)), start(keep=keep)
    assert [agent.deliver(submit).status for _ in range(2)] == ["ok"] * 2
    assert len(person.mail()) + submit.kinds.count("KEEP") == 1
    if keep == "maildir":
        _forget_marks(person)
        assert agent.deliver(submit).status == "ok"
        assert len(person.mail()) == 1


@pytest.mark.parametrize(
    ("actions", "kept"),
    [
        pytest.param(("file: INBOX", TWO), {"Maildir": 1}, id="the inbox"),
        pytest.param(("file: {folder: inbox, copy: true}",), {"Maildir": 1}, id="a copy in the inbox"),
        pytest.param(("file: A", TWO), {"Maildir": 1, "Maildir/.A": 1}, id="another folder"),
        pytest.param(
            ("file: A", "forward: {to: carol@example.org, copy: true}"), {"Maildir": 0, "Maildir/.A": 1}, id="copies"
        ),
    ],
)
def test_what_is_filed_into_the_inbox_is_kept(
    person: Person, start: Start, actions: tuple[str, ...], kept: dict[str, int]
) -> None:
    """With `keep: maildir` what a rule files into the inbox is kept, and there once; filed elsewhere, it is not."""
    person.write(then(*actions))
    agent = start(keep="maildir")
    assert [agent.deliver(Submit(dict(LOOP))).status for _ in range(2)] == ["ok"] * 2
    assert {folder: len(person.mail(folder)) for folder in kept} == kept


@pytest.mark.parametrize(
    ("actions", "flags"),
    [
        pytest.param((NOWHERE, "flag: [seen, flagged]"), "FS", id="of the missing folder"),
        pytest.param((NOWHERE,), "", id="none"),
        pytest.param(("keep", "flag: seen"), "S", id="of a keep"),
        pytest.param((NOWHERE.replace("}", ", copy: true}"), "flag: seen"), "", id="not of a copy, beside a keep"),
        pytest.param((TWO, NOWHERE, "flag: seen"), "", id="not of what is kept already"),
    ],
)
def test_the_flags_of_what_is_kept(person: Person, start: Start, actions: tuple[str, ...], flags: str) -> None:
    """With `keep: maildir` what a missing folder would have had of flags is kept with it, unless it is kept anyway."""
    person.write(then(*actions))
    agent = start(keep="maildir")
    assert agent.deliver(Submit(dict(LOOP))).status == "ok"
    _forget_marks(person)
    assert agent.deliver(Submit(dict(LOOP))).status == "ok"
    (path,) = (one for part in ("new", "cur") for one in (person.home / "Maildir" / part).iterdir())
    assert (path.parent.name, path.name.partition(":2,")[2]) == ("cur" if flags else "new", flags)


def test_a_keep_that_fails_is_tried_once_in_an_attempt(person: Person, start: Start) -> None:
    """Who did not answer for a keep may have taken it all the same: the next delivery that becomes one asks no more."""
    person.write(then(TWO))
    submit, agent = Submit({**LOOP, "KEEP": ("FAILED", "Postfix is busy")}), start()
    result = agent.deliver(submit)
    assert (result.status, result.text) == ("defer", "forward: Postfix is busy")
    assert submit.kinds == ["FORWARD", "KEEP", "FORWARD"]
    del submit.answers["KEEP"]
    result = agent.deliver(submit)
    assert (result.status, submit.kinds[3:]) == ("ok", ["KEEP"])
    assert result.event["outcomes"] == {
        "0": "refused mail forwarding loop", "1": "refused mail forwarding loop", "keep": "done 4S0",
    }  # fmt: skip


@pytest.mark.parametrize("actions", [(TWO,), (TWO, "keep"), ("keep", TWO)], ids=["alone", "before", "beside"])
@pytest.mark.parametrize(
    ("marks", "filed"),
    [
        pytest.param({"0.keep": "done x"}, "S0-keep", id="marked as the first"),
        pytest.param({"1": "refused no", "1.keep": "done x"}, "S1-keep", id="marked as the second"),
        pytest.param({}, "S0-keep", id="filed and not marked"),
        pytest.param({"1": "refused no"}, "", id="not filed"),
    ],
)
def test_an_upgrade_between_two_attempts(
    person: Person, start: Start, marks: dict[str, str], filed: str, actions: tuple[str, ...]
) -> None:
    """Where each delivery had a keep of its own, what it filed or marked stands for the one keep; else that is made."""
    person.write(then(*actions))
    agent = start(keep="maildir")
    assert agent.deliver(Submit(dict(LOOP))).status == "ok"
    (path,) = (person.home / "Maildir/new").iterdir()
    _forget_marks(person)
    _mark(person, marks)
    if filed:
        path.rename(path.with_name(re.sub(r"S[0-9a-z]+\.", f"{filed}.", path.name)))
    else:
        path.unlink()
    assert [agent.deliver(Submit(dict(LOOP))).status for _ in range(2)] == ["ok"] * 2
    assert len(person.mail()) == 1


LMTP = "lmtp:unix:/x"
NONE_MATCHES = "rules:\n  - name: it\n    if:\n      subject: nothing\n    then: discard\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [("maildir", "postfix"), ("postfix", "maildir"), ("maildir", LMTP), (LMTP, "maildir"), ("postfix", LMTP)],
)
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(NONE_MATCHES, id="none matches"),
        pytest.param(EDIT, id="edited"),
        pytest.param(then(TWO), id="refused forwards"),
        pytest.param(then("keep", "file: {folder: A, copy: true}"), id="beside a copy"),
    ],
)
def test_another_keep_between_two_attempts(person: Person, start: Start, first: str, second: str, rules: str) -> None:
    """Where the site keeps mail elsewhere by the next attempt, what was kept is not kept again; what comes then is."""
    person.write(rules)
    submit = Submit(dict(LOOP))
    assert start(keep=first).deliver(submit).status == "ok"
    assert len(person.mail()) + _kept(submit) == 1
    agent = start(keep=second)
    assert [agent.deliver(submit).status for _ in range(2)] == ["ok"] * 2
    assert len(person.mail()) + _kept(submit) == 1
    before = len(person.mail())
    assert agent.deliver(submit, queue_id="4B").status == "ok"
    assert len(person.mail()) - before == (second == "maildir")
    assert len(person.mail()) + _kept(submit) == 2


def test_people_without_rules_and_another_keep(person: Person, start: Start) -> None:
    """The same is so of mail for people without rules that is in the Maildir."""
    submit = Submit()
    assert [start(keep=one).deliver(submit).status for one in ("maildir", "postfix")] == ["ok"] * 2
    assert (len(person.mail()), submit.asked) == (1, [])


def test_rules_that_come_between_two_attempts(person: Person, start: Start) -> None:
    """Nor do rules that were written since decide about it; they do about the next message."""
    submit, agent = Submit(), start(keep="maildir")
    assert agent.deliver(submit).status == "ok"
    person.write(FILE)
    assert agent.deliver(submit).status == "ok"
    assert (len(person.mail()), person.mail("Maildir/.Lists.Python")) == (1, [])
    assert agent.deliver(submit, queue_id="4B").status == "ok"
    assert (len(person.mail()), len(person.mail("Maildir/.Lists.Python"))) == (1, 1)


def test_what_submit_could_not_keep_it_keeps_later(person: Person, start: Start) -> None:
    """What was left to submit stays so with `keep: maildir`, as submit may have done it; until it answers it waits."""
    person.write(NONE_MATCHES)
    submit = Submit({"KEEP": ("FAILED", "Postfix is busy")})
    assert start().deliver(submit).status == "defer"
    agent = start(keep="maildir")
    assert agent.deliver(submit).status == "defer"
    submit.answers.clear()
    assert agent.deliver(submit).status == "ok"
    assert (person.mail(), _kept(submit)) == ([], 1)


def test_what_the_maildir_could_not_take_postfix_keeps(person: Person, start: Start) -> None:
    """What could not be filed is kept as the site has it when it is tried again."""
    person.write(NONE_MATCHES)
    person.write("", "Maildir")
    submit, agent = Submit(), start(keep="maildir")
    assert agent.deliver(submit).status == "defer"
    agent = start()
    assert [agent.deliver(submit).status for _ in range(2)] == ["ok"] * 2
    assert _kept(submit) == 1


@pytest.mark.parametrize(("mark", "kept"), [("0.keep", 0), ("0", 0), ("", 1)], ids=["once", "now", "not done"])
def test_an_older_record_and_another_keep(person: Person, start: Start, mark: str, kept: int) -> None:
    """Records that do not say who keeps the message count as the site has it, but for what is marked as done."""
    person.write(NONE_MATCHES)
    submit = Submit()
    assert start(keep="maildir").deliver(submit).status == "ok"
    _forget_marks(person)
    _mark(person, {mark: "done x"} if mark else {})
    assert start().deliver(submit).status == "ok"
    assert _kept(submit) == kept


def _kept(submit: Submit) -> int:
    """Return how many messages submit kept, however often it was asked."""
    return sum(kind == "KEEP" for _, kind, _ in submit.sent)


def test_without_a_home_postfix_keeps(start: Start) -> None:
    """An account without a home has no Maildir: Postfix keeps its mail, whatever `keep` says."""
    submit = Submit()
    assert start(home="/nonexistent", keep="maildir").deliver(submit).status == "ok"
    assert submit.kinds == ["KEEP"]


def test_replies_come_last(person: Person, start: Start) -> None:
    """A reply leaves after everything else is done, and only then."""
    person.write(REPLY + "  - name: keep\n    then: keep\n")
    submit = Submit({"KEEP": ("FAILED", "Postfix is busy")})
    agent = start()
    assert agent.deliver(submit).status == "defer"
    assert submit.kinds == ["KEEP"]
    submit.answers.clear()
    assert agent.deliver(submit).status == "ok"
    assert submit.kinds == ["KEEP", "KEEP", "REPLY"]
    assert submit.asked[-1].fields["text"] == "I am away."


def test_reject(person: Person, start: Start) -> None:
    """`reject` is an enhanced status and a text at the first byte; nothing is delivered."""
    person.write(REJECT)
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, result.text) == ("reject", "5.7.1 I do not read advertisements")
    assert submit.asked == []
    assert person.mail() == []


def test_reject_of_several_lines(person: Person, start: Start) -> None:
    """A reply of several lines leaves as one: Postfix reads no more from pipe(8)."""
    person.write("rules:\n  - name: no\n    then:\n      reject: |\n        5.7.1 I do not read\n        such mail\n")
    result = start().deliver(Submit())
    assert (result.status, result.text) == ("reject", "5.7.1 I do not read such mail")


def test_a_reject_is_answer_enough(person: Person, start: Start) -> None:
    """A reply beside a reject does not leave (RFC 5230 section 4.7); copies are delivered."""
    person.write(REPLY + COPY.partition("rules:\n")[2] + REJECT.partition("rules:\n")[2])
    submit = Submit()
    result = start().deliver(submit)
    assert (result.status, submit.kinds) == ("reject", ["FORWARD"])


def test_discard(person: Person, start: Start) -> None:
    """`discard` is done: nothing is delivered, nothing asked."""
    person.write(DISCARD)
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    assert submit.asked == []


@pytest.mark.parametrize(
    ("then", "text"),
    [
        pytest.param("defer", "4.7.1 Please try again later", id="alone"),
        pytest.param('{defer: "4.2.1 Not today"}', "4.2.1 Not today", id="with a status"),
        pytest.param('{defer: "450 4.2.0 Not today"}', "4.2.0 Not today", id="with a code"),
        pytest.param('{defer: "Not today\\nAsk again"}', "4.7.1 Not today Ask again", id="of two lines"),
    ],
)
def test_a_deferral_has_the_rules_status(person: Person, start: Start, then: str, text: str) -> None:
    """What `defer` says begins with its enhanced status, as pipe(8) and LMTP tell Postfix; a fault of ours has none."""
    person.write(f"rules:\n  - name: later\n    then: {then}\n")
    agent = start()
    assert (agent.deliver(Submit()).status, agent.deliver(Submit()).text) == ("defer", text)
    person.write("rules:\n  - name: later\n    then: defr\n")
    assert agent.deliver(Submit()).text.startswith("the rules of the recipient cannot be used")


def test_defer_decides_again(person: Person, start: Start) -> None:
    """`defer` does nothing and is not remembered: the next attempt asks the rules as they are then."""
    person.write(COPY + DEFER.partition("rules:\n")[2])
    submit = Submit()
    agent = start()
    assert agent.deliver(submit).status == "defer"
    assert submit.asked == []
    person.write(FILE)
    assert agent.deliver(submit).status == "ok"
    assert len(person.mail("Maildir/.Lists.Python")) == 1


def test_edits_reach_every_delivery(person: Person, start: Start) -> None:
    """What the rules changed is in the folder, in what is kept and in what is forwarded; the rest is to the byte."""
    person.write(EDIT + COPY.partition("rules:\n")[2])
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    edited = MESSAGE.replace(b"\n\nhi", b"\nX-Mark: seen\n\nhi")
    assert [(one.kind, one.message) for one in submit.asked] == [("FORWARD", edited), ("KEEP", edited)]
    person.write(EDIT + FILE.partition("rules:\n")[2])
    assert start().deliver(submit, queue_id="4B").status == "ok"
    assert person.mail("Maildir/.Lists.Python") == [STAMPED.replace(b"\n\nhi", b"\nX-Mark: seen\n\nhi")]


@pytest.mark.parametrize(
    ("rules", "mode", "where"),
    [
        pytest.param("rules:\n  - name: x\n    then: kep\n", 0o600, "~/.milterapp/rules.yaml:3:11: ", id="misspelt"),
        pytest.param(FILE, 0o622, "~/.milterapp/rules.yaml:1:1: can be written by others", id="unsafe"),
    ],
)
def test_broken_rules(person: Person, start: Start, rules: str, mode: int, where: str) -> None:
    """Rules that cannot be used defer and say where and why, or keep, as the site says; mended, they work."""
    path = person.write(rules)
    path.chmod(mode)
    submit = Submit()
    agent = start()
    result = agent.deliver(submit)
    assert (result.status, submit.kinds) == ("defer", ["NOTICE"])
    assert where in result.text
    assert where in submit.asked.pop().fields["text"]
    kept = start(broken_rules="keep").deliver(submit, queue_id="4K")
    assert (kept.status, submit.kinds) == ("ok", ["KEEP"])
    assert where in str(kept.event["problems"])
    person.write(FILE)
    assert agent.deliver(submit).status == "ok"
    assert len(person.mail("Maildir/.Lists.Python")) == 1


def test_a_list_that_was_removed(person: Person, start: Start) -> None:
    """An agent that has read the rules lets no message past them where a list of theirs is gone since: all wait."""
    person.write(
        "lists:\n  foes: {file: foes.txt}\nrules:\n  - name: foes\n    if:\n      from: {in: foes}\n"
        "    then:\n      file: Foes\n"
    )
    foes = person.write("ann@example.org\n", ".milterapp/foes.txt")
    agent, submit = start(), Submit()
    assert agent.deliver(submit, queue_id="41").status == "ok"
    foes.unlink()
    results = [agent.deliver(submit, queue_id=queue_id) for queue_id in ("42", "43")]
    assert [one.status for one in results] == ["defer", "defer"]
    assert "foes.txt" in results[0].text
    assert submit.kinds == ["NOTICE"]
    person.write("ann@example.org\n", ".milterapp/foes.txt")
    assert agent.deliver(submit, queue_id="42").status == "ok"
    assert len(person.mail("Maildir/.Foes")) == 2


WRONG = ["rules: [{name: a, thne: keep}]\n", "rules:\n  - name: a\n    iff: x\n    then: keep\n"]


@pytest.mark.parametrize("keep", ["maildir", "postfix"])
def test_rules_that_were_repaired_wrongly(person: Person, start: Start, keep: str) -> None:
    """Each problem is told once: another one with the same message too, the same one with another message not again."""
    submit, agent = Submit(), start(keep=keep)
    told = []
    for rules in (WRONG[0], WRONG[0], WRONG[1], WRONG[1], WRONG[0]):
        person.write(rules)
        for queue_id in ("4A", "4B"):
            assert agent.deliver(submit, queue_id=queue_id).status == "defer"
        told.append(len(person.mail()) + submit.kinds.count("NOTICE"))
    assert told == [1, 1, 2, 2, 2]
    letters = [*map(bytes.decode, person.mail()), *(one.fields["text"] for one in submit.asked)]
    assert sorted("thne" in one for one in letters) == [False, True]
    assert len(submit.sent) == submit.kinds.count("NOTICE")


@pytest.mark.parametrize("answer", [("FAILED", "away"), ("REFUSED", "no more than 20 of these for one message")])
def test_a_notice_that_did_not_leave_is_told_later(person: Person, start: Start, answer: tuple[str, str]) -> None:
    """What submit fails to write, or will not, is told with the next message, and then no more."""
    person.write(WRONG[0])
    agent = start()
    assert answer[1] in agent.deliver(Submit({"NOTICE": answer})).event["notice"]
    submit = Submit()
    for queue_id in ("4B", "4C"):
        assert agent.deliver(submit, queue_id=queue_id).status == "defer"
    assert submit.kinds == ["NOTICE"]


class Killing(Submit):
    """Kills who asks it for a notice, before it answers; what it was asked for is done."""

    pid = 0

    def do(self, request: wire.Datagram, key: str) -> tuple[str, str]:
        """Do it."""
        if request.kind == "NOTICE" and self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
        return super().do(request, key)


def test_an_agent_that_is_killed_while_it_tells(person: Person, start: Start) -> None:
    """It has told nothing; the retry tells, as the same step, so that there is one letter."""
    person.write(WRONG[0])
    submit, agent = Killing(), AgentProcess(person)
    submit.pid = agent.pid
    assert (agent.deliver(submit).status, agent.close()) == (None, -signal.SIGKILL)
    agent = start()
    assert [agent.deliver(submit, queue_id=one).status for one in ("4A", "4A", "4B")] == ["defer"] * 3
    assert (submit.kinds, len(submit.sent)) == (["NOTICE", "NOTICE"], 1)


def test_a_notice_that_was_filed_and_not_remembered(person: Person, start: Start) -> None:
    """A retry finds it in the Maildir, and files no second one."""
    person.write(WRONG[0])
    agent = start(keep="maildir")
    assert agent.deliver(Submit()).status == "defer"
    with sqlite3.connect(person.home / ".milterapp/scripts.sqlite") as memory:
        assert memory.execute("DELETE FROM told").rowcount == 1
    memory.close()
    assert agent.deliver(Submit()).event["notice"].startswith("done ")
    assert len(person.mail()) == 1


def test_a_notice_that_no_maildir_could_take(person: Person, start: Start) -> None:
    """It is told as soon as one can."""
    person.write(WRONG[0])
    person.write("", "Maildir")
    agent = start(keep="maildir")
    assert agent.deliver(Submit()).event["notice"].startswith("failed ")
    (person.home / "Maildir").unlink()
    for queue_id in ("4B", "4C"):
        assert agent.deliver(Submit(), queue_id=queue_id).status == "defer"
    assert len(person.mail()) == 1


def test_a_notice_that_cannot_be_remembered_is_not_sent(person: Person, start: Start) -> None:
    """Else there would be one with each message."""
    person.write(WRONG[0])
    person.write("garbage" * 500, ".milterapp/scripts.sqlite")
    submit, agent = Submit(), start()
    assert agent.deliver(submit).status == "defer"
    assert submit.kinds == []


def test_very_long_problems(person: Person, start: Start) -> None:
    """However long the words in a rule file are, what is wrong with it is told, first and last."""
    rules = [f"  - name: r{at}\n    then: {'x' * 6000}\n" for at in range(20)]
    person.write("rules:\n" + "".join(rules))
    submit = Submit()
    assert start().deliver(submit).status == "defer"
    assert submit.kinds == ["NOTICE"]
    text = submit.asked.pop().fields["text"]
    assert "rules.yaml:3:" in text
    assert "told of these problems once" in text


@pytest.mark.parametrize(
    ("said", "text"),
    [
        pytest.param(
            "the end of the data: 452 4.2.2 Full", "4.2.2 keep: the end of the data: 452 4.2.2 Full", id="4xx"
        ),
        pytest.param("RCPT: 550 5.1.1 Unknown", "4.1.1 keep: RCPT: 550 5.1.1 Unknown", id="5xx"),
        pytest.param("RCPT: 450 busy", "keep: RCPT: 450 busy", id="without a status"),
        pytest.param("lmtp: No such file", "keep: lmtp: No such file", id="no answer"),
    ],
)
def test_a_store_that_refuses_is_named_with_its_status(person: Person, start: Start, said: str, text: str) -> None:
    """Where who keeps the mail gives a status, Postfix's queue shows it, as a temporary one; nothing is made up."""
    person.write(COPY)
    result = start().deliver(Submit({"KEEP": ("FAILED", said)}))
    assert (result.status, result.text) == ("defer", text)


@pytest.mark.parametrize(("broken_rules", "status", "kinds"), [("defer", "defer", []), ("keep", "ok", ["KEEP"])])
def test_could_not_tell(person: Person, start: Start, broken_rules: str, status: str, kinds: list[str]) -> None:
    """A limit hit while deciding is neither match nor no match: the mail is deferred or kept, as the site says."""
    person.write(REJECT.replace("    then", "    if:\n      subject: hello\n    then"))
    submit = Submit()
    result = start(broken_rules=broken_rules, limits={"header_fields": 3}).deliver(submit)
    assert (result.status, submit.kinds) == (status, kinds)


@pytest.mark.parametrize(
    ("then", "keep", "asked"),
    [
        pytest.param("keep", "postfix", ["KEEP", "KEEP"], id="alone"),
        pytest.param("keep", "lmtp:unix:/x", ["KEEP"], id="where direct keeps no journal"),
        pytest.param("[{file: {folder: Lists, copy: true}}, keep]", "postfix", ["KEEP"], id="beside a copy"),
    ],
)
def test_a_keep_is_marked_once(person: Person, start: Start, then: str, keep: str, asked: list[str]) -> None:
    """Where a hand-back is all there is, a retry has submit asked, which knows; else both journals know it."""
    person.write(f"rules:\n  - name: it\n    then: {then}\n")
    submit, agent = Submit(), start(keep=keep)
    for _ in range(2):
        result = agent.deliver(submit)
        assert result.status == "ok"
        outcomes = result.event.get("outcomes", {})
        assert outcomes.get(str(len(result.event["deliveries"]) - 1)) == (None if len(asked) > 1 else "done 4S0")
    assert (submit.kinds, len(submit.sent)) == (asked, 1)


def test_a_retry_decides_nothing_anew(person: Person, start: Start) -> None:
    """What was prepared stands: rules changed, or removed, between two attempts change nothing of it."""
    person.write(FILE.replace("file: Lists/Python", "- file: {folder: Lists, copy: true}\n      - forward: c@x.org"))
    submit = Submit({"FORWARD": ("FAILED", "Postfix is busy")})
    agent = start()
    result = agent.deliver(submit)
    assert (result.status, result.text) == ("defer", "forward: Postfix is busy")
    assert len(person.mail("Maildir/.Lists")) == 1
    person.write(REJECT)
    submit.answers.clear()
    result = agent.deliver(submit)
    assert (result.status, result.event["retry"]) == ("ok", True)
    (person.home / ".milterapp/rules.yaml").unlink()
    assert start().deliver(submit).status == "ok"
    assert submit.kinds == ["FORWARD", "FORWARD"]
    assert len(person.mail("Maildir/.Lists")) == 1


DUPLICATES = """\
rules:
  - name: seen
    if:
      duplicate: yes
    then: discard
  - name: many
    if:
      rate: {by: sender, over: 2, within: 1 hour}
    then:
      file: Many
"""


def test_what_came_before_is_remembered(person: Person, start: Start) -> None:
    """The second copy of a message is a duplicate, a second attempt is not, and each message counts once."""
    person.write(DUPLICATES)
    submit = Submit({"KEEP": ("FAILED", "Postfix is busy")})
    agent = start()
    message = b"Message-ID: <%d@x.example>\nSubject: x\n\nhello\n"
    assert agent.deliver(submit, message % 1, queue_id="5A1").status == "defer"
    submit.answers.clear()
    assert agent.deliver(submit, message % 1, queue_id="5A1").status == "ok"
    assert submit.kinds == ["KEEP", "KEEP"]
    assert agent.deliver(submit, message % 1, queue_id="5A2").event["rules"] == ["seen"]
    assert agent.deliver(submit, message % 2, queue_id="5A3").status == "ok"
    assert agent.deliver(submit, message % 3, queue_id="5A4").event["rules"] == ["many"]
    assert submit.kinds == ["KEEP"] * 3
    assert len(person.mail("Maildir/.Many")) == 1
    assert (person.home / ".milterapp/rates.sqlite").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_remembered_is_not_told(person: Person, start: Start) -> None:
    """Without its memory a rule on duplicates is not told, and the mail waits."""
    person.write(DUPLICATES)
    path = person.write("this is no database, but long enough to be looked at as one\n" * 99, ".milterapp/rates.sqlite")
    path.chmod(0o600)
    result = start().deliver(Submit(), b"Message-ID: <1@x.example>\n\nhello\n")
    assert result.status == "defer"
    assert "rates.sqlite" in result.text


def test_one_agent_for_many_messages(person: Person, start: Start) -> None:
    """A warm agent takes one message after the other, and sees rules that changed between two of them."""
    person.write(FILE)
    submit = Submit()
    agent = start()
    for number in range(3):
        assert agent.deliver(submit, queue_id=f"4A{number}").status == "ok"
    person.write(DISCARD)
    assert agent.deliver(submit, queue_id="4B").status == "ok"
    assert len(person.mail("Maildir/.Lists.Python")) == 3


def test_two_aliases_are_two_copies(person: Person, start: Start) -> None:
    """The same message that came by two aliases is filed twice, as Postfix would; asked again, no third time."""
    person.write(FILE)
    submit = Submit()
    agent = start()
    for original in ("info@x.org", "sales@x.org", "info@x.org", "sales@x.org"):
        assert agent.deliver(submit, original=original).status == "ok"
    assert len(person.mail("Maildir/.Lists.Python")) == 2


def test_a_journal_that_was_removed_is_made_anew(person: Person, start: Start) -> None:
    """A warm agent does not go on writing to a journal that its user removed."""
    person.write(FILE)
    submit = Submit()
    agent = start()
    assert agent.deliver(submit).status == "ok"
    shutil.rmtree(person.home / ".milterapp")
    person.write(FILE)
    assert agent.deliver(submit, queue_id="4B").status == "ok"
    assert (person.home / ".milterapp/journal.sqlite").exists()
    assert len(person.mail("Maildir/.Lists.Python")) == 2


def _forget_marks(person: Person) -> None:
    """Let the journal know what was prepared, and nothing that was done."""
    with sqlite3.connect(person.home / ".milterapp/journal.sqlite") as journal:
        journal.execute("DELETE FROM done")
    journal.close()


def _mark(person: Person, marks: dict[str, str]) -> None:
    """Let the journal know what was done of the one message that it knows."""
    with sqlite3.connect(person.home / ".milterapp/journal.sqlite") as journal:
        for step, result in marks.items():
            journal.execute("INSERT INTO done SELECT key, ?, ?, at FROM prepared", (step, result))
    journal.close()


def _corrupt(person: Person) -> None:
    for path in (person.home / ".milterapp").glob("journal.sqlite*"):
        path.unlink()
    person.write("garbage" * 500, ".milterapp/journal.sqlite")


def _foreign_record(person: Person) -> None:
    connection = sqlite3.connect(person.home / ".milterapp/journal.sqlite")
    with connection:
        connection.execute('UPDATE prepared SET record = \'{"": "Popen", "args": "id"}\'')
        connection.execute("DELETE FROM done")
    connection.close()


def _read_only(person: Person) -> None:
    os.chmod(person.home / ".milterapp", 0o500)
    for path in (person.home / ".milterapp").glob("journal.sqlite*"):
        path.unlink()


def _maildir_a_file(person: Person) -> None:
    shutil.rmtree(person.home / "Maildir")
    person.write("", "Maildir")


@pytest.mark.parametrize(
    ("damage", "queue_id"),
    [
        pytest.param(_corrupt, "4A", id="a journal of garbage"),
        pytest.param(_foreign_record, "4A", id="a record that is none"),
        pytest.param(_read_only, "4B", id="a journal that cannot be made"),
        pytest.param(_maildir_a_file, "4B", id="a Maildir that is a file"),
    ],
)
def test_a_fault_defers(person: Person, start: Start, damage: Callable[[Person], None], queue_id: str) -> None:
    """Whatever is wrong with state or store, the answer is defer with a reason, and the agent lives."""
    person.write(FILE)
    submit = Submit()
    assert start().deliver(submit).status == "ok"
    damage(person)
    agent = start()
    result = agent.deliver(submit, queue_id=queue_id)
    assert result.status == "defer"
    assert result.text
    assert submit.asked == []


@pytest.mark.parametrize("answer", [("FAILED", "451 4.3.0 later"), ("BANANA", "")])
def test_a_fault_of_submit_defers(start: Start, answer: tuple[str, str]) -> None:
    """A submit that fails, or talks nonsense, defers."""
    assert start().deliver(Submit({"KEEP": answer})).status == "defer"


@pytest.mark.parametrize("field", ["sender", "recipient", "original", "queue_id", "client"])
@pytest.mark.parametrize("value", ["-x", "../../etc", "$(id)", "a\x7f\nb", "\udcff", "x" * 300, ""])
def test_hostile_envelopes(person: Person, start: Start, field: str, value: str) -> None:
    """Whatever an envelope holds, the message is filed once into its folder and nowhere else."""
    person.write(FILE)
    assert start().deliver(Submit(), **{field: value}).status == "ok"
    assert len(person.mail("Maildir/.Lists.Python")) == 1
    assert sorted(os.listdir(person.home)) == [".milterapp", "Maildir"]


@pytest.mark.parametrize(
    "message",
    [b"", b"\n", b"\0" * 1000, os.urandom(10_000), b"A: b", b"\r\n.\r\n", b"From:" + b'"' * 20_000 + b"\n\n"],
    ids=["empty", "newline", "nul", "binary", "no body", "dot", "quotes"],
)
def test_hostile_messages(person: Person, start: Start, message: bytes) -> None:
    """A message of any bytes is filed as it came, below its trace fields."""
    person.write(FILE.replace("    then", "    if:\n      not:\n        from: {is: x@y.org}\n    then"))
    assert start().deliver(Submit(), message).status == "ok"
    (filed,) = person.mail("Maildir/.Lists.Python")
    assert filed.endswith(message)


def test_the_end_of_the_connection_ends_the_agent(person: Person) -> None:
    """When the monitor hangs up the agent exits; a datagram that is no job ends it too, without an answer."""
    agent = AgentProcess(person)
    assert agent.close() == 0
    agent = AgentProcess(person)
    wire.send(agent.control, "JOB", JOB)
    assert agent.control.recv(1) == b""
    assert agent.close() == 70
