"""The LMTP door on a real Postfix: the same mail, the same answers as through pipe(8), without a process a message."""

from __future__ import annotations

import grp
import pwd
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postfix.harness import PYTHON, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
NO_WORD = (
    'rules:\n  - name: no word\n    if:\n      subject: {contains: word}\n    then:\n      reject: "5.7.1 Send text"\n'
)
SHOPS = "rules:\n  - name: shops\n    if:\n      recipient: {detail: shop}\n    then:\n      file: Shops\n"
CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")


def through(host: Site, door: str) -> None:
    """Have all mail go through a door: setup does not wait for a local(8) that knows another one."""
    host.milterapp("setup", "--apply", "--door", door, check=True)
    host.postfix("reload")


@pytest.fixture(scope="module")
def door(host: Site) -> Iterator[Site]:
    """The host with the LMTP door in place of pipe(8)."""
    host.start_service("lmtp")
    through(host, "lmtp")
    try:
        yield host
    finally:
        through(host, "pipe")
        host.stop_service("lmtp")


@pytest.fixture
def site(door: Site) -> Site:
    """That host, with empty mailboxes and no rules."""
    door.reset()
    return door


@pytest.fixture
def maildir(site: Site) -> Iterator[Site]:
    """That host with `keep: maildir`."""
    services = ("monitor", "submit")

    def restart() -> None:
        for name in services:
            site.stop_service(name)
        for name in reversed(services):
            site.start_service(name)

    CONFIGURATION.write_text("delivery:\n  keep: maildir\n")
    restart()
    try:
        yield site
    finally:
        CONFIGURATION.unlink()
        restart()


def subjects(messages: list[bytes]) -> list[str]:
    """Return the subjects of some messages, sorted."""
    return sorted(header(one, "Subject")[0] for one in messages)


def test_a_message_is_kept_as_it_came(site: Site) -> None:
    """Dots, bytes above 127 and a line of 5000 arrive as they were sent, by way of milterapp-keep, once."""
    body = "one\n.\n..two\nFrom here\n\xe9\n" + "x" * 5000 + "\n"
    answer = site.send(message("hello", body))
    site.settle()
    (found,) = site.inbox("alice")
    assert header(found, "Return-Path") == ["<dora@home.example>"]
    assert header(found, "Delivered-To") == [ALICE]
    assert found.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")
    (fate,) = site.fates(answer.queue_id)
    assert (fate.relay, fate.status, fate.dsn) == ("mx.example.org[milterapp-lmtp/socket]", "sent", "2.1.5")


def test_a_reject_is_a_notice_in_the_words_of_the_rule(site: Site) -> None:
    """A reject is refused to Postfix alone for that recipient, and its sender is told in the rule's words."""
    site.rules("carol", NO_WORD)
    site.send(message("a word"), [CAROL, BOB])
    site.settle()
    assert (site.folders("carol"), subjects(site.inbox("bob"))) == ({}, ["a word"])
    (notice,) = site.elsewhere()
    assert b"550 5.7.1 Send text" in notice
    assert b"Status: 5.7.1" in notice


