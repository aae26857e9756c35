"""What Postfix and the milter say to each other: no more than the rules need, and what a death in between leaves."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.postfix.harness import OUTSIDE, Site, message
from tests.postfix.mailboxes import header
from tests.postfix.tap import Tap
from tests.postfix.test_milter_edge import events, workers

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB = "alice@example.org", "bob@example.org"


@contextmanager
def tapped(site: Site, rules: str, **hooks: Callable[[str], None]) -> Iterator[Tap]:
    """The host with these rules, its SMTP clients' messages going through a tap."""
    site.site_rules("rules:\n" + rules)
    before = site.run("postconf", "-h", "smtpd_milters").strip()
    with Tap(**hooks) as tap:
        site.postconf(smtpd_milters=f"{{ {tap.address}, default_action=tempfail }}")
        site.postfix("reload")
        try:
            yield tap
        finally:
            site.postconf(smtpd_milters=before)
            site.postfix("reload")


def rule(condition: str, action: str = "{reject: '5.7.1 no'}", name: str = "one") -> str:
    """Return one rule."""
    return f"  - name: {name}\n    if: {condition}\n    then: {action}\n"


def ended(site: Site, tap: Tap) -> str:
    """Wait for the end of the first connection; return what Postfix said, without its aborts."""
    site.wait(lambda: bool(tap.said) and tap.said[0].endswith("Q"), "the end of the connection", 60)
    return tap.said[0].replace("A", "")


class TestSaysNoMore:
    """What is not needed is not sent, and an answer that is there ends the listening."""

    BIG = message("hello", "x" * 70 + "\n") + b"y" * 70 + (b"\r\n" + b"z" * 70) * 5_000  # 360 KB: six packets

    @pytest.mark.parametrize(
        ("rules", "subject", "said", "heard"),
        [
            pytest.param(rule("{subject: offer}"), "hello", "NQ", "Oa", id="a header rule: no DATA, no body, ACCEPT"),
            pytest.param(rule("{subject: offer}"), "offer", "NQ", "Oy", id="refused by its header: no body"),
            pytest.param(rule("{subject: hello}", "hold"), "hello", "NEQ", "Ocqa", id="held: no body either"),
            pytest.param(rule("{body: {contains: no such thing}}"), "hello", "NBBBBBBEQ", "O*", id="a body rule: all"),
            pytest.param(
                rule("{subject: hello}", "accept") + rule("{body: x}", name="two"),
                "hello",
                "NQ",
                "Oa",
                id="accepted by its header: no body, though another rule reads it",
            ),
            pytest.param(
                rule("{subject: hello}", "hold") + rule("{body: x}", name="two"),
                "hello",
                "NBEQ",
                "Ocsqa",
                id="held by its header: SKIP",
            ),
        ],
    )
    def test_message(self, site: Site, rules: str, subject: str, said: str, heard: str) -> None:
        """Of a message what no rule reads is not sent. said: from the end of the header on."""
        with tapped(site, rules) as tap:
            site.send(self.BIG.replace(b"Subject: hello", f"Subject: {subject}".encode()), [ALICE])
            whole = ended(site, tap)
            assert whole[whole.index("N") :] == said
            if heard != "O*":
                assert tap.heard[0] == heard
            assert whole.startswith("OCHMR")
            assert "T" not in whole
        site.flush()

    def test_envelope(self, site: Site) -> None:
        """What is discarded by its envelope ends at DATA: neither header nor body come."""
        with tapped(site, rule("{sender: dora@home.example}", "discard")) as tap:
            assert site.send(self.BIG, [ALICE]).code == 250
            assert (ended(site, tap), tap.heard[0]) == ("OCHMRTQ", "Ocd")

    def test_refused_at_mail(self, site: Site) -> None:
        """What is refused by its sender ends at MAIL, in the rule's words."""
        with tapped(site, rule("{sender: dora@home.example}", "{reject: '553 5.1.8 not you'}")) as tap:
            answer = site.send(message(), [ALICE])
            assert (answer.code, answer.text) == (553, "5.1.8 not you")
            assert (ended(site, tap), tap.heard[0]) == ("OCHMQ", "Oy")


STAGES = {"C": "connect", "H": "helo", "M": "mail", "R": "rcpt", "L": "header", "N": "eoh", "B": "body", "E": "eom"}
RULES = """\
  - name: offers
    if:
      subject: {contains: offer}
      body: {contains: money}
    then: {reject: "5.7.3 no offers"}
  - name: marked
    if: {body: {contains: invoice}}
    then:
      - prefix_subject: "[x]"
      - footer: The end
"""


