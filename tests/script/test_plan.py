"""Plans on their way from the script process: what was sent comes back whole and within limits, or is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail import edits
from milterapp.script import stored
from milterapp.script.actions import (
    KINDS,
    Action,
    Answered,
    Ask,
    Defer,
    Discard,
    File,
    Forward,
    Header,
    Keep,
    Output,
    Reject,
    Reply,
    Send,
    Store,
)
from milterapp.script.plan import Failure, Plan, PlanError, PlanLimits, decode, encode
from milterapp.script.untrusted import Untrusted, reveal

EVERY: dict[str, Action] = {
    "keep": Keep(),
    "file": File(("Lists", "Python é")),
    "file-copy": File(("a",), copy=True),
    "forward": Forward("a@example.org"),
    "reply": Reply("Grüße\n\tund Dank", "Re: é"),
    "reject": Reject("5.7.1", "I do not read advertisements"),
    "defer": Defer("4.3.0", "Later"),
    "discard": Discard(),
    "send": Send(("a@example.org", "b@example.org"), "é", "text\n"),
    "add_header": Header("add_header", "X-A", "é"),
    "set_header": Header("set_header", "X-A", "b"),
    "remove_header": Header("remove_header", "X-A"),
    "prefix_subject": Header("prefix_subject", "Subject", "[list]"),
    "store": Store("page", False, '["u","a"]'),
    "store-forget": Store("page", True, None),
    "output": Output("2026/page.html", "<p>\u2028</p>"),
    "output-remove": Output("page.html", None),
    "ask": Ask("0" * 64, "publish", ("page", "é"), "30"),
    "answered": Answered("f" * 64),
}
WHOLE = Plan((EVERY["file"], EVERY["send"], EVERY["store"]), "POSTING", ("dev",), about="a" * 64)


@pytest.mark.parametrize("name", EVERY)
def test_every_action_comes_back(name: str) -> None:
    """Each action alone survives the way, as the value that it was."""
    plan = Plan((EVERY[name],))
    assert decode(encode(plan)) == plan


def test_every_kind_is_tried() -> None:
    """The table above has every kind there is."""
    assert {one.word for one in EVERY.values()} == set(KINDS)


def test_a_plan_and_a_failure_come_back() -> None:
    """State, captures and the traceback survive too; texts too long for a failure are cut."""
    assert decode(encode(WHOLE)) == WHOLE
    assert decode(encode(Plan(routed=False))) == Plan(routed=False)
    failure = Failure("TaintError", "é" * 10, "Traceback\n", "f.py:3")
    assert decode(encode(failure)) == failure
    cut = decode(encode(Failure("a", "b" * 10**6, "c" * 10**6)))
    assert isinstance(cut, Failure)
    assert (len(cut.text), len(cut.trace)) == (4000, 16000)


@pytest.mark.parametrize("found", [Plan(), WHOLE, Failure("a", "b", "c")], ids=["empty", "whole", "failure"])
def test_cut_short_at_every_byte(found: Plan | Failure) -> None:
    """No beginning of a plan is a plan, and nothing may follow one."""
    data = encode(found)
    for size in range(len(data)):
        with pytest.raises(PlanError):
            decode(data[:size])
    for more in (b"\n", b" ", data, b'{"end":0}\n', b"\0"):
        with pytest.raises(PlanError):
            decode(data + more)


@given(st.integers(0, len(encode(WHOLE)) - 1), st.integers(0, 255))
def test_one_byte_changed(at: int, byte: int) -> None:
    """A byte that was changed gives another plan within the limits, or a PlanError; nothing else."""
    data = bytearray(encode(WHOLE))
    data[at] = byte
    try:
        decode(bytes(data))
    except PlanError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=10) | st.sampled_from(["a@example.org", "5.7.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(sorted(KINDS)),
    st.dictionaries(st.sampled_from(["folder", "copy", "to", "text", "subject", "status", "key", "value", "x"]), JSON),
)
def test_any_fields(word: str, fields: dict[str, Any]) -> None:
    """Whatever an action's fields hold, it becomes that action, valid, or a PlanError."""
    line = json.dumps({"action": word, **fields})
    try:
        plan = decode(b'{"plan":1,"state":"","per":[],"routed":true,"about":""}\n' + line.encode() + b'\n{"end":1}\n')
    except PlanError:
        return
    assert isinstance(plan, Plan)
    assert plan.actions == (KINDS[word](**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}),)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a PlanError."""
    with pytest.raises(PlanError):
        decode(data)


HEAD = '{"plan":1,"state":"","per":[],"routed":true,"about":""}'
END = '{"end":1}'
KEEP = '{"action":"keep"}'
BAD: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "no head": (KEEP, END),
    "another version": ('{"plan":2,"state":"","per":[],"routed":true,"about":""}', '{"end":0}'),
    "version true": ('{"plan":true,"state":"","per":[],"routed":true,"about":""}', '{"end":0}'),
    "plan and failure": ('{"plan":1,"failure":1,"state":"","per":[],"routed":true,"about":""}', '{"end":0}'),
    "more in the head": ('{"plan":1,"state":"","per":[],"routed":true,"about":"","x":1}', '{"end":0}'),
    "state a number": ('{"plan":1,"state":1,"per":[],"routed":true,"about":""}', '{"end":0}'),
    "per a text": ('{"plan":1,"state":"","per":"ab","routed":true,"about":""}', '{"end":0}'),
    "routed a number": ('{"plan":1,"state":"","per":[],"routed":1,"about":""}', '{"end":0}'),
    "about a number": ('{"plan":1,"state":"","per":[],"routed":true,"about":1}', '{"end":0}'),
    "about too much": ('{"plan":1,"state":"","per":[],"routed":true,"about":"' + "a" * 65 + '"}', '{"end":0}'),
    "unrouted with actions": ('{"plan":1,"state":"","per":[],"routed":false,"about":""}', KEEP, END),
    "no end": (HEAD, KEEP),
    "end counts less": (HEAD, KEEP, '{"end":0}'),
    "end counts more": (HEAD, KEEP, '{"end":2}'),
    "end is true": (HEAD, KEEP, '{"end":true}'),
    "end is a float": (HEAD, KEEP, '{"end":1.0}'),
    "two ends": (HEAD, END, END),
    "unknown kind": (HEAD, '{"action":"exec"}', END),
    "kind a list": (HEAD, '{"action":["keep"]}', END),
    "no kind": (HEAD, "{}", END),
    "a list": (HEAD, "[]", END),
    "a text": (HEAD, '"keep"', END),
    "two keys": (HEAD, '{"action":"keep","action":"discard"}', END),
    "more fields": (HEAD, '{"action":"keep","x":1}', END),
    "a field less": (HEAD, '{"action":"forward","to":"a@example.org"}', END),
    "flag a number": (HEAD, '{"action":"forward","to":"a@example.org","copy":1}', END),
    "flag a text": (HEAD, '{"action":"forward","to":"a@example.org","copy":"no"}', END),
    "no address": (HEAD, '{"action":"forward","to":"a","copy":false}', END),
    "an option": (HEAD, '{"action":"forward","to":"-f@example.org","copy":false}', END),
    "two addresses": (HEAD, '{"action":"forward","to":"a@example.org,b@example.org","copy":false}', END),
    "an address with a line": (HEAD, r'{"action":"forward","to":"a@example.org\nRCPT","copy":false}', END),
    "folder up": (HEAD, '{"action":"file","folder":["..","a"],"copy":false}', END),
    "folder absolute": (HEAD, '{"action":"file","folder":["","etc"],"copy":false}', END),
    "folder with a slash": (HEAD, '{"action":"file","folder":["a/b"],"copy":false}', END),
    "folder a text": (HEAD, '{"action":"file","folder":"ab","copy":false}', END),
    "folder of numbers": (HEAD, '{"action":"file","folder":[1],"copy":false}', END),
    "no folder": (HEAD, '{"action":"file","folder":[],"copy":false}', END),
    "subject of two lines": (HEAD, r'{"action":"reply","text":"a","subject":"a\nBcc: b"}', END),
    "text with a NUL": (HEAD, r'{"action":"reply","text":"a\u0000","subject":""}', END),
    "text with a CR": (HEAD, r'{"action":"reply","text":"a\r.\r","subject":""}', END),
    "surrogate": (HEAD, r'{"action":"reply","text":"\ud800","subject":""}', END),
    "reject with 4": (HEAD, '{"action":"reject","status":"4.7.1","text":"a"}', END),
    "reject of two lines": (HEAD, r'{"action":"reject","status":"5.7.1","text":"a\nb"}', END),
    "reject not ASCII": (HEAD, r'{"action":"reject","status":"5.7.1","text":"\u00e9"}', END),
    "send to nobody": (HEAD, '{"action":"send","to":[],"subject":"","text":""}', END),
    "header name": (HEAD, '{"action":"header","how":"add_header","name":"a: b","value":""}', END),
    "header how": (HEAD, '{"action":"header","how":"exec","name":"a","value":""}', END),
    "header value": (HEAD, r'{"action":"header","how":"add_header","name":"a","value":"a\r\nb"}', END),
    "stored as none of ours": (HEAD, '{"action":"store","key":"a","marked":false,"value":"{}"}', END),
    "stored as no JSON": (HEAD, '{"action":"store","key":"a","marked":false,"value":"x"}', END),
    "no key": (HEAD, '{"action":"store","key":"","marked":false,"value":null}', END),
    "output up": (HEAD, '{"action":"output","path":"../a","text":""}', END),
    "output absolute": (HEAD, '{"action":"output","path":"/a","text":""}', END),
    "output hidden": (HEAD, '{"action":"output","path":".htaccess","text":""}', END),
    "two verdicts": (HEAD, '{"action":"discard"}', '{"action":"reject","status":"5.7.1","text":"a"}', '{"end":2}'),
    "defer and more": (HEAD, '{"action":"discard"}', '{"action":"defer","status":"4.7.1","text":"a"}', '{"end":2}'),
    "reject and keep": (HEAD, KEEP, '{"action":"reject","status":"5.7.1","text":"a"}', '{"end":2}'),
    "discard and keep": (HEAD, KEEP, '{"action":"discard"}', '{"end":2}'),
    "deep": (HEAD, '{"action":' + "[" * 100_000, END),
    "a number without end": (HEAD, '{"action":' + "1" * 10_000 + "}", END),
    "NaN": (HEAD, '{"action":NaN}', END),
    "failure with actions": ('{"failure":1,"kind":"","text":"","trace":""}', KEEP, END),
    "failure too long": ('{"failure":1,"kind":"' + "a" * 101 + '","text":"","trace":""}', '{"end":0}'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plan(name: str) -> None:
    """Unknown kinds, wrong types, what its place does not take and what cannot be together are errors."""
    with pytest.raises(PlanError):
        decode("".join(f"{line}\n" for line in BAD[name]).encode())


def test_the_lines_of_the_table_are_otherwise_right() -> None:
    """The frame that the table uses is a plan where nothing is wrong in it."""
    assert decode(f"{HEAD}\n{KEEP}\n{END}\n".encode()) == Plan((Keep(),))


@pytest.mark.parametrize(
    ("limits", "actions"),
    [
        pytest.param(PlanLimits(actions=2), (Keep(),) * 3, id="actions"),
        pytest.param(PlanLimits(recipients=2), (Send(("a@b.c",) * 2, "", ""), Forward("a@b.c")), id="recipients"),
        pytest.param(PlanLimits(folders=1), (File(("a",)), File(("a",), copy=True), File(("b",))), id="folders"),
        pytest.param(PlanLimits(text=10), (Reply("a" * 11),), id="one text"),
        pytest.param(PlanLimits(total=60), (Reply("a" * 20),) * 4, id="all texts"),
        pytest.param(PlanLimits(outputs=1), (Output("a", ""),) * 2, id="outputs"),
        pytest.param(PlanLimits(stores=1), (Store("a", False, None),) * 2, id="stores"),
    ],
)
def test_limits(limits: PlanLimits, actions: tuple[Action, ...]) -> None:
    """Over any limit it is an error, and one less is none."""
    with pytest.raises(PlanError):
        decode(encode(Plan(actions)), limits)
    assert decode(encode(Plan(actions[:-1])), limits) == Plan(actions[:-1])


def test_edits() -> None:
    """A header action is the edit that a rule would make."""
    assert [EVERY[how].edit for how in Header.HOW] == [  # type: ignore[union-attr]
        edits.AddHeader("X-A", "é"),
        edits.SetHeader("X-A", "b"),
        edits.RemoveHeader("X-A"),
        edits.PrefixSubject("[list]"),
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.text().map(Untrusted),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Compare with the marks."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(map(same, one.values(), other.values()))
    return type(one) is type(other) and bool(one == other)


@given(VALUES)
def test_stored_values_come_back_with_their_marks(value: Any) -> None:
    """What a script stores it gets back, and what was Untrusted still is."""
    assert same(stored.from_text(stored.to_text(value)), value)


@pytest.mark.parametrize("value", [object(), b"a", {1, 2}, {1: 2}, float("nan"), {Untrusted: 1}], ids=repr)
def test_what_cannot_be_stored(value: object) -> None:
    """Anything else is refused when it is stored."""
    with pytest.raises((TypeError, ValueError)):
        stored.to_text(value)


def test_stored_too_deep() -> None:
    """A list of lists without end is refused on both sides."""
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    with pytest.raises(ValueError, match="deeper"):
        stored.to_text(value)
    with pytest.raises(ValueError, match="nested"):
        stored.from_text('["l",' * 100_000)


def test_a_lone_surrogate_is_replaced() -> None:
    """Text that cannot be written becomes what can."""
    assert stored.from_text(stored.to_text("\ud800")) == "?"
    assert reveal(stored.from_text(stored.to_text(Untrusted("\udfff")))) == "?"
