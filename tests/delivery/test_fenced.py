"""The fence around every agent, tried from inside, and by real agents whose users exchange folders for links."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import linux
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.fenced import LEAST, Reach, moved
from milterapp.settings import Program
from milterapp.state.database import Database
from tests.delivery.agent_process import AgentProcess, Person, Start, Submit
from tests.delivery.inside import inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(linux.landlock_abi() < LEAST, reason="this kernel has no Landlock for a fence"),
]

FILE = "rules:\n  - name: lists\n    then:\n      file: Lists\n"
SCRIPT = "rules:\n  - name: it\n    then:\n      script: it.py\n"
TWICE = "rules:\n  - name: it\n    if:\n      not: {duplicate: yes}\n    then:\n      file: Lists\n"
Attempt = Callable[[Path], object]

# What an agent could be made to do to a folder, each of which its uid may.
ATTEMPTS: Mapping[str, Attempt] = {
    "read": lambda place: (place / "file").read_text(),
    "list": os.listdir,
    "write": lambda place: (place / "file").open("r+").close(),
    "make": lambda place: (place / "made").touch(),
    "make a folder": lambda place: (place / "folder").mkdir(),
    "make a link": lambda place: (place / "link").symlink_to("/"),
    "move": lambda place: (place / "file").rename(place / "moved"),
    "remove": lambda place: (place / "gone").unlink(),
}
REFUSED = dict.fromkeys(ATTEMPTS, "PermissionError")
DONE = dict.fromkeys(ATTEMPTS, "done")


def said(act: Callable[[], object]) -> str:
    """Return how an act ended: done, or the name of the error."""
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"


def folder(person: Person, name: str) -> Path:
    """Make a folder of the person's beside the home, with files in it."""
    made = person.base / name
    made.mkdir()
    for one in (made / "file", made / "gone"):
        one.write_text("not yours\n")
    for one in (made, *made.iterdir()):
        os.chown(one, person.uid, person.uid)
    return made


def tried(person: Person, places: Mapping[str, Path], settings: AgentSettings | None, home: str = "") -> Any:
    """Return what becomes of every attempt on these folders, with the person's ids; settings: of the fence, or none."""

    def work() -> dict[str, dict[str, str]]:
        linux.become(person.uid, person.uid)
        if settings is not None:
            Reach.of(settings).fence(home or str(person.home))
        return {
            place: {name: said(lambda one=one, path=path: one(path)) for name, one in ATTEMPTS.items()}  # type: ignore[misc]
            for place, path in places.items()
        }

    return inside(work)


def test_outside_the_home_nothing_is_reached(person: Person) -> None:
    """Nothing is read, made, changed or removed where the uid could do so, in the home everything."""
    for name in ("file", "gone"):
        person.write("mine\n", name)
    outside = folder(person, "outside")
    before = sorted(os.listdir(outside))
    found = tried(person, {"home": person.home, "outside": outside}, AgentSettings())
    assert found == {"home": DONE, "outside": REFUSED}
    assert sorted(os.listdir(outside)) == before


def test_without_the_fence_the_uid_would_do(person: Person) -> None:
    """What the fence refuses, the uid alone allows: the attempts are real ones."""
    assert tried(person, {"outside": folder(person, "outside")}, None) == {"outside": DONE}


def test_a_link_at_home_leads_nowhere(person: Person) -> None:
    """Through a link in the home as little is reached as without it; through one on the way to the home, the home."""
    outside = folder(person, "outside")
    (person.home / "out").symlink_to(outside)
    for name in ("file", "gone"):
        person.write("mine\n", name)
    (person.base / "way").symlink_to(person.home)
    way = person.base / "way"
    found = tried(person, {"out": person.home / "out", "home": way}, AgentSettings(), str(way))
    assert found == {"out": REFUSED, "home": DONE}


