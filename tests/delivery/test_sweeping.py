"""Forgetting what is old: by agents that live for one message, once a day, and never at the cost of a message."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from milterapp.delivery.sweeping import SWEPT, Sweeper
from milterapp.state.journal import Journal, Key
from tests.delivery.agent_process import UID, AgentProcess, Person, Submit

DAY = 86400
KEEP = 30 * DAY
FILES = ("journal.sqlite", "rates.sqlite", "scripts.sqlite")
RULES = """\
rules:
  - name: twice
    if: {duplicate: yes}
    then: {tag: twice}
  - name: ask
    then: {script: ask.py}
"""
SCRIPT = """\
from milterapp.script import confirm, route, store, template

@route("{page}@{host}")
def START(mail, page, host):
    store["kept"] = "for ever"
    if page == "fails":
        raise ValueError("no")
    confirm.ask(mail, then=publish, template="ask.txt")

def publish(mail):
    pass
"""
# Each table, what is its key, and the column of its time.
TABLES = (
    ("journal.sqlite", "prepared", "at"), ("journal.sqlite", "done", "at"), ("rates.sqlite", "counted", "until"),
    ("scripts.sqlite", "committed", "at"), ("scripts.sqlite", "told", "at"), ("scripts.sqlite", "questions", "until"),
)  # fmt: skip


def deliver(person: Person, queue_id: str, *, page: str = "a") -> str | None:
    """Deliver one message by an agent that ends after it, as most do, and return its status."""
    agent = AgentProcess(person)
    message = b"From: ann@example.org\nMessage-ID: <%s@x>\nSubject: x\n\nhi\n" % queue_id.encode()
    status = agent.deliver(Submit(), message, queue_id=queue_id, original=f"{page}@x.org").status
    assert agent.close() == 0
    return status


def rows(person: Person) -> dict[str, int]:
    """Return how many rows each table has."""
    found = {}
    for file, table, _ in TABLES:
        with closing(sqlite3.connect(person.home / ".milterapp" / file)) as opened:
            found[table] = opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
    return found


def age(person: Person, days: int) -> None:
    """Make all that is there older, the time of the last sweep as well."""
    state = person.home / ".milterapp"
    for file, table, column in TABLES:
        with closing(sqlite3.connect(state / file)) as opened, opened:
            opened.execute(f"UPDATE {table} SET {column} = {column} - {days * DAY}")
    for path in (*(state / "filtered").iterdir(), *state.glob(SWEPT)):
        os.utime(path, (path.stat().st_mtime - days * DAY,) * 2)
    for path in state.iterdir():
        os.chown(path, UID, UID)


def patient(home: str, state: str, files: tuple[str, str, str], keep: int, _longest: float) -> Sweeper:
    """Return what sweeps all that there is, however slow the machine is."""
    return Sweeper(home, state, files, keep, longest=60.0)


@pytest.fixture
def remembering(person: Person, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Give a person for whom everything that can be remembered is, and whose agents have time to sweep it all."""
    monkeypatch.setattr("milterapp.delivery.agent.Sweeper", patient)
    person.write(RULES)
    person.write(SCRIPT, ".milterapp/ask.py")
    person.write("Was it you?", ".milterapp/ask.txt")
    assert [deliver(person, "41"), deliver(person, "42", page="fails")] == ["ok", "defer"]
    (person.home / ".milterapp/filtered").mkdir(mode=0o700)
    os.chown(person.home / ".milterapp/filtered", UID, UID)
    (person.home / ".milterapp/filtered/word").touch()
    os.chown(person.home / ".milterapp/filtered/word", UID, UID)
    assert all(rows(person).values()), rows(person)
    return person


