"""Whom mail may be sent to where the message names the address: nobody but whom the rule's own list names."""

from __future__ import annotations

import pytest

from milterapp.rules.deliveries import Forward, Keep
from tests.rules.helpers import decide_text, rule_of

FRIENDS = """lists:
  friends: [bob@example.org, .example.net, mum@strasse.de, weiss@example.org, Boss@Example.Org, kim@müller.example]
"""
FORWARDS = {
    "in the list": (b"From: bob@example.org\n\n", (Forward("bob@example.org"),)),
    "by its domain only": (b"From: eve@example.net\n\n", (Keep(implicit=True),)),
    "not in the list": (b"From: eve@example.com\n\n", (Keep(implicit=True),)),
    "in the list, in another case": (b"From: BOB@EXAMPLE.ORG\n\n", (Forward("bob@example.org"),)),
    "in the list, which has another case": (b"From: boss@example.org\n\n", (Forward("Boss@Example.Org"),)),
    "its domain in ASCII": (b"From: kim@xn--mller-kva.example\n\n", (Forward("kim@müller.example"),)),
    "a sharp s in its domain": ("From: mum@straße.de\n\n".encode(), (Keep(implicit=True),)),
    "a sharp s in its domain, in ASCII": (b"From: mum@xn--strae-oqa.de\n\n", (Keep(implicit=True),)),
    "ss in its domain": (b"From: mum@strasse.de\n\n", (Forward("mum@strasse.de"),)),
    "a sharp s before the @": ("From: weiß@example.org\n\n".encode(), (Forward("weiss@example.org"),)),
    "a long s": ("From: boſs@example.org\n\n".encode(), (Forward("Boss@Example.Org"),)),
    "with a detail": (b"From: bob+x@example.org\n\n", (Keep(implicit=True),)),
    "another one in the list": (b"From: eve@example.com, bob@example.org\n\n", (Keep(implicit=True),)),
}


@pytest.mark.parametrize(("raw", "wanted"), FORWARDS.values(), ids=FORWARDS)
def test_a_message_never_chooses_whom_it_is_forwarded_to(raw: bytes, wanted: tuple[object, ...]) -> None:
    """A value is forwarded to only where the rule's own list holds that very address, and as the list writes it."""
    text = FRIENDS + rule_of("from: {in: friends}", "forward: '${from.address}'")
    assert decide_text(text, raw).deliveries == wanted
