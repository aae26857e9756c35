"""What Postfix makes of the milter's answers, and the milter of Postfix's oddities."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.postfix.harness import OUTSIDE, SITE_RULES, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"

RULES = """\
rules:
  - name: bad name
    if:
      helo: {contains: bad}
    then:
      reject: "5.7.1 100% bad"
  - name: bob
    if:
      recipient: bob@example.org
      sender: {domain: outside.example}
    then:
      reject: "5.7.2 not bob"
  - name: carol
    if:
      recipient: carol@example.org
      sender: {domain: outside.example}
    then: discard
  - name: gone
    if:
      sender: gone@home.example
    then: discard
  - name: offers
    if:
      subject: {contains: offer}
    then:
      reject: "5.7.3 no offers"
  - name: caf\u00e9
    if:
      subject: {contains: caf\u00e9}
    then:
      add_header: {X-Caf\u00e9: tea}
"""
RULES = RULES.replace("X-Caf\u00e9", "X-Place").replace(": tea", ": caf\u00e9")


@pytest.fixture
def ruled(site: Site) -> Site:
    """The host with the site rules above."""
    site.site_rules(RULES)
    return site


def events(site: Site, queue_id: str) -> list[dict[str, str]]:
    """Return the milter's events of a message, as far as they are written as key=value without blanks."""
    lines = [line for line in site.service_log("milter").splitlines() if f"queue_id={queue_id} " in line]
    return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]


@contextmanager
def raw(client: str = OUTSIDE) -> Iterator[Callable[[bytes], bytes]]:
    """Give an SMTP connection byte for byte: a function that sends, and returns the lines of one reply."""
    with socket.create_connection(("127.0.0.1", 25), 60, (client, 0)) as sock:
        file = sock.makefile("rb")

        def say(data: bytes) -> bytes:
            sock.sendall(data)
            lines = []
            while True:
                lines.append(file.readline())
                if lines[-1][3:4] != b"-":
                    return b"".join(lines)

        try:
            say(b"")
            yield say
        finally:
            file.close()


@pytest.fixture
def eight_bits(ruled: Site) -> Iterator[Site]:
    """The host, taking commands that are no UTF-8, as Postfix does without SMTPUTF8."""
    ruled.postconf(smtputf8_enable="no")
    ruled.postfix("reload")
    yield ruled
    ruled.postconf(smtputf8_enable="yes")
    ruled.postfix("reload")


def test_helo_of_eight_bits(eight_bits: Site) -> None:
    """A HELO of bytes that are no UTF-8 is matched, and the answer is the rule's, its per cent sign once."""
    before = len(eight_bits.service_log("milter"))
    with raw() as say:
        assert say(b"EHLO \xff\xfebad\r\n").startswith(b"250")
        assert say(b"MAIL FROM:<a@home.example>\r\n") == b"550 5.7.1 100% bad\r\n"
    with raw() as say:
        assert say(b"EHLO \xff\xfe\r\n").startswith(b"250")
        assert say(b"MAIL FROM:<\xff\xfe@home.example>\r\n").startswith(b"250")
        assert say(b"RCPT TO:<alice@example.org>\r\n").startswith(b"250")
        assert say(b"DATA\r\n").startswith(b"354")
        assert say(b"Subject: \xff\xfe offer\r\nX\xff: y\r\n\r\nx\r\n.\r\n") == b"550 5.7.3 no offers\r\n"
    assert "untrapped" not in eight_bits.log_tail(100)
    assert " event=fault" not in eight_bits.service_log("milter")[before:]


def test_a_fault_of_ours(site: Site) -> None:
    """What cannot be carried out is put off in our words, with the queue id and the place in the code in the log."""
    site.site_rules("rules:\n  - name: odd\n    if: {recipient: {contains: car ol}}\n    then: discard\n")
    before = len(site.service_log("milter"))
    with raw() as say:
        for line in ("EHLO a.example", "MAIL FROM:<a@home.example>", f"RCPT TO:<{ALICE}>"):
            assert say(line.encode() + b"\r\n").startswith(b"250")
        assert say(b'RCPT TO:<"alice+car ol"@example.org>\r\n').startswith(b"250")
        assert say(b"DATA\r\n").startswith(b"354")
        said = say(b"Subject: x\r\n\r\nx\r\n.\r\n")
        assert said == b"451 4.3.0 The mail filter could not decide, please try again later\r\n"
        assert say(b"RSET\r\n").startswith(b"250")
    (line,) = [one for one in site.service_log("milter")[before:].splitlines() if " event=fault" in one]
    queue_id = line.partition(" queue_id=")[2].partition(" ")[0]
    assert len(queue_id) > 5
    assert "ValueError" in line
    assert "apply.py:" in line
    (event,) = events(site, queue_id)[1:]
    assert event["verdict"] == "defer"
    site.settle()
    assert site.inbox("alice") == []


