"""What scripts remember: changed at once or not at all, once for a message, and found by an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milterapp.state.conversations import Change, Conversations, Kept, Output
from milterapp.state.database import StateError

SENDER = "ann@example.org"


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Conversations]:
    """Give an empty memory."""
    made = Conversations(str(tmp_path / "scripts.sqlite"))
    yield made
    made.close()


def commit(kept: Conversations, message: str, *changes: Change, record: str = "{}", now: int = 1000) -> None:
    """Commit the changes of a message that causes one mail."""
    kept.commit(message, record, changes, mails=1, now=now)


def test_everything_of_a_message_at_once(kept: Conversations) -> None:
    """State, values and files are there together with the record, and for this script and sender alone."""
    change = Change("a.py", SENDER, ("dev",), "MEMBER", (("k", False, "1"), ("x", True, '"y"')), (("p.html", "<p>"),))
    commit(kept, "m1", change)
    assert kept.state("a.py", "Ann@Example.ORG", ("dev",)) == "MEMBER"
    assert [
        kept.state(*one) for one in (("b.py", SENDER, ("dev",)), ("a.py", SENDER, ("users",)), ("a.py", "x", ()))
    ] == [""] * 3
    assert (kept.value("a.py", "k"), kept.value("b.py", "k")) == ("1", None)
    assert kept.keys("a.py", "", 10) == [("k", False), ("x", True)]
    assert kept.outputs() == [Output(1, "a.py", "p.html", "<p>")]
    assert kept.committed("m1") == "{}"


def test_all_states_of_a_sender(kept: Conversations) -> None:
    """They are given together, unless they are many."""
    changes = [Change("a.py", SENDER, (f"l{at}",), "MEMBER") for at in range(3)]
    commit(kept, "m1", *changes, Change("a.py", "x@y", state="MEMBER"), Change("b.py", SENDER, state="MEMBER"))
    assert kept.states("a.py", SENDER.upper(), 3) == {(f"l{at}",): "MEMBER" for at in range(3)}
    assert kept.states("a.py", SENDER, 2) is None
    assert kept.states("a.py", "nobody@y", 2) == {}


def test_a_message_changes_once(kept: Conversations) -> None:
    """What comes again under the same message changes nothing, whatever it says."""
    commit(kept, "m1", Change("a.py", stores=(("k", False, "1"),), outputs=(("p", "1"),)))
    commit(kept, "m1", Change("a.py", stores=(("k", False, "2"),), outputs=(("p", "2"),)), record="other")
    assert (kept.value("a.py", "k"), len(kept.outputs()), kept.committed("m1")) == ("1", 1, "{}")


def test_half_a_change_is_none(kept: Conversations) -> None:
    """Where one change cannot be written, none of the message's is, and the message is not committed."""
    bad = Change("a.py", stores=(("k", False, "1"), ("j", False, object())))  # type: ignore[arg-type]
    with pytest.raises(StateError):
        commit(kept, "m1", Change("a.py", SENDER, state="MEMBER"), bad)
    assert (kept.state("a.py", SENDER, ()), kept.value("a.py", "k"), kept.committed("m1")) == ("", None, None)


def test_forgetting(kept: Conversations) -> None:
    """A value can be forgotten, and a sender have no state again; an empty state leaves it."""
    commit(kept, "m1", Change("a.py", SENDER, (), "MEMBER", (("k", False, "1"),)))
    commit(kept, "m2", Change("a.py", SENDER, (), "", (("k", False, None),)))
    assert (kept.state("a.py", SENDER, ()), kept.value("a.py", "k")) == ("MEMBER", None)
    commit(kept, "m3", Change("a.py", SENDER, (), None))
    assert kept.state("a.py", SENDER, ()) == ""