def test_what_deciding_needs_is_read(person: Person) -> None:
    """Python, the system's folders, and the site's rules around people's own are read, and nothing else of the site."""
    site, other = person.base / "site", person.base / "other"
    for one in (site, other):
        one.mkdir()
        (one / "rules.yaml").write_text("rules: []\n")

    def work() -> dict[str, str]:
        linux.become(person.uid, person.uid)
        Reach.of(AgentSettings(rules_before=f"{site}/rules.yaml")).fence(str(person.home))
        import _lsprof  # noqa: F401 - what nothing has imported before, in C
        import colorsys  # noqa: F401 - and in Python

        acts: dict[str, Callable[[], object]] = {
            "rules": (site / "rules.yaml").read_text,
            "zones": lambda: os.listdir("/usr/share"),
            "system": Path("/etc/passwd").read_text,
            "python": lambda: os.listdir(sys.prefix),
            "process": Path("/proc/self/statm").read_text,
            "null": lambda: open("/dev/null", "r+b").close(),
            "random": lambda: open("/dev/urandom", "rb").close(),
            "written rules": lambda: (site / "rules.yaml").open("r+").close(),
            "other rules": (other / "rules.yaml").read_text,
        }
        return {name: said(act) for name, act in acts.items()}

    site.joinpath("rules.yaml").chmod(0o666)  # whoever may write it by its mode, an agent does not
    found = inside(work)
    assert {name for name, how in found.items() if how != "done"} == {"written rules", "other rules"}
    assert found["written rules"] == found["other rules"] == "PermissionError"


def test_where_the_site_has_mail_and_pages_put(person: Person) -> None:
    """Absolute places of `maildir` and `script_output` are written, there already or still to be made; no others."""
    for name in ("file", "gone"):
        person.write("mine\n", name)
    places = {name: folder(person, name) for name in ("mail", "pages", "other")}
    settings = AgentSettings(maildir=str(places["mail"]), script_output=f"{places['pages']}/of/people")
    assert tried(person, places, settings) == {"mail": DONE, "pages": DONE, "other": REFUSED}
    other = folder(person, "one more")
    (person.base / "link").symlink_to(other)
    nowhere = AgentSettings(maildir=f"{person.base}/missing/mail", script_output=f"{person.base}/link")
    assert tried(person, {"other": other}, nowhere) == {"other": REFUSED}  # root's folder, and a link: not reached


@pytest.mark.parametrize("abi", [0, 1])
def test_an_old_kernel_has_no_fence(person: Person, monkeypatch: pytest.MonkeyPatch, abi: int) -> None:
    """Below ABI 2 of Landlock an agent runs as ever: its uid alone bounds it, and mail arrives."""
    monkeypatch.setattr(linux, "landlock_abi", lambda: abi)
    assert tried(person, {"outside": folder(person, "outside")}, AgentSettings()) == {"outside": DONE}
    person.write(FILE)
    agent = AgentProcess(person)
    assert agent.deliver(Submit()).status == "ok"
    assert agent.close() == 0
    assert len(person.mail("Maildir/.Lists")) == 1


def test_databases_need_no_files_elsewhere(person: Person) -> None:
    """A database of ours sorts more than its cache holds; one that is not told so would look for a file elsewhere."""
    sort = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) "
    sort += "SELECT count(*) FROM (SELECT i, hex(zeroblob(60)) AS b FROM n ORDER BY -i LIMIT 150000)"

    def work() -> list[str]:
        linux.become(person.uid, person.uid)
        Reach.of(AgentSettings()).fence(str(person.home))
        os.environ.pop("SQLITE_TMPDIR", None)
        ours = Database(f"{person.home}/ours.sqlite", "CREATE TABLE t (a)", 1)
        with ours.reading() as connection:
            found = [str(connection.execute(sort).fetchone()[0])]
        try:
            sqlite3.connect(f"{person.home}/other.sqlite").execute(sort)
        except sqlite3.OperationalError as error:
            found.append(str(error))
        return found

    assert inside(work) == ["150000", "unable to open database file"]


