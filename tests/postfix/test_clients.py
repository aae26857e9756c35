"""Either pipe client behind a real pipe(8): delivered, refused, deferred, cut short; the compiled one by setting."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delivery.chain import waits_in
from tests.delivery.clients import build
from tests.postfix import processes
from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header
from tests.postfix.test_hostile import ALICES, RECIPIENTS, SENDERS
from tests.soak.strace import Call, Fault, attach

pytestmark = [pytest.mark.root, pytest.mark.postfix]

CLIENT = Path("/opt/libexec/milterapp-client")
ALICE, BOB = "alice@example.org", "bob@example.org"
RULES = """\
rules:
  - name: no word
    if:
      subject: {contains: word}
    then:
      reject: "5.7.1 Please send plain text"
  - name: all
    then:
      file: Filed
"""


def attached(host: Site) -> None:
    """Have Postfix read what setup makes of the configuration, and every pipe(8) with the old lines gone."""
    before = host.pids("pipe")
    host.attach()
    host.postfix("reload")
    host.wait(lambda: not any(map(processes.is_running, before)), "pipe(8) to end", 30)


@pytest.fixture(scope="module")
def compiled_host(host: Site) -> Iterator[Site]:
    """The host with `delivery.client` set to a compiled client, and as it was in the end."""
    build(CLIENT)
    try:
        with host.configured(f"delivery:\n  client: {CLIENT}\n"):
            attached(host)
            yield host
    finally:
        attached(host)
        shutil.rmtree(CLIENT.parent)


@pytest.fixture(scope="module", params=["python", "compiled"])
def either(host: Site, request: pytest.FixtureRequest) -> Site:
    """The host with each of the clients."""
    return host if request.param == "python" else request.getfixturevalue("compiled_host")


@pytest.fixture
def site(either: Site) -> Site:
    """The host, emptied, and rules for alice."""
    either.reset()
    either.rules("alice", RULES)
    return either


def subjects(messages: list[bytes]) -> Counter[str]:
    """Return how often each subject is there."""
    return Counter(header(one, "Subject")[0] for one in messages)


def test_delivered_refused_and_handed_back(site: Site) -> None:
    """A message is filed, another comes back in the rule's words, that of a user without rules is kept, all at once."""
    site.send(message("hello"), [ALICE, BOB])
    refused = site.send(message("a word"), [ALICE], sender=BOB)
    site.settle()
    assert subjects(site.folders("alice")["Filed"]) == {"hello": 1}
    (fate,) = site.fates(refused.queue_id)
    assert (fate.status, fate.dsn, "Please send plain text" in fate.text) == ("bounced", "5.7.1", True)
    assert sorted(subjects(site.inbox("bob")))[1:] == ["hello"]
    assert len(site.inbox("bob")) == 2


def test_without_a_monitor_mail_waits(site: Site) -> None:
    """While no monitor runs mail is deferred, and says why; once there is one it arrives, once."""
    site.stop_service("monitor")
    try:
        fate = site.deferred(site.send(message("waits")).queue_id)
        assert (fate.dsn, "the monitor does not answer: " in fate.text) == ("4.3.0", True)
    finally:
        site.start_service("monitor")
    site.settle()
    assert subjects(site.folders("alice")["Filed"]) == {"waits": 1}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_client_that_dies_while_it_waits_costs_nothing(site: Site, number: signal.Signals) -> None:
    """Killed, stopped or crashed while its message is with the monitor: nothing bounces, and it arrives once."""
    (submit,) = site.pids("submit")
    os.kill(submit, signal.SIGSTOP)
    try:
        answer = site.send(message("under way"), [BOB])
        site.wait(lambda: bool(site.pids("client")), "the delivery to begin", 20)
        for pid in site.pids("client"):
            os.kill(pid, number)
        fate = site.deferred(answer.queue_id)
        assert fate.dsn == "4.3.0"
    finally:
        os.kill(submit, signal.SIGCONT)
    site.settle()
    assert subjects(site.inbox("bob")) == {"under way": 1}


def idle(site: Site) -> bool:
    """Tell whether each pipe(8) waits for a message, and master(8) knows: it has heard all that they said before."""
    waiting = [waits_in(pid) for pid in [*site.pids("pipe"), *site.pids("master")]]
    return all("poll" in one or "lock" in one for one in waiting)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("write", [5, 60, 200])
def test_a_message_that_pipe_did_not_finish_is_delivered_whole_by_the_next(site: Site, write: int) -> None:
    """pipe(8) is killed at one of its writes to the client: no part arrives, and the whole message does, once."""
    site.send(message("before"))
    site.settle()
    body = "".join(f"{number:060d}\n" for number in range(30_000))
    fault = Fault(Call("write", write), "KILL")
    site.wait(lambda: idle(site), "pipe(8) to be idle: else another one begins", 30)
    traced = [attach(pid, *fault.options) for pid in site.pids("pipe")]
    assert traced
    try:
        answer = site.send(message("cut short", body))
        killed = "the pipe(8) to be killed"
        site.wait(lambda: any(one.poll() is not None for one in traced), killed, 30)
        site.settle()
    finally:
        for one in traced:
            one.terminate()
            one.communicate()
    found = site.folders("alice")["Filed"]
    assert subjects(found) == {"before": 1, "cut short": 1}
    (whole,) = (one for one in found if header(one, "Subject") == ["cut short"])
    assert whole.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")
    assert [one.status for one in site.fates(answer.queue_id)][-1:] == ["sent"]


@pytest.fixture
def compiled(compiled_host: Site) -> Site:
    """The host with the compiled client, emptied."""
    compiled_host.reset()
    return compiled_host


def test_the_setting_is_what_postfix_runs(compiled: Site) -> None:
    """master.cf names the compiled client, its arguments alone behind it, and no Python."""
    (line,) = compiled.run("postconf", "-M", "milterapp/unix").splitlines()
    argv = line.partition("argv=")[2].split()
    assert argv[0] == str(CLIENT)
    assert argv[1:] == ["${sender}", "${recipient}", "${original_recipient}", "${queue_id}", "${client_address}"]
    assert "python" not in line
    assert compiled.milterapp("setup", "--apply", check=True).stdout.startswith(b"nothing to do")


def test_any_name_is_only_a_word(compiled: Site) -> None:
    """Odd senders are a word, every way to write alice leads to her, and who is nobody comes back at once."""
    compiled.rules("alice", RULES)
    for sender in SENDERS.values():
        assert compiled.sendmail(message("odd"), [ALICE], sender=sender, user="carol").returncode == 0
    for recipient in ALICES:
        compiled.sendmail(message("way"), [recipient], sender=BOB, user="carol")
    for recipient in RECIPIENTS.values():
        compiled.sendmail(message("nobody"), [recipient], sender=BOB, user="carol")
    compiled.settle(60)
    assert subjects(compiled.folders("alice")["Filed"]) == {"odd": len(SENDERS), "way": len(ALICES)}
    notices = compiled.inbox("bob")
    assert len(notices) == len(RECIPIENTS)
    assert [one for one in notices if b"Status: 5." not in one] == []
    assert sorted(one.name for one in Path("/home/alice/Maildir").iterdir()) == [".Filed", "cur", "new", "tmp"]
