"""Programs in personal rules through the whole chain: piped to, filtered through, asked; and what a bad one costs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postfix.harness import PYTHON, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")
BIN = Path("/opt/programs")
ALICE, BOB = "alice@example.org", "bob@example.org"
PROGRAMS = """\
programs:
  spool: {run: [/opt/programs/spool]}
  retitle: {run: [/bin/sed, '1,/^$/s/^Subject: /Subject: [checked] /']}
  is-spam: {run: [/bin/grep, -q, buy now]}
  bad: {run: [/opt/programs/bad], time: 60, output: 1 MB}
  brief: {run: [/opt/programs/bad], time: 3, processes: 20}
"""
SPOOL = '#!/bin/sh\nid -u >"$HOME/spooled.uid"\nprintf "%s\\n" "$@" >"$HOME/spooled.words"\ncat >"$HOME/spooled"\n'
BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
# loop: the work is its children's, so that the bound on its own processor time cannot be met before that on time.
BAD = """\
#!/bin/sh
echo $$ >>"$HOME/began"
case $1 in
bomb) exec /usr/bin/python3 -I -S /opt/programs/bomb ;;
loop) while :; do (:); done ;;
flood) while :; do echo flood; done ;;
away)
    (setsid sh -c 'echo $$ >"$HOME/left"; exec sleep 1000' & ) </dev/null
    while [ ! -s "$HOME/left" ]; do sleep 0.05; done
    exit 3
    ;;
esac
"""


@pytest.fixture(scope="module")
def allowing(host: Site) -> Iterator[Site]:
    """The host with programs that rules may start; its monitor started anew with them."""
    BIN.mkdir()
    for name, text in (("spool", SPOOL), ("bad", BAD), ("bomb", BOMB)):
        (BIN / name).write_text(text)
        (BIN / name).chmod(0o755)
    with host.configured(PROGRAMS, "monitor"):
        yield host


@pytest.fixture
def site(allowing: Site) -> Site:
    """That host, emptied."""
    allowing.reset()
    for path in Path("/home").glob("*/*"):
        if path.is_file():
            path.unlink()
    return allowing


@pytest.fixture
def once(site: Site) -> Iterator[Site]:
    """That host, where what was deferred is not tried again before the test asks: nothing of it is under way then."""
    site.postconf(minimal_backoff_time="1000s", maximal_backoff_time="1000s")
    site.postfix("reload")
    yield site
    site.postconf(minimal_backoff_time="1s", maximal_backoff_time="2s")
    site.postfix("reload")


def processes_of(user: str) -> int:
    """Return how many processes a user has."""
    uid = pwd.getpwnam(user).pw_uid
    found = 0
    for name in os.listdir("/proc"):
        try:
            text = Path(f"/proc/{name}/status").read_text() if name.isdigit() else ""
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += f"\nUid:\t{uid}\t" in text and "\nState:\tZ" not in text
    return found


def test_a_program_takes_a_message(site: Site) -> None:
    """`pipe` gives the message to the program as its recipient; nothing is kept beside it."""
    rules = (
        "rules:\n  - name: s\n    then:\n      pipe: {program: spool, arguments: ['${subject}', '${from.domain}']}\n"
    )
    site.rules("alice", rules)
    site.send(message("--help; $(touch /tmp/x)"))
    site.settle()
    home = Path("/home/alice")
    spooled = (home / "spooled").read_bytes()
    assert header(spooled, "Subject") == ["--help; $(touch /tmp/x)"]
    assert header(spooled, "Delivered-To") == [ALICE]
    assert (home / "spooled.words").read_text() == "_--help; $(touch /tmp/x)\nhome.example\n"
    assert int((home / "spooled.uid").read_text()) == pwd.getpwnam("alice").pw_uid
    assert (site.folders("alice"), os.path.exists("/tmp/x")) == ({}, False)


def test_a_filter_and_a_command(site: Site) -> None:
    """A filter rewrites the subject of what is filed and of what is handed back; a command decides which it is."""
    site.rules(
        "alice",
        "rules:\n  - name: spam\n    if:\n      command: is-spam\n    then:\n      file: Junk\n"
        "  - name: rest\n    then:\n      filter: retitle\n",
    )
    site.rules("bob", "rules:\n  - name: all\n    then:\n      - filter: retitle\n      - file: All\n")
    site.send(message("one", body="Please buy now.\n"), [ALICE, BOB])
    site.send(message("two"), [ALICE])
    site.settle()
    assert {name: [header(one, "Subject") for one in some] for name, some in site.folders("alice").items()} == {
        "Junk": [["one"]], "": [["[checked] two"]],
    }  # fmt: skip
    (all_,) = site.folders("bob")["All"]
    assert header(all_, "Subject") == ["[checked] one"]


@pytest.mark.parametrize(
    ("what", "program", "why"),
    [
        pytest.param("bomb", "brief", "took too long", id="a fork bomb"),
        pytest.param("loop", "brief", "took too long", id="an endless loop"),
        pytest.param("flood", "bad", "wrote too much", id="an output flood"),
        pytest.param("away", "bad", "ended with status 3", id="one that leaves"),
    ],
)
def test_only_that_delivery_waits(once: Site, what: str, program: str, why: str) -> None:
    """While a program runs wild, other people's mail arrives; its own message waits, and nothing of it is left."""
    site = once
    site.rules("alice", f"rules:\n  - name: b\n    then:\n      pipe: {{program: {program}, arguments: [{what}]}}\n")
    before = processes_of("alice")
    answer = site.send(message("bad"))
    site.wait(lambda: Path("/home/alice/began").exists(), "the program to begin", 30)
    site.send(message("other"), [BOB])
    site.wait(lambda: bool(site.inbox("bob")), "other people's mail to arrive", 60)
    fate = site.deferred(answer.queue_id)
    assert f"pipe: {program} {why}" in fate.text
    assert processes_of("alice") <= before + 2  # the agent and its runner
    if what == "away":
        assert not os.path.exists(f"/proc/{Path('/home/alice/left').read_text().strip()}")
    site.rules("alice", "rules:\n  - name: k\n    then: keep\n")
    # What was decided is carried out: the program has to be mended, not the rules.
    (BIN / "bad").write_text("#!/bin/sh\ncat >/dev/null\n")
    try:
        site.settle()
    finally:
        (BIN / "bad").write_text(BAD)
    assert (site.folders("alice"), site.elsewhere()) == ({}, [])


