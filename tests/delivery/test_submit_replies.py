"""What submit believes and remembers when it answers."""

from __future__ import annotations

import pytest

from tests.delivery.test_submit import World, ask, world

__all__ = ["world"]


@pytest.mark.parametrize(
    ("original", "kind"),
    [
        pytest.param("ceo@bank.example", "DONE", id="as Postfix says"),
        pytest.param("rfc822;ceo@bank.example", "REFUSED", id="as an ORCPT says"),
    ],
)
def test_an_orcpt_makes_no_address_ones_own(world: World, original: str, kind: str) -> None:
    """Whoever sends a message writes its ORCPT: nobody answers as an address that only stands there."""
    message = b"From: a@b.example\nTo: ceo@bank.example\n\nhi\n"
    line = world.bound(message, original=original, sender="victim@y.org")
    assert ask(line, "REPLY", rule="r", text="hi", step="0")[0] == kind
    assert [b"From: ceo@bank.example" in one.data for one in world.send.taken] == [True] * (kind == "DONE")


def test_an_orcpt_tells_two_copies_apart(world: World) -> None:
    """The copies of two aliases are two, as ever, and each is kept once."""
    for original in ("rfc822;one@x.org", "rfc822;two@x.org", "rfc822;one@x.org", "one@x.org"):
        assert ask(world.bound(original=original), "KEEP")[0] == "DONE"
    assert len(world.hand_back.taken) == 2


def test_a_second_reply_that_fails_gives_nothing_back(world: World) -> None:
    """Where a rule's first answer has left and its second is refused, the correspondent counts as answered."""
    line = world.bound()
    assert ask(line, "REPLY", rule="r", text="one", step="0")[0] == "DONE"
    world.send.refuse = "550 5.7.1 no"
    assert ask(line, "REPLY", rule="r", text="two", step="1")[0] == "REFUSED"
    world.send.refuse = ""
    assert ask(world.bound(queue_id="4NEW"), "REPLY", rule="r", text="one", step="0")[0] == "REFUSED"
    assert len(world.send.taken) == 1


@pytest.mark.parametrize(
    ("senders", "left"),
    [
        pytest.param(("prvs=0123456789=ann@y.org", "prvs=9876543210=ann@y.org"), 1, id="BATV"),
        pytest.param(("SRS0=ab=cd=y.org=ann@f.org", "SRS0=ef=gh=y.org=ann@f.org", "ann@y.org"), 1, id="SRS"),
        pytest.param(("prvs=0123456789=ann@y.org", "prvs=0123456789=eve@y.org"), 2, id="two people"),
    ],
)
def test_a_masked_sender_is_known_again(world: World, senders: tuple[str, ...], left: int) -> None:
    """A sender whose mask is another each day is one correspondent."""
    for number, sender in enumerate(senders):
        ask(world.bound(sender=sender, queue_id=f"4{number}"), "REPLY", rule="r", text="one", step="0")
    assert len(world.send.taken) == left


@pytest.mark.parametrize(
    ("recipient", "parameter"),
    [pytest.param("jörg@x.org", True, id="UTF-8"), pytest.param("bob@x.org", False, id="ASCII")],
)
def test_a_writer_beyond_ascii_is_announced(world: World, recipient: str, parameter: bool) -> None:
    """An answer whose From is in UTF-8 says so to Postfix (RFC 6531 section 3.4), others do not."""
    message = f"From: ann@example.org\nTo: {recipient}\n\nhi\n".encode()
    line = world.bound(message, recipient=recipient, original=recipient)
    assert ask(line, "REPLY", rule="r", text="hi", step="0")[0] == "DONE"
    assert ("SMTPUTF8" in world.send.taken[0].mail) is parameter
