"""Scripts of the site's rules on a real Postfix: what the client hears, and what a failure becomes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.postfix.harness import SITE_RULES, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB = "alice@example.org", "bob@example.org"
SCRIPT = SITE_RULES.parent / "filter.py"
SOURCE = """\
def main(mail):
    if "raise" in mail.subject:
        raise ValueError("oops")
    if "forever" in mail.subject:
        while True:
            pass
    if "make money fast" in mail.text:
        mail.reject("5.7.1 No schemes, please")
    elif "void" in mail.text:
        mail.discard()
    mail.add_header("X-Seen", mail.subject)
"""
RULES = """\
rules:
  - name: a friend
    if:
      sender: friend@home.example
    then: accept
  - name: lenient
    if:
      subject: {contains: lenient}
    then:
      script: filter.py
    on_error: accept
  - name: by content
    if:
      not:
        subject: {contains: lenient}
    then:
      script: filter.py
  - name: after
    then:
      add_header: {X-After: yes}
"""


@pytest.fixture
def scripted(site: Site) -> Iterator[Site]:
    """The host with the rules and the script above."""
    SCRIPT.write_text(SOURCE)
    site.site_rules(RULES)
    yield site
    site.site_rules("")
    SCRIPT.unlink()


@pytest.mark.parametrize(
    ("subject", "body", "sender", "code", "text", "fields"),
    [
        ("hello", "hi", "dora@home.example", 250, "2.0.0 Ok", (["hello"], ["yes"])),
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "hi", "dora@home.example", 250, "2.0.0 Ok", (["=?utf-8?"], ["yes"])),
        ("hello", "make money fast", "dora@home.example", 550, "5.7.1 No schemes, please", None),
        ("hello", "the void", "dora@home.example", 250, "2.0.0 Ok", None),
        ("hello", "make money fast", "friend@home.example", 250, "2.0.0 Ok", ([], [])),
    ],
    ids=["an edit", "an edit with an encoded word", "refused by content", "discarded", "accepted before it is asked"],
)  # fmt: skip
def test_what_a_script_says_is_done(
    scripted: Site, subject: str, body: str, sender: str, code: int, text: str,
    fields: tuple[list[str], list[str]] | None,
) -> None:  # fmt: skip
    """The client hears the script's own words, edits arrive, and rules go on where it gave no verdict."""
    answer = scripted.send(message(subject, body), [ALICE], sender=sender)
    assert (answer.code, answer.text[: len(text)]) == (code, text)
    scripted.settle()
    found = scripted.inbox("alice")
    assert len(found) == (fields is not None)
    for one, (seen, after) in zip(found, [fields] if fields else [], strict=True):
        assert [line[: len(begins)] for line, begins in zip(header(one, "X-Seen"), seen, strict=True)] == seen
        assert header(one, "X-After") == after


def test_one_answer_for_all_recipients(scripted: Site) -> None:
    """The script is asked once for a message; its edit reaches every recipient, its refusal is for all."""
    assert scripted.send(message("hello"), [ALICE, BOB]).code == 250
    refused = scripted.send(message("hello", "make money fast"), [ALICE, BOB])
    assert (refused.code, refused.refused) == (550, {})
    scripted.settle()
    assert [header(one, "X-Seen") for user in ("alice", "bob") for one in scripted.inbox(user)] == [["hello"]] * 2


def test_mail_of_this_host_is_asked_about_too(scripted: Site) -> None:
    """What sendmail(1) submits meets the script; its refusal is a notice to the sender."""
    scripted.sendmail(message("hello"), [ALICE], user="bob")
    scripted.sendmail(message("hello", "make money fast"), [ALICE], user="bob")
    scripted.settle()
    assert [header(one, "X-Seen") for one in scripted.inbox("alice")] == [["hello"]]
    (notice,) = scripted.inbox("bob")
    assert b"No schemes, please" in notice


