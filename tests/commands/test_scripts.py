"""`milterapp test` and `milterapp check` run rules' scripts as the agent does, in the sandbox, and change nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milterapp.commands import scripts
from milterapp.delivery import sandbox, sandbox_level
from milterapp.settings import Settings
from milterapp.state.conversations import Change, Conversations

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]

LETTER = b"From: dora@home.example\nTo: page@example.org\nSubject: hello\n\nhello\n"
RULES = """
rules:
  - name: often
    if:
      rate: {by: sender, over: 3, within: 1 hour}
    then: stop
  - name: app
    then:
      script: apps/page.py
"""
HEAD = "from milterapp.script import *\n"
APP = (
    HEAD
    + """
@route("{page}@{host}")
def START(mail, page, host):
    store["count"] = store.get("count", 0) + 1
    output[f"{page}.html"] = open("words.txt").read()
    mail.send(to="carol@example.org", subject=mail.subject, text="x")
    mail.file("Pages")
    return OPEN

@route("{page}@{host}")
def OPEN(mail, page, host):
    mail.file("Again")
"""
)


@pytest.fixture
def rules(tmp_path: Path) -> Iterator[Path]:
    """Write rules with a script and a file beside it; give their folder."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "apps/page.py").write_text(APP)
    (tmp_path / "apps/words.txt").write_text("beside")
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before


