"""`milterapp routes`: what of a script answers where, without calling any of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]

APPS = Path(__file__).parents[2] / "rules/apps"


def test_the_routes(milterapp: Milterapp) -> None:
    """Each function with its routes, stateless ones first, and where they stand."""
    path = str(APPS / "list/list.py")
    ended = milterapp("routes", path)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("bounced (stateless): {user}+{list:dev|news}-bounce-{key:[0-9a-f]{16}}@{host} [")
    assert [line.partition(":")[0] for line in lines[1:]] == ["START per list"] * 2 + ["MEMBER per list"] * 2
    source = Path(path).read_text().splitlines()
    assert all(source[int(line.rpartition(":")[2].rstrip("]")) - 1].startswith("@route") for line in lines)


def test_an_address(milterapp: Milterapp) -> None:
    """Only what answers there is listed, with its captures."""
    path = str(APPS / "mask/mask.py")
    ended = milterapp("routes", path, "--json", "--address", "Mask+shop-off@example.org")
    (one,) = json.loads(ended.stdout)["routes"]
    assert (one["function"], one["state"]) == ("order", False)
    assert one["captures"] == {"user": "mask", "alias": "shop", "off": "off", "host": "example.org"}
    assert milterapp("routes", path, "--address", "x@example.org").stdout == "no route answers there\n"


def test_plain_and_broken(milterapp: Milterapp, tmp_path: Path) -> None:
    """A plain script answers everywhere; one with problems names them with their places; nothing in it can be done."""
    script = tmp_path / "a.py"
    script.write_text("def main(mail): ...\n")
    assert milterapp("routes", str(script)).stdout == "main: every address\n"
    script.write_text("from milterapp.script import route\n@route('a')\ndef START(mail): ...\n")
    ended = milterapp("routes", str(script))
    assert (ended.returncode, ended.stdout) == (65, "")
    assert f"{script}:2:1: 'a': expected an address" in ended.stderr
    script.write_text("open('made', 'w')\ndef main(mail): ...\n")
    assert milterapp("routes", str(script)).returncode == 65
    assert not (tmp_path / "made").exists()
    assert milterapp("routes", str(tmp_path / "none.py")).returncode == 66