def swap_once(monkeypatch: pytest.MonkeyPatch, person: Person, outside: Path) -> None:
    """Have ~/.milterapp exchanged for a link once SQLite has opened the journal, before it opens what belongs to it.

    SQLite looks whether the journal is still there: a second name where the link leads says so.
    """
    connect, state = sqlite3.connect, person.home / ".milterapp"
    os.link(state / "journal.sqlite", outside / "journal.sqlite")

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        if not state.is_symlink() and not (person.home / "swapped").exists():
            (person.home / "swapped").touch()
            state.rename(person.home / "aside")
            state.symlink_to(outside)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connected)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_link_while_the_journal_is_opened(person: Person, monkeypatch: pytest.MonkeyPatch, *, fenced: bool) -> None:
    """Where ~/.milterapp becomes a link between two of SQLite's openings, nothing is made there, and the mail waits.

    Without the fence the same exchange has the journal's companions made where the link leads: the race is a real one.
    """
    outside = folder(person, "outside")
    person.write(FILE)
    agent = AgentProcess(person)
    assert agent.deliver(Submit(), queue_id="A").status == "ok"  # there is a journal
    agent.close()
    swap_once(monkeypatch, person, outside)
    if not fenced:
        monkeypatch.setattr(linux, "landlock_abi", lambda: 0)
    agent = AgentProcess(person)
    first = agent.deliver(Submit(), queue_id="B")
    assert (person.home / "swapped").exists()
    made = sorted(one.name for one in outside.glob("journal.sqlite?*"))
    if not fenced:
        assert made == ["journal.sqlite-shm", "journal.sqlite-wal"]
        agent.kill()
        return
    assert (first.status, made) == ("defer", [])
    (person.home / ".milterapp").unlink()
    (person.home / "aside").rename(person.home / ".milterapp")
    assert agent.deliver(Submit(), queue_id="B").status == "ok"
    assert agent.close() == 0
    assert len(person.mail("Maildir/.Lists")) == 2


@pytest.mark.parametrize("rules", [FILE, SCRIPT, TWICE], ids=["journal", "memory of scripts", "what came before"])
def test_a_folder_of_the_state_that_is_a_link(person: Person, start: Start, rules: str) -> None:
    """While ~/.milterapp is a link out of the home mail waits, and nothing is made there; without the link it comes."""
    outside = folder(person, "outside")
    before = sorted(os.listdir(outside))
    state = person.home / ".milterapp"
    state.symlink_to(outside)
    agent = start(keep="maildir", personal_rules="rules.yaml")
    person.write(rules, "rules.yaml")
    person.write("def main(mail):\n    mail.file('Lists')\n", "it.py")
    assert agent.deliver(Submit()).status == "defer"
    assert sorted(os.listdir(outside)) == before
    state.unlink()
    assert agent.deliver(Submit()).status == "ok"
    assert len(person.mail("Maildir/.Lists")) == 1


@pytest.fixture(params=["/var/tmp", "/opt"], ids=["out of reach", "in what is read"])
def elsewhere(request: pytest.FixtureRequest, person: Person) -> Iterator[Person]:
    """Give a user whose home lies elsewhere: where agents reach nothing beside it, and where they read all."""
    with tempfile.TemporaryDirectory(prefix="milterapp-fence-", dir=request.param) as base:
        os.chmod(base, 0o755)
        person.home = Path(base) / "home"
        new_home(person)
        yield person


def new_home(person: Person) -> None:
    """Make a home with rules."""
    person.home.mkdir(mode=0o700)
    os.chown(person.home, person.uid, person.uid)
    person.write(FILE)


def test_another_home_in_its_place(elsewhere: Person) -> None:
    """An agent whose home is another by now gives its message back and ends; the next one files in the new home."""
    person = elsewhere
    agent = AgentProcess(person)
    assert agent.deliver(Submit(), queue_id="A").status == "ok"
    person.home.rename(person.home.parent / "old")
    new_home(person)
    assert agent.deliver(Submit(), queue_id="B").status == "again"
    assert os.waitstatus_to_exitcode(os.waitpid(agent.pid, 0)[1]) == 0  # by itself
    agent.control.close()
    assert not (person.home / "Maildir").exists()
    agent = AgentProcess(person)
    assert agent.deliver(Submit(), queue_id="B").status == "ok"
    assert agent.close() == 0
    assert len(person.mail("Maildir/.Lists")) == 1


def test_a_new_agent_never_says_again(person: Person) -> None:
    """Where the home is exchanged between an agent's start and its first message, that waits, and the agent ends."""
    person.write(FILE)
    agent = AgentProcess(person)
    until_fenced(agent)
    person.home.rename(person.base / "old")
    new_home(person)
    assert agent.deliver(Submit()).status == "defer"
    assert os.waitstatus_to_exitcode(os.waitpid(agent.pid, 0)[1]) == 0
    agent.control.close()