@pytest.mark.parametrize("subject", ["raise", "forever"])
def test_a_script_that_fails_could_not_tell(scripted: Site, subject: str) -> None:
    """By default the client is to come again; where the rule says accept the message passes, without the rules' edits.
    The log has the queue id with the place in the script, and nothing of it reaches the client.
    """
    answer = scripted.send(message(subject), [ALICE])
    assert (answer.code, answer.text) == (451, "4.3.0 The mail filter could not decide, please try again later")
    assert scripted.send(message(f"{subject}, lenient"), [ALICE]).code == 250
    scripted.settle()
    (found,) = scripted.inbox("alice")
    assert (header(found, "X-Seen"), header(found, "X-After")) == ([], [])
    lines = [one for one in scripted.service_log("milter").splitlines() if "fault=" in one][-2:]
    place = "filter.py:3: ValueError: oops" if subject == "raise" else "filter.py: time: the script took more than"
    assert all(place in one and re.search(r" queue_id=[0-9A-Za-z]{6,} ", one) for one in lines)
    assert [re.search(r" verdict=(\w+)", one)[1] for one in lines] == ["defer", "accept"]  # type: ignore[index]
    if subject == "raise":
        assert 'File \\"filter.py\\", line 3, in main' in scripted.service_log("milter")


def test_no_spawner_means_later_never_unfiltered(scripted: Site) -> None:
    """While the spawner is dead the client is to come again, but where the rule says accept; then all is as before."""
    assert scripted.send(message("before"), [ALICE]).code == 250
    (spawner,) = scripted.pids("script")
    os.kill(spawner, signal.SIGKILL)
    scripted.wait(lambda: not scripted.pids("script"), "the spawner to be gone", 10)
    assert scripted.send(message("meanwhile"), [ALICE]).code == 451
    assert scripted.send(message("lenient"), [ALICE]).code == 250
    assert scripted.send(message("a friend's"), [ALICE], sender="friend@home.example").code == 250
    assert scripted.revive() == ["script"]
    assert scripted.send(message("afterwards"), [ALICE]).code == 250
    scripted.settle()
    found = {header(one, "Subject")[0]: header(one, "X-Seen") for one in scripted.inbox("alice")}
    assert found == {"before": ["before"], "lenient": [], "a friend's": [], "afterwards": ["afterwards"]}


BROKEN = {
    "no Python": ("def main(mail)\n", "filter.py:1:15: no Python"),
    "a reply": ("def main(mail):\n    mail.reply(text='x')\n", "filter.py:2:5: `mail.reply` has no place"),
    "it raises while it is loaded": ("x = {}['a']\n" + SOURCE, "filter.py:1:1: KeyError: 'a'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reload_with_a_broken_script_changes_nothing(scripted: Site, name: str) -> None:
    """The rules and the script from before stay, who asked hears why and where; mended, the new script is used."""
    source, problem = BROKEN[name]
    SCRIPT.write_text(source)
    ended = scripted.milterapp("reload")
    assert ended.returncode == 65
    assert problem in (ended.stdout + ended.stderr).decode()
    assert problem in scripted.service_log("milter").replace('\\"', '"')
    assert scripted.send(message("hello", "make money fast"), [ALICE]).text.startswith("5.7.1 No schemes")
    SCRIPT.write_text(SOURCE.replace("No schemes", "Nothing of the kind"))
    assert scripted.milterapp("reload").returncode == 0
    assert scripted.send(message("hello", "make money fast"), [ALICE]).text.startswith("5.7.1 Nothing of the kind")


def test_a_reload_without_a_spawner_changes_nothing(scripted: Site) -> None:
    """Scripts that nobody can look at are not used; those from before are, once somebody runs them."""
    scripted.stop_service("script")
    SCRIPT.write_text(SOURCE.replace("No schemes", "Nothing of the kind"))
    ended = scripted.milterapp("reload")
    assert ended.returncode == 65
    assert b"milterapp script: " in ended.stdout + ended.stderr
    scripted.start_service("script")
    assert scripted.send(message("hello", "make money fast"), [ALICE]).text.startswith("5.7.1 No schemes")


def test_a_milter_that_cannot_examine_its_scripts_does_not_start(scripted: Site) -> None:
    """It ends with 75, so that its unit tries again, and does not begin to serve without the script."""
    scripted.stop_service("milter")
    scripted.stop_service("script")
    ended = scripted.milterapp("milter")
    assert (ended.returncode, b"scripts were not examined" in ended.stderr) == (75, True)
    scripted.start_service("script")
    scripted.start_service("milter")
    assert scripted.send(message("hello"), [ALICE]).code == 250
