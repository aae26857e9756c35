"""packaging/client leaves a program that is root's and hardened, or nothing, and says what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.delivery.clients import ROOT, Command

pytestmark = pytest.mark.root
PACKAGING = ROOT / "packaging/client"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run packaging/client."""
    given = {"PATH": os.defpath, **environment}
    return subprocess.run([str(PACKAGING), *arguments], env=given, check=False, capture_output=True, text=True)


def test_it_is_roots_and_everybody_may_run_it(compiled: Command) -> None:
    """The program is root's, 0755, and no temporary file stands beside it."""
    (program,) = (Path(one) for one in compiled)
    found = program.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, 0, 0o755)
    assert [one.name for one in program.parent.iterdir()] == [program.name]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_it_is_hardened_and_needs_the_c_library_alone(compiled: Command) -> None:
    """Position independent, relocations read-only and bound at start, no executable stack, libc and nothing else."""
    said = subprocess.run(["readelf", "-hldW", *compiled], check=True, capture_output=True, text=True).stdout
    assert re.search(r"Type: +DYN", said)
    assert "GNU_RELRO" in said
    assert re.search(r"FLAGS_1\).*\bNOW\b.*\bPIE\b", said)
    assert re.search(r"GNU_STACK .* RW +0x", said)
    needed = re.findall(r"\(NEEDED\) +Shared library: \[([^]]+)\]", said)
    assert [one for one in needed if not re.match(r"libc\.|ld-", one)] == []


def test_one_that_is_there_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A client that runs keeps its own file; the next one is another."""
    program = tmp_path / "bin/client"
    assert run(str(program)).returncode == 0
    before = program.stat().st_ino
    with program.open("rb"):
        assert run(str(program)).returncode == 0
        assert program.stat().st_ino != before


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "says"),
    [
        pytest.param((), {}, 64, "usage:", id="no destination"),
        pytest.param(("client",), {}, 64, "usage:", id="a relative destination"),
        pytest.param(("/tmp/x", "/tmp/y"), {}, 64, "usage:", id="two"),
        pytest.param(("/tmp",), {}, 64, "/tmp is a folder", id="a folder"),
        pytest.param(("{}/c",), {"CC": "nosuch-cc"}, 69, "no C compiler here (nosuch-cc)", id="no compiler"),
        pytest.param(("{}/c",), {"CC": "false"}, 69, "false could not compile", id="a compiler that fails"),
    ],
)
def test_what_it_does_not_do(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], status: int, says: str
) -> None:
    """Each fault has its exit code and a sentence, and leaves nothing."""
    ended = run(*(one.format(tmp_path) for one in arguments), **environment)
    assert (ended.returncode, ended.stdout, says in ended.stderr) == (status, "", True)
    assert list(tmp_path.iterdir()) == []


def test_without_any_compiler_it_says_which_it_looked_for(tmp_path: Path) -> None:
    """Where no compiler is installed, the ones that would do are named, and the packages."""
    for name in ("sh", "dirname", "id", "mkdir", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    ended = run("/nonexistent/client", PATH=str(tmp_path))
    assert ended.returncode == 69
    assert "no C compiler here (cc, gcc or clang): apt-get install gcc libc6-dev" in ended.stderr


def test_only_root_makes_one(tmp_path: Path) -> None:
    """Another's program would not be root's: 77."""
    ended = subprocess.run(
        [str(PACKAGING), f"{tmp_path}/c"], user=65534, group=65534, extra_groups=[], check=False, capture_output=True
    )
    assert (ended.returncode, b"needs root" in ended.stderr) == (77, True)
