"""Tests of milterapp.milter.apply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.edits import (
    AddHeader,
    Banner,
    Edit,
    HeaderChange,
    PrefixSubject,
    PrependHeader,
    RemoveHeader,
    ReplaceBody,
    SetHeader,
)
from milterapp.mail.message import Mail
from milterapp.milter import apply
from milterapp.milter.apply import TRANSPORT, Call, calls_for, is_empty
from milterapp.rules.decision import (
    AddRecipient,
    Decision,
    EnvelopeEdit,
    RecipientDecision,
    RemoveRecipient,
    SetSender,
    Transport,
    Verdict,
)

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
        pytest.param(RemoveHeader("X-Tag", (2,)), [Call("chgheader", ("X-Tag", 2, None))], id="remove one"),
        pytest.param(PrependHeader("X-New", "yes"), [Call("addheader", ("X-New", " yes", 0))], id="prepend"),
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


def test_body() -> None:
    """A new body goes out in pieces that a packet holds, after the header fields that say what it is."""
    calls = calls_for(Decision(edits=(ReplaceBody("x" * 70 + "\n"), Banner("y\n" * 60_000))), MAIL, {})
    pieces = [one.arguments[0] for one in calls if one.method == "replacebody"]
    assert [len(piece) for piece in pieces if isinstance(piece, bytes)][:2] == [65_535, 65_535]
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)).endswith(b"x" * 70 + b"\r\n")
    assert {one.method for one in calls} >= {"replacebody", "addheader"}
    assert [one.method for one in calls].index("addheader") < [one.method for one in calls].index("replacebody")


def test_empty_body() -> None:
    """A body of nothing is sent as such, not left as it was."""
    calls = calls_for(Decision(edits=(ReplaceBody(""),)), MAIL, {})
    assert [one for one in calls if one.method == "replacebody"]


def test_body_that_is_not_known() -> None:
    """A body that was not sent is not edited."""
    header = Mail.from_fields([(b"Subject", b"x")])
    with pytest.raises(ValueError, match="body"):
        calls_for(Decision(edits=(Banner("x"),)), header, {})


CAME = {"Bob@x.example": "<Bob@x.example>", "carol@x.example": "<carol@x.example>"}


@pytest.mark.parametrize(
    ("envelope", "want"),
    [
        pytest.param((SetSender("a@x.example"),), [Call("chgfrom", ("<a@x.example>",))], id="sender"),
        pytest.param((SetSender("<>"),), [Call("chgfrom", ("<>",))], id="null sender"),
        pytest.param(
            (SetSender("a@x.example"), SetSender("b@x.example")), [Call("chgfrom", ("<b@x.example>",))], id="the last"
        ),
        pytest.param(
            (AddRecipient("n@x.example"), AddRecipient("n@x.example")),
            [Call("addrcpt", ("<n@x.example>",))],
            id="one more, once",
        ),
        pytest.param(
            (RemoveRecipient("bob@X.example"),), [Call("delrcpt", ("<Bob@x.example>",))], id="one less, as it came"
        ),
        pytest.param((RemoveRecipient("dora@x.example"),), [], id="one that is none"),
        pytest.param(
            (Transport("slow:"),),
            [Call("addheader", (TRANSPORT, " slow:")), Call("chgheader", (TRANSPORT, 1, None))],
            id="transport, and no trace of it",
        ),
    ],
)
def test_envelope(envelope: tuple[EnvelopeEdit, ...], want: list[Call]) -> None:
    """A change of the envelope becomes its call, a recipient as RCPT TO had it."""
    recipients = tuple(RecipientDecision(one) for one in CAME)
    assert list(calls_for(Decision(envelope=envelope, recipients=recipients), None, CAME)) == want


@pytest.mark.parametrize("address", ["a b@x.example", "a@x.example>\r\nX: y", "b\u00e4@x.example"])
def test_address_that_cannot_be_sent(address: str) -> None:
    """An address that would not be taken whole is an error, never half of it."""
    for edit in (SetSender(address), AddRecipient(address)):
        with pytest.raises(ValueError, match="cannot be sent"):
            calls_for(Decision(envelope=(edit,)), None, {})


@pytest.mark.parametrize(
    ("verdicts", "envelope", "want"),
    [
        pytest.param([Verdict.NONE], (), False, id="one stays"),
        pytest.param([Verdict.DISCARD, Verdict.REJECT], (), True, id="discarded, refused"),
        pytest.param([Verdict.REJECT], (), False, id="nobody was taken"),
        pytest.param([Verdict.NONE, Verdict.DISCARD], (RemoveRecipient("R0@x"),), True, id="removed, discarded"),
        pytest.param([Verdict.NONE], (RemoveRecipient("r0@x"), AddRecipient("n@x")), False, id="exchanged"),
    ],
)
def test_nobody_left(verdicts: list[Verdict], envelope: tuple[EnvelopeEdit, ...], *, want: bool) -> None:
    """A message that would go to nobody is thrown away, one that goes to another is not."""
    recipients = tuple(RecipientDecision(f"r{at}@x", one) for at, one in enumerate(verdicts))
    assert is_empty(Decision(recipients=recipients, envelope=envelope)) is want


def test_recipient_that_cannot_be_named() -> None:
    """A recipient that the mail server would not find is an error, not a recipient that stays."""
    decision = Decision(recipients=(RecipientDecision("b\u00e4@x", Verdict.DISCARD),))
    with pytest.raises(ValueError, match="no ASCII"):
        calls_for(decision, None, {"b\u00e4@x": "<b\u00e4@x>"})