def test_a_deferral_waits_in_the_queue(site: Site) -> None:
    """A rule's `defer` is a 4xx with its status and words; once the rule is gone the message arrives, once."""
    site.rules("alice", 'rules:\n  - name: later\n    then:\n      defer: "4.2.1 Not today"\n')
    answer = site.send(message("later"))
    fate = site.deferred(answer.queue_id)
    assert (fate.dsn, "451 4.2.1 Not today" in fate.text) == ("4.2.1", True)
    site.rules("alice", "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert subjects(site.inbox("alice")) == ["later"]


AWAY = "rules:\n  - name: away\n    then:\n      vacation: I am away\n"


@pytest.mark.parametrize(
    ("to", "answers"), [pytest.param("ceo@bank.example", 0, id="a stranger"), pytest.param(ALICE, 1, id="her own")]
)
def test_nobody_answers_as_the_sender_says(site: Site, to: str, answers: int) -> None:
    """An ORCPT that the sender writes is no address of the recipient's: nothing goes out as that one."""
    site.rules("alice", AWAY)
    with site.connection() as smtp:
        assert smtp.mail("dora@home.example")[0] == 250
        assert smtp.rcpt(ALICE, ["ORCPT=rfc822;ceo@bank.example"])[0] == 250
        assert smtp.data(message("hello", to=to))[0] == 250
    site.settle()
    assert subjects(site.inbox("alice")) == ["hello"]
    assert [header(one, "From") for one in site.elsewhere()] == [[ALICE]] * answers


def test_the_envelope_reaches_the_rules(site: Site) -> None:
    """The extension of the recipient, and the null sender, are what Postfix was told."""
    site.rules("alice", SHOPS)
    site.send(message("to the shop"), ["alice+shop@example.org"])
    site.send(message("a bounce"), sender="")
    site.settle()
    found = site.folders("alice")
    assert {name: subjects(some) for name, some in found.items()} == {"": ["a bounce"], "Shops": ["to the shop"]}
    assert header(found[""][0], "Return-Path") == ["<>"]


def test_two_aliases_of_one_user_are_two_copies(site: Site) -> None:
    """The original recipient comes by ORCPT: mail to two aliases of one user arrives twice, as Postfix has it."""
    site.aliases({"info": "alice", "sales": "alice"})
    site.rules("alice", "rules:\n  - name: all\n    then:\n      file: All\n")
    site.send(message("to both"), ["info@example.org", "sales@example.org"])
    site.settle()
    found = site.folders("alice")["All"]
    assert sorted(value for one in found for value in header(one, "X-Original-To")) == [
        "info@example.org",
        "sales@example.org",
    ]


def test_one_member_that_fails_does_not_double_the_others(site: Site) -> None:
    """An alias with a member who is deferred is tried again; the others have their one copy."""
    site.aliases({"team": "alice, bob"})
    site.rules("alice", 'rules:\n  - name: later\n    then:\n      defer: "4.7.1 Not today"\n')
    site.rules("bob", "rules:\n  - name: all\n    then:\n      file: All\n")
    answer = site.send(message("to all"), ["team@example.org"])
    site.deferred(answer.queue_id, times=2)
    site.rules("alice", "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert (subjects(site.inbox("alice")), subjects(site.folders("bob")["All"])) == (["to all"], ["to all"])


def test_unknown_users_are_postfixs_matter(site: Site) -> None:
    """A recipient that does not exist gets Postfix's own 5.1.1."""
    site.sendmail(message("hello"), ["nosuch@example.org"], user="bob")
    site.settle()
    (notice,) = site.inbox("bob")
    assert b'unknown user: "nosuch"' in notice


@pytest.mark.parametrize("name", ["lmtp", "monitor"])
def test_without_one_of_the_services_mail_waits(site: Site, name: str) -> None:
    """While a service is down mail is deferred, and when it is back it arrives, once."""
    site.stop_service(name)
    try:
        answer = site.send(message("patience"))
        fate = site.deferred(answer.queue_id)
        assert fate.dsn == {"monitor": "4.3.0", "lmtp": "4.4.1"}[name]
    finally:
        site.start_service(name)
    site.settle()
    assert subjects(site.inbox("alice")) == ["patience"]


def test_keep_in_the_maildir(maildir: Site) -> None:
    """With `keep: maildir` mail is in the Maildir of its recipient after one pass through Postfix's queue."""
    maildir.rules("bob", 'rules:\n  - name: mark\n    then:\n      add_header: {X-Seen: "yes"}\n')
    first, second = maildir.send(message("to alice")), maildir.send(message("to bob"), [BOB])
    maildir.send(message("from cron"), ["root@example.org"])
    maildir.settle()
    alice, bob = (list(Path(f"/home/{name}/Maildir/new").iterdir()) for name in ("alice", "bob"))
    assert [one.owner() for one in (*alice, *bob)] == ["alice", "bob"]
    assert header(alice[0].read_bytes(), "Delivered-To") == [ALICE]
    assert header(bob[0].read_bytes(), "X-Seen") == ["yes"]
    assert [len(maildir.fates(one.queue_id)) for one in (first, second)] == [1, 1]
    assert {one.relay for one in maildir.fates() if one.to != "root@example.org"} == {
        "mx.example.org[milterapp-lmtp/socket]"
    }
    assert subjects(maildir.mailbox("root")) == ["from cron"]  # below the floor: Postfix keeps it


def test_a_door_that_is_killed_loses_and_doubles_nothing(site: Site) -> None:
    """Killed again and again while mail passes, the door leaves each message with its recipient, once."""
    site.rules("bob", "rules:\n  - name: all\n    then:\n      file: All\n")
    want = [f"number {number}" for number in range(40)]
    for number, subject in enumerate(want):
        site.send(message(subject), [BOB] if number % 2 else [ALICE])
        if number % 10 == 5:
            site._services["lmtp"].kill()
            site._services.pop("lmtp").wait()
            site.start_service("lmtp")
    site.settle()
    assert sorted(subjects(site.inbox("alice")) + subjects(site.folders("bob")["All"])) == sorted(want)


REACH = """
import os, socket, sys
def attempt(kind, path):
    try:
        socket.socket(socket.AF_UNIX, kind).connect(path)
    except OSError as error:
        return error.strerror
    return "connected"
print(attempt(socket.SOCK_SEQPACKET, "/run/milterapp/monitor/socket"))
print(attempt(socket.SOCK_SEQPACKET, "/run/milterapp/submit/socket"))
print(attempt(socket.SOCK_STREAM, "/var/spool/postfix/milterapp/milter"))
print(attempt(socket.SOCK_STREAM, "/var/spool/postfix/public/milterapp-hand-back"))
for path in ("/var/lib/milterapp/submit/journal.sqlite", "/etc/shadow", "/home/alice/.milterapp/rules.yaml"):
    print(os.access(path, os.R_OK))
"""


def test_what_the_door_reaches_were_it_taken_over(site: Site) -> None:
    """With its ids a process reaches the monitor, and no other service, no journal, nobody's rules."""
    site.rules("alice", NO_WORD)
    done = subprocess.run(
        [PYTHON, "-I", "-c", REACH], user="milterapp-lmtp", group="milterapp-lmtp", extra_groups=["milterapp-pipe"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert done.stdout.split("\n") == ["connected", *["Permission denied"] * 3, *["False"] * 3, ""]
    status = Path(f"/proc/{site._services['lmtp'].pid}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (lines["CapEff"], lines["CapBnd"], lines["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert lines["Uid"].split() == [str(pwd.getpwnam("milterapp-lmtp").pw_uid)] * 4
    assert lines["Groups"].split() == [str(grp.getgrnam("milterapp-pipe").gr_gid)]


def test_the_door_has_descriptors_for_its_recipients(site: Site) -> None:
    """A hundred connections of lists do not bring it to the 1,024 descriptors that a process begins with."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    site.stop_service("lmtp")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        site.start_service("lmtp")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    limits = Path(f"/proc/{site._services['lmtp'].pid}/limits").read_text()
    ((soft, hard),) = re.findall(r"^Max open files +([0-9]+) +([0-9]+)", limits, re.MULTILINE)
    assert int(soft) == min(int(hard), 16384)


def test_setup_keeps_the_door_it_finds(site: Site) -> None:
    """Without --door, --apply changes nothing; --door pipe and back leaves main.cf and master.cf as they were."""
    assert site.milterapp("setup", "--apply").stdout == b"nothing to do: milterapp is attached already\n"
    files = [Path("/etc/postfix") / name for name in ("main.cf", "master.cf")]
    before = [file.read_text().split() for file in files]
    site.milterapp("setup", "--apply", "--door", "pipe", check=True)
    assert "mailbox_transport = milterapp:\n" in site.run("postconf", "-n")
    site.milterapp("setup", "--apply", "--door", "lmtp", check=True)
    assert "milterapp_time_limit" not in site.run("postconf", "-n")
    assert [sorted(file.read_text().split()) for file in files] == [sorted(words) for words in before]
