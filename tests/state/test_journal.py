"""The journal: what was decided and done survives, once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.state import database
from milterapp.state.journal import Journal, Key, StateError

KEY = Key("4XyZ", "bob@example.org", "info@example.org", "00ff")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return where a journal may be made."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return str(folder / "journal.sqlite")


def test_the_first_record_stands(path: str) -> None:
    """A prepared record is never changed: whoever prepares again is given the first one, and told it is not fresh."""
    journal = Journal(path)
    assert journal.find(KEY) is None
    first = journal.prepare(KEY, "one", 100)
    again = journal.prepare(KEY, "two", 200)
    assert (first.record, first.at, first.fresh) == ("one", 100, True)
    assert (again.record, again.at, again.fresh) == ("one", 100, False)
    found = journal.find(KEY)
    assert found is not None
    assert (found.record, found.fresh) == ("one", False)
    journal.close()


def test_marks_survive_the_process(path: str) -> None:
    """What a process marked, and then died without closing anything, the next one finds."""
    code = (
        "import os, sys; from milterapp.state.journal import Journal, Key\n"
        "journal = Journal(sys.argv[1]); key = Key('4XyZ', 'bob@example.org', 'info@example.org', '00ff')\n"
        "journal.prepare(key, 'r', 1); journal.mark(key, '0', 'done a', 1); journal.mark(key, '0', 'done b', 1)\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code, path], check=False).returncode == 9
    journal = Journal(path)
    assert journal.steps(KEY) == {"0": "done a"}
    journal.close()


def test_several_marks_are_one(path: str) -> None:
    """Marks written together are all there, the first result of each step as ever, or none is."""
    journal, other = Journal(path), Key("4A", "carol@example.org", "carol@example.org", "00ff")
    journal.mark_all([(KEY, "0", "done a", 1), (other, "0", "done b", 1), (KEY, "0", "done c", 1)])
    assert (journal.steps(KEY), journal.steps(other)) == ({"0": "done a"}, {"0": "done b"})
    with pytest.raises(UnicodeEncodeError):
        journal.mark_all([(KEY, "1", "done d", 2), (other, "1", "\ud800", 2)])
    assert (journal.steps(KEY), journal.steps(other)) == ({"0": "done a"}, {"0": "done b"})
    journal.mark_all([(KEY, "2", "done e", 3)])
    assert journal.steps(KEY) == {"0": "done a", "2": "done e"}
    journal.close()


def test_the_first_ones_need_not_take_turns(tmp_path: Path) -> None:
    """Several processes that open a file which is not there yet, all at once, have it all the same."""
    failed = 0
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o700)
        waiting, go = os.pipe()
        openers = [_opener(str(folder / "journal.sqlite"), waiting, go) for _ in range(3)]
        os.close(waiting)
        os.close(go)
        failed += sum(os.waitpid(pid, 0)[1] != 0 for pid in openers)
    assert failed == 0


def _opener(path: str, waiting: int, go: int) -> int:
    """Return the process that opens a journal as soon as nobody has `go` any more; 0 is its status where it could."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(go)
            os.read(waiting, 1)
            Journal(path).prepare(KEY, "record", 1)
            status = 0
        finally:
            os._exit(status)
    return pid


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Key("4XyZ", "bob@example.org", "sales@example.org", "00ff"), id="another alias of the same user"),
        pytest.param(Key("4XyA", "bob@example.org", "info@example.org", "00ff"), id="another queue id"),
        pytest.param(Key("4XyZ", "bob@example.org", "info@example.org", "00fe"), id="another message"),
        pytest.param(Key("4XyZ", "carol@example.org", "info@example.org", "00ff"), id="another recipient"),
        pytest.param(Key("4XyZ", "bob@example.orginfo", "@example.org", "00ff"), id="the same text, split otherwise"),
    ],
)
def test_keys_do_not_mix(path: str, other: Key) -> None:
    """Each part of the key makes a delivery of its own."""
    journal = Journal(path)
    journal.prepare(KEY, "one", 1)
    journal.mark(KEY, "0", "done", 1)
    assert journal.find(other) is None
    assert journal.steps(other) == {}
    assert other.word != KEY.word
    journal.close()


@given(st.lists(st.text(), min_size=4, max_size=4))
def test_any_text_can_be_part_of_a_key(parts: list[str]) -> None:
    """No queue id or address, surrogates included, is too strange for a key."""
    word = Key(*parts).word
    assert len(word) == 32
    assert int(word, 16) >= 0


def test_old_records_are_forgotten(path: str) -> None:
    """Expiry takes what is older than the date, and nothing else."""
    journal = Journal(path)
    new = Key("5", "a", "b", "c")
    journal.prepare(KEY, "old", 10)
    journal.mark(KEY, "0", "done", 10)
    journal.prepare(new, "new", 20)
    journal.mark(new, "0", "done", 20)
    assert journal.expire(20) == 2
    assert journal.find(KEY) is None
    assert journal.steps(KEY) == {}
    assert journal.steps(new) == {"0": "done"}
    journal.close()


