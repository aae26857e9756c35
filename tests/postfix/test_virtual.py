"""Virtual domains on a real Postfix: people without accounts, all of one uid, each with rules of their own.

Everything is tried twice: by pipe(8) and by the LMTP door.
"""

from __future__ import annotations

import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postfix import mailboxes
from tests.postfix.harness import PYTHON, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ANN, BEN, CAT = "ann@v.example", "ben@v.example", "cat@v.example"
BASE = Path("/var/vmail")
DOOR = Path("/var/spool/postfix/milterapp-lmtp")
CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")
RECIPIENTS = Path("/etc/milterapp/recipients")
MAPS = Path("/etc/postfix/people")
PROGRAMS = "programs:\n  sh:\n    run: [/bin/sh]\n    time: 90\n"
FILED = "rules:\n  - name: shops\n    if:\n      subject: {contains: shop}\n    then:\n      file: Shops\n"
REFUSED = 'rules:\n  - name: no word\n    if:\n      subject: {contains: shop}\n    then:\n      reject: "5.7.1 No"\n'


@pytest.fixture(scope="module")
def vmail() -> None:
    """The one account of all of them."""
    subprocess.run(["useradd", "--uid", "5000", "--user-group", "--no-create-home", "vmail"], check=True)


@pytest.fixture(scope="module", params=["pipe", "lmtp"])
def door(request: pytest.FixtureRequest) -> str:
    """How Postfix hands mail over."""
    return str(request.param)


@pytest.fixture(scope="module")
def people(host: Site, vmail: None, door: str) -> Iterator[Site]:
    """The host with a virtual domain, which another transport delivered until now; bob, an account, is none of it."""
    RECIPIENTS.write_text(
        f"{ANN} 5000 5000 {BASE}/ann\ninfo@v.example 5000 5000 {BASE}/ann\n{BEN} 5000 5000 {BASE}/ben\n"
        f"{CAT} 5000 5000 {BASE}/cat\nlow@v.example 101 5000 {BASE}/low\n"
    )
    MAPS.write_text("".join(f"/^{one}(\\+.*)?@v\\.example$/ {one}/Maildir/\n" for one in ("ann", "ben", "cat", "low")))
    service = (
        "people unix - n n - - virtual -o virtual_mailbox_maps=regexp:/etc/postfix/people "
        f"-o virtual_mailbox_base={BASE} -o virtual_uid_maps=static:5000 -o virtual_gid_maps=static:5000"
    )
    subprocess.run(["postconf", "-M", "-e", f"people/unix={service}"], check=True)
    host.postconf(virtual_mailbox_domains="v.example", virtual_transport="people")
    CONFIGURATION.write_text(f"delivery:\n  recipients: {RECIPIENTS}\n{PROGRAMS}")
    before = host.run("postconf", "-n")
    host.milterapp("setup", "--apply", "--door", door, check=True)
    host.postfix("reload")  # and waits for the servers that do not know the domain to be gone
    _restart(host)
    if door == "lmtp":
        host.start_service("lmtp")
    try:
        yield host
    finally:
        CONFIGURATION.unlink()
        host.milterapp("setup", "--apply", "--door", "pipe", check=True)
        host.stop_service("lmtp")
        after = host.run("postconf", "-n")
        host.postconf(virtual_mailbox_domains="")
        host.run("postconf", "-X", "virtual_transport")
        host.postfix("reload")
        _restart(host)
        shutil.rmtree(BASE, ignore_errors=True)
    assert after == before  # without the setting setup puts back what was there


def _restart(host: Site) -> None:
    for name in ("monitor", "submit"):
        host.stop_service(name)
    for name in ("submit", "monitor"):
        host.start_service(name)


@pytest.fixture
def site(people: Site) -> Site:
    """That host, with empty mailboxes and no rules."""
    people.reset()
    for name in ("", "ann", "ben", "cat", "low"):
        (BASE / name).mkdir(mode=0o755, exist_ok=True)
        shutil.chown(BASE / name, "vmail", "vmail")
    # An agent that ends takes files of SQLite's away at the same time.
    subprocess.run(["find", str(BASE), "-ignore_readdir_race", "-mindepth", "2", "-delete"], check=True)
    return people


def rules(name: str, text: str) -> None:
    """Give somebody rules."""
    folder = BASE / name / ".milterapp"
    folder.mkdir(mode=0o700)
    (folder / "rules.yaml").write_text(text)
    for path in (folder, folder / "rules.yaml"):
        shutil.chown(path, "vmail", "vmail")


def folders(name: str) -> dict[str, list[str]]:
    """Return the subjects in somebody's folders, "" the inbox."""
    found = mailboxes.folders(BASE / name, BASE / name / "nothing")
    return {folder: sorted(header(one, "Subject")[0] for one in mails) for folder, mails in found.items()}


