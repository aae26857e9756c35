"""No message comes to one place twice: deliveries to one folder, address or program are one."""

from __future__ import annotations

import pytest

from milterapp.rules.deliveries import Delivery, File, Forward, Keep, Pipe, place_of
from tests.rules.helpers import decide_text, indent

A, L = ("A",), ("L", "a.b")
COPY = "file: {folder: A, copy: yes}"

JOINED: dict[str, tuple[list[str], tuple[Delivery, ...]]] = {
    "a copy, then not": ([COPY, "file: A"], (File(A),)),
    "two copies": ([COPY, COPY], (File(A, copy=True), Keep(implicit=True))),
    "with another between": (
        [COPY, "file: {folder: B, copy: yes}", "file: A"],
        (File(A), File(("B",), copy=True)),
    ),
    "the flags of both": (
        [f"[{{{COPY}}}, {{flag: seen}}]", "[{file: A}, {flag: flagged}]"],
        (File(A, flags=("flagged", "seen")),),
    ),
    "one may make the folder": ([COPY, "file: {folder: A, create: no}"], (File(A),)),
    "neither may make it": (
        ["file: {folder: A, copy: yes, create: no}", "file: {folder: A, create: no}"],
        (File(A, create=False),),
    ),
    "a dot in a level": (["file: {folder: L/a.b, copy: yes}", "file: L/a_b"], (File(L),)),
    "below INBOX": (["file: {folder: L/a.b, copy: yes}", "file: inbox/L/a.b"], (File(L),)),
    "an address": (["forward: {to: c@y.example, copy: yes}", "forward: c@Y.EXAMPLE"], (Forward("c@y.example"),)),
    "an address of one rule": (
        ["forward: {to: [c@y.example, c@Y.EXAMPLE], copy: yes}"],
        (Forward("c@y.example", copy=True), Keep(implicit=True)),
    ),
    "a program": (["pipe: {program: spool, copy: yes}", "pipe: spool"], (Pipe("spool"),)),
}

APART: dict[str, tuple[list[str], tuple[Delivery, ...]]] = {
    "two folders, by case": ([COPY, "file: a"], (File(A, copy=True), File(("a",)))),
    "a folder and one below": ([COPY, "file: A/A"], (File(A, copy=True), File(("A", "A")))),
    "two addresses, by the case before the @": (
        ["forward: [c@y.example, C@y.example]"],
        (Forward("c@y.example"), Forward("C@y.example")),
    ),
    "two addresses, by a sharp s": (
        ["forward: [c@straße.example, c@strasse.example]"],
        (Forward("c@straße.example"), Forward("c@strasse.example")),
    ),
    "a program with other arguments": (
        ["pipe: {program: spool, copy: yes}", "pipe: {program: spool, arguments: [x]}"],
        (Pipe("spool", copy=True), Pipe("spool", ("x",))),
    ),
}


def delivered(actions: list[str]) -> tuple[Delivery, ...]:
    """Return what rules with these actions, which hold for every message, deliver."""
    rules = (f"- name: '{at}'\n  then:\n{indent(action, 4)}\n" for at, action in enumerate(actions))
    return decide_text("rules:\n" + "".join(rules)).deliveries


@pytest.mark.parametrize(("actions", "wanted"), JOINED.values(), ids=JOINED)
def test_two_deliveries_to_one_place_are_one(actions: list[str], wanted: tuple[Delivery, ...]) -> None:
    """It stands where the first stood, has what either asks for, and is a copy where both are."""
    assert delivered(actions) == wanted


@pytest.mark.parametrize(("actions", "wanted"), APART.values(), ids=APART)
def test_deliveries_to_two_places_are_two(actions: list[str], wanted: tuple[Delivery, ...]) -> None:
    """What differs in more than how it is asked for is another place."""
    assert delivered(actions) == wanted


def test_what_a_script_sends_on_is_apart() -> None:
    """It has a sender of its own, and a bound that may refuse it."""
    assert place_of(Forward("c@y.example", script="a.py", sender="l@x.example")) != place_of(Forward("c@y.example"))
