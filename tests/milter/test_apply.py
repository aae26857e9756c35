"""Tests of milterapp.milter.apply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.edits import AddHeader, Edit, HeaderChange, PrefixSubject, RemoveHeader, SetHeader
from milterapp.mail.message import Mail
from milterapp.milter import apply
from milterapp.milter.apply import Call, calls_for
from milterapp.rules.decision import Decision, RecipientDecision, Verdict

MAIL = Mail(b"From: a@example.net\r\nX-Tag: one\r\nSubject: hello\r\nX-Tag: two\r\n\r\nbody\r\n")


@pytest.mark.parametrize(
    ("edit", "want"),
    [
        pytest.param(AddHeader("X-New", "yes"), [Call("addheader", ("X-New", " yes"))], id="add"),
        pytest.param(
            SetHeader("X-Tag", "new"),
            [Call("chgheader", ("X-Tag", 2, None)), Call("chgheader", ("X-Tag", 1, " new"))],
            id="set",
        ),
        pytest.param(
            RemoveHeader("x-tag"),
            [Call("chgheader", ("x-tag", 2, None)), Call("chgheader", ("x-tag", 1, None))],
            id="remove",
        ),
        pytest.param(RemoveHeader("X-Absent"), [], id="remove what is not there"),
        pytest.param(PrefixSubject("[x]"), [Call("chgheader", ("Subject", 1, " [x] hello"))], id="prefix"),
    ],
)
def test_header_edits(edit: Edit, want: list[Call]) -> None:
    """An edit becomes calls by ordinal, deletions from the highest down."""
    got = list(calls_for(Decision(edits=(edit,)), MAIL, {}))
    assert [(one.method, str(one.arguments).lower()) for one in got] == [
        (one.method, str(one.arguments).lower()) for one in want
    ]


def test_blank() -> None:
    """Where the mail server puts the blank after the colon itself, we do not."""
    got = calls_for(Decision(edits=(AddHeader("X-New", "yes"),)), MAIL, {}, blank="")
    assert got == (Call("addheader", ("X-New", "yes")),)


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.DEFER, Verdict.DISCARD])
def test_refused_is_not_edited(verdict: Verdict) -> None:
    """What is refused or thrown away is not edited first."""
    assert calls_for(Decision(verdict, edits=(AddHeader("X", "y"),)), MAIL, {}) == ()


def test_hold_and_removed_recipient() -> None:
    """A recipient whose copy is discarded is removed as the client named it; hold is the quarantine with its reason."""
    decision = Decision(
        Verdict.HOLD,
        recipients=(RecipientDecision("Bob@x.example", Verdict.DISCARD), RecipientDecision("c@x.example")),
        hold_reason="look at\nit",
    )
    assert calls_for(decision, None, {"Bob@x.example": "<Bob@x.example>", "c@x.example": "<c@x.example>"}) == (
        Call("delrcpt", ("<Bob@x.example>",)),
        Call("quarantine", ("look at?it",)),
    )


@given(st.sampled_from([AddHeader, SetHeader]), st.text(max_size=300))
def test_no_line_is_forged(kind: type[AddHeader] | type[SetHeader], value: str) -> None:
    """Whatever value lands in a header edit, the call is ASCII and ends no line that it does not continue."""
    try:
        calls = calls_for(Decision(edits=(kind("X-Tag", value),)), MAIL, {})
    except ValueError:
        return
    for call in calls:
        text = call.arguments[-1]
        if text is not None:
            assert isinstance(text, str)
            assert text.isascii()
            assert "\r" not in text
            assert "\0" not in text
            assert all(line[:1] in (" ", "\t") for line in text.split("\n"))


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        pytest.param("abc", True, id="one line"),
        pytest.param("abc\n d\n\te", True, id="folded"),
        pytest.param("", True, id="nothing"),
        pytest.param("abc\n ", False, id="a blank last line"),
        pytest.param("abc\n \n d", False, id="a blank line within"),
        pytest.param("abc\nd", False, id="a line that is a field of its own"),
        pytest.param("abc\n", False, id="a line end at the end"),
        pytest.param("abc\rd", False, id="a bare CR"),
        pytest.param("a\0", False, id="NUL"),
        pytest.param("caf\u00e9", False, id="no ASCII"),
        pytest.param("\n" + " " * 50_000, False, id="blanks without end"),
    ],
)
def test_value_that_can_be_sent(monkeypatch: pytest.MonkeyPatch, value: str, *, fits: bool) -> None:
    """A value is sent only where each of its lines continues the field and none is blank."""
    monkeypatch.setattr(apply, "header_changes", lambda _mail, _edits: (HeaderChange("X", 0, value),))
    decision = Decision(edits=(AddHeader("X", "y"),))
    if fits:
        assert calls_for(decision, MAIL, {}) == (Call("addheader", ("X", " " + value)),)
    else:
        with pytest.raises(ValueError, match="the value of header X cannot be sent"):
            calls_for(decision, MAIL, {})


def test_recipient_that_cannot_be_named() -> None:
    """A recipient that libmilter cannot take back is an error, not a recipient that stays."""
    decision = Decision(recipients=(RecipientDecision("b\u00e4@x", Verdict.DISCARD),))
    with pytest.raises(ValueError, match="no ASCII"):
        calls_for(decision, None, {"b\u00e4@x": "<b\u00e4@x>"})
