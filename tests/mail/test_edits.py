"""Edits change what they name and not one byte besides, in the message and in the milter's calls alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.edits import (
    AddHeader,
    Edit,
    HeaderChange,
    PrefixSubject,
    PrependHeader,
    RemoveHeader,
    SetHeader,
    apply,
    header_changes,
    pieces,
)
from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail
from tests.mail.read import NAMES, raw

PLAIN = b"From: a@example.org\nX-A: 1\nSubject: =?utf-8?Q?=C3=A4?=\n  folded\nx-a: 2\n\nbody\r\n\0\n"


@pytest.mark.parametrize(
    ("edits", "before", "after"),
    [
        pytest.param([], b"", b"", id="none"),
        pytest.param([AddHeader("X-B", "3")], b"\n\nbody", b"\nX-B: 3\n\nbody", id="add"),
        pytest.param(
            [AddHeader("X-B", "3"), AddHeader("X-B", "4")], b"\n\nbody", b"\nX-B: 3\nX-B: 4\n\nbody", id="add-twice"
        ),
        pytest.param([SetHeader("fRom", "b@c")], b"From: a@example.org\n", b"From: b@c\n", id="set"),
        pytest.param([SetHeader("X-New", "9")], b"\n\nbody", b"\nX-New: 9\n\nbody", id="set-appends"),
        pytest.param([RemoveHeader("FROM")], b"From: a@example.org\n", b"", id="remove"),
        pytest.param([RemoveHeader("X-None")], b"", b"", id="remove-nothing"),
        pytest.param([RemoveHeader("X-A", (2,))], b"x-a: 2\n", b"", id="remove-one"),
        pytest.param([RemoveHeader("X-A", (3,))], b"", b"", id="remove-one-that-is-not"),
        pytest.param(
            [RemoveHeader("X-A", (1,)), RemoveHeader("X-A", (2,))],
            b"X-A: 1\nSubject: =?utf-8?Q?=C3=A4?=\n  folded\nx-a: 2\n",
            b"Subject: =?utf-8?Q?=C3=A4?=\n  folded\n",
            id="remove-by-places-in-the-message-as-it-came",
        ),
        pytest.param([PrependHeader("X-A", "0")], b"From:", b"X-A: 0\nFrom:", id="prepend"),
        pytest.param(
            [PrependHeader("X-1", "1"), PrependHeader("X-2", "2")],
            b"From:",
            b"X-2: 2\nX-1: 1\nFrom:",
            id="prepend-twice",
        ),
        pytest.param([PrependHeader("X-B", "0"), RemoveHeader("X-B")], b"", b"", id="prepend-and-remove"),
        pytest.param([AddHeader("X-B", "3"), RemoveHeader("X-B")], b"", b"", id="add-and-remove"),
        pytest.param(
            [AddHeader("X-B", "3"), SetHeader("X-B", "4")], b"\n\nbody", b"\nX-B: 4\n\nbody", id="add-and-set"
        ),
        pytest.param(
            [PrefixSubject("[x]")],
            b"Subject: =?utf-8?Q?=C3=A4?=\n  folded\n",
            b"Subject: [x] =?utf-8?Q?=C3=A4?=  folded\n",
            id="prefix",
        ),
        pytest.param(
            [PrefixSubject("ü")],
            b"Subject: =?utf-8?Q?=C3=A4?=\n  folded\n",
            b"Subject: =?utf-8?B?w7wg?= =?utf-8?Q?=C3=A4?=  folded\n",
            id="prefix-encoded",
        ),
        pytest.param(
            [SetHeader("From", "Jörg <j@example.org>")],
            b"From: a@example.org\n",
            b"From: =?utf-8?B?SsO2cmc=?= <j@example.org>\n",
            id="address-stays-address",
        ),
        pytest.param([AddHeader("X-B", "a\r\nBcc: x")], b"\n\nbody", b"\nX-B: a Bcc: x\n\nbody", id="no-injection"),
    ],
)
def test_apply(edits: list[Edit], before: bytes, after: bytes) -> None:
    """The bytes an edit names change, all others stay."""
    assert apply(PLAIN, edits) == PLAIN.replace(before, after, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"A: b\r\n\r\nbody\r\n", b"A: b\r\nX: y\r\n\r\nbody\r\n", id="crlf"),
        pytest.param(b"A: b\n\nbody\r\n", b"A: b\nX: y\n\nbody\r\n", id="lf"),
        pytest.param(b"A: b\n", b"A: b\nX: y\n", id="no-header-end"),
        pytest.param(b"A: b", b"A: b\nX: y\n", id="no-line-end"),
        pytest.param(b"", b"X: y\n", id="empty"),
        pytest.param(b"\nbody", b"X: y\n\nbody", id="no-field"),
        pytest.param(b"no field\n", b"X: y\nno field\n", id="line-that-is-no-field"),
        pytest.param(b" folded\n", b"X: y\n\n folded\n", id="folded-line-first"),
        pytest.param(b"From a@b now\nA: b\n\n", b"From a@b now\nA: b\nX: y\n\n", id="mbox-line"),
        pytest.param(b"A: b\nno field\n", b"A: b\nX: y\nno field\n", id="line-that-is-no-field-later"),
    ],
)
def test_a_new_field_has_the_line_end_of_the_message(before: bytes, after: bytes) -> None:
    """A field is appended at the end of the header, whatever comes then."""
    assert apply(before, [AddHeader("X", "y")]) == after


@pytest.mark.parametrize(
    ("subject", "prefix", "after"),
    [
        ("hello", "[x]", "[x] hello"),
        ("[x] hello", "[x]", "[x] hello"),
        ("Re: [x] hello", "[x]", "Re: [x] hello"),
        ("AW: Re[2]: [x] hello", "[x]", "AW: Re[2]: [x] hello"),
        ("re hello", "[x]", "[x] re hello"),
        ("hello [x]", "[x]", "[x] hello [x]"),
        ("", "[x]", "[x]"),
        ("=?utf-8?q?=C3=A4?=", "ö", "ö ä"),
        ("=?utf-8?q?[x]_=C3=A4?=", "[x]", "[x] ä"),
    ],
)
def test_prefix_subject(subject: str, prefix: str, after: str) -> None:
    """The decoded subject gets its prefix once, also where it is an answer."""
    edited = apply(f"Subject: {subject}\n\n".encode(), [PrefixSubject(prefix), PrefixSubject(prefix)])
    assert Mail(edited).subject == after


def test_every_subject_gets_the_prefix() -> None:
    """A second Subject is no way around it, and without one there is one."""
    assert Mail(apply(b"Subject: a\nSubject: b\n\n", [PrefixSubject("x")])).values("subject") == ("x a", "x b")
    assert Mail(apply(b"A: b\n\n", [PrefixSubject("x")])).values("subject") == ("x",)


def test_setting_a_field_leaves_one_of_it() -> None:
    """The first takes the value in its place, the others go."""
    assert apply(PLAIN, [SetHeader("x-A", "9")]) == PLAIN.replace(b"X-A: 1", b"X-A: 9").replace(b"x-a: 2\n", b"")


def test_what_is_set_already_stays_as_it_came() -> None:
    """Setting a field to what it says touches no byte."""
    assert apply(PLAIN, [SetHeader("Subject", "ä  folded")]) == PLAIN


def test_long_values_are_folded() -> None:
    """What we write keeps to 78 characters a line where its words allow."""
    edited = apply(b"A: b\r\n\r\n", [AddHeader("X-Long", "word " * 60 + "ü")])
    assert all(len(line) <= 78 for line in edited.split(b"\r\n"))
    assert b"\n" not in edited.replace(b"\r\n", b"")
    assert Mail(edited).values("x-long") == ("word " * 60 + "ü",)


def test_changes_come_in_an_order_to_carry_them_out() -> None:
    """Deleting from the last field up keeps every ordinal true; new fields come last."""
    edits: list[Edit] = [SetHeader("X-A", "9"), AddHeader("X-B", "ü"), RemoveHeader("From")]
    assert header_changes(Mail(PLAIN), edits) == (
        HeaderChange("x-a", 2, None),
        HeaderChange("X-A", 1, "9"),
        HeaderChange("From", 1, None),
        HeaderChange("X-B", 0, "=?utf-8?B?w7w=?="),
    )


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a\n", "x" * 77])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    """A field's name is never built from anything else."""
    with pytest.raises(ValueError, match="cannot be a header field's name"):
        apply(PLAIN, [AddHeader(name, "x")])