def until_fenced(agent: AgentProcess) -> None:
    """Wait until the agent waits for its first message."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        wait = Path(f"/proc/{agent.pid}/wchan").read_text()
        if "unix" in wait or "skb" in wait or "recv" in wait:
            return
        time.sleep(0.01)
    pytest.skip("this kernel does not tell for what a process waits")


def test_a_deferral_at_home_keeps_the_agent(person: Person, start: Start) -> None:
    """An agent that defers and is still where it was serves the next message."""
    person.write("rules: [\n")
    agent = start()
    assert agent.deliver(Submit(), queue_id="A").status == "defer"
    person.write(FILE)
    assert agent.deliver(Submit(), queue_id="B").status == "ok"


def test_moved() -> None:
    """A process without a fence is never said to stand before another home."""
    assert not moved()


def test_an_absolute_maildir(person: Person) -> None:
    """A Maildir with an absolute path is made, filed in, and after its exchange reached by the next agent."""
    base = folder(person, "mail")
    person.write(FILE)
    settings = {"maildir": f"{base}/of/bob", "keep": "maildir"}
    agent = AgentProcess(person, **settings)
    assert agent.deliver(Submit(), queue_id="A").status == "ok"
    assert len(list((base / "of/bob/.Lists/new").iterdir())) == 1
    assert agent.close() == 0
    agent = AgentProcess(person, **settings)
    assert agent.deliver(Submit(), queue_id="B").status == "ok"
    (base / "of/bob").rename(base / "of/old")
    assert agent.deliver(Submit(), queue_id="C").status == "again"
    assert os.waitstatus_to_exitcode(os.waitpid(agent.pid, 0)[1]) == 0
    agent.control.close()
    agent = AgentProcess(person, **settings)
    assert agent.deliver(Submit(), queue_id="C").status == "ok"
    assert agent.close() == 0
    assert len(list((base / "of/bob/.Lists/new").iterdir())) == 1
    assert not (person.home / "Maildir").exists()


def test_an_absolute_maildir_behind_a_link(person: Person, start: Start) -> None:
    """A link on the way to an absolute Maildir is not followed, as ever: the mail waits."""
    base = folder(person, "mail")
    (person.base / "link").symlink_to(base)
    person.write(FILE)
    before = sorted(os.listdir(base))
    assert start(maildir=f"{person.base}/link/bob", keep="maildir").deliver(Submit()).status == "defer"
    assert sorted(os.listdir(base)) == before


def test_rules_above_the_home(person: Person, start: Start) -> None:
    """`personal_rules` may lead out of the home by `..`, and are read there."""
    (person.base / "rules").mkdir()
    (person.base / "rules/bob.yaml").write_text(FILE)
    assert start(personal_rules="../rules/bob.yaml").deliver(Submit()).status == "ok"
    assert len(person.mail("Maildir/.Lists")) == 1


def test_pages_in_an_absolute_place(person: Person, start: Start) -> None:
    """What a script writes lands in an absolute `script_output`, and what it opens itself is as bounded as ever."""
    pages = folder(person, "pages")
    person.write(SCRIPT)
    person.write(
        "from milterapp.script import output\n\n\ndef main(mail):\n"
        f"    try:\n        open('{pages}/file').close()\n        output['read.html'] = 'x'\n"
        "    except OSError:\n        output['page.html'] = 'x'\n",
        ".milterapp/it.py",
    )
    assert start(script_output=str(pages)).deliver(Submit()).status == "ok"
    assert os.listdir(pages / "it") == ["page.html"]


def test_programs_keep_what_they_had(person: Person, start: Start) -> None:
    """A program writes where the site lets it, though its agent does not reach that; and nowhere else, as ever."""
    allowed, other = folder(person, "allowed"), folder(person, "other")
    program = Program(("/bin/sh", "-c", f"echo x >{allowed}/by; echo x >{other}/by; echo x >by"), time=60.0,
                      write=(str(allowed),))  # fmt: skip
    person.write("rules:\n  - name: it\n    then:\n      pipe: it\n")
    agent = start(programs={"it": dataclasses.asdict(program)})
    assert agent.deliver(Submit()).status == "ok"
    assert (allowed / "by").exists()
    assert (person.home / "by").exists()
    assert not (other / "by").exists()
    assert tried(person, {"allowed": allowed}, AgentSettings())["allowed"] == REFUSED
