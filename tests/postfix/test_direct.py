"""`milterapp-pipe --direct` behind local(8): as mailbox_command and in a .forward, with no service of ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delivery.smtp_peer import SmtpPeer
from tests.postfix.harness import PYTHON, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

COMMAND = f"{PYTHON} -I -m milterapp.commands.direct --direct"
CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")
FILTER = r"regexp:{ { /^5\.3\.[0-9]+ (Command .*)/ 4.3.0 $$1 } }"
ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture(scope="module")
def commanded(host: Site) -> Iterator[Site]:
    """The host with the command in place of a transport."""
    host.postconf(mailbox_transport="", mailbox_command=COMMAND)
    host.postfix("reload")
    try:
        yield host
    finally:
        host.run("postconf", "-X", "mailbox_command")
        host.postconf(mailbox_transport="milterapp:")
        host.postfix("reload")


@pytest.fixture
def site(commanded: Site) -> Iterator[Site]:
    """That host, with empty mailboxes, no rules and `keep: maildir`."""
    commanded.reset()
    CONFIGURATION.write_text("delivery:\n  keep: maildir\n")
    try:
        yield commanded
    finally:
        CONFIGURATION.unlink(missing_ok=True)


def subjects(messages: list[bytes]) -> list[str]:
    """Return the subjects of some messages, sorted."""
    return sorted(header(one, "Subject")[0] for one in messages)


def inbox(person: str) -> list[bytes]:
    """Return what is in a person's Maildir."""
    return [one.read_bytes() for one in Path(f"/home/{person}/Maildir/new").glob("*")]


def test_a_message_is_filed_as_its_recipient(site: Site) -> None:
    """What no rule speaks of is in the inbox, what a rule files in its folder, as that user, without a From line."""
    site.rules("alice", "rules:\n  - name: a\n    if:\n      subject: filed\n    then:\n      file: Box\n")
    site.send(message("kept"))
    site.send(message("filed"))
    site.settle()
    (kept,) = inbox("alice")
    assert kept.startswith(b"Return-Path: <dora@home.example>\n")
    assert header(kept, "X-Original-To") == [ALICE]
    assert subjects(site.folders("alice")["Box"]) == ["filed"]
    assert site.run("find", "/home/alice/Maildir", "!", "-user", "alice") == ""
    assert [one.relay for one in site.fates()] == ["local", "local"]


def test_a_reject_is_a_notice(site: Site) -> None:
    """A reject bounces with the rule's words, and nothing is kept."""
    site.rules("alice", 'rules:\n  - name: no\n    then:\n      reject: "5.7.1 Not here"\n')
    site.send(message("a word"))
    site.settle()
    (notice,) = site.elsewhere()
    assert b"Not here" in notice
    assert b"Status: 5.7.1" in notice
    assert inbox("alice") == []