def test_two_people_of_one_uid_have_their_own_rules(site: Site, door: str) -> None:
    """One message to two: filed by the one, refused by the other, and what matches nothing goes where it always went.

    Case and extensions are as they are for accounts.
    """
    rules("ann", FILED)
    rules("ben", REFUSED)
    answer = site.send(message("a shop"), [ANN, BEN])
    site.send(message("hello"), ["ANN+x@V.Example", BEN])
    site.settle()
    assert folders("ann") == {"": ["hello"], "Shops": ["a shop"]}
    assert folders("ben") == {"": ["hello"]}
    told = {(one.original or one.to): one.dsn for one in site.fates(answer.queue_id)}
    assert told == {ANN: {"pipe": "2.0.0", "lmtp": "2.1.5"}[door], BEN: "5.7.1"}
    (notice,) = site.elsewhere()
    assert {"pipe": b"<ben@v.example>: No", "lmtp": b"550 5.7.1 No"}[door] in notice
    relay = {"pipe": "milterapp-virtual", "lmtp": "mx.example.org[milterapp-lmtp/virtual]"}[door]
    assert {one.relay for one in site.fates(answer.queue_id)} == {relay}
    assert {one.stat().st_uid for one in BASE.rglob("*")} == {5000}


def say(socket_name: str, recipient: str, subject: str) -> bytes:
    """Give the LMTP door a message past Postfix, at one of its sockets; return its answer."""
    with smtplib.LMTP(f"{DOOR}/{socket_name}") as client:
        client.ehlo()
        client.mail("dora@home.example")
        assert client.rcpt(recipient)[0] == 250
        return client.data(message(subject))[1]


@pytest.mark.parametrize("door", ["lmtp"], indirect=True)
def test_neither_socket_takes_the_recipients_of_the_other(site: Site) -> None:
    """A user of this host is nobody at the socket for virtual domains, whoever says so; and the other way round."""
    everything = "rules:\n  - name: all\n    then:\n      file: All\n"
    for name in ("alice", "bob"):
        site.rules(name, everything)
    rules("ann", everything)
    for socket_name, recipient in (("virtual", "alice@example.org"), ("virtual", "bob@v.example"), ("socket", ANN)):
        assert say(socket_name, recipient, "mixed up").startswith(b"2.1.5")  # handed back, to what knows who is unknown
    site.settle()
    assert (site.folders("alice"), site.folders("bob"), folders("ann")) == ({}, {}, {})
    notices = site.elsewhere()
    assert len(notices) == 3
    assert all(b"Status: 5.1.1" in one for one in notices)
    for socket_name, recipient in (("virtual", ANN), ("socket", "alice@example.org")):
        say(socket_name, recipient, "at the right one")
    site.settle()
    assert (folders("ann"), list(site.folders("alice"))) == ({"All": ["at the right one"]}, ["All"])


@pytest.mark.parametrize("door", ["lmtp"], indirect=True)
def test_who_may_come_to_the_sockets(site: Site) -> None:
    """Both are for Postfix alone, by their folder."""
    reach = f"import socket\nfor one in ('socket', 'virtual'): socket.socket(socket.AF_UNIX).connect('{DOOR}/' + one)"
    for user, allowed in (("postfix", True), ("alice", False), ("vmail", False), ("milterapp-pipe", False)):
        done = subprocess.run(
            [PYTHON, "-I", "-c", reach], user=user, group=user, extra_groups=[], capture_output=True, check=False
        )
        assert (done.returncode == 0, b"PermissionError" in done.stderr) == (allowed, not allowed), user


def test_an_extension_and_a_second_address(site: Site) -> None:
    """Rules see the extension; another address of one home is the same person with the same rules."""
    rules("ann", "rules:\n  - name: x\n    if:\n      recipient: {detail: shop}\n    then:\n      file: '${detail}'\n")
    site.send(message("one"), ["ann+shop@v.example"])
    site.send(message("two"), ["info+shop@v.example"])
    site.settle()
    assert folders("ann") == {"shop": ["one", "two"]}


def test_who_has_no_line_or_no_rules_goes_back(site: Site) -> None:
    """Unknown ones, also where an account has that name and rules, ids below the floor, and people without rules."""
    site.rules("bob", "rules:\n  - name: all\n    then: discard\n")
    unknown = site.send(message("who"), ["bob@v.example"])
    site.send(message("low"), ["low@v.example"])
    site.send(message("none"), [CAT])
    site.settle()
    assert (folders("cat"), folders("low")) == ({"": ["none"]}, {"": ["low"]})
    (notice,) = site.elsewhere()
    assert b"bob@v.example" in notice
    assert b"5.1.1" in notice
    assert [one.status for one in site.fates(unknown.queue_id)] == ["sent"]
    assert not (BASE / "cat" / ".milterapp").exists()


def test_a_retry_completes_and_repeats_nothing(site: Site) -> None:
    """Where the home is locked (sticky) the message waits; then it is filed once, and kept once."""
    rules("ann", FILED.replace("file: Shops", "file: {folder: Shops, copy: true}"))
    (BASE / "ann").chmod(0o1755)
    answer = site.send(message("a shop"), [ANN])
    assert "sticky" in site.deferred(answer.queue_id, times=2).text
    (BASE / "ann").chmod(0o755)
    site.settle()
    assert folders("ann") == {"": ["a shop"], "Shops": ["a shop"]}


