"""Files of scripts: whole, in order, below their own folder, and no link followed on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milterapp.delivery import outputs
from milterapp.state.conversations import Change, Conversations

Write = Callable[..., list[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give an empty home."""
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def write(home: Path, tmp_path: Path) -> Iterator[Write]:
    """Give what has files written, each (path, text), and returns what was refused."""
    (tmp_path / "state").mkdir(mode=0o700)
    kept = Conversations(str(tmp_path / "state/scripts.sqlite"))
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    number = 0

    def written(*files: tuple[str, str | None], script: str = "blog.py", path: str = "out") -> list[str]:
        nonlocal number
        number += 1
        kept.commit(f"m{number}", "", [Change(script, outputs=files)], mails=0, now=1)
        return outputs.write_all(kept, descriptor, path)

    yield written
    assert kept.outputs() == []
    os.close(descriptor)
    kept.close()


def test_files_and_folders(home: Path, write: Write) -> None:
    """Each script has a folder of its own, readable for others; a file is replaced whole, and removed."""
    assert write(("index.html", "<p>é"), ("a/b/c.html", "x")) == []
    assert write(("index.html", "2"), script="apps/news.py") == []
    assert (home / "out/blog/index.html").read_text() == "<p>é"
    assert (home / "out/apps/news/index.html").read_text() == "2"
    assert stat.S_IMODE((home / "out/blog/a").stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "out/blog/a/b/c.html").stat().st_mode) == 0o644
    old = (home / "out/blog/index.html").stat().st_ino
    assert write(("index.html", "3"), ("a/b/c.html", None), ("none.html", None), ("no/folder.html", None)) == []
    assert (home / "out/blog/index.html").stat().st_ino != old  # never written in place
    assert sorted(path.name for path in (home / "out/blog").rglob("*.html")) == ["index.html"]
    assert not (home / "out/blog/no").exists()


def test_an_absolute_folder(tmp_path: Path, home: Path, write: Write) -> None:
    """The site may have them elsewhere."""
    assert write(("a", "x"), path=str(tmp_path / "www")) == []
    assert (tmp_path / "www/blog/a").read_text() == "x"
    assert os.listdir(home) == []


def _link(at: str) -> Callable[[Path], None]:
    def make(home: Path) -> None:
        (home / at).parent.mkdir(parents=True, exist_ok=True)
        (home / at).symlink_to(home.parent)

    return make


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "the folder is a link": (_link("out"), "blog/a/b"),
    "the script's folder is a link": (_link("out/blog"), "blog/a/b"),
    "a folder below is a link": (_link("out/blog/a"), "blog/a/b"),
    "a file where a folder should be": (lambda home: (home / "out").write_text(""), "blog/a/b"),
    "a folder where the file should be": (lambda home: (home / "out/blog/a/b").mkdir(parents=True), "blog/a/b"),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_is_in_the_way(tmp_path: Path, home: Path, write: Write, name: str) -> None:
    """It is left as it is, said, and the other files are written; nothing waits for ever."""
    make, said = IN_THE_WAY[name]
    make(home)
    before = sorted(tmp_path.iterdir())
    found = write(("a/b", "x"), path="out")
    assert [one.partition(": ")[0] for one in found] == [said]
    assert sorted(tmp_path.iterdir()) == before
    assert write(("c", "y"), path="elsewhere") == []
    assert (home / "elsewhere/blog/c").read_text() == "y"


def test_a_file_that_is_a_link_is_replaced(home: Path, tmp_path: Path, write: Write) -> None:
    """What the link names stays as it is."""
    (tmp_path / "precious").write_text("precious")
    (home / "out/blog").mkdir(parents=True)
    (home / "out/blog/a").symlink_to(tmp_path / "precious")
    assert write(("a", "x")) == []
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (home / "out/blog/a").is_symlink()


def test_dots_in_the_site_s_path(write: Write) -> None:
    """A setting with `..` in it writes nowhere."""
    assert write(("a", "x"), path="../out")[0].startswith("blog/a: ")


def test_many(home: Path, write: Write) -> None:
    """More than fit into one turn are all written, the last one of a name last."""
    files = [(f"{number % 50}", str(number)) for number in range(250)]
    assert write(*files) == []
    assert (home / "out/blog/49").read_text() == "249"