def test_a_deferral_has_its_status(site: Site) -> None:
    """A rule's `defer` waits in Postfix's queue with its own status and words; a fault of ours has 4.3.0."""
    site.rules("alice", 'rules:\n  - name: later\n    then:\n      defer: "4.2.1 Not today"\n')
    site.rules("bob", "rules:\n  - name: x\n    then: kep\n")
    own, fault = (site.deferred(site.send(message("later"), [one]).queue_id) for one in (ALICE, BOB))
    assert (own.dsn, own.text.strip()) == ("4.2.1", "Not today")
    assert (fault.dsn, "the rules of the recipient cannot be used" in fault.text) == ("4.3.0", True)
    for person in ("alice", "bob"):
        site.rules(person, "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert ("later" in subjects(inbox("alice")), "later" in subjects(inbox("bob"))) == (True, True)


def test_a_retry_repeats_nothing(site: Site) -> None:
    """An alias with a member who is deferred is tried again as a whole; the other member has one copy."""
    site.aliases({"team": "alice, bob"})
    site.rules("alice", 'rules:\n  - name: later\n    then:\n      defer: "4.7.1 Not today"\n')
    answer = site.send(message("to all"), ["team@example.org"])
    assert "Not today" in site.deferred(answer.queue_id, times=2).text
    site.rules("alice", "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert (subjects(inbox("alice")), subjects(inbox("bob"))) == (["to all"], ["to all"])


def test_a_forward_is_kept(site: Site) -> None:
    """A forward cannot leave from here: the message is kept, and nothing is lost."""
    site.rules("alice", "rules:\n  - name: on\n    then:\n      forward: alice@home.example\n")
    site.send(message("to be forwarded"))
    site.settle()
    assert (subjects(inbox("alice")), site.elsewhere()) == (["to be forwarded"], [])


@pytest.fixture
def keeper(site: Site) -> Iterator[SmtpPeer]:
    """An LMTP server that keeps the site's mail."""
    with tempfile.TemporaryDirectory(prefix="milterapp-direct-") as folder:
        os.chmod(folder, 0o755)
        peer = SmtpPeer(f"{folder}/lmtp")
        os.chmod(peer.address, 0o666)
        CONFIGURATION.write_text(f"delivery:\n  keep: lmtp:unix:{peer.address}\n")
        try:
            yield peer
            site.settle()
        finally:
            peer.close()


def test_several_forwards_are_kept_once(site: Site, keeper: SmtpPeer) -> None:
    """Where an LMTP server keeps the mail, it is given a message once, however many of its forwards cannot leave."""
    site.rules("alice", "rules:\n  - name: on\n    then:\n      forward: [a@home.example, b@home.example]\n")
    site.send(message("to be forwarded"))
    site.settle()
    assert ([one.rcpt for one in keeper.taken], site.elsewhere()) == ([f"RCPT TO:<{ALICE}>"], [])


def test_a_retry_gives_lmtp_nothing_twice(site: Site, keeper: SmtpPeer) -> None:
    """Nor is it given a message again for the member of an alias who has no rules, when another one's waits."""
    site.aliases({"team": "alice, bob"})
    site.rules("alice", 'rules:\n  - name: later\n    then:\n      defer: "4.7.1 Not today"\n')
    answer = site.send(message("to all"), ["team@example.org"])
    site.deferred(answer.queue_id, times=3)
    assert [one.rcpt for one in keeper.taken] == [f"RCPT TO:<{BOB}>"]
    site.rules("alice", "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert sorted(one.rcpt for one in keeper.taken) == [f"RCPT TO:<{ALICE}>", f"RCPT TO:<{BOB}>"]


COUNTING = """
from milterapp.script import store

def main(mail):
    store["count"] = store.get("count", 0) + 1
    mail.send(to="alice@home.example", subject="x", text="x")
    mail.file(f"Box{store['count']}")
"""


def test_a_script_runs_and_sends_nothing(site: Site) -> None:
    """Several messages at once: each finds what the one before stored. What it sends is refused, as a forward is."""
    site.rules("alice", "rules:\n  - name: it\n    then:\n      script: box/box.py\n")
    site.script("alice", "box/box.py", COUNTING)
    for number in range(4):
        site.send(message(str(number)))
    site.settle()
    assert sorted(site.folders("alice")) == ["Box1", "Box2", "Box3", "Box4"]
    assert site.elsewhere() == []


def test_the_author_of_a_script_that_fails_is_told(site: Site) -> None:
    """The notice lies in the Maildir, once, and the message waits until the script is mended."""
    site.rules("alice", "rules:\n  - name: it\n    then:\n      script: box/box.py\n")
    site.script("alice", "box/box.py", "def main(mail): raise ValueError('no')\n")
    answer = site.send(message("waiting"))
    site.deferred(answer.queue_id, times=2)
    assert subjects(inbox("alice")) == ["Your script box/box.py failed"]
    site.script("alice", "box/box.py", COUNTING)
    site.settle()
    assert subjects(site.folders("alice")["Box1"]) == ["waiting"]


def test_where_postfix_keeps_the_mail_waits(site: Site) -> None:
    """With `keep: postfix` it is deferred, and the reason names the remedy."""
    CONFIGURATION.unlink()
    answer = site.send(message("waiting"))
    fate = site.deferred(answer.queue_id)
    assert (fate.dsn, "set `delivery.keep` to maildir" in fate.text) == ("4.3.0", True)
    CONFIGURATION.write_text("delivery:\n  keep: maildir\n")
    site.settle()
    assert subjects(inbox("alice")) == ["waiting"]


def test_a_forward_file(site: Site) -> None:
    """In a .forward it does the same for one user."""
    site.postconf(mailbox_command="")
    site.postfix("reload")
    try:
        site.forward_file("bob", f'"|{COMMAND}"\n')
        site.rules("bob", "rules:\n  - name: a\n    if:\n      recipient: {detail: x}\n    then:\n      file: X\n")
        site.send(message("to bob"), [BOB], sender="")
        site.send(message("to x"), ["bob+x@example.org"])
        site.settle()
        (kept,) = inbox("bob")
        assert header(kept, "Return-Path") == ["<>"]
        assert subjects(site.folders("bob")["X"]) == ["to x"]
    finally:
        site.postconf(mailbox_command=COMMAND)
        site.postfix("reload")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param({"local_delivery_status_filter": FILTER}, "deferred", id="with the filter of the manual"),
        pytest.param({}, "bounced", id="without"),
    ],
)
def test_where_python_cannot_start(site: Site, settings: dict[str, str], status: str) -> None:
    """A command that cannot even start is no fault of the message's: with the manual's filter it waits."""
    site.postconf(mailbox_command="/usr/bin/prlimit --as=12288000 " + COMMAND, **settings)
    site.postfix("reload")
    try:
        answer = site.send(message("hello"))
        site.wait(lambda: bool(site.fates(answer.queue_id)), "an attempt", 60)
        assert {one.status for one in site.fates(answer.queue_id)} == {status}
    finally:
        site.postconf(mailbox_command=COMMAND)
        if settings:
            site.run("postconf", "-X", *settings)
        site.postfix("reload")
    site.settle()
    assert len(inbox("alice")) == (status == "deferred")
