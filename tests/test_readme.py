"""The README says what the code does: its dry run, its rule, its libraries and its commands are held against them."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from milterapp.commands.main import COMMANDS
from milterapp.rules.load import load

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str = "") -> list[str]:
    """Return the fenced blocks of a language, "" for those without one."""
    return [
        body
        for head, body in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        if head == language
    ]


def test_the_dry_run_is_what_the_command_prints() -> None:
    """The dry run shown is, to the letter, what the command beside it prints."""
    shown = next(block for block in blocks() if block.startswith("$ milterapp test"))
    command, _, output = shown.partition("\n")
    arguments, _, message = command.removeprefix("$ milterapp ").partition(" < ")
    with (ROOT / message).open("rb") as source:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "milterapp", *arguments.split()],
            stdin=source, capture_output=True, check=True, cwd=ROOT, text=True,
        )  # fmt: skip
    assert done.stdout == output
    assert done.stderr == ""


def test_the_rule_shown_loads_and_passes_its_test() -> None:
    """The rule shown is accepted as a personal rule file, and its test holds."""
    (shown,) = blocks("yaml")
    policy, problems = load(shown.encode(), "README.md", site=False)
    assert policy is not None
    assert [rule.name for rule in policy.rules] == ["python lists"]
    assert problems == ()


def test_every_library_has_its_reason() -> None:
    """Each dependency of setup.cfg stands in the table of libraries, and nothing else does."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = [lines for name, lines in setup["options.extras_require"].items() if name != "test"]
    lines = "\n".join((setup["options"]["install_requires"], *extras)).split("\n")
    wanted = {found[0] for line in lines if (found := re.match(r"[\w.-]+", line))}
    table = README.partition("\n## Libraries\n")[2]
    named = {name for row in re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE) for name in row.split(", ")}
    assert wanted <= named
    assert named - wanted == {"library", "pytest", "hypothesis", "mypy", "ruff", "pymilter"}


@pytest.mark.parametrize("word", sorted(set(re.findall(r"`milterapp ([a-z]+)", README))))
def test_every_command_named_is_there(word: str) -> None:
    """Each `milterapp WORD` of the README is a command."""
    assert word in COMMANDS
