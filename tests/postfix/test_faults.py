"""Whatever fails, mail waits: processes killed, rules broken, homes closed. Then it arrives, once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import smtplib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postfix import processes
from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header
from tests.soak.host_ledger import marked_ids, queue_id

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB = "alice@example.org", "bob@example.org"
FILE = "rules:\n  - name: all\n    then:\n      file: Filed\n"
KEEP = "rules:\n  - name: all\n    then: keep\n"
SITE = "rules:\n  - name: mark\n    if:\n      subject: {exists: true}\n    then:\n      - add_header: {X-Seen: yes}\n"


def persistently(site: Site, data: bytes, recipients: list[str]) -> None:
    """Send as an SMTP client does: again until it is taken, also where the server goes away before it has said so."""

    def taken() -> bool:
        site.revive()
        try:
            return site.send(data, recipients).code == 250
        except (OSError, smtplib.SMTPException):
            return False

    site.wait(taken, "a message to be taken", 60)


def copies(site: Site) -> Counter[str]:
    """Return how often each message arrived, by place and subject."""
    return Counter(
        f"{person} {folder}: {header(one, 'Subject')[0]}"
        for person in ("alice", "bob")
        for folder, messages in site.folders(person).items()
        for one in messages
    )


def kill_all(site: Site, role: str, *, idle: bool = True) -> int:
    """Kill every process of a role, wait until they are gone (of master(8), its idle children too); return how many."""
    pids = site.pids(role)
    following = [pid for one in pids for pid in processes.children(one)] if role == "master" and idle else []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    site.wait(lambda: not any(map(processes.is_running, [*pids, *following])), f"{role} to be gone", 20)
    return len(pids)


@pytest.fixture
def busy(site: Site) -> Site:
    """The host with rules for alice (keep) and bob (file), and every process warm from a first message."""
    site.site_rules(SITE)
    site.rules("alice", KEEP)
    site.rules("bob", FILE)
    site.send(message("warm"), [ALICE, BOB])
    site.settle()
    return site


@pytest.mark.parametrize("role", [one for one in processes.ROLES if one != "client"])
def test_a_process_that_was_killed_costs_no_mail(busy: Site, role: str) -> None:
    """After kill -9 of each process in turn, and its restart where it is a service, mail arrives once and filtered."""
    killed = kill_all(busy, role)
    assert killed or role in ("local", "pipe", "cleanup", "qmgr")
    persistently(busy, message("after"), [ALICE, BOB])
    busy.settle()
    assert copies(busy) == {"alice : warm": 1, "alice : after": 1, "bob Filed: warm": 1, "bob Filed: after": 1}
    assert [header(one, "X-Seen") for one in busy.inbox("alice")] == [["yes"], ["yes"]]


@pytest.fixture
def stopped(busy: Site) -> Iterator[Callable[[], None]]:
    """The host with `submit` stopped, so that the next delivery waits there. Call it to let it go on."""
    (submit,) = busy.pids("submit")
    os.kill(submit, signal.SIGSTOP)

    def go_on() -> None:
        for pid in {submit, *busy.pids("submit")}:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # it was what the test killed

    yield go_on
    go_on()


@pytest.mark.parametrize(
    "role", ["client", "monitor", "resolver", "zygote", "agent", "submit", "pipe", "local", "master"]
)
def test_a_process_killed_during_a_delivery_costs_no_mail(busy: Site, stopped: Callable[[], None], role: str) -> None:
    """Killed while a message is between Postfix and submit, each process in turn: the message arrives, once."""
    busy.send(message("under way"), [ALICE])
    busy.wait(lambda: bool(busy.pids("client")), "the delivery to begin", 20)
    busy.wait(lambda: bool(busy.pids("agent")), "an agent to run", 20)
    assert kill_all(busy, role, idle=False) >= 1
    stopped()
    busy.settle()
    assert copies(busy) == {"alice : warm": 1, "alice : under way": 1, "bob Filed: warm": 1}


def test_killed_at_random_many_messages_arrive_once(busy: Site) -> None:
    """Forty messages while agents, zygote and monitor are killed again and again: each is filed once."""
    subjects = [f"message {number}" for number in range(40)]
    for number, subject in enumerate(subjects):
        persistently(busy, message(subject), [BOB])
        if number % 4 == 3:
            kill_all(busy, ("agent", "zygote", "monitor", "client", "resolver")[number // 4 % 5])
    busy.settle(120)
    assert copies(busy) - Counter({"alice : warm": 1, "bob Filed: warm": 1}) == Counter(
        f"bob Filed: {subject}" for subject in subjects
    )


def write(text: str) -> Callable[[Path], None]:
    """Return what gives a rule file a content."""

    def writes(file: Path) -> None:
        file.write_text(text)

    return writes


def replaced_by_folder(file: Path) -> None:
    """Make the rule file a folder."""
    file.unlink()
    file.mkdir()


def replaced_by_link(file: Path) -> None:
    """Make the rule file a symbolic link."""
    file.rename(file.with_name("elsewhere.yaml"))
    file.symlink_to("elsewhere.yaml")


def replaced_by_fifo(file: Path) -> None:
    """Make the rule file a FIFO that nobody writes to."""
    file.unlink()
    os.mkfifo(file)
    shutil.chown(file, "alice", "alice")


BROKEN = {
    "unknown key": (write("rules:\n  - name: x\n    fi: keep\n    then: keep\n"), "rules.yaml:3:5"),
    "no YAML": (write("rules: [\n"), "rules.yaml:"),
    "an action of the site": (write("rules:\n  - name: x\n    then: accept\n"), "rules.yaml:3"),
    "its own test fails": (
        write(f"{KEEP}tests:\n  - name: t\n    message: |\n      Subject: x\n\n      y\n    expect: reject\n"),
        "rules.yaml:",
    ),
    "empty": (write(""), "rules.yaml"),
    "writable by others": (lambda file: file.chmod(0o666), "rules.yaml"),
    "somebody else's": (lambda file: shutil.chown(file, "bob", "bob"), "rules.yaml"),
    "a symbolic link": (replaced_by_link, "rules.yaml"),
    "a FIFO": (replaced_by_fifo, "rules.yaml"),
    "a directory": (replaced_by_folder, "rules.yaml"),
}


@pytest.mark.parametrize(("breaks", "names"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rules_defer_and_repaired_rules_deliver(site: Site, breaks: Callable[[Path], None], names: str) -> None:
    """Mail of somebody whose rules cannot be used waits, queue and mailbox say where and why; others' mail does not."""
    site.rules("alice", FILE)
    breaks(Path("/home/alice/.milterapp/rules.yaml"))
    answer = site.send(message("waiting"), [ALICE, BOB])
    fate = site.deferred(answer.queue_id)
    assert (fate.to, fate.dsn[:2], names in fate.text) == (ALICE, "4.", True), fate.text
    site.deferred(answer.queue_id, times=2)
    with site.at_rest():
        assert len(site.inbox("bob")) == 1
        assert names.encode() in site.inbox("alice")[0]
        shutil.rmtree("/home/alice/.milterapp")
        site.rules("alice", FILE)
    site.settle()
    told = {"alice : Your mail rules cannot be used": 1}
    assert copies(site) == {"alice Filed: waiting": 1, "bob : waiting": 1, **told}