def test_old_records_are_forgotten_in_pieces(path: str) -> None:
    """No more goes at once than is asked for, of records and of marks; what is young stays."""
    journal = Journal(path, durable=False)
    for number in range(5):
        key = Key(str(number), "a", "b", "c")
        journal.prepare(key, "old", 10)
        journal.mark(key, "0", "done", 10 if number else 30)
    assert [journal.expire(20, 2) for _ in range(4)] == [4, 4, 1, 0]
    journal.close()


def test_a_removed_journal_is_noticed(path: str) -> None:
    """A journal whose file was removed or replaced says so, since what it marks would be lost."""
    journal = Journal(path)
    assert journal.database.still_there()
    os.rename(path, path + ".away")
    assert not journal.database.still_there()
    journal.close()


def test_only_its_owner_can_read_it(path: str) -> None:
    """The file and what SQLite puts beside it are for their owner alone, whatever the umask of the process is."""
    before = os.umask(0)
    try:
        journal = Journal(path)
        journal.prepare(KEY, "one", 1)
        modes = {
            name: os.stat(os.path.join(os.path.dirname(path), name)).st_mode & 0o777
            for name in os.listdir(os.path.dirname(path))
        }
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert "journal.sqlite" in modes
    journal.close()


def test_durability_is_what_it_says(path: str) -> None:
    """Every connection runs in WAL mode with synchronous=FULL."""
    journal = Journal(path)
    with journal.database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


def _garbage(path: str) -> None:
    Path(path).write_bytes(b"no database at all" * 100)


def _open_folder(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o770)


def _open_file(path: str) -> None:
    Path(path).touch()
    os.chmod(path, 0o666)


def _link(path: str) -> None:
    os.symlink("/etc/passwd", path)


def _fifo(path: str) -> None:
    os.mkfifo(path)


def _folder(path: str) -> None:
    os.mkdir(path)


def _newer(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()


def _gone(path: str) -> None:
    os.rmdir(os.path.dirname(path))


@pytest.mark.parametrize("damage", [_garbage, _open_folder, _open_file, _link, _fifo, _folder, _newer, _gone])
def test_a_bad_state_file_is_a_named_fault(path: str, damage: object) -> None:
    """What is no journal of ours is refused with the file's name; it is never written over."""
    assert callable(damage)
    damage(path)
    with pytest.raises(StateError, match="state"):
        Journal(path)


def test_a_folder_exchanged_at_the_last_moment_is_not_written_to(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that takes the folder's place after it was looked at leads nowhere: nothing is made at its other end."""
    folder = Path(path).parent
    other = folder.parent / "other"
    other.mkdir(mode=0o700)
    looked = database._check

    def exchanged(checked: str) -> None:
        looked(checked)
        folder.rename(folder.with_name("aside"))
        folder.symlink_to(other)

    monkeypatch.setattr(database, "_check", exchanged)
    with pytest.raises(StateError, match="unable to open"):
        Journal(path)
    monkeypatch.undo()
    with pytest.raises(StateError):
        Journal(path)  # and a link that stays is refused
    assert list(other.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "50%", "what?", "#1", "%3f"])
def test_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """A name that means something in an URI is a name."""
    folder = tmp_path / name
    folder.mkdir(mode=0o700)
    journal = Journal(str(folder / "journal.sqlite"))
    assert journal.prepare(KEY, "one", 1).fresh
    journal.close()
    assert (folder / "journal.sqlite").stat().st_size > 0


def test_a_fault_inside_a_transaction_leaves_it_usable(path: str) -> None:
    """After a statement failed nothing of its transaction stands, and the next one works."""
    journal = Journal(path)

    def half() -> None:
        with journal.database.transaction() as connection:
            connection.execute("INSERT INTO prepared VALUES ('k', 'q', 'r', 1)")
            connection.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(StateError, match="no such table"):
        half()
    assert journal.prepare(KEY, "one", 1).fresh
    with journal.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM prepared").fetchone() == (1,)
    journal.close()


def test_what_cannot_be_seen_is_not_absent(path: str) -> None:
    """A file behind an error is neither there nor gone: an error taken for "no" would do again what was done."""
    assert not database.exists(path)
    journal = Journal(path)
    assert database.exists(path)
    assert journal.database.still_there()
    folder = Path(path).parent
    folder.rename(folder.with_name("away"))
    assert not journal.database.still_there()
    folder.write_text("a file in the place of the folder")
    for ask in (journal.database.still_there, lambda: database.exists(path)):
        with pytest.raises(StateError, match="Not a directory"):
            ask()
    journal.close()


def test_after_a_fault_the_file_is_opened_anew(path: str) -> None:
    """A connection that has failed is not used again: what it could not do, the next one does."""
    journal = Journal(path)
    assert journal.prepare(KEY, "one", 1).fresh
    uses: tuple[Callable[[], object], ...] = (lambda: journal.mark(KEY, "0", "done", 1), lambda: journal.find(KEY))
    for use in uses:
        journal.database._connection.close()
        with pytest.raises(StateError):
            use()
        use()
    assert journal.steps(KEY) == {"0": "done"}
    journal.close()
