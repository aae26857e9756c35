"""Rates on a real Postfix: who sends more than a rule lets through hears so, over connections, workers and restarts."""

from __future__ import annotations

import pytest

from tests.postfix.harness import Site, message

pytestmark = [pytest.mark.root, pytest.mark.postfix]

RULES = """\
rules:
  - name: busy sender
    if:
      sender: {domain: busy.example}
      rate: {by: sender, over: 2, within: 1 hour}
    then:
      defer: "4.7.1 Slow down"
  - name: busy client
    if:
      rate: {by: client, over: 3, within: 1 hour}
      sender: {domain: fast.example}
    then:
      reject: "5.7.1 Enough for today"
  - name: many for one
    if:
      sender: {domain: eager.example}
      rate: {by: recipient, over: 1, within: 1 hour}
    then:
      reject: "5.7.1 One letter is enough"
"""


def codes(site: Site, sender: str, count: int, client: str = "192.0.2.10") -> list[int]:
    """Return what the client heard for each of some messages, each on a connection of its own."""
    return [site.send(message("hello"), sender=sender, client=client).code for _ in range(count)]


def test_by_sender_across_a_restart(site: Site) -> None:
    """The third message of a sender is put off; so is the next after the milter was started anew; others are not."""
    site.site_rules(RULES)
    assert codes(site, "a@busy.example", 3) == [250, 250, 451]
    site.stop_service("milter")
    site.start_service("milter")
    assert codes(site, "a@busy.example", 1) == [451]
    assert codes(site, "b@busy.example", 1) == [250]
    assert codes(site, "a@quiet.example", 4) == [250] * 4


def test_by_client(site: Site) -> None:
    """The fourth message from one address is refused, whoever its sender; another address is counted by itself."""
    site.site_rules(RULES)
    found = [codes(site, f"{at}@fast.example", 1, "192.0.2.77")[0] for at in range(4)]
    assert found == [250, 250, 250, 550]
    assert codes(site, "0@fast.example", 1, "192.0.2.78") == [250]


def test_by_recipient(site: Site) -> None:
    """Counted by recipient, one is refused at RCPT and the others have the message."""
    site.site_rules(RULES)
    first = site.send(message("one"), ["alice@example.org"], sender="a@eager.example")
    second = site.send(message("two"), ["alice@example.org", "bob@example.org"], sender="a@eager.example")
    assert (first.code, second.code) == (250, 250)
    assert {one: said[0] for one, said in second.refused.items()} == {"alice@example.org": 550}
    site.settle()
    assert len(site.inbox("alice")) == 1
    assert len(site.inbox("bob")) == 1