def tried(milterapp: Milterapp, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a dry run."""
    return milterapp(
        "test", "--rules", "rules.yaml", "--recipient", "page@example.org", *options, message=LETTER
    )  # fmt: skip


def test_what_a_script_would_do(milterapp: Milterapp, rules: Path) -> None:
    """Its deliveries, what it would store and write, and the next state are shown; rates are assumed as ever."""
    ended = tried(milterapp, "--expect", "send:carol@example.org")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    for line in (
        "delivery: send carol@example.org 'x'",
        "delivery: file Pages",
        "script apps/page.py: next state OPEN",
        "script apps/page.py: store 'count' 1",
        "script apps/page.py: output page.html",
    ):
        assert line in lines
    assert "assumed 0" in ended.stdout
    assert not (rules / "home/.milterapp").exists()


def test_as_json(milterapp: Milterapp, rules: Path) -> None:
    """`--json` has the same in `scripts`."""
    shown = json.loads(tried(milterapp, "--json").stdout)
    assert shown["scripts"] == [
        {"script": "apps/page.py", "state": "OPEN", "stores": {"count": "1"}, "outputs": ["page.html"]}
    ]


def test_a_failure_shows_its_traceback(milterapp: Milterapp, rules: Path) -> None:
    """The author reads on standard error what the notice would say, and the message waits."""
    (rules / "apps/page.py").write_text(HEAD + "def main(mail):\n    mail.forward(mail.sender)\n")
    ended = tried(milterapp)
    assert ended.returncode == 0
    assert "verdict: defer" in ended.stdout.splitlines()
    assert 'milterapp:   File "page.py", line 3, in main' in ended.stderr.splitlines()
    assert "cannot be an address to send to" in ended.stderr


def test_the_sandbox_holds_here_too(milterapp: Milterapp, rules: Path) -> None:
    """A script that is tried can write, and read elsewhere, no more than one that is run."""
    (rules / "secret").write_text("secret")
    for act in ("open('../secret')", "open('new', 'w')"):
        (rules / "apps/page.py").write_text(f"def main(mail):\n    {act}\n")
        ended = tried(milterapp)
        assert "PermissionError" in ended.stderr
    (rules / "secret").unlink()


def test_the_floor(milterapp: Milterapp, rules: Path) -> None:
    """A site whose floor is what every kernel has runs it."""
    (rules / "m.yaml").write_text("delivery:\n  sandbox: basic\n")
    ended = tried(milterapp, "--config", "m.yaml", "--expect", "file:Pages")
    assert ended.returncode == 0, ended.stderr
    (rules / "m.yaml").unlink()


@pytest.fixture
def alice(own: Path) -> Path:
    """Give alice a script of her own and what it remembers."""
    (own / "apps").mkdir()
    (own / "rules.yaml").write_text(RULES)
    (own / "apps/page.py").write_text(APP)
    kept = Conversations(str(own / "scripts.sqlite"))
    kept.commit("m", "", [Change("apps/page.py", "dora@home.example", state="OPEN")], mails=0, now=1)
    kept.close()
    for path in (own, *own.rglob("*")):
        shutil.chown(path, "alice", "alice")
        path.chmod(0o700 if path.is_dir() else 0o600)
    return own


@pytest.mark.root
def test_ones_own_script_remembers(milterapp: Milterapp, alice: Path) -> None:
    """Own rules are tried with what their scripts remember, which stays as it is; as the user, called by root."""
    before = (alice / "scripts.sqlite").read_bytes()
    ended = milterapp(
        "test", "--user", "alice", "--recipient", "page@example.org", "--expect", "file:Again", message=LETTER
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (alice / "scripts.sqlite").read_bytes() == before


CHECKED = {
    "good": (APP, 0, "rules.yaml: 2 rules, 0 tests, 1 script, all well"),
    "no Python": ("def main(mail)\n", 65, "apps/page.py:1:15: no Python: expected ':'"),
    "a problem": ("def main(): ...\n", 65, "apps/page.py:1:1: main takes one argument, the mail"),
    "an import": ("import socket\n", 65, "apps/page.py:1:1: ImportError: a script cannot import 'socket'"),
    "it raises": ("raise ValueError('no')\n", 65, "apps/page.py:1:1: ValueError: no"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_check(milterapp: Milterapp, rules: Path, name: str) -> None:
    """Scripts that rules name are loaded and looked at, every problem with its place."""
    source, code, line = CHECKED[name]
    (rules / "apps/page.py").write_text(source)
    ended = milterapp("check", "rules.yaml")
    assert (ended.returncode, line in ended.stdout) == (code, True), ended.stdout


def test_two_scripts_of_one_name(milterapp: Milterapp, rules: Path) -> None:
    """Rules out of two folders that name each a script of its own cannot be one policy."""
    (rules / "other/apps").mkdir(parents=True)
    (rules / "other/rules.yaml").write_text(RULES.replace("often", "a").replace("app\n", "b\n"))
    (rules / "other/apps/page.py").write_text(APP)
    ended = milterapp("test", "--rules", "rules.yaml", "other/rules.yaml", message=LETTER)
    assert "another rule file has a script of that name" in ended.stderr
    assert ended.returncode == 65
    shutil.rmtree(rules / "other")


# In site rules

SITE_RULES = """
rules:
  - name: by content
    if:
      sender: {domain: home.example}
    then:
      script: filter.py
"""
FILTER = """
def main(mail):
    mail.add_header("X-Seen", mail.subject)
    if "lottery" in mail.text:
        mail.reject("5.7.1 No lotteries")
"""
LOTTERY = LETTER.replace(b"\n\nhello", b"\n\nlottery")


@pytest.fixture
def site_rules(tmp_path: Path) -> Path:
    """Write site rules with a script beside them; give their folder."""
    (tmp_path / "site.yaml").write_text(SITE_RULES)
    (tmp_path / "filter.py").write_text(FILTER)
    return tmp_path


def tried_in_line(milterapp: Milterapp, *options: str, message: bytes = LETTER) -> subprocess.CompletedProcess[str]:
    """Run a dry run of site rules."""
    return milterapp(
        "test", "--site", "--rules", "site.yaml", "--sender", "dora@home.example", *options, message=message
    )  # fmt: skip


def test_what_a_sites_script_would_say(milterapp: Milterapp, site_rules: Path) -> None:
    """Its edits and its verdict are shown as the milter would carry them out."""
    ended = tried_in_line(milterapp)
    assert ended.returncode == 0, ended.stderr
    assert "edit: add_header X-Seen: hello" in ended.stdout.splitlines()
    refused = json.loads(tried_in_line(milterapp, "--json", message=LOTTERY).stdout)
    assert (refused["verdict"], refused["stage"]) == ("reject", "body")
    assert refused["reply"] == {"code": 550, "status": "5.7.1", "text": "No lotteries"}


@pytest.mark.parametrize(("on_error", "verdict"), [("", "defer"), ("    on_error: accept\n", "accept")])
def test_a_sites_script_that_fails(milterapp: Milterapp, site_rules: Path, on_error: str, verdict: str) -> None:
    """Its traceback is on standard error, without a line of ours, and `on_error` says what becomes of the message."""
    (site_rules / "site.yaml").write_text(SITE_RULES + on_error)
    (site_rules / "filter.py").write_text("def main(mail):\n    raise ValueError('oops')\n")
    ended = tried_in_line(milterapp)
    assert f"verdict: {verdict}" in ended.stdout
    assert "could not tell: filter.py:2: ValueError: oops" in ended.stdout
    assert 'File "filter.py", line 2, in main' in ended.stderr
    assert ended.stderr.count("Traceback") == 1


def test_checking_a_sites_script(milterapp: Milterapp, site_rules: Path) -> None:
    """What has no place in-line is named where it stands, and only there: a person's rules may."""
    assert "1 rule, 0 tests, 1 script, all well" in milterapp("check", "site.yaml").stdout
    (site_rules / "filter.py").write_text("def main(mail):\n    mail.reply(text='x')\n")
    ended = milterapp("check", "site.yaml")
    assert ended.returncode == 65
    assert "filter.py:2:5: `mail.reply` has no place in a site script" in ended.stdout
    (site_rules / "own.yaml").write_text("rules:\n  - name: own\n    then:\n      script: filter.py\n")
    assert milterapp("check", "own.yaml").returncode == 0


@pytest.mark.parametrize("site", [False, True], ids=["a person's", "the site's"])
def test_below_the_floor(monkeypatch: pytest.MonkeyPatch, *, site: bool) -> None:
    """Where this machine enforces less than the site wants, a person's mail is kept and `check` warns; the milter takes
    no such rules, and `check` says that they are no good.
    """
    low = sandbox_level.level_of(0, has_seccomp=True)
    monkeypatch.setattr(sandbox, "probe", lambda: low)
    (problem,) = scripts.examined(scripts.Sources({"filter.py": FILTER.encode()}), Settings(), site=site)
    assert "below the site's floor (good)" in problem.text
    assert problem.warning is not site