def test_a_dry_run_runs_nothing_unless_asked(site: Site) -> None:
    """`milterapp test` says what would be run, and runs what decides and filters only with --run-programs."""
    site.rules(
        "alice",
        "rules:\n  - name: spam\n    if:\n      command: is-spam\n    then:\n      pipe: spool\n"
        "  - name: rest\n    then:\n      filter: retitle\n",
    )
    mail = message("two", body="Nothing to buy.\n")
    dry = site.milterapp("test", "--recipient", ALICE, message=mail, user="alice", check=True).stdout.decode()
    assert "command is-spam ends with 0: nobody was asked, assumed 0" in dry
    assert "delivery: pipe spool" in dry
    asked = ("test", "--run-programs", "--diff", "--recipient", ALICE)
    ran = site.milterapp(*asked, message=mail, user="alice", check=True).stdout.decode()
    assert "edit: filter retitle" in ran
    assert "+Subject: [checked] two" in ran
    assert not Path("/home/alice/spooled").exists()
    root = site.milterapp(*asked, "--rules", "/home/alice/.milterapp/rules.yaml", message=mail)
    assert (root.returncode, b"never runs one as root" in root.stderr) == (64, True)


def test_check_says_what_will_not_work(site: Site) -> None:
    """`milterapp check` names programs that are missing, setuid, or writable by others."""
    for name, mode in (("setuid", 0o4755), ("writable", 0o777)):
        (BIN / name).write_text("#!/bin/sh\n")
        (BIN / name).chmod(mode)
    text = PROGRAMS + "".join(f"  {name}: {{run: [/opt/programs/{name}]}}\n" for name in ("setuid", "writable", "gone"))
    CONFIGURATION.write_text(text)
    try:
        said = site.milterapp("check", "--site")
    finally:
        CONFIGURATION.write_text(PROGRAMS)
    lines = said.stdout.decode()
    assert said.returncode == os.EX_CONFIG
    assert "the program 'setuid': /opt/programs/setuid is setuid or setgid, and runs without that" in lines
    assert "the program 'writable': /opt/programs/writable can be changed by others" in lines
    assert "the program 'gone': /opt/programs/gone: No such file or directory" in lines


def test_without_a_monitor(site: Site) -> None:
    """`milterapp-pipe --direct` runs the same programs."""
    before = processes_of("alice")
    CONFIGURATION.write_text(PROGRAMS + "delivery:\n  keep: maildir\n")
    site.postconf(mailbox_transport="", mailbox_command=f"{PYTHON} -I -m milterapp.commands.direct --direct")
    site.postfix("reload")
    try:
        site.rules(
            "alice",
            "rules:\n  - name: spam\n    if:\n      command: is-spam\n    then:\n      pipe: spool\n"
            "  - name: rest\n    then:\n      filter: retitle\n",
        )
        site.send(message("one", body="Please buy now.\n"))
        site.send(message("two"))
        site.settle()
        assert header(Path("/home/alice/spooled").read_bytes(), "Subject") == ["one"]
        assert [header(one, "Subject") for one in site.inbox("alice")] == [["[checked] two"]]
        site.wait(lambda: processes_of("alice") <= before, "all of it to end", 30)
    finally:
        CONFIGURATION.write_text(PROGRAMS)
        site.run("postconf", "-X", "mailbox_command")
        site.postconf(mailbox_transport="milterapp:")
        site.postfix("reload")
