"""The whole chain with the agents that people get: client, monitor, zygote, agent; only users and submit stand in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delivery.chain import MESSAGE, Chain
from tests.delivery.clients import Command

pytestmark = pytest.mark.root

RULES = b"""\
rules:
  - name: greetings
    if:
      subject: hello
    then:
      file: Greetings
  - name: no
    if:
      subject: advertisement
    then:
      reject: "5.7.1 I do not read advertisements"
"""


@pytest.fixture(scope="module")
def chain(program: Command) -> Iterator[Chain]:
    """Run a monitor with real agents; mail comes by either client."""
    chain = Chain(real=True, idle=60.0)
    chain.program = program
    try:
        yield chain
    finally:
        chain.close()


def write_rules(home: Path, uid: int, rules: bytes) -> None:
    """Give a user rules."""
    (home / ".milterapp").mkdir()
    (home / ".milterapp/rules.yaml").write_bytes(rules)
    for path in (home / ".milterapp", home / ".milterapp/rules.yaml"):
        os.chown(path, uid, uid)


def deliver(chain: Chain, uid: int, message: bytes, queue_id: str) -> tuple[int, bytes]:
    """Deliver a message to a user."""
    return chain.end(chain.client("s@x", f"u{uid}@x", f"u{uid}@x", queue_id, "", message=message))


def test_rules_file_and_refuse(chain: Chain) -> None:
    """One person's rules: a message is filed as that person, another is refused with its text."""
    home = chain.home(20011)
    write_rules(home, 20011, RULES)
    assert deliver(chain, 20011, b"Subject: hello\n\nhi\n", "A1") == (0, b"")
    filed = list(home.glob("Maildir/.Greetings/new/*"))
    assert len(filed) == 1
    assert filed[0].stat().st_uid == 20011
    assert deliver(chain, 20011, b"Subject: advertisement\n\nbuy\n", "A2") == (
        69,
        b"5.7.1 I do not read advertisements\n",
    )
    assert chain.wait("delivery", queue_id="A2")["user"] == "u20011"


def test_a_user_without_rules_gets_mail_as_before(chain: Chain) -> None:
    """Without rules the message goes back to Postfix, unchanged."""
    chain.home(20012)
    assert deliver(chain, 20012, MESSAGE, "B1") == (0, b"")
    assert chain.submit.kept == [("u20012@x", "u20012", MESSAGE)]


def test_broken_rules_defer(chain: Chain) -> None:
    """Rules that cannot be read as rules defer, and say where."""
    write_rules(chain.home(20013), 20013, b"rules: [\n")
    status, output = deliver(chain, 20013, MESSAGE, "C1")
    assert status == 75
    assert b"rules.yaml" in output


def test_another_persons_home_is_out_of_reach(chain: Chain) -> None:
    """A home that belongs to somebody else is a deferral, and nothing is filed there."""
    home = chain.home(20014)
    write_rules(home, 20014, RULES)
    home.chmod(0o700)
    os.chown(home, 20015, 20015)
    status, _ = deliver(chain, 20014, b"Subject: hello\n\nhi\n", "D1")
    assert status == 75
    assert not list(home.glob("Maildir/**/*"))