@pytest.mark.root
def test_what_is_old_goes_and_what_is_not_stays(remembering: Person) -> None:
    """An agent that lives for one message sweeps all that agents before it left, and nothing younger, or stored."""
    age(remembering, 100)
    assert deliver(remembering, "43") == "ok"
    assert rows(remembering) == {"prepared": 1, "done": 1, "counted": 1, "committed": 1, "told": 0, "questions": 1}
    assert not (remembering.home / ".milterapp/filtered/word").exists()
    with closing(sqlite3.connect(remembering.home / ".milterapp/scripts.sqlite")) as opened:
        assert opened.execute("SELECT value FROM stored WHERE key = 'kept'").fetchone() is not None
    age(remembering, 20)
    assert deliver(remembering, "44") == "ok"
    assert rows(remembering)["prepared"] == 2


@pytest.mark.root
def test_once_a_day(remembering: Person) -> None:
    """Another agent on the same day sweeps nothing; one on the next does, or where the last was in a time to come."""
    deliver(remembering, "43")
    mark = remembering.home / ".milterapp" / SWEPT
    for swept, left in ((time.time() - DAY / 2, 2), (time.time() - 2 * DAY, 1), (time.time() + 9 * DAY, 1)):
        age(remembering, 100)
        os.utime(mark, (swept, swept))
        before = rows(remembering)["prepared"]
        deliver(remembering, f"5{swept:.0f}")
        assert rows(remembering)["prepared"] == (before + 1 if left == 2 else 1)
        assert (abs(mark.stat().st_mtime - time.time()) < DAY / 4) is (left == 1)


@pytest.mark.root
def test_nothing_is_made_where_there_is_nothing_to_forget(person: Person) -> None:
    """Who has no rules has nothing made; a journal that begins with this message has nothing old in it."""
    assert deliver(person, "41") == "ok"
    assert list(person.home.iterdir()) == []
    person.write("rules:\n  - name: a\n    then: {file: A}\n")
    assert deliver(person, "42") == "ok"
    assert not (person.home / ".milterapp" / SWEPT).exists()


@pytest.mark.root
@pytest.mark.parametrize("damage", ["no database", "locked", "a pipe"])
def test_a_sweep_that_fails_costs_no_message(remembering: Person, damage: str) -> None:
    """What cannot be read or written is left, the rest is swept, the mail is delivered, and the agent ends well."""
    remembering.write(RULES.replace("duplicate: yes", "subject: nothing"))
    age(remembering, 100)
    state = remembering.home / ".milterapp"
    locking = sqlite3.connect(state / "rates.sqlite", isolation_level=None)
    if damage == "no database":
        (state / "rates.sqlite").write_bytes(b"nothing like it" * 500)
    elif damage == "locked":
        locking.execute("BEGIN IMMEDIATE")
    else:
        (state / SWEPT).unlink()
        os.mkfifo(state / SWEPT)
        os.utime(state / SWEPT, (0, 0))
    begun = time.monotonic()
    assert deliver(remembering, "43") == "ok"
    assert time.monotonic() - begun < 10  # as long as a message would wait for the lock
    locking.close()
    with closing(sqlite3.connect(state / "journal.sqlite")) as opened:
        assert opened.execute("SELECT COUNT(*) FROM prepared").fetchone() == (1,)


def test_a_message_that_waits_comes_first(tmp_path: Path) -> None:
    """A sweep ends with a small piece where the agent is wanted, goes on after the next message, and is then done."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    journal = Journal(str(state / FILES[0]))
    with journal.database.transaction() as connection:
        rows = [(Key(str(number), "", "", "").word, "", "{}", 1000 + number) for number in range(1200)]
        connection.executemany("INSERT INTO prepared VALUES (?, ?, ?, ?)", rows)
    sweeper = Sweeper(str(tmp_path), "state", FILES, KEEP, longest=60.0)
    left = []
    for _ in range(4):
        sweeper.sweep(KEEP + 10_000.0, lambda: True)
        with journal.database.reading() as connection:
            left.append((connection.execute("SELECT COUNT(*) FROM prepared").fetchone()[0], (state / SWEPT).exists()))
    assert left == [(700, False), (200, False), (0, False), (0, True)]
    journal.close()
