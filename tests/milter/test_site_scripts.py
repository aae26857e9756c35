"""Scripts of the site's rules at the milter: read with checks, examined before they are used, asked for a message."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from milterapp.mail.edits import AddHeader
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.milter.budget import Budget
from milterapp.milter.conversation import Context, Conversation
from milterapp.milter.plan import plan_for
from milterapp.milter.reply import FAULT
from milterapp.milter.saying import Said, Say
from milterapp.milter.site_rules import read_site_rules
from milterapp.milter.site_scripts import read_script
from milterapp.rules.decision import Reply, Scripted, Verdict
from milterapp.rules.truth import Failed, Value

SOURCE = b"def main(mail): ...\n"
RULES = """\
rules:
- name: by content
  if: {sender: {domain: outside.example}}
  then:
    script: apps/filter.py
"""
ACCEPTING = RULES + "  on_error: accept\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with rules and their script."""
    os.umask(0o022)
    tmp_path.chmod(0o755)
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/filter.py").write_bytes(SOURCE)
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def test_a_script_is_read_with_the_rules(folder: Path) -> None:
    """The policy has the source, and the body is asked for."""
    seen: list[tuple[str, bytes]] = []

    def examine(file: str, source: bytes) -> list[tuple[int, int, str]]:
        seen.append((file, source))
        return []

    policy, problems = read_site_rules(str(folder / "rules.yaml"), examine=examine)
    assert policy is not None, problems
    assert policy.scripts == {"apps/filter.py": SOURCE}
    assert seen == [(str(folder / "apps/filter.py"), SOURCE)]
    assert plan_for(policy).body


def link(at: Path) -> None:
    """Put a link in a file's place."""
    at.rename(at.with_suffix(".old"))
    at.symlink_to(at.with_suffix(".old"))


def folder_there(at: Path) -> None:
    """Put a folder in a file's place."""
    at.unlink()
    at.mkdir()


