"""Which queue files name a transport of ours, also while Postfix moves them from one folder to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.postfix import queue

MOVES = {"it rests": ("deferred", "deferred"), "to be tried": ("deferred", "active"), "to wait": ("active", "deferred")}


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_what_moves_meanwhile_is_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """A message that changes its folder once `active` was looked through is named, and no more than once."""
    for folder in ("active", "deferred"):
        (tmp_path / folder).mkdir()
    (tmp_path / before / "4ABC").write_bytes(b"\0milterapp-keep:\0")
    (tmp_path / before / "4DEF").write_bytes(b"\0smtp:\0")
    files = queue._files
    looked: list[str] = []

    def moving(folder: str) -> Iterator[str]:
        yield from files(folder)
        if folder.endswith("/active") and not looked:
            looked.append(folder)
            (tmp_path / before / "4ABC").rename(tmp_path / after / "4ABC")

    monkeypatch.setattr(queue, "_files", moving)
    assert queue.named(str(tmp_path), "milterapp-keep") == ["4ABC"]
    assert looked