def test_questions(kept: Conversations) -> None:
    """A message is kept for its script under its digest, until it is answered or too old."""
    first, second = (Kept(digest, 500, "[]", SENDER, "a@b", b"\xff\0") for digest in ("d1", "d2"))
    commit(kept, "m1", Change("a.py", questions=(first, second)))
    assert kept.question("a.py", "d1", 499) == first
    assert [kept.question(*one) for one in (("a.py", "d1", 500), ("b.py", "d1", 1), ("a.py", "d3", 1))] == [None] * 3
    commit(kept, "m2", Change("a.py", answered=("d1",)))
    assert (kept.question("a.py", "d1", 1), kept.question("a.py", "d2", 1)) == (None, second)
    assert kept.expire(0, 500) == 1
    assert kept.question("a.py", "d2", 1) is None


def test_files_wait_in_order(kept: Conversations) -> None:
    """They are given in the order of their messages, until they are said to be written."""
    for number in range(3):
        commit(kept, f"m{number}", Change("a.py", outputs=((f"{number}", None if number else "x"),)))
    waiting = kept.outputs(2)
    assert [(one.path, one.text) for one in waiting] == [("0", "x"), ("1", None)]
    kept.written(waiting[-1].number)
    assert [one.path for one in kept.outputs()] == ["2"]


def test_records_are_let_go(kept: Conversations) -> None:
    """A record that is safe elsewhere takes no room; its message stays known, until it is too old."""
    commit(kept, "m1", now=100)
    kept.commit("m2", "{}", (), mails=3, now=200, known=("m1",))
    assert (kept.committed("m1"), kept.committed("m2")) == ("", "{}")
    assert (kept.mails_since(0), kept.mails_since(100), kept.mails_since(200)) == (4, 3, 0)
    assert kept.expire(150, 0) == 1
    assert kept.committed("m1") is None


def test_telling_once(kept: Conversations) -> None:
    """What somebody was told is known until it is too old."""
    assert not kept.was_told("h")
    kept.tell("h", 1000)
    kept.tell("h", 1001)
    assert (kept.was_told("h"), kept.was_told("other")) == (True, False)
    kept.expire(1001, 0)
    assert kept.was_told("h")
    kept.expire(1002, 0)
    assert not kept.was_told("h")


def test_forgetting_in_pieces(kept: Conversations) -> None:
    """No more of one kind goes at once than is asked for."""
    for number in range(3):
        kept.tell(f"h{number}", 1000)
        commit(kept, f"m{number}", now=1000)
    assert [kept.expire(1001, 0, 2) for _ in range(3)] == [4, 2, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.sets(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=20),
    st.text(max_size=3),
)
def test_keys_that_begin_so(tmp_path_factory: pytest.TempPathFactory, keys: set[str], prefix: str) -> None:
    """Whatever the keys are made of, those that begin so are found, in order; LIKE and its wildcards are not in it."""
    kept = Conversations(str(tmp_path_factory.mktemp("state") / "s.sqlite"))
    try:
        kept.commit("m", "", [Change("a.py", stores=tuple((key, False, "1") for key in keys))], mails=0, now=1)
        try:
            prefix.encode()
        except UnicodeEncodeError:
            return
        want = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        assert [key for key, _ in kept.keys("a.py", prefix, 100)] == want
    finally:
        kept.close()


def test_what_is_asked_has_an_index(kept: Conversations) -> None:
    """No question of a running script reads a table from its beginning: 10,000 states cost no more than 10."""
    statements: list[str] = []
    connection = kept.database._connection
    connection.set_trace_callback(statements.append)
    kept.state("a.py", SENDER, ("dev",))
    kept.states("a.py", SENDER, 9)
    kept.value("a.py", "k")
    kept.keys("a.py", "k", 10)
    kept.mails_since(5)
    kept.committed("m")
    kept.question("a.py", "d", 5)
    connection.set_trace_callback(None)
    plans = [" ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {one}")) for one in statements]
    assert len(plans) == 7
    assert all(plan.startswith("SEARCH") for plan in plans), plans


def test_another_version(tmp_path: Path) -> None:
    """A file of another version of milterapp is not guessed at."""
    path = tmp_path / "scripts.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=9")
    connection.close()
    path.chmod(0o600)
    with pytest.raises(StateError, match="schema 9, expected"):
        Conversations(str(path))
