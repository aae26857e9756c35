"""What hostile senders, recipients, messages, disks and homes do through the whole chain: no harm, and no more."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL, ROOT = (f"{one}@example.org" for one in ("alice", "bob", "carol", "root"))
KEEP = "rules:\n  - name: all\n    then: keep\n"
FILE = "rules:\n  - name: all\n    then:\n      file: Filed\n"
FORWARD = "rules:\n  - name: all\n    then:\n      forward: carol@home.example\n"
STATE = "/var/lib/milterapp/submit"

# Everything that sendmail(1) takes after -f; a smtpd would refuse some of them.
SENDERS = {
    "an option": "-x@home.example",
    "our option": "--socket=/tmp/x@home.example",
    "a path": "../../etc/passwd@home.example",
    "a command": "$(id)@home.example",
    "a macro": "${recipient}@home.example",
    "a control character": '"a\x7fb"@home.example',
    "a line end": '"a\nb"@home.example',
    "quotes": '"a\\"b> c\\\\"@home.example',
    "300 characters": f"{'a' * 300}@home.example",
    "UTF-8": "jörg@home.example",
    "Latin-1": "j\udcf6rg@home.example",
    "two dots": "dora@home..example",
    "no literal": "dora@[300.1]",
    "no domain": "dora",
}
# Whom nobody is. What a name in quotes may hold, argv and a path may not.
RECIPIENTS = {
    "an option": "-x@example.org",
    "a path": "../../etc@example.org",
    "an absolute path": "/etc/passwd@example.org",
    "an include": ":include:/etc/passwd@example.org",
    "a command": "$(id)@example.org",
    "a pipe": "|id@example.org",
    "DEL": '"a\x7fb"@example.org',
    "300 characters": f"{'a' * 300}@example.org",
    "UTF-8": "jörg@example.org",
    "blanks": '"no such"@example.org',
    "a delimiter first": "+alice@example.org",
}
ALICES = (
    '"alice"@example.org',
    "ALICE@Example.ORG",
    '"ali\\ce"@example.org',
    '"alice+a b"@example.org',
    "alice+../../x@example.org",
    "alice+$(id)@example.org",
    '"alice+\x7f"@example.org',
    f"alice+{'x' * 300}@example.org",
    "alice+ä@example.org",
)
BODIES = {
    "NUL": b"a\0b\r\n",
    "bare CR": b"a\rb\r\nx\r\r\ny\r\n",
    "dots": b".\r\n..\r\n.a\r\n\r\n.\r\n",
    "a line of 2 MB": b"x" * 2_000_000 + b"\r\n",
    "no line end": b"no end",
    "From": b"From me\r\n\r\nFrom you\r\n",
    "8-bit": bytes(range(128, 256)) + b"\r\n",
    "none": b"",
}


@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
def test_a_sender_is_only_a_word(site: Site, sender: str) -> None:
    """Mail of any sender that sendmail(1) takes is kept and filed, once each, as Postfix alone delivers it."""
    site.rules("bob", FILE)
    assert site.sendmail(message("odd"), [ALICE, BOB], sender=sender, user="carol").returncode == 0
    site.settle()
    assert (len(site.inbox("alice")), len(site.folders("bob")["Filed"])) == (1, 1)


def test_a_reply_that_cannot_leave_brings_nothing_back(site: Site) -> None:
    """Mail whose sender cannot be answered is kept once and done with: it does not wait, and nothing comes back."""
    site.rules("alice", "rules:\n  - name: hours\n    then:\n      reply: From 10 to 18 h.\n")
    site.sendmail(message("odd"), [ALICE], sender=SENDERS["no literal"], user="carol")
    site.settle()
    assert (len(site.inbox("alice")), site.elsewhere()) == (1, [])


@pytest.mark.parametrize("recipient", RECIPIENTS.values(), ids=RECIPIENTS)
def test_a_recipient_that_nobody_is_comes_back(site: Site, recipient: str) -> None:
    """Mail to a name that nobody has is answered at once, in Postfix's words, and not after days."""
    site.sendmail(message("odd"), [recipient], sender=BOB, user="carol")
    site.settle()
    (notice,) = site.inbox("bob")
    assert b"Status: 5." in notice