def test_a_broken_file_makes_mail_wait(site: Site) -> None:
    """While the file has a slip nobody is unknown: mail waits, and `check` says where."""
    rules("ann", FILED)
    done = site.milterapp("check", "--site", check=True)
    assert b"low@v.example has uid 101, below delivery.min_uid" in done.stdout
    assert f"{RECIPIENTS}: 4 recipients, all well".encode() in done.stdout
    text = RECIPIENTS.read_text()
    RECIPIENTS.write_text(text + "dan@v.example 5000\n")
    try:
        done = site.milterapp("check", "--site")
        assert done.returncode == 78
        assert f"{RECIPIENTS}:6: found 1 fields after the address".encode() in done.stdout
        answer = site.send(message("a shop"), [ANN])
        fate = site.deferred(answer.queue_id)
        assert "recipients:6" in fate.text
    finally:
        mended = RECIPIENTS.with_name("mended")  # in one step: the message is tried again meanwhile
        mended.write_text(text)
        mended.rename(RECIPIENTS)
    site.settle()
    assert folders("ann") == {"Shops": ["a shop"]}


def test_a_home_that_was_replaced_is_reached(site: Site) -> None:
    """A warm agent reaches the folder that was its home; where another stands there now, a new one takes its place."""
    rules("ann", FILED)
    site.send(message("first shop"), [ANN])
    site.settle()
    (BASE / "ann").rename(BASE / "old")
    (BASE / "ann").mkdir(mode=0o755)
    shutil.chown(BASE / "ann", "vmail", "vmail")
    rules("ann", FILED)
    site.send(message("second shop"), [ANN])
    site.settle()
    shutil.rmtree(BASE / "old")
    assert folders("ann") == {"Shops": ["second shop"]}


def test_programs_and_scripts_stay_at_home(site: Site) -> None:
    """Somebody's program and script work at home, and read nothing of another's home, though its uid is theirs."""
    rules("ben", FILED)
    rules(
        "ann",
        "rules:\n"
        "  - name: look\n    if:\n      command: {run: sh, arguments: [.milterapp/look]}\n"
        "    then:\n      file: Reached\n"
        "  - name: tell\n    then:\n      script: tell.py\n",
    )
    look = f"cat {BASE}/ann/.milterapp/rules.yaml > seen || exit 2\ncat {BASE}/ben/.milterapp/rules.yaml > stolen\n"
    tell = (
        "def main(mail):\n    try:\n"
        f'        open("{BASE}/ben/.milterapp/rules.yaml").close()\n        mail.file("Reached")\n'
        '    except OSError:\n        mail.file("Walled")\n'
    )
    for name, text in (("look", look), ("tell.py", tell)):
        path = BASE / "ann" / ".milterapp" / name
        path.write_text(text)
        shutil.chown(path, "vmail", "vmail")
    site.send(message("hello"), [ANN])
    site.settle()
    assert folders("ann") == {"Walled": ["hello"]}
    assert (BASE / "ann" / "seen").read_text().startswith("rules:")
    assert (BASE / "ann" / "stolen").read_text() == ""


def test_one_home_is_no_way_into_another(site: Site) -> None:
    """A link at home to another's home of the same uid leads nowhere: the mail waits, and nothing arrives there."""
    rules("ann", FILED)
    (BASE / "ben" / "Maildir" / "new").mkdir(parents=True)
    for path in (BASE / "ben" / "Maildir", BASE / "ben" / "Maildir" / "new"):
        shutil.chown(path, "vmail", "vmail")
    (BASE / "ann" / "Maildir").symlink_to(BASE / "ben" / "Maildir")
    answer = site.send(message("a shop"), [ANN])
    site.deferred(answer.queue_id)
    (BASE / "ann" / "Maildir").unlink()
    site.settle()
    assert folders("ann") == {"Shops": ["a shop"]}
    assert sorted(one.name for one in (BASE / "ben").rglob("*")) == ["Maildir", "new"]


SLOW = """rules:
  - name: slow
    if:
      command: {run: sh, arguments: ['.milterapp/slow']}
    then: keep
"""


def test_who_is_slow_keeps_nobody_else_waiting(site: Site) -> None:
    """While one recipient's rules take their time with many messages, another's mail arrives."""
    rules("ann", SLOW)
    (BASE / "ann" / ".milterapp" / "slow").write_text("until [ -e go ]; do sleep 0.1; done\n")
    for number in range(24):
        site.send(message(f"slow {number}"), [ANN])
    site.send(message("quick"), [BEN])
    site.wait(lambda: folders("ben") == {"": ["quick"]}, "the quick one", 40)
    assert folders("ann") == {}
    (BASE / "ann" / ".milterapp" / "rules.yaml").unlink()
    (BASE / "ann" / "go").touch()
    site.settle(120)
    assert len(folders("ann")[""]) == 24
