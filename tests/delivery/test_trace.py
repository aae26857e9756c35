"""A loop is known whatever a rule takes out of the header on the way."""

from __future__ import annotations

import pytest

from milterapp.delivery.trace import FORWARDED, HANDED_BACK, missing
from milterapp.mail.edits import RemoveHeader, apply
from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail
from tests.delivery.test_submit import World, ask, world

__all__ = ["world"]

CAME = (
    b"Received: from a\n\tby b; today\nDelivered-To: bob@x.org\nReceived: from c by a\n"
    b"From: ann@example.org\nTo: bob@x.org\nSubject: hello\n\nhi\n"
)
RECEIVED, DELIVERED = RemoveHeader("Received"), RemoveHeader("Delivered-To")


@pytest.mark.parametrize(
    ("goes", "wanted"),
    [
        pytest.param(CAME, b"", id="nothing was taken"),
        pytest.param(apply(CAME, (RemoveHeader("Subject"),)), b"", id="something else was taken"),
        pytest.param(apply(CAME, (DELIVERED,)), b"Delivered-To: bob@x.org\r\n", id="the mark of a delivery"),
        pytest.param(
            apply(CAME, (RECEIVED,)), b"Received: from a\n\tby b; today\r\nReceived: from c by a\r\n", id="the hops"
        ),
        pytest.param(CAME.replace(b"\n\tby", b"\r\n  by"), b"", id="folded in another way"),
        pytest.param(CAME.replace(b"Received: from c by a\n", b""), b"Received: from c by a\r\n", id="one of two"),
        pytest.param(CAME.replace(b"To: bob@", b"To: eve@", 1), b"Delivered-To: bob@x.org\r\n", id="one was changed"),
        pytest.param(b"Received: more\n" + CAME, b"", id="one was added"),
        pytest.param(
            b"\n" + CAME,
            b"Received: from a\n\tby b; today\r\nDelivered-To: bob@x.org\r\nReceived: from c by a\r\n",
            id="no header at all",
        ),
    ],
)
def test_what_is_put_back(goes: bytes, wanted: bytes) -> None:
    """What was taken of the trace is put back as it came and in its order, and nothing else is."""
    assert missing(Mail(CAME), Mail(goes), FORWARDED) == wanted
    received = b"".join(one + b"\r\n" for one in wanted.split(b"\r\n") if one.startswith(b"Received"))
    assert missing(Mail(CAME), Mail(goes), HANDED_BACK) == received


def test_a_header_without_end_is_not_guessed() -> None:
    """Where a limit cuts a header it is said."""
    with pytest.raises(LimitHit):
        missing(Mail(CAME, Limits(header_fields=3)), Mail(CAME), FORWARDED)


@pytest.mark.parametrize("kind", ["FORWARD", "KEEP"])
def test_edits_cannot_hide_a_loop(world: World, kind: str) -> None:
    """An edited message goes on to Postfix with all hops it came with, a forward with the marks of deliveries too."""
    fields = {"to": "carol@y.org", "step": "0"} if kind == "FORWARD" else {}
    edited = apply(CAME, (RECEIVED, DELIVERED, RemoveHeader("Subject")))
    assert ask(world.bound(CAME, recipient="carol@x.org"), kind, edited, **fields)[0] == "DONE"
    (went,) = (world.send if kind == "FORWARD" else world.hand_back).taken
    mail = Mail(went.data)
    assert mail.raw_values("Received") == Mail(CAME).raw_values("Received")
    marks = ("carol@x.org", "bob@x.org") if kind == "FORWARD" else ()
    assert mail.raw_values("Delivered-To") == marks
    assert mail.raw_values("Subject") == ()


def test_a_forward_in_a_ring_ends(world: World) -> None:
    """Two addresses that forward to each other and remove every mark end at the second sight."""
    message, here, there = CAME.replace(b"Delivered-To: bob@x.org\n", b""), "bob+a@x.org", "bob+b@x.org"
    said = []
    for number in range(4):
        line = world.bound(message, recipient=here, original=here, queue_id=f"4Q{number}")
        said.append(ask(line, "FORWARD", apply(message, (RECEIVED, DELIVERED)), to=there, step="0")[0])
        if said[-1] != "DONE":
            break
        message = world.send.taken[-1].data.replace(b"\r\n", b"\n")
        here, there = there, here
    assert said == ["DONE", "DONE", "REFUSED"]
