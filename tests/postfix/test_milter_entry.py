"""What a message may not bring along, on a real Postfix."""

from __future__ import annotations

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE = "alice@example.org"
RULES = """\
rules:
  - name: a friend
    if: {sender: friend@home.example}
    then: accept
  - name: marked
    if: {subject: {contains: mark}}
    then:
      - add_header: {X-Note: new}
      - set_header: {X-Other: changed}
"""
FORGED = b"X-Milterapp-Score: 1\r\nX-Other: stays\r\nX-MILTERAPP-Tags: good,\r\n good\r\nX-milterapp-score: 2\r\n"


@pytest.mark.parametrize(
    ("sender", "subject", "other"),
    [
        pytest.param("dora@home.example", "plain", "stays", id="no rule"),
        pytest.param("friend@home.example", "plain", "stays", id="accepted by its envelope"),
        pytest.param("dora@home.example", "mark", "changed", id="edited"),
    ],
)
@pytest.mark.parametrize("over", ["smtp", "sendmail"])
def test_our_fields_are_taken_away(site: Site, over: str, sender: str, subject: str, other: str) -> None:
    """Whatever way a message takes, it arrives without fields of ours and with all others."""
    site.site_rules(RULES)
    data = FORGED + message(subject)
    if over == "smtp":
        assert site.send(data, [ALICE], sender=sender).code == 250
    else:
        assert site.sendmail(data, [ALICE], sender=sender).returncode == 0
    site.settle()
    (found,) = site.inbox("alice")
    assert b"x-milterapp-" not in found.lower()
    assert b"good" not in found
    assert (header(found, "X-Other"), header(found, "X-Note")) == ([other], ["new"] if subject == "mark" else [])