def test_however_a_user_is_written(site: Site) -> None:
    """Quotes, case and any extension lead to the user, whose folders and files stay what they are."""
    site.rules("alice", FILE)
    for one in ALICES:
        site.sendmail(message("odd"), [one], sender=BOB, user="carol")
    site.settle()
    assert len(site.folders("alice")["Filed"]) == len(ALICES)
    assert sorted(one.name for one in Path("/home/alice/Maildir").iterdir()) == [".Filed", "cur", "new", "tmp"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("sendmail", [False, True], ids=["smtp", "sendmail"])
def test_a_message_arrives_as_postfix_took_it(site: Site, body: bytes, sendmail: bool) -> None:
    """Kept, filed, or never seen by an agent: header and body are the same bytes, whatever they are."""
    site.rules("alice", KEEP)
    site.rules("bob", FILE)
    head = [b"From: dora@home.example", b"Subject: \xe4\xff", b"X-\xff: y", b"X-Long: " + b"y" * 90_000]
    data = b"\r\n".join([*head, b"", body])
    if sendmail:
        site.sendmail(data, [ALICE, BOB, ROOT], user="carol")
    else:
        site.send(data, [ALICE, BOB, ROOT])
    site.settle()
    (kept,), (filed,), (root,) = site.inbox("alice"), site.folders("bob")["Filed"], site.mailbox("root")
    for one in (kept, filed, root):
        assert [line for line in head if line + b"\n" not in one] == []
    assert len({one.partition(b"\n\n")[2].rstrip(b"\n") for one in (kept, filed, root)}) == 1


def test_20_megabytes_pass_whole(site: Site) -> None:
    """A message of 20 MB is kept and filed whole where the site's limits let it in."""
    limits = {"message_size_limit": "30000000", "mailbox_size_limit": "100000000"}
    site.postconf(**limits)
    site.postfix("reload")
    try:
        site.rules("bob", FILE)
        body = "".join(f"{number:060d}\n" for number in range(330_000))
        assert site.send(message("large", body), [ALICE, BOB]).code == 250
        site.settle()
        for (one,) in (site.inbox("alice"), site.folders("bob")["Filed"]):
            assert one.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")
    finally:
        site.run("postconf", "-X", *limits)
        site.postfix("reload")


@contextmanager
def small_disk(folder: str, owner: str) -> Iterator[Callable[[], Path]]:
    """Mount a disk of 1 MB; call what is given to fill it to the last byte, with a file that is returned."""
    account = pwd.getpwnam(owner)
    options = f"size=1M,mode={os.stat(folder).st_mode & 0o7777:o},uid={account.pw_uid},gid={account.pw_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    def fill() -> Path:
        ballast = Path(folder, "ballast")
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        return ballast

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("rules", ["", KEEP, FORWARD], ids=["no rules", "keep", "forward"])
def test_a_full_disk_under_submit_doubles_nothing(site: Site, rules: str) -> None:
    """While the journal of submit cannot be written mail waits; when it can, each message arrived once."""
    site.stop_service("submit")
    with small_disk(STATE, "milterapp-submit") as fill:
        site.start_service("submit")
        if rules:
            site.rules("carol", rules)
        site.send(message("before"), [CAROL])
        site.settle()
        ballast = fill()
        site.deferred(site.send(message("full"), [CAROL]).queue_id, times=4)
        ballast.unlink()
        site.settle()
        site.stop_service("submit")
    site.start_service("submit")
    found = site.elsewhere() if rules == FORWARD else site.inbox("carol")
    assert Counter(header(one, "Subject")[0] for one in found) == {"before": 1, "full": 1}


@pytest.mark.parametrize("rules", [KEEP, FILE], ids=["keep", "file"])
def test_a_full_home_doubles_nothing(site: Site, rules: str) -> None:
    """While a home is full its user's mail waits, a first message and a later one; then each arrives once."""
    with small_disk("/home/alice", "alice") as fill:
        site.rules("alice", rules)
        for subject in ("first", "second"):
            ballast = fill()
            site.deferred(site.send(message(subject)).queue_id, times=3)
            ballast.unlink()
            site.settle()
        found = [one for messages in site.folders("alice").values() for one in messages]
        assert Counter(header(one, "Subject")[0] for one in found) == {"first": 1, "second": 1}


def a_fifo(home: Path) -> None:
    """Make it a FIFO that nobody writes to."""
    os.mkfifo(home, 0o666)


def a_file(home: Path) -> None:
    """Make it a file."""
    home.write_text("")


def a_socket(home: Path) -> None:
    """Make it a socket."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(home))


def a_circle(home: Path) -> None:
    """Make it a link to itself."""
    home.symlink_to(home)


def endless(home: Path) -> None:
    """Make it a link to a device."""
    home.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_fifo, a_file, a_socket, a_circle, endless])
def test_a_home_that_is_no_folder_defers_at_once(site: Site, make: Callable[[Path], None]) -> None:
    """Where something else stands in the place of a home, mail waits, nothing hangs, and it arrives once it is back."""
    home, away = Path("/home/alice"), Path("/home/.alice-away")
    site.rules("alice", FILE)
    home.rename(away)
    try:
        make(home)
        fate = site.deferred(site.send(message("waits")).queue_id)
        assert (fate.dsn, fate.text.startswith("home:")) == ("4.3.0", True)
    finally:
        home.unlink()
        away.rename(home)
    site.settle()
    assert len(site.folders("alice")["Filed"]) == 1


def test_many_ways_to_one_user_at_once(site: Site) -> None:
    """Each alias, extension and address of one user is one copy, also where many messages come at once."""
    site.aliases({"one": "alice", "two": "alice", "both": "alice, bob"})
    site.rules("alice", FILE)
    site.send(message("ways"), ["one@example.org", "two@example.org", "both@example.org", ALICE, "alice+x@example.org"])
    for number in range(10):
        site.send(message(f"message {number}"), [ALICE, "one@example.org"])
    site.settle()
    found = Counter(header(one, "Subject")[0] for one in site.folders("alice")["Filed"])
    assert found == {"ways": 5, **{f"message {number}": 2 for number in range(10)}}
    assert len(site.inbox("bob")) == 1


RULES, JOURNAL = "rules.yaml", "journal.sqlite"


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return what puts something else in a file's place; the file is moved aside."""

    def replaces(folder: Path) -> None:
        file = folder / name
        if file.exists():
            file.rename(file.with_name("aside"))
        make(file)

    return replaces


STATES: dict[str, Callable[[Path], object]] = {
    "rules with a second name": lambda folder: os.link(folder / RULES, "/home/alice/second"),
    "rules of 2 MB": lambda folder: (folder / RULES).write_text(FILE + "#" * 2_000_000),
    "rules not to be read": lambda folder: (folder / RULES).chmod(0),
    "rules with NUL": lambda folder: (folder / RULES).write_bytes(b"rules:\0"),
    "rules in Latin-1": lambda folder: (folder / RULES).write_bytes(FILE.encode() + b"# \xe4\n"),
    "rules that are a socket": replaced(RULES, a_socket),
    "rules that are a circle": replaced(RULES, a_circle),
    "a folder for all": lambda folder: folder.chmod(0o777),
    "a folder of another": lambda folder: os.chown(folder, pwd.getpwnam("bob").pw_uid, -1),
    "a home for all": lambda folder: folder.parent.chmod(0o777),
    "a journal that is none": replaced(JOURNAL, lambda file: file.write_bytes(b"x" * 9000)),
    "a journal that is a FIFO": replaced(JOURNAL, a_fifo),
    "a journal that is a link": replaced(JOURNAL, lambda file: file.symlink_to("/etc/passwd")),
    "a journal that is a folder": replaced(JOURNAL, Path.mkdir),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_what_a_user_made_of_their_files_defers_their_mail_alone(site: Site, change: Callable[[Path], object]) -> None:
    """Rules, folder or journal that cannot be used: that user's mail waits at once, and arrives once when they can."""
    folder = Path("/home/alice/.milterapp")
    site.rules("alice", FILE)
    site.send(message("before"))
    site.settle()
    change(folder)
    answer = site.send(message("after"), [ALICE, BOB])
    assert site.deferred(answer.queue_id).to == ALICE
    with site.at_rest():
        assert len(site.inbox("bob")) == 1
        assert Path("/etc/passwd").read_text().startswith("root:")
        folder.parent.chmod(0o755)
        Path("/home/alice/second").unlink(missing_ok=True)
        subprocess.run(["rm", "-r", str(folder)], check=True)
        site.rules("alice", FILE)
    site.settle()
    assert Counter(header(one, "Subject")[0] for one in site.folders("alice")["Filed"]) == {"before": 1, "after": 1}
