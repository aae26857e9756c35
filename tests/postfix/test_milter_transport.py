"""A transport that a rule names, on a real Postfix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postfix.harness import Site, message

pytestmark = [pytest.mark.root, pytest.mark.postfix]

CONFIGURATION = Path("/etc/milterapp/milterapp.yaml")
ALICE = "alice@example.org"
RULES = """\
rules:
  - name: elsewhere
    if: {subject: {contains: elsewhere}}
    then:
      transport: 'virtual:'
"""


@pytest.fixture
def routed(site: Site) -> Iterator[Site]:
    """The host, where rules may name the transport `virtual:`, which delivers to the rest of the world."""
    CONFIGURATION.write_text("milter:\n  transports: ['virtual:']\n")
    try:
        site.milterapp("setup", "--apply", check=True)
        site.postfix("reload")  # and waits for cleanup(8) without the table of transports to be gone
        site.site_rules(RULES)
        yield site
    finally:
        site.site_rules("")
        CONFIGURATION.unlink()
        site.milterapp("setup", "--apply", check=True)
        site.postfix("reload")


def test_transport(routed: Site) -> None:
    """The message goes that way, and nothing in it tells; another message goes its own."""
    for subject in ("elsewhere", "plain"):
        assert routed.send(message(subject), [ALICE]).code == 250
    routed.settle()
    (found,) = routed.elsewhere()
    assert b"Subject: elsewhere" in found
    assert b"x-milterapp" not in found.lower()
    (kept,) = routed.inbox("alice")
    assert b"Subject: plain" in kept


@pytest.mark.parametrize("over", ["smtp", "sendmail"])
def test_sender_cannot_choose(routed: Site, over: str) -> None:
    """A field that a message brings along sends it nowhere."""
    data = b"X-Milterapp-Transport: virtual:\r\n" + message("plain")
    if over == "smtp":
        assert routed.send(data, [ALICE]).code == 250
    else:
        assert routed.sendmail(data, [ALICE]).returncode == 0
    routed.settle()
    assert routed.elsewhere() == []
    assert len(routed.inbox("alice")) == 1


def test_transport_that_is_not_listed(routed: Site) -> None:
    """A rule that names another is refused, and the rules from before stay."""
    rules = Path("/etc/milterapp/rules.yaml")
    rules.write_text(RULES.replace("virtual:", "slow:"))
    try:
        done = routed.milterapp("reload")
        checked = routed.milterapp("check", "--site")
    finally:
        rules.write_text(RULES)
    assert (done.returncode, checked.returncode) == (65, 65)
    assert b"'slow:' of 'elsewhere' is not in milter.transports: virtual:" in done.stderr
    assert b"is not in milter.transports" in checked.stdout
