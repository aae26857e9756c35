"""Tests of scripts through a real Postfix, as their authors run them: `pytest --mailapp-account=NAME`."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from milterapp import testing_postfix
from tests.postfix.harness import PYTHON, Site

pytestmark = [pytest.mark.root, pytest.mark.postfix]

APPS = Path(__file__).parents[2] / "rules/apps"
ACCOUNTS = ("blog", "lists", "mask")
SINK = {"default_transport": "smtp:[127.0.0.1]:2525", "relay_transport": "smtp:[127.0.0.1]:2525"}
BOUNDS = "submit:\n  script_replies: 1000\n  daily_replies: 100000\ndelivery:\n  script_messages: 100000\n"
SKIPPED = {"rules/apps/blog/test_blog.py::test_a_question_is_answered_once": "clock"}


@pytest.fixture
def mailhost(site: Site) -> Iterator[Site]:
    """The host as milterapp-script(7) wants it for such tests."""
    before = site.run("postconf", *SINK)
    try:
        for name in ACCOUNTS:
            site.run("useradd", "--create-home", "--user-group", name)
        site.postconf(**SINK)
        site.postfix("reload")
        with site.configured(BOUNDS, "submit", "monitor"):
            yield site
    finally:
        site.run("postconf", "-e", *before.splitlines())
        site.postfix("reload")
        for name in ACCOUNTS:
            subprocess.run(["userdel", "--remove", "--force", name], check=False, capture_output=True)


def outcomes(*arguments: str) -> tuple[dict[str, str], str]:
    """Run pytest; return the outcome of each test by name, and all it said."""
    command = [PYTHON, "-I", "-B", "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rs", "--tb=short", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/opt/milterapp", timeout=300)
    said = done.stdout + done.stderr
    return dict(re.findall(r"^(\S+::.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", said, re.MULTILINE)), said


def test_the_applications(mailhost: Site) -> None:
    """All of them pass but those that need what a real host lacks, which are skipped by name, with the reason."""
    in_process, said = outcomes("rules/apps")
    assert set(in_process.values()) == {"PASSED"}, said
    found, said = outcomes(*(f"--mailapp-account={name}" for name in ACCOUNTS), "rules/apps")
    wanted = {name: "SKIPPED" if name in SKIPPED else "PASSED" for name in in_process}
    assert found == wanted, said
    for name, reason in SKIPPED.items():
        assert re.search(rf"SKIPPED .*{reason}", said), name


SCRIPT = """
def main(mail):
    word = mail.subject.fullmatch("[a-z]+")[0]
    if word == "fail":
        1 / 0
    if word == "later":
        mail.defer("later")
    if word == "refuse":
        mail.reject("5.7.1 No")
    if word == "file":
        mail.file("A/B")
"""
FAILING = """
from milterapp.script import route

@route("blog+x@{host}")
def START(mail, host):
    raise ValueError("no")

@route("blog+x@{host}")
def ERROR(mail, host):
    mail.reject("5.3.0 Sorry")
"""
TESTS = """
import pytest
from milterapp.testing import ScriptFailedError

@pytest.fixture
def app(mailapp):
    return mailapp(__file__.replace("test_a", "a"), user="blog@example.org")

def say(app, word, sender="ann@a.example"):
    return app.say("blog+x@example.org", sender=sender, subject=word)

def test_kept(app):
    assert say(app, "keep").kept
    assert len(app.inbox) == 1 and app.folders == {}

def test_filed(app):
    assert not say(app, "file").kept
    assert app.inbox == [] and list(app.folders) == ["A/B"]

def test_refused(app):
    assert say(app, "refuse").refused == "5.7.1 No"
    assert say(app, "refuse", sender="").refused == "5.7.1 No"

def test_deferred(app):
    assert say(app, "later").refused.endswith("later")

def test_raises(app):
    with pytest.raises(ScriptFailedError, match="ZeroDivisionError"):
        say(app, "fail")
    assert say(app, "keep").kept

def test_answered_by_error(mailapp):
    app = mailapp(__file__.replace("test_a", "b"), user="blog@example.org")
    said = app.say("blog+x@example.org", sender="ann@a.example")
    assert said.refused == "5.3.0 Sorry"
    assert "ValueError: no" in said.failed
    assert (app.state("ann@a.example"), app.inbox) == ("ERROR", [])

def test_site(mailapp):
    mailapp(__file__.replace("test_a", "a"), user="blog@example.org", site={"a": ["b"]})

def test_fails(app):
    say(app, "keep")
    assert app.inbox == []

def test_clock(app):
    app.now = app.now

def test_local_sender(app):
    say(app, "keep", sender="bob@example.org")

def test_to_somebody_else(app):
    app.say("bob@example.org", sender="ann@a.example")

