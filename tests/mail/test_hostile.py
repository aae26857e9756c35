"""Messages made to cost are read within bounds of work, or are "could not tell"."""

from __future__ import annotations

import time

import pytest

from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from tests.mail.hostile import MESSAGES

_QUESTIONS = ("header", "subject", "message_id", "references", "kinds", "parts", "text", "html", "urls", "malformed")


def _ask(one: Mail) -> list[str]:
    """Ask everything, and return the limits that were hit."""
    hit = []
    for question in _QUESTIONS:
        try:
            getattr(one, question)
        except LimitHit as limit:
            hit.append(str(limit))
    try:
        one.addresses("from", "to")
        for attachment in one.attachments:
            _ = attachment.names, attachment.size, attachment.member_names
        for field in one.header:
            field.text.encode()
    except LimitHit as limit:
        hit.append(str(limit))
    return hit


@pytest.mark.parametrize("name", MESSAGES)
def test_reading_is_bounded(name: str) -> None:
    """Each is answered in CPU time that only work in proportion to its size can keep; a limit names itself."""
    one = Mail(MESSAGES[name]())
    began = time.process_time()
    hit = _ask(one)
    assert time.process_time() - began < 5  # quadratic work takes minutes; the benchmark has the real bound
    assert all("more than" in limit for limit in hit)


@pytest.mark.parametrize(
    "name",
    ["from-of-20000-quotes", "from-of-20001-quotes", "from-of-escaped-quotes", "from-of-half-closed-parentheses"],
)
def test_the_address_behind_oddities_is_found(name: str) -> None:
    """An address does not hide behind quotes and comments, closed or not."""
    assert "a@b" in [str(one) for one in Mail(MESSAGES[name]()).addresses("from")]


@pytest.mark.parametrize("name", ["20000-parts", "2000-levels", "2000-messages-in-messages"])
def test_the_header_of_a_hostile_body_is_readable(name: str) -> None:
    """What the body does is no matter to header rules."""
    one = Mail(MESSAGES[name]())
    assert one.header
    with pytest.raises(LimitHit):
        _ = one.parts
