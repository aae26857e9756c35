"""`milterapp check` finds every problem, runs the tests beside the rules, and its exit code is the worst it found."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from milterapp.commands import check
from milterapp.delivery.sandbox_level import level_of

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]

GOOD = "rules:\n  - name: a\n    then: keep\n"
SITE = "rules:\n  - name: a\n    then: accept\n"
BROKEN = "rules:\n  - name: a\n    thne: keep\n"
UNMET = GOOD + "tests:\n  - name: t\n    message: |\n      Subject: hello\n\n      hello\n    expect: reject\n"
WRONG_CONFIG = "log: jsn\n"

FOUND: dict[str, tuple[dict[str, str], list[str], int, str]] = {
    "good": ({"a.yaml": GOOD}, ["a.yaml"], 0, "a.yaml: 1 rule, 0 tests, all well"),
    "broken": ({"a.yaml": BROKEN}, ["a.yaml"], 65, "a.yaml:3:5: unknown key 'thne', did you mean 'then'?"),
    "unmet": ({"a.yaml": UNMET}, ["a.yaml"], 1, "the test 't' expected reject"),
    "missing": ({}, ["a.yaml"], 66, "a.yaml: cannot read: No such file or directory"),
    "broken-and-unmet": ({"a.yaml": UNMET, "b.yaml": BROKEN}, ["a.yaml", "b.yaml"], 65, "the test 't' expected reject"),
    "missing-and-unmet": ({"a.yaml": UNMET}, ["a.yaml", "b.yaml"], 66, "the test 't' expected reject"),
    "all-at-once": ({"a.yaml": BROKEN, "b.yaml": BROKEN}, ["."], 65, "b.yaml:3:5: unknown key"),
    "folder": ({"a.yaml": GOOD, "deep/b.yaml": GOOD}, ["."], 0, "./deep/b.yaml: 1 rule"),
    "folder-of-site": ({"site/a.yaml": SITE}, ["."], 0, "./site/a.yaml: 1 rule"),
    "in-folder-of-site": ({"site/a.yaml": SITE}, ["site"], 0, "site/a.yaml: 1 rule"),
    "site-file": ({"site.yaml": SITE}, ["site.yaml"], 0, "site.yaml: 1 rule"),
    "site-option": ({"a.yaml": SITE}, ["--site", "a.yaml"], 0, "a.yaml: 1 rule"),
    "site-rules-without-it": ({"a.yaml": SITE}, ["a.yaml"], 65, "a.yaml:3:11: "),
    "folder-without-rules": ({"a.txt": GOOD}, ["."], 66, ".: there are no rule files (*.yaml) below it"),
    "not-rules": ({"messages.yaml": "x: y", "a.yaml": GOOD, ".b.yaml": BROKEN}, ["."], 0, "./a.yaml: 1 rule"),
    "configuration": ({"m.yaml": WRONG_CONFIG}, ["--config", "m.yaml"], 78, "m.yaml:1:6: found 'jsn'"),
    "configuration-and-broken": (
        {"m.yaml": WRONG_CONFIG, "a.yaml": BROKEN},
        ["--config", "m.yaml", "a.yaml"],
        65,
        "m.yaml:1:6: found 'jsn'",
    ),
    "missing-configuration": ({"a.yaml": GOOD}, ["--config", "m.yaml", "a.yaml"], 66, "a.yaml: 1 rule"),
    "list-beside": (
        {"a.yaml": "lists:\n  l: {file: l.txt}\n" + GOOD, "l.txt": "a@example.org\n"},
        ["a.yaml"],
        0,
        "a.yaml: 1 rule",
    ),
    "list-missing": ({"a.yaml": "lists:\n  l: {file: l.txt}\n" + GOOD}, ["a.yaml"], 65, "a.yaml:2:13: "),
    "list-elsewhere": (
        {"a.yaml": "lists:\n  l: {file: ../l.txt}\n" + GOOD},
        ["a.yaml"],
        65,
        "a list is a file beside the rules",
    ),
    "not-text": ({"a.yaml": "rules: \x00"}, ["a.yaml"], 65, "a.yaml:1:8: "),
    "empty": ({"a.yaml": ""}, ["a.yaml"], 65, "a.yaml:1:1: "),
}


@pytest.mark.parametrize(("files", "arguments", "code", "said"), FOUND.values(), ids=FOUND)
def test_found(
    milterapp: Milterapp, tmp_path: Path, files: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    """What is wrong stands on standard output with its place; the worst of it is the exit code."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    ended = milterapp("check", *arguments)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert said in ended.stdout


def test_own_rules(milterapp: Milterapp, tmp_path: Path) -> None:
    """Without PATH the caller's own rules are checked, with the checks of delivery; having none is no fault."""
    path = tmp_path / "home/.milterapp/rules.yaml"
    assert milterapp("check").returncode == 0
    path.parent.mkdir(mode=0o700)
    path.write_text(GOOD)
    path.chmod(0o600)
    assert "home/.milterapp/rules.yaml: 1 rule, 0 tests, all well" in milterapp("check").stdout
    path.chmod(0o666)
    ended = milterapp("check")
    assert ended.returncode == os.EX_DATAERR
    assert "can be written by others" in ended.stdout


def test_site_rules(milterapp: Milterapp, tmp_path: Path) -> None:
    """--site without PATH checks the site's rules as the milter would take them."""
    config, rules = tmp_path / "m.yaml", tmp_path / "rules.yaml"
    config.write_text(f"milter:\n  rules: {rules}\n")
    config.chmod(0o644)
    assert milterapp("check", "--site", "--config", str(config)).returncode == os.EX_NOINPUT
    rules.write_text(SITE)
    rules.chmod(0o644)
    assert f"{rules}: 1 rule" in milterapp("check", "--site", "--config", str(config)).stdout
    rules.chmod(0o666)
    ended = milterapp("check", "--site", "--config", str(config))
    assert ended.returncode == os.EX_DATAERR
    assert "can be written by others" in ended.stdout


def test_names_the_sandbox(milterapp: Milterapp) -> None:
    """It says what this machine can enforce, by what."""
    said = r"this machine: sandbox (full|good|basic) \((Landlock ABI \d+|no Landlock), (no )?seccomp\)\n"
    assert re.search(said, milterapp("check").stdout)


@pytest.mark.parametrize(("abi", "told"), [(0, True), (1, True), (2, False), (7, False)])
def test_names_what_bounds_agents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], abi: int, *, told: bool
) -> None:
    """Where no fence can be made around agents it says what they may then, and nowhere else."""
    monkeypatch.setattr(check, "probe", lambda: level_of(abi, has_seccomp=True))
    check._print_sandbox("basic")
    assert ("an agent writes where its user may" in capsys.readouterr().out) is told
