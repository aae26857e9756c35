"""Tests of milterapp.milter.site_rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from milterapp.milter.apply import CAN
from milterapp.milter.site_rules import read_site_rules
from milterapp.rules import reading


def rules(folder: Path, then: str, condition: str = "sender: a@b.example") -> str:
    """Return the path of a file with one rule."""
    path = folder / "rules.yaml"
    path.write_text(f"rules:\n  - name: one\n    if:\n      {condition}\n    then:\n      {then}\n")
    path.chmod(0o600)
    return str(path)


def test_what_it_can() -> None:
    """Every word it claims to carry out is one the rules know as such."""
    assert CAN < reading.CAN


@pytest.mark.parametrize(
    ("then", "taken"),
    [("hold", True), ("add_header: {X-Again: once}", True), ("discard", False), ("reject: 5.7.1 Twice", False)],
)
def test_a_duplicate_is_not_lost(tmp_path: Path, then: str, taken: bool) -> None:
    """Site rules may mark a second copy, but neither refuse nor drop it: nobody knows that the first was kept."""
    policy, problems = read_site_rules(rules(tmp_path, then, "duplicate: yes"))
    assert (policy is not None) is taken
    assert taken or any("whether Postfix kept the first copy" in str(one) for one in problems)


@pytest.mark.parametrize(
    ("transports", "taken"),
    [
        pytest.param(("slow:",), True, id="listed"),
        pytest.param(("slow:", "smtp:[a.example]"), True, id="one of two"),
        pytest.param((), False, id="none is listed"),
        pytest.param(("smtp:[a.example]",), False, id="another is listed"),
    ],
)
def test_transports(tmp_path: Path, transports: tuple[str, ...], *, taken: bool) -> None:
    """A rule may only name a transport that the site lists."""
    policy, problems = read_site_rules(rules(tmp_path, "transport: 'slow:'"), transports=transports)
    assert (policy is not None) is taken
    assert taken or "is not in milter.transports" in str(problems[-1])