def sockets(pid: int) -> set[str]:
    """Return the sockets that a process has open."""
    found = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(one))
        except OSError:
            continue
    return {one for one in found if one.startswith("socket:")}


class Killer:
    """Kills at the first packet of a command, before it is passed on: the worker that serves, or the supervisor."""

    def __init__(self, site: Site, command: str, whom: str) -> None:
        self._site, self._command, self._whom = site, command, whom
        self.killed = 0
        self.quiet: dict[int, set[str]] = {}  # the sockets of each worker before there was a message

    def __call__(self, command: str) -> None:
        """Hear of a packet."""
        if command != self._command or self.killed:
            return
        if self._whom == "supervisor":
            self.killed = self._site.pids("milter")[0]
        else:
            # A worker may have come late to a connection that is long gone, such as "does it listen"; that one ends.
            self._site.wait(lambda: len(self._serving()) == 1, "no worker but one to have a connection", 30)
            (self.killed,) = self._serving()
        os.kill(self.killed, signal.SIGKILL)

    def _serving(self) -> list[int]:
        return [pid for pid, before in self.quiet.items() if sockets(pid) - before]


@pytest.mark.parametrize("whom", ["worker", "supervisor"])
@pytest.mark.parametrize("command", [*STAGES, "answer"], ids=[*STAGES.values(), "answer"])
def test_killed_at_each_stage(site: Site, command: str, whom: str) -> None:
    """Whoever is killed, and when: the message is refused for now or treated by the rules, and the next one is too."""
    killer = Killer(site, "m" if command == "answer" else command, whom)
    hooks = {"after" if command == "answer" else "before": killer}
    with tapped(site, RULES, **hooks):
        killer.quiet = {pid: sockets(pid) for pid in workers()}
        answers = [site.send(message("an invoice", "your invoice\n"), [ALICE])]
        assert killer.killed
        site.wait(lambda: site.revive() == [], "the services to be back", 60)
        answers += [site.send(message(f"an offer {n}", "money\n"), [ALICE]) for n in range(3)]
        answers += [site.send(message("an invoice, again", "your invoice\n"), [ALICE])]
    assert answers[0].code in (250, 451)
    assert {one.code for one in answers[1:4]} <= {451, 550}
    assert {one.code for one in answers[4:]} <= {250, 451}
    site.settle()
    found = site.inbox("alice")
    assert len(found) == sum(one.code == 250 for one in answers)
    for one in found:
        assert header(one, "Subject")[0].startswith("[x] an invoice")
        assert b"The end" in one
    if whom == "worker" and command != "answer":
        assert answers[0].code == 451


def test_client_gone(site: Site) -> None:
    """Clients that hang up at every stage leave no mail, no fault, and the next client a milter."""
    before = len(site.service_log("milter"))
    with tapped(site, RULES) as tap:
        lines = [
            b"EHLO c.example\r\n",
            b"MAIL FROM:<a@home.example>\r\n",
            b"RCPT TO:<alice@example.org>\r\n",
            b"DATA\r\n",
        ]
        lines += [b"Subject: invoice\r\n", b"\r\nyour invoice\r\n" + b"x\r\n" * 50_000]
        for count in range(len(lines) + 1):
            with socket.create_connection(("127.0.0.1", 25), 60, (OUTSIDE, 0)) as sock, sock.makefile("rb") as file:
                file.readline()
                for line in lines[:count]:
                    sock.sendall(line)
                    if line[:4] in (b"EHLO", b"MAIL", b"RCPT", b"DATA"):
                        while file.readline()[3:4] == b"-":
                            pass
        answer = site.send(message("an invoice", "your invoice\n"), [ALICE])
        assert answer.code == 250
        site.settle()
        assert len(site.inbox("alice")) == 1
        site.wait(lambda: tap.connections == 0, "the connections to end", 60)
    assert " event=fault" not in site.service_log("milter")[before:]


def test_queue_id_of_the_second_recipient(site: Site) -> None:
    """Where the first recipient was refused there was no queue id yet; the message's event has it all the same."""
    with tapped(site, rule("{recipient: bob@example.org}")):
        answer = site.send(message(), [BOB, ALICE])
    assert (answer.code, set(answer.refused)) == (250, {BOB})
    (event,) = events(site, answer.queue_id)
    assert event["refused"] == BOB
    site.settle()