def test_the_bound_on_the_header_holds_for_edits() -> None:
    """Where the header could not be read, nothing is edited."""
    with pytest.raises(LimitHit):
        apply(PLAIN, [AddHeader("X", "y")], Limits(header_fields=1))


@pytest.mark.parametrize("name", NAMES)
def test_no_edit_gives_the_message_itself(name: str) -> None:
    """Without an edit, or with one that finds nothing, every byte is as it came."""
    assert apply(raw(name), []) == raw(name)
    assert b"".join(pieces(raw(name), [RemoveHeader("X-None")])) == raw(name)


_NAMES = st.sampled_from(["A", "a", "B", "Subject", "From", "X-Long"])
_VALUES = st.text(max_size=20) | st.sampled_from(["word " * 30, "=?utf-8?q?a?=", "Al <a@b>", ""])
_EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(AddHeader, _NAMES, _VALUES),
    st.builds(SetHeader, _NAMES, _VALUES),
    st.builds(PrependHeader, _NAMES, _VALUES),
    st.builds(RemoveHeader, _NAMES),
    st.builds(RemoveHeader, _NAMES, st.lists(st.integers(1, 3), max_size=2).map(tuple)),
    st.builds(PrefixSubject, st.text(min_size=1, max_size=8)),
)


def carried_out(mail: Mail, changes: tuple[HeaderChange, ...]) -> list[tuple[str, str]]:
    """Do to the fields what a milter's host does: change the n-th of a name, delete it, or append."""
    fields = [(field.name, field.raw_text) for field in mail.header]
    for change in changes:
        if change.occurrence == 0:
            assert change.value is not None
            fields.insert(0 if change.first else len(fields), (change.name, change.value))
            continue
        at = [n for n, (name, _) in enumerate(fields) if name.lower() == change.name.lower()][change.occurrence - 1]
        fields[at : at + 1] = [] if change.value is None else [(fields[at][0], change.value)]
    return fields


@given(
    st.lists(st.tuples(_NAMES, st.text(alphabet="ab =?ü\t", max_size=20)), max_size=6),
    st.lists(_EDITS, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
)
def test_the_message_and_the_milters_calls_agree(
    fields: list[tuple[str, str]], edits: list[Edit], line_end: str
) -> None:
    """What apply writes is what the changes make of the header, and the body is nobody's business."""
    data = "".join(f"{name}: {value}{line_end}" for name, value in fields).encode() + line_end.encode() + b"body\0\r"
    edited = Mail(apply(data, edits))
    expected = carried_out(Mail(data), header_changes(Mail(data), edits))
    assert [(field.name, field.raw_text) for field in edited.header] == [
        (name, value.strip(" \t")) for name, value in expected
    ]
    assert edited.body == b"body\0\r"