def pipe_there(at: Path) -> None:
    """Put a named pipe in a file's place."""
    at.unlink()
    os.mkfifo(at)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "written by others": (lambda at: at.chmod(0o646), "can be written by others, expected: chmod go-w"),
    "written by a group": (lambda at: at.chmod(0o664), "can be written by others"),
    "a folder others write": (lambda at: at.parent.chmod(0o777), "the folder apps can be written by others"),
    "gone": (Path.unlink, "No such file or directory"),
    "a link": (link, "symbolic links"),
    "a second name": (lambda at: at.with_suffix(".old").hardlink_to(at), "has a second name"),
    "a folder": (folder_there, "is no plain file"),
    "a pipe": (pipe_there, "is no plain file"),
    "too long": (lambda at: at.write_bytes(b"#" * (1 << 20) + b"\n"), "is larger than 1048576 bytes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_script_that_is_not_read(folder: Path, name: str) -> None:
    """Whatever somebody else could have written, or is no plain file, is a problem at the rule that names it."""
    spoil, wanted = FAULTS[name]
    assert read_script(str(folder), "apps/filter.py") == SOURCE
    spoil(folder / "apps/filter.py")
    policy, problems = read_site_rules(str(folder / "rules.yaml"))
    assert policy is None
    assert f"{folder}/rules.yaml:5:13: the script 'apps/filter.py' cannot be read: " in str(problems[0])
    assert wanted in problems[0].text


@pytest.mark.root
def test_a_script_of_somebody_else(folder: Path) -> None:
    """A script that belongs to neither root nor the milter is not read."""
    os.chown(folder / "apps/filter.py", 65534, 65534)
    _, problems = read_site_rules(str(folder / "rules.yaml"))
    assert "belongs to uid 65534, expected: chown root" in problems[0].text


def test_what_is_wrong_with_a_script_is_wrong_with_the_rules(folder: Path) -> None:
    """A problem of a script stands at its own place, and the rules are not used."""
    policy, problems = read_site_rules(str(folder / "rules.yaml"), examine=lambda *_: [(3, 5, "no Python")])
    assert policy is None
    assert [str(one) for one in problems] == [f"{folder}/apps/filter.py:3:5: no Python"]


def test_a_script_that_nobody_can_look_at(folder: Path) -> None:
    """Where it cannot be examined now nothing is said of the rules."""

    def examine(*_: object) -> list[tuple[int, int, str]]:
        raise OSError("milterapp script: gone")

    with pytest.raises(OSError, match="milterapp script: gone"):
        read_site_rules(str(folder / "rules.yaml"), examine=examine)


class Told:
    """Answers for a script, and notes what it was asked."""

    def __init__(self, value: Value) -> None:
        self.value = value
        self.asked: list[tuple[str, bytes, Envelope, bytes, float]] = []

    def answer(self, script: str, source: bytes, envelope: Envelope, raw: bytes, seconds: float) -> Value:
        """Answer."""
        self.asked.append((script, source, envelope, raw, seconds))
        return self.value

    def examine(self, *_: object) -> list[tuple[int, int, str]]:
        """Find nothing."""
        return []


def said(folder: Path, scripts: Told | None, rules: str = RULES) -> tuple[Said, Conversation]:
    """Return what becomes of one message."""
    (folder / "rules.yaml").write_text(rules)
    policy, problems = read_site_rules(str(folder / "rules.yaml"))
    assert policy is not None, problems
    context = Context(policy, plan_for(policy), Limits(), budget=Budget(scripts=3.0), scripts=scripts)
    talk = Conversation(context, context.plan.answers)
    talk.connect("", "192.0.2.1", local=False, smtp=True)
    talk.helo("x")
    talk.mail("a@outside.example", "", tls=False)
    for one in ("alice@example.org", "bob@example.org"):
        talk.rcpt(one, f"<{one}>")
    talk.queue_id = "4X"
    assert talk.data().say is Say.CONTINUE
    talk.fields([(b"Subject", b" x")])
    talk.fields([(b"X-Milterapp-Found", b" 4X 100")])
    assert talk.end_of_header().say is Say.CONTINUE
    assert talk.body(b"hello\r\n").say is Say.CONTINUE
    return talk.end_of_message(), talk


def test_what_it_is_asked(folder: Path) -> None:
    """It gets the source from the rules, the envelope with the queue id, and the message as the rules see it."""
    scripts = Told(Scripted())
    heard, _ = said(folder, scripts)
    assert heard.say is Say.ACCEPT
    ((script, source, envelope, raw, seconds),) = scripts.asked
    assert (script, source) == ("apps/filter.py", SOURCE)
    assert (envelope.sender, envelope.recipients, envelope.queue_id, envelope.client) == (
        "a@outside.example", ("alice@example.org", "bob@example.org"), "4X", "192.0.2.1"
    )  # fmt: skip
    assert raw == b"Subject: x\n\nhello\r\n"
    assert seconds == 3.0


def test_what_it_says_is_done(folder: Path) -> None:
    """Its edits are made, its refusal is given in its words, and the log names the rule."""
    heard, talk = said(folder, Told(Scripted(edits=(AddHeader("X-Seen", "yes"),))))
    assert heard.say is Say.ACCEPT
    assert [one.arguments[:2] for one in heard.calls if one.method == "addheader"] == [("X-Seen", " yes")]
    reply = Reply(550, "5.7.1", "No")
    heard, talk = said(folder, Told(Scripted(verdict=Verdict.REJECT, reply=reply)))
    assert heard == Said(Say.REJECT, reply)
    assert talk.happened[0].decision.matched == ("by content",)


@pytest.mark.parametrize("nobody", [False, True], ids=["it failed", "nobody runs it"])
def test_what_could_not_be_told(folder: Path, *, nobody: bool) -> None:
    """A failure defers, unless the rule says accept; the log has the queue id and the place."""
    scripts = None if nobody else Told(Failed("apps/filter.py:2: ValueError: x"))
    heard, talk = said(folder, scripts)
    assert heard == Said(Say.DEFER, FAULT)
    (happened,) = talk.happened
    assert happened.queue_id == "4X"
    assert "apps/filter.py" in happened.fault
    heard, talk = said(folder, scripts, ACCEPTING)
    assert heard.say is Say.ACCEPT
    assert "apps/filter.py" in talk.happened[0].fault


def test_all_scripts_of_a_message_share_one_time(folder: Path) -> None:
    """What one took the next does not have; the next message has it all again."""
    scripts = Told(Scripted())
    talk = Conversation(_context(folder, scripts), frozenset())
    talk._mail = talk._collected.header()
    for spent in (0.0, 2.0):
        talk._scripting = spent
        talk._scripted("apps/filter.py")
    talk.mail("a@outside.example", "", tls=False)
    talk._mail = talk._collected.header()
    talk._scripted("apps/filter.py")
    assert [round(seconds, 1) for *_, seconds in scripts.asked] == [3.0, 1.0, 3.0]


def _context(folder: Path, scripts: Told) -> Context:
    policy, _ = read_site_rules(str(folder / "rules.yaml"))
    assert policy is not None
    context = Context(policy, plan_for(policy), Limits(), scripts=scripts)
    return replace(context, budget=Budget(scripts=3.0))
