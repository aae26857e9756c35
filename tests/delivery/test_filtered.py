"""Where the message is kept that a filter wrote: whole or absent, on disk, and not for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery.filtered import Filtered, expire
from milterapp.delivery.programs import Ran, environment
from milterapp.mail.envelope import Envelope

WORD = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of a home with the agent's folder."""
    (tmp_path / "state").mkdir()
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_what_was_written_is_found(home: int, tmp_path: Path) -> None:
    """The bytes come back, again and again, until they are removed; before and after there is nothing."""
    kept = Filtered(home, "state", WORD)
    assert kept.find() is None
    for message in (b"x" * 3_000_000, b""):
        kept.write(message)
        assert kept.find() == kept.find() == message
    assert [one.name for one in (tmp_path / "state/filtered").iterdir()] == [WORD]
    kept.remove()
    kept.remove()
    assert kept.find() is None
    assert Filtered(home, "other", WORD).find() is None


def test_a_write_that_fails_leaves_nothing(home: int, tmp_path: Path) -> None:
    """Where it cannot be written whole it is absent, and nothing half is left."""
    (tmp_path / "state/filtered").mkdir()
    (tmp_path / "state/filtered" / WORD).mkdir()
    (tmp_path / "state/filtered" / WORD / "in the way").touch()
    with pytest.raises(OSError, match="directory"):
        Filtered(home, "state", WORD).write(b"x")
    assert [one.name for one in (tmp_path / "state/filtered").iterdir()] == [WORD]


def test_a_link_is_not_followed(home: int, tmp_path: Path) -> None:
    """Neither a folder nor a file that is a link is used."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state/filtered").symlink_to(tmp_path / "elsewhere")
    kept = Filtered(home, "state", WORD)
    with pytest.raises(OSError, match=r"[Nn]ot a directory|symbolic"):
        kept.write(b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_old_goes(home: int, tmp_path: Path) -> None:
    """What nobody asked for any more is forgotten, what is younger stays."""
    expire(home, "state", 100)
    for word, age in (("old", 200), ("young", 50)):
        Filtered(home, "state", word).write(b"x")
        path = tmp_path / "state/filtered" / word
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    expire(home, "state", 100)
    assert [one.name for one in (tmp_path / "state/filtered").iterdir()] == ["young"]


def test_the_environment_of_a_program() -> None:
    """It is what local(8) gives, of the envelope alone, and no value is more than a word to a shell."""
    envelope = Envelope(
        sender="() { :;}; x@y\n", recipients=("bob+a`b@x.org",), original_recipient="$(id)@x.org", client="192.0.2.1"
    )
    assert environment(envelope, "+") == {
        "SENDER": "_____:____x@y_", "RECIPIENT": "bob+a_b@x.org", "ORIGINAL_RECIPIENT": "__id_@x.org",
        "EXTENSION": "a_b", "CLIENT_ADDRESS": "192.0.2.1",
    }  # fmt: skip
    assert len(environment(Envelope(sender="x" * 5000), "+")["SENDER"]) == 1000


WORDS = {
    "it ended with status 3": Ran("it", "exit", 3),
    "it was ended by SIGKILL": Ran("it", "signal", 9),
    "it was ended by signal 99": Ran("it", "signal", 99),
    "it took too long": Ran("it", "time"),
    "it wrote too much": Ran("it", "output"),
    "it cannot be started: No such file": Ran("it", "start", 0, "No such file"),
    "it was lost with the process that runs it": Ran("it", "lost"),
}


@pytest.mark.parametrize(("words", "ran"), WORDS.items(), ids=WORDS)
def test_an_end_in_words(words: str, ran: Ran) -> None:
    """Each end has its sentence, and none of them but a status says something of the message."""
    assert str(ran) == words
    assert ran.told is (ran.how == "exit")
    assert not Ran("it", "exit", 75).told
