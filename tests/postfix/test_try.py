"""`packaging/try`, whole: a Postfix of its own in a world within this one, and the README that shows what it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.postfix.harness import in_world

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = re.compile(r"\. \d+ s, and nothing stays behind\.$")


def tried(*before: str) -> subprocess.CompletedProcess[str]:
    """Run what packaging/try runs once everything is installed; before: commands of the shell to run first."""
    run = "exec /opt/milterapp/.venv/bin/python -I -B packaging/try.py"
    fresh = "userdel elsewhere 2>/dev/null"  # an account of this world's own Postfix, where it was started already
    command = [str(ROOT / "packaging/world"), "sh", "-c", "; ".join((fresh, *before, run))]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(autouse=True)
def inside() -> None:
    """Only in a world can another one be tried without leaving a trace where it goes wrong."""
    if not in_world():
        pytest.fail("run these tests through packaging/test", pytrace=False)


def test_it_prints_what_the_readme_shows() -> None:
    """Each of the seven messages becomes what `milterapp test` says, and the README shows it to the letter."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(A throwaway Postfix.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    done = tried()
    assert (done.returncode, done.stderr) == (0, "")
    assert SECONDS.sub("", done.stdout.strip()) == SECONDS.sub("", shown.strip())


def test_a_difference_is_told_and_fails_it() -> None:
    """Where mail becomes something else than the dry run can know, that is said of the message, and the status is 1."""
    done = tried("echo bob@example.org >/home/carol/.forward", "chown carol: /home/carol/.forward")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\nReality and `milterapp test` differ: messages/word-file.eml\n" in done.stdout
    assert done.stdout.count("DIFFERS: `milterapp test` says") == 1  # the receipt goes to bob either way