def test_refused_at_helo(ruled: Site) -> None:
    """A refusal at HELO is what the client hears at MAIL; Postfix says 250 to HELO, as Sendmail does."""
    with raw() as say:
        assert say(b"EHLO bad.example\r\n").startswith(b"250")
        assert say(b"MAIL FROM:<a@home.example>\r\n") == b"550 5.7.1 100% bad\r\n"


def test_discarded_by_its_sender(ruled: Site) -> None:
    """A message discarded by its envelope is taken, never sent to the milter, and arrives nowhere."""
    answer = ruled.send(message("x"), [ALICE], sender="gone@home.example")
    assert answer.code == 250
    ruled.settle()
    assert ruled.inbox("alice") == []
    (event,) = events(ruled, answer.queue_id)
    assert (event["verdict"], event["stage"]) == ("discard", "mail")
    assert "eoh" not in event["ms_by_step"]


def test_discard_at_rcpt_is_for_one_recipient(ruled: Site) -> None:
    """Of three recipients one is refused, one removed, and the third gets the message."""
    answer = ruled.send(message("x"), [ALICE, BOB, CAROL], sender="a@outside.example")
    assert (answer.code, set(answer.refused)) == (250, {BOB})
    ruled.settle()
    assert [len(ruled.inbox(one)) for one in ("alice", "bob", "carol")] == [1, 0, 0]


def test_discard_of_the_only_recipient(ruled: Site) -> None:
    """Where the removed one was the only recipient, the message is discarded."""
    answer = ruled.send(message("x"), [CAROL], sender="a@outside.example")
    assert answer.code == 250
    ruled.settle()
    assert ruled.inbox("carol") == []
    assert ruled.log_tail().count("warning") == 0


def test_many_messages_on_one_connection(ruled: Site) -> None:
    """Verdicts, RSET and repeated MAIL on one connection leave nothing for the next message."""
    with ruled.connection() as smtp:
        for number in range(5):
            smtp.mail("a@outside.example")
            smtp.rcpt(CAROL)
            smtp.rset()
            assert smtp.sendmail("dora@home.example", [ALICE], message(f"number {number}")) == {}
            smtp.mail("dora@home.example")
            smtp.rcpt(ALICE)
            assert smtp.data(message("an offer")) == (550, b"5.7.3 no offers")
    ruled.settle()
    assert len(ruled.inbox("alice")) == 5


def test_pipelining(ruled: Site) -> None:
    """Commands sent in one go get their answers in order."""
    with raw() as say:
        assert say(b"EHLO client.example\r\n").startswith(b"250")
        assert say(
            b"MAIL FROM:<a@outside.example>\r\nRCPT TO:<bob@example.org>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n"
        ).startswith(b"250 2.1.0")
        assert say(b"") == b"550 5.7.2 not bob\r\n"
        assert say(b"").startswith(b"250 2.1.5")
        assert say(b"").startswith(b"354")
        assert say(b"Subject: hello\r\n\r\nx\r\n.\r\n").startswith(b"250 2.0.0")
    ruled.settle()
    assert (len(ruled.inbox("alice")), len(ruled.inbox("bob"))) == (1, 0)


def test_bdat(ruled: Site) -> None:
    """A message in chunks (RFC 3030) is decided like any other."""
    with raw() as say:
        say(b"EHLO client.example\r\n")
        for subject, want in ((b"hello", b"250 2.0.0"), (b"an offer", b"550 5.7.3 no offers")):
            say(b"MAIL FROM:<dora@home.example>\r\n")
            say(b"RCPT TO:<alice@example.org>\r\n")
            first, second = b"Subject: " + subject + b"\r\n", b"\r\nbody\r\n"
            assert say(b"BDAT %d\r\n" % len(first) + first).startswith(b"250")
            assert say(b"BDAT %d LAST\r\n" % len(second) + second).startswith(want)
    ruled.settle()


