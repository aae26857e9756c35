"""The rules that come along are good, and of each example message becomes what its table says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]

RULES = Path(__file__).parents[2] / "rules"
EXAMPLES = RULES / "examples"
MESSAGES: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "messages.yaml").read_text())["messages"]
APPS = sorted(RULES.glob("apps/*/rules.yaml"))
STARTERS = sorted([*RULES.glob("site/*.yaml"), *RULES.glob("personal/*.yaml")])


def test_check_passes(milterapp: Milterapp) -> None:
    """`milterapp check` finds nothing wrong in them, with the programs that they need allowed."""
    ended = milterapp("check", "--config", str(RULES / "milterapp.conf"), str(RULES))
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count(", all well\n") == len(STARTERS) + len(APPS) + 4


def test_applications() -> None:
    """Each has its line in the list, a page, and tests; together they are less than 600 lines of script."""
    assert len(APPS) == 3
    listed = (RULES / "README.md").read_text()
    for folder in (path.parent for path in APPS):
        assert f"`apps/{folder.name}`" in listed
        assert (folder / "README.md").stat().st_size < 4000
        assert (folder / f"test_{folder.name}.py").exists()
    scripts = [path.parent / f"{path.parent.name}.py" for path in APPS]
    assert sum(len(one.read_text().splitlines()) for one in scripts) < 600


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.stem)
def test_tests_both_ways(path: Path) -> None:
    """A rule file to start from is in the list, and has a test of what it catches and one of what it leaves alone."""
    assert f"`{path.relative_to(RULES)}`" in (RULES / "README.md").read_text()
    tests = yaml.safe_load(path.read_text())["tests"]
    quiet = [one for one in tests if one["expect"] in ("none", "keep") or "no_rule" in one["expect"]]
    assert quiet
    assert len(tests) > len(quiet)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: Path(message["file"]).stem)
def test_examples(milterapp: Milterapp, message: dict[str, Any]) -> None:
    """Site and recipients make of the message what messages.yaml says."""
    raw = (EXAMPLES / message["file"]).read_bytes()
    to = [option for address in message["recipients"] for option in ("--recipient", address)]
    session = ["--client", message["client"], "--sender", message["sender"]]
    site = milterapp(
        *("test", "--site", "--rules", str(EXAMPLES / "site.yaml"), *session, *to, "--expect", message["site"]),
        message=raw,
    )
    assert site.returncode == 0, site.stderr
    assert set(message["personal"]) == (set(message["recipients"]) if message["site"] == "none" else set())
    for address, expected in message["personal"].items():
        rules = str(EXAMPLES / f"{address.partition('@')[0]}.yaml")
        ended = milterapp(
            *("test", "--rules", rules, *session, "--recipient", address, "--json", "--expect", expected), message=raw
        )
        assert ended.returncode == 0, ended.stderr
        assert not [one for one in json.loads(ended.stdout)["deliveries"] if one.get("refused")]


def test_examples_show_everything() -> None:
    """Every message is in the table, and the table has every way a message can go; nothing leaves example.org."""
    assert {message["file"] for message in MESSAGES} == {
        f"messages/{path.name}" for path in EXAMPLES.glob("messages/*.eml")
    }
    ways = {message["site"] for message in MESSAGES}
    ways |= {word.partition(":")[0] for message in MESSAGES for word in message["personal"].values()}
    assert ways == {"none", "keep", "reject", "file", "forward", "reply"}
    for message in MESSAGES:
        for address, word in message["personal"].items():
            assert address.endswith("@example.org")
            assert (
                word in ("keep", "file:Lists/Python")
                or message["sender"].endswith("@example.org")
                or (word == "forward:bob@example.org")
            )
