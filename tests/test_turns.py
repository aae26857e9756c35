"""Several runs at once share the files of tests: each file is one run's, and a run that fails is seen to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.turns import FIRST, FOLDER, turns

FILES = ["tests/a/test_x.py", "tests/a/test_y.py", "tests/b/test_x.py"]
CONFTEST = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests import turns
def pytest_runtestloop(session):
    return turns.run(session)
"""
# Neither run has both files, and the second test of b fails.
MODULE = """\
import pathlib, time
def test_one():
    pathlib.Path("mine").touch()
    end = time.monotonic() + 60
    while not pathlib.Path("theirs").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
def test_two():
    assert "mine" == "a"
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give what the runs have in common."""
    opened = os.open(tmp_path_factory.mktemp("turns"), os.O_RDONLY)
    os.set_inheritable(opened, True)
    yield opened
    os.close(opened)


def test_each_file_is_taken_once(folder: int) -> None:
    """Whoever asks has the first in its order that nobody has; what it does not ask for remains."""
    one, other = turns(FILES, folder), turns(FILES, folder, "tests/b")
    assert [next(other), next(one), next(other)] == ["tests/b/test_x.py", "tests/a/test_x.py", "tests/a/test_y.py"]
    assert [*one, *other] == []


def test_runs_have_all_tests_between_them(tmp_path: Path, folder: int) -> None:
    """Two runs at once have each test once, a file whole; who has the one that fails ends with 1, the other with 0."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for mine, theirs in ("ab", "ba"):
        (tmp_path / f"test_{mine}.py").write_text(MODULE.replace("mine", mine).replace("theirs", theirs))
    command = [sys.executable, "-I", "-B", "-m", "pytest", "-p", "no:cacheprovider", "-v", str(tmp_path)]
    begun = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, pass_fds=[folder],
            env={"PATH": os.defpath, FOLDER: str(folder), FIRST: first},
        )
        for first in ("", "test_b")
    ]  # fmt: skip
    said = [one.communicate(timeout=120)[0] for one in begun]
    assert [one.returncode for one in begun] == [0, 1], said
    assert [one.count(" PASSED") for one in said] == [2, 1]
    assert (said[1].count("test_b.py::test_two FAILED"), said[1].count("test_a.py")) == (1, 0)
