"""The manual pages say what the code does: every option, every setting, every exit code, and they render."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from milterapp import __version__
from milterapp.commands import configuration
from milterapp.commands.failure import MEANINGS
from milterapp.commands.main import COMMANDS, parser_of
from milterapp.rules.decision import Decision
from milterapp.settings import Settings

MAN = Path(__file__).parents[1] / "man"
PAGES = sorted(MAN.glob("*.[0-9]"))
SERVICES = ("milter", "monitor", "lmtp", "submit", "script")


def section(page: str, heading: str) -> str:
    """Return what stands below one .SH or .SS heading, up to the next of them."""
    text = (MAN / page).read_text()
    found = re.search(rf'^\.S[HS] "?{re.escape(heading)}"?\n(.*?)(?=^\.S[HS] |\Z)', text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading}"
    return found[1]


def tags(text: str) -> list[str]:
    """Return the first word of each .TP paragraph's tag."""
    found = re.findall(r'^\.TP\n\.(?:BR|BI|B|IR|I) "?([^" \n]+)', text, re.MULTILINE)
    return [one.replace("\\-", "-") for one in found]


@pytest.mark.parametrize("name", COMMANDS)
def test_options(name: str) -> None:
    """milterapp(1) lists the options of each command, all of them and no other."""
    heading = "milterapp milter, monitor, lmtp, submit, script" if name in SERVICES else f"milterapp {name}"
    want = {
        action.option_strings[-1]
        for action in parser_of(name)[1]._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    }
    got = tags(section("milterapp.1", heading))
    assert sorted(got) == sorted(want)


def test_exit_codes() -> None:
    """milterapp(1) lists every exit code there is."""
    assert tags(section("milterapp.1", "EXIT STATUS")) == [str(code) for code in MEANINGS]


def test_json_keys() -> None:
    """milterapp(1) lists the keys of --json, all of them and in their order."""
    assert tags(section("milterapp.1", "JSON")) == list(Decision().to_json())


TOP = "At the top"
ROOMS: dict[str, set[str]] = {TOP: set()}
for field in dataclasses.fields(Settings):
    value = getattr(Settings(), field.name)
    if dataclasses.is_dataclass(value):
        ROOMS[field.name] = {inner.name for inner in dataclasses.fields(value)}
    else:
        ROOMS[TOP].add(field.name)


@pytest.mark.parametrize("room", ROOMS)
def test_settings(room: str) -> None:
    """milterapp.yaml(5) lists every setting with its default, as the file would have it."""
    text = section("milterapp.yaml.5", room)
    shown = dict(re.findall(r'^\.TP\n\.BR (\S+) " \(default (.*)\)"', text, re.MULTILINE))
    indent = "" if room == TOP else "  "
    lines = [f"{indent}{name}: {default}\n" for name, default in shown.items()]
    source = "".join(lines if room == TOP else [f"{room}:\n", *lines])
    assert set(shown) == ROOMS[room]
    assert configuration.parse_settings(source.encode(), "milterapp.yaml.5") == Settings()


def test_words() -> None:
    """milterapp.yaml(5) names every word that a setting takes."""
    for name, words in configuration.WORDS.items():
        room, _, setting = name.rpartition(".")
        text = section("milterapp.yaml.5", room or TOP)
        paragraph = text.partition(f".BR {setting} ")[2].partition(".TP")[0]
        for word in words:
            assert re.search(rf"\b{word}\b", paragraph), f"{name}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_renders(page: Path) -> None:
    """A page renders without a warning, and its head names it, its section and this version."""
    title = re.search(r"^\.TH (\S+) (\d)\S* .*$", page.read_text(), re.MULTILINE)
    assert title
    assert f"{title[1].lower()}.{title[2]}" == page.name.lower()
    assert f"milterapp {__version__}" in title[0]
    for program in (["groff", "-man", "-Tutf8", "-ww", "-z"], ["mandoc", "-Tlint", "-Wwarning"]):
        if shutil.which(program[0]):
            ended = subprocess.run([*program, page], capture_output=True, text=True, check=False)
            assert (ended.stdout + ended.stderr) == "", program[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_refers_to_pages_there_are(page: Path) -> None:
    """A page refers only to pages of ours that exist."""
    for name, number in re.findall(r"^\.BR (milterapp\S*) \((\d)\)", page.read_text(), re.MULTILINE):
        assert (MAN / f"{name}.{number}").exists(), f"{name}({number})"