def test_eight_bits_and_smtputf8(ruled: Site) -> None:
    """Raw UTF-8 in addresses and header is matched; an added header is plain ASCII; a broken charset does no harm."""
    data = message("x").replace(b"Subject: x", "Subject: un caf\u00e9 s'il vous pla\u00eet".encode())
    with raw() as say:
        say(b"EHLO client.example\r\n")
        assert say("MAIL FROM:<jos\u00e9@home.example> SMTPUTF8\r\n".encode()).startswith(b"250")
        assert say(b"RCPT TO:<alice@example.org>\r\n").startswith(b"250")
        say(b"DATA\r\n")
        assert say(data + b"\r\n.\r\n").startswith(b"250")
        say(b"MAIL FROM:<dora@home.example>\r\n")
        say(b"RCPT TO:<alice@example.org>\r\n")
        say(b"DATA\r\n")
        assert say(b"Subject: \xff\xfe offer\r\nX\xff: y\r\n\r\nx\r\n.\r\n") == b"550 5.7.3 no offers\r\n"
    ruled.settle()
    (found,) = ruled.inbox("alice")
    assert [one.lower() for one in header(found, "X-Place")] == ["=?utf-8?b?y2fmw6k=?="]


class Load:
    """Messages without end from several clients; what each was answered."""

    def __init__(self, site: Site, subjects: tuple[str, ...] = ("hello", "an offer"), clients: int = 4) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []
        self._site, self._subjects = site, subjects
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._enough.is_set():
            for subject in self._subjects:
                try:
                    code = self._site.send(message(subject), [ALICE]).code
                except OSError as error:
                    self.faults.append(repr(error))
                    continue
                self.answers[subject, code] += 1

    def __enter__(self) -> Load:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for one in self._threads:
            one.join()


def workers() -> list[int]:
    """Ask the supervisor for its workers, again where it hung up on a word that came late (it waits two seconds)."""
    until = time.monotonic() + 60
    data = b""
    while not data:
        assert time.monotonic() < until, "the supervisor does not answer"
        with socket.socket(socket.AF_UNIX) as sock, suppress(ConnectionError):
            sock.settimeout(30)
            sock.connect("/var/spool/postfix/milterapp/milter.control")
            sock.sendall(b"status\n")
            while piece := sock.recv(65536):
                data += piece
        time.sleep(0 if data else 0.05)
    found: list[int] = json.loads(data)["workers"]
    return found


def test_killed_workers_under_load(ruled: Site) -> None:
    """While workers are killed, no message passes without its rules and none is lost: 250, 550 or 4xx."""
    with Load(ruled) as load:
        ruled.wait(lambda: bool(load.answers["hello", 250]), "a message to pass", 60)  # soon there may be no worker
        for _ in range(10):
            time.sleep(0.2)
            for pid in workers()[:1]:
                with suppress(ProcessLookupError):  # killed the last time, and reaped only after it was named
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
    assert load.faults == []
    assert ("an offer", 250) not in load.answers
    assert {code for _, code in load.answers if code // 100 != 4} <= {250, 550}
    assert load.answers["hello", 250]
    ruled.settle()
    assert len(ruled.inbox("alice")) == load.answers["hello", 250]


def test_killed_supervisor_under_load(ruled: Site) -> None:
    """The same while the supervisor is killed and started again."""
    with Load(ruled) as load:
        for _ in range(3):
            time.sleep(0.5)
            workers()  # they are ready: one that is just beginning still holds the lock which the next milter takes
            os.kill(ruled.pids("milter")[0], signal.SIGKILL)
            time.sleep(0.2)
            ruled.wait(lambda: bool(ruled.revive()), "the milter to be back", 20)
        time.sleep(0.3)
    assert ("an offer", 250) not in load.answers
    assert {code for _, code in load.answers if code // 100 != 4} <= {250, 550}
    ruled.settle()
    assert len(ruled.inbox("alice")) == load.answers["hello", 250]


def test_reload_under_load(ruled: Site) -> None:
    """Reloading refuses nobody: every message gets the old rules' answer or the new rules'."""
    with Load(ruled) as load:
        for _ in range(5):
            time.sleep(0.3)
            ruled.milterapp("reload", check=True)
    assert load.faults == []
    assert set(load.answers) == {("hello", 250), ("an offer", 550)}


def test_reload_says_what_is_wrong(ruled: Site) -> None:
    """`milterapp reload` ends with 65 and the problems, and the rules from before stay."""
    SITE_RULES.write_text("rules:\n  - name: x\n    thne: accept\n")
    try:
        done = ruled.milterapp("reload")
    finally:
        SITE_RULES.write_text(RULES)
    assert done.returncode == 65
    assert f"{SITE_RULES}:3:5: " in done.stderr.decode()
    assert ruled.send(message("an offer"), [ALICE]).code == 550
    assert ruled.milterapp("reload").returncode == 0
