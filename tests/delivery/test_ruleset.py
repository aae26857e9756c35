"""The site's rules before and after a person's own: one order, one end, and each file's faults its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.agent_process import AgentProcess, Person, Start, Submit

pytestmark = pytest.mark.root

TAGGED = "rules:\n  - name: o\n    if: {tag: seen}\n    then: {file: Own}\n"


def filing(name: str, folder: str, copy: str = "no") -> str:
    """Return rules that file everything, or a copy of it."""
    return f"rules:\n  - name: {name}\n    then:\n      file: {{folder: {folder}, copy: {copy}}}\n"


def tagging(tag: str) -> str:
    """Return rules that tag everything."""
    return f"rules:\n  - name: mark\n    then:\n      tag: {tag}\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder of root's that everybody can read."""
    folder = Path(tempfile.mkdtemp(prefix="site-", dir="/etc"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start(start: Start, place: Path) -> Start:
    """Give what starts agents with site rules: before and after are texts, None for no such setting."""

    def started(before: str | None = None, after: str | None = None, **settings: Any) -> AgentProcess:
        for name, text in (("before", before), ("after", after)):
            if text is not None:
                (place / f"{name}.yaml").write_text(text)
                settings[f"rules_{name}"] = str(place / f"{name}.yaml")
        return start(**settings)

    return started


def folders(person: Person) -> list[str]:
    """Return the Maildir folders with mail."""
    return sorted(path.name for path in (person.home / "Maildir").glob(".*") if path.is_dir())


@pytest.mark.parametrize(
    ("before", "own", "after", "wanted", "rules"),
    [
        pytest.param(filing("b", "Before"), filing("o", "Own"), filing("a", "After"), [".Before"], ["site: b"],
                     id="before-ends-all"),
        pytest.param(filing("b", "Before", "yes"), filing("o", "Own"), filing("a", "After"), [".Before", ".Own"],
                     ["site: b", "o"], id="own-ends-after"),
        pytest.param(None, filing("o", "Own", "yes"), filing("a", "After"), [".After", ".Own"], ["o", "site: a"],
                     id="after-ends"),
        pytest.param(filing("b", "Before"), None, None, [".Before"], ["site: b"], id="no-rules-of-ones-own"),
        pytest.param(tagging("seen"), TAGGED, None, [".Own"],
                     ["site: mark", "o"], id="a-tag-goes-on"),
        pytest.param(filing("same", "Before", "yes"), filing("same", "Own"), None, [".Before", ".Own"],
                     ["site: same", "same"], id="the-same-name"),
    ],
)  # fmt: skip
def test_the_order(
    person: Person, start: Start, before: str | None, own: str | None, after: str | None, wanted: list[str],
    rules: list[str],
) -> None:  # fmt: skip
    """Before, own, after: the first that ends the rules ends them."""
    if own is not None:
        person.write(own)
    result = start(before, after).deliver(Submit())
    assert result.status == "ok"
    assert folders(person) == wanted
    assert result.event["rules"] == rules


def test_a_change_counts_from_the_next_message(person: Person, start: Start, place: Path) -> None:
    """A warm agent takes the new rules; broken ones leave those from before in use."""
    agent = start(filing("b", "One"))
    assert agent.deliver(Submit(), queue_id="4A").status == "ok"
    new = place / "new"
    for text, wanted in ((filing("b", "Two"), ".Two"), ("rules: [", ".Two"), (filing("b", "Three"), ".Three")):
        new.write_text(text)
        new.rename(place / "before.yaml")
        assert agent.deliver(Submit(), queue_id="4B" + wanted.strip(".") + str(len(text))).status == "ok"
        assert wanted in folders(person)
    assert folders(person) == [".One", ".Three", ".Two"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(lambda path: path.write_text("rules: ["), "before.yaml:", id="broken"),
        pytest.param(lambda path: path.unlink(), "there is no such file", id="missing"),
        pytest.param(lambda path: path.chmod(0o666), "can be written by others", id="writable"),
        pytest.param(lambda path: os.chown(path, 61234, 61234), "belongs to another user", id="not-roots"),
        pytest.param(
            lambda path: path.write_text("rules:\n  - name: s\n    then:\n      script: a.py\n"),
            "script",
            id="a-script",
        ),
    ],
)
def test_the_sites_cannot_be_used(person: Person, start: Start, place: Path, fault: Any, said: str) -> None:
    """Where the site's rules never could be used, everybody's mail waits, and the reason says which file and why."""
    person.write(filing("o", "Own"))
    agent = start(filing("b", "Before"))
    fault(place / "before.yaml")
    submit = Submit()
    result = agent.deliver(submit)
    assert (result.status, submit.kinds) == ("defer", [])
    assert said in result.text
    assert not (person.home / "Maildir").exists()


def test_a_persons_broken_rules_spare_the_sites_not(person: Person, start: Start) -> None:
    """With `broken_rules: keep` the site's rules are asked all the same; with `defer` the mail waits."""
    person.write("rules: [")
    assert start(filing("b", "Before"), broken_rules="defer").deliver(Submit()).status == "defer"
    assert folders(person) == []
    assert start(filing("b", "Before"), broken_rules="keep").deliver(Submit(), queue_id="4B").status == "ok"
    assert folders(person) == [".Before"]