def closed(home: Path) -> None:
    """Let nobody into the home, not even its owner."""
    home.chmod(0)


def gone(home: Path) -> None:
    """Take the home away, as an unmounted file system does."""
    home.rename("/home/.alice-away")


def locked(home: Path) -> None:
    """Make the home sticky, as people do to lock their mailbox."""
    home.chmod(0o1755)


@pytest.mark.parametrize("closes", [closed, gone, locked])
def test_a_home_that_cannot_be_used_defers(site: Site, closes: Callable[[Path], None]) -> None:
    """Mail to a user whose home is closed, gone or sticky waits, and is filed once the home is back."""
    site.rules("alice", FILE)
    home = Path("/home/alice")
    closes(home)
    try:
        answer = site.send(message("waiting"), [ALICE])
        assert site.deferred(answer.queue_id).dsn.startswith("4.")
        assert site.mailbox("alice") == []
    finally:
        if not home.exists():
            Path("/home/.alice-away").rename(home)
        home.chmod(0o755)
    site.settle()
    assert copies(site) == {"alice Filed: waiting": 1}


def test_postfix_stopped_and_started_loses_nothing(busy: Site) -> None:
    """A stop and start of Postfix while mail is under way: everything arrives, once but for submit's documented gap."""
    for number in range(10):
        busy.send(message(f"message {number}"), [ALICE, BOB])
    busy.postfix("stop")
    busy.postfix("start")
    busy.settle()
    marked = set(marked_ids(busy.service_log("submit").splitlines()))
    found = copies(busy)
    for number in range(10):
        passes = {queue_id(one) for one in busy.inbox("alice") if header(one, "Subject") == [f"message {number}"]}
        if len(passes) > 1:  # smtpd(8) took it and was stopped before it said so
            assert len(passes & marked) <= 1
        if passes:  # once more in the same pass: local(8) wrote it and was stopped before it said so
            assert found[f"alice : message {number}"] <= len(passes) + 1
            found[f"alice : message {number}"] = 1
    expected = Counter({"alice : warm": 1, "bob Filed: warm": 1})
    expected.update(f"{place}: message {number}" for place in ("alice ", "bob Filed") for number in range(10))
    assert found == expected