def test_recipients(mailapp):
    mailapp(__file__.replace("test_a", "a"), user="blog@example.org", recipients=3)

def test_another_domain(mailapp):
    mailapp(__file__.replace("test_a", "a"), user="blog@example.net")

def test_another_account(mailapp):
    mailapp(__file__.replace("test_a", "a"), user="bob@example.org")
"""
PASSING = ("kept", "filed", "refused", "deferred", "raises", "answered_by_error")
REASONS = {
    "site": "the lists of the site's own rules count",
    "clock": "cannot be set",
    "local_sender": "an address of this host",
    "to_somebody_else": "no address of blog@example.org",
    "recipients": "script_recipients",
    "another_domain": "mydestination",
    "another_account": "no --mailapp-account=bob",
}


def test_what_comes_of_a_message(mailhost: Site, tmp_path: Path) -> None:
    """Each outcome is told from the others, what cannot be had is skipped, and what the account had is there again."""
    (tmp_path / "a.py").write_text(SCRIPT)
    (tmp_path / "b.py").write_text(FAILING)
    (tmp_path / "test_a.py").write_text(TESTS)
    rules = "rules:\n  - name: mine\n    then: keep\n"
    mailhost.rules("blog", rules)
    mine = Path("/home/blog/Maildir/new/1.mine")
    mine.parent.mkdir(parents=True)
    mine.write_text("Subject: mine\n\n")
    for path in (mine, *mine.parents[:2]):
        shutil.chown(path, "blog", "blog")
    found, said = outcomes("--mailapp-account=blog", f"--rootdir={tmp_path}", str(tmp_path / "test_a.py"))
    wanted = dict.fromkeys(PASSING, "PASSED") | {"fails": "FAILED"}
    wanted |= dict.fromkeys(REASONS, "SKIPPED")
    assert {name.partition("::test_")[2]: outcome for name, outcome in found.items()} == wanted, said
    for name, reason in REASONS.items():
        assert re.search(rf"SKIPPED .*{reason}", said), name
    assert Path("/home/blog/.milterapp/rules.yaml").read_text() == rules
    assert [one.name for one in Path("/home/blog/Maildir").rglob("*") if one.is_file()] == ["1.mine"]
    assert sorted(one.name for one in Path("/home/blog").glob("*.before-test")) == []
    assert mailhost.queue() == []


@pytest.mark.parametrize(
    ("queue", "reason", "want"),
    [
        pytest.param("deferred", {"delay_reason": "later"}, "later", id="deferred"),
        pytest.param("incoming", {"delay_reason": "later"}, "later", id="locked when it was to be tried again"),
        pytest.param("incoming", {}, "", id="new"),
        pytest.param("active", {"delay_reason": "later"}, "", id="being tried again"),
    ],
)
def test_why_a_message_waits(monkeypatch: pytest.MonkeyPatch, queue: str, reason: dict[str, str], want: str) -> None:
    """A message was deferred where it waits and Postfix has a reason, in whichever queue."""
    recipients = [{"address": "blog+x@example.org", **reason}]
    listed = [
        {
            "queue_name": "deferred",
            "queue_id": "B",
            "recipients": [{"address": "bob@example.org", "delay_reason": "x"}],
        },
        {"queue_name": queue, "queue_id": "A", "recipients": recipients},
    ]
    monkeypatch.setattr(testing_postfix, "_queue", lambda: listed)
    assert testing_postfix._deferred("A") == want


WRONG = {
    "no such account": ("--mailapp-account=nosuch", "nosuch"),
    "a sink that mail does not go to": ("--mailapp-sink=2626", r"default_transport: expected smtp:\[127.0.0.1\]:2626"),
    "a port that is taken": ("--mailapp-sink=2525", "Address already in use"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work(mailhost: Site, name: str) -> None:
    """It is an error with its reason, never a test that passes or is skipped."""
    option, reason = WRONG[name]
    with socket.create_server(("127.0.0.1", 2525)) if "taken" in name else nullcontext():
        found, said = outcomes("--mailapp-account=blog", option, "rules/apps/blog")
    assert set(found.values()) == {"ERROR"}, said
    assert re.search(reason, said)


def test_what_a_killed_run_left(mailhost: Site) -> None:
    """What the account had then is not taken for a test's, nor lost: every test fails, and says where it is."""
    left = Path("/home/blog/Maildir.before-test")
    left.mkdir()
    shutil.chown(left, "blog", "blog")
    mailhost.rules("blog", "rules:\n  - name: mine\n    then: keep\n")
    before = sorted(Path("/home/blog").rglob("*"))
    found, said = outcomes("--mailapp-account=blog", "rules/apps/blog")
    assert set(found.values()) <= {"FAILED", "ERROR"}, said
    assert f"{left}: left by a test that was killed" in said
    assert sorted(Path("/home/blog").rglob("*")) == before
