"""Mail through a real Postfix while everything is killed, stopped and filled up at random: nothing is lost.

`python -m tests.soak.chaos` does so with thousands of messages.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter

import pytest

from tests.postfix.harness import Site
from tests.soak.chaos import soak
from tests.soak.host_ledger import HostLedger, Sent

BODY = base64.encodebytes(b"some words").decode()
RECEIVED = "Received: from a (b [1.2.3.4])\n\tby mx (Postfix) with ESMTP id {}\n\tfor <bob@x>; Thu, 1 Jan 2026\n"


@pytest.mark.root
@pytest.mark.postfix
def test_a_hundred_messages_under_blows(site: Site) -> None:
    """A hundred messages while processes of ours and of Postfix are killed, and a disk is full: each arrives, once."""
    ledger, blows = soak(site, messages=100, blows=25, seed=2)
    assert blows.total() >= 25
    assert ledger.copies > 100
    assert ledger.defects == []


def ledger_of(*copies: tuple[str, str, str], heard: bool = True, marked: tuple[str, ...] = ()) -> HostLedger:
    """Return the ledger of one message, for bob's inbox and a folder of alice, and the copies found.

    copies: place, queue id, body.
    """
    digest = hashlib.sha256(BODY.strip("\n").encode()).hexdigest()
    ledger = HostLedger({"1.0": Sent("1.0", digest, Counter({"bob ": 1, "alice Filed": 1}), heard=heard)})
    for place in {place for place, _, _ in copies}:
        found = [
            f"{RECEIVED.format(queue_id)}X-Token: 1.0\n\n{body}".encode()
            for at, queue_id, body in copies
            if at == place
        ]
        ledger.read(place, found, marked)
    ledger.close()
    return ledger


ONE, TWO = ("bob ", "4AAAAAA", BODY), ("alice Filed", "4BBBBBB", BODY)


@pytest.mark.parametrize(
    ("ledger", "want"),
    [
        pytest.param(ledger_of(ONE, TWO), "", id="one each"),
        pytest.param(ledger_of(ONE), "lost", id="one is missing"),
        pytest.param(ledger_of(), "lost", id="all are missing"),
        pytest.param(ledger_of(heard=False), "", id="all are missing of what Postfix did not say it had taken"),
        pytest.param(ledger_of(ONE, heard=False), "lost", id="one is missing of what Postfix had taken all the same"),
        pytest.param(ledger_of(ONE, ("alice Filed", "4B", BODY[:-5])), "corrupted", id="a part"),
        pytest.param(ledger_of(ONE, TWO, ("carol ", "4C", BODY)), "in a wrong place", id="somebody else's"),
        pytest.param(ledger_of(ONE, ONE, TWO), "", id="twice the same queue file: Postfix's"),
        pytest.param(ledger_of(ONE, ("bob ", "4DDDDDD", BODY), TWO), "", id="twice, one of them not marked: the gap"),
        pytest.param(
            ledger_of(ONE, ("bob ", "4DDDDDD", BODY), TWO, marked=("4AAAAAA", "4DDDDDD")), "doubled", id="both marked"
        ),
        pytest.param(ledger_of(ONE, TWO, TWO), "doubled", id="filed twice: no gap excuses that"),
    ],
)
def test_the_ledger_finds_what_is_wrong(ledger: HostLedger, want: str) -> None:
    """A ledger that could not fail would prove nothing."""
    assert {one.partition(":")[0] for one in ledger.defects} == ({want} if want else set())


def test_the_ledger_counts_the_gap_and_postfix_apart() -> None:
    """What was sent twice by us, and what was delivered twice by Postfix, are different figures."""
    again = ("bob ", "4DDDDDD", BODY)
    assert (ledger_of(ONE, again, TWO).gap, ledger_of(ONE, again, TWO).postfix) == (1, 0)
    assert (ledger_of(ONE, ONE, TWO).gap, ledger_of(ONE, ONE, TWO).postfix) == (0, 1)
