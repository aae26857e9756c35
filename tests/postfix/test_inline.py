"""In-line rules on a real Postfix: what the SMTP client hears, and what goes on."""

from __future__ import annotations

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]


def test_a_message_no_rule_matches_goes_on_as_it_came(site: Site) -> None:
    """Without a rule for it a message is delivered to its recipient's mailbox."""
    site.site_rules("rules:\n  - name: never\n    if:\n      subject: impossible\n    then: reject\n")
    answer = site.send(message("hello"))
    assert answer.code == 250
    site.settle()
    (found,) = site.inbox("alice")
    assert header(found, "Subject") == ["hello"]
