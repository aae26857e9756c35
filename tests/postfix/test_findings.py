"""What in-line rules found is there for the recipient's rules, and cannot be brought along."""

from __future__ import annotations

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

SITE = """\
rules:
  - name: looks odd
    if:
      subject: {contains: odd}
    then:
      - tag: suspicious
      - score: 2.5
"""
ALICE = """\
rules:
  - name: marked by the site
    if:
      tag: suspicious
      score: {over: 2}
    then:
      file: Marked
"""
FORGED = "id=4XyZ; score=9; tags=suspicious"


@pytest.fixture
def ruled(site: Site) -> Site:
    """The host with those rules."""
    site.site_rules(SITE)
    site.rules("alice", ALICE)
    return site


def test_a_tag_reaches_the_recipients_rules(ruled: Site) -> None:
    """Mail that the site's rule marked is filed by alice's; other mail is not; it says under which queue id it was."""
    answer = ruled.send(message("an odd letter"))
    ruled.send(message("a letter"))
    ruled.settle()
    (filed,) = ruled.folders("alice")["Marked"]
    assert header(filed, "X-Milterapp-Found") == [f"id={answer.queue_id}; score=2.5; tags=suspicious"]
    (kept,) = ruled.inbox("alice")
    assert header(kept, "X-Milterapp-Found") == []


def test_one_that_is_brought_along_is_taken_away(ruled: Site) -> None:
    """Over SMTP and through sendmail(1), a field in our name does not get in, beside ours or alone."""
    ruled.send(message("a letter", X_Milterapp_Found=FORGED))
    ruled.sendmail(message("another", X_Milterapp_Found=FORGED), ["alice@example.org"])
    answer = ruled.send(message("odd", X_Milterapp_Found=FORGED))
    ruled.settle()
    assert [header(one, "X-Milterapp-Found") for one in ruled.inbox("alice")] == [[], []]
    (filed,) = ruled.folders("alice")["Marked"]
    assert header(filed, "X-Milterapp-Found") == [f"id={answer.queue_id}; score=2.5; tags=suspicious"]


def test_it_does_not_outlive_its_queue_file(ruled: Site) -> None:
    """Forwarded to another, a message has a new queue id, and what was found under the old one counts no more."""
    ruled.rules("bob", "rules:\n  - name: on\n    then:\n      forward: alice@example.org\n")
    ruled.send(message("an odd letter"), ["bob@example.org"])
    ruled.settle()
    assert len(ruled.inbox("alice")) + len(ruled.folders("alice").get("Marked", [])) == 1
    assert "Marked" not in ruled.folders("alice")
