"""Rules that run a script: when it is asked, and what becomes of what it says."""

from __future__ import annotations

import pytest

from milterapp.mail.edits import AddHeader
from milterapp.mail.envelope import Envelope
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.decision import Decision, Reply, Scripted, ScriptRun, Verdict
from milterapp.rules.deliveries import Delivery, File, Forward, Keep, Send, SendReply
from milterapp.rules.explain import explain
from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from milterapp.rules.stages import SiteSession, drive
from milterapp.rules.truth import Failed, Need, Value
from tests.rules.helpers import facts_of

NEED = Need("script", "", ("blog.py",))
RULES = """\
rules:
- name: blog
  if: {subject: {contains: invoice}}
  then:
  - add_header: {X-Blog: yes}
  - script: blog.py
- name: after
  then: {file: After}
"""
REFUSAL = Reply(550, "5.1.1", "No such page")
RUN = ScriptRun("blog.py", "bob@example.org", "POSTING", (("a", "1"),), ("a.html",), "{}")


def read_script(name: str) -> bytes:
    """Give the one script there is."""
    if name != "blog.py":
        raise FileNotFoundError(2, "No such file or directory")
    return b"def main(mail): ...\n"


def policy_of(text: str) -> Policy:
    """Return rules that have no problem."""
    policy, problems = load(text.encode(), "f", site=False, read_script=read_script)
    assert policy is not None, problems
    return policy


def decided(answer: Value, text: str = RULES) -> Decision:
    """Return what rules come to once the script has said that."""
    found = decide(policy_of(text), facts_of(), {NEED: answer})
    assert isinstance(found, Decision)
    return found


def test_the_script_is_asked_for_last() -> None:
    """Where all else in the rule holds, and only there, deciding stops with the script that it needs."""
    assert decide(policy_of(RULES), facts_of(), {}) == NEED
    other = decide(policy_of(RULES.replace("invoice", "lunch")), facts_of(), {})
    assert isinstance(other, Decision)
    assert other.matched == ("after",)


AFTER = File(("After",))
LETTER = Send("a@b.example", "s", "t")
SAID: dict[str, tuple[Scripted, tuple[Delivery, ...], Verdict]] = {
    "nothing": (Scripted(), (AFTER,), Verdict.NONE),
    "keep": (Scripted(deliveries=(Keep(),)), (Keep(),), Verdict.NONE),
    "file": (Scripted(deliveries=(File(("Pages",)),)), (File(("Pages",)),), Verdict.NONE),
    "a copy": (Scripted(deliveries=(File(("Pages",), copy=True),)), (File(("Pages",), copy=True), AFTER), Verdict.NONE),
    "forward": (Scripted(deliveries=(Forward("a@b.example"),)), (Forward("a@b.example"),), Verdict.NONE),
    "reply": (Scripted(deliveries=(SendReply("hi"),)), (SendReply("hi"), AFTER), Verdict.NONE),
    "send": (Scripted(deliveries=(LETTER,)), (LETTER, AFTER), Verdict.NONE),
    "reject": (Scripted(verdict=Verdict.REJECT, reply=REFUSAL), (), Verdict.REJECT),
    "discard": (Scripted(verdict=Verdict.DISCARD), (), Verdict.DISCARD),
    "defer": (Scripted(verdict=Verdict.DEFER, reply=Reply(450, "4.3.0", "Later")), (), Verdict.DEFER),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_it_says_becomes_of_the_message(name: str) -> None:
    """A delivery or a verdict of a script ends the rules as a rule's would; everything else adds up and goes on."""
    said, deliveries, verdict = SAID[name]
    found = decided(said)
    assert (found.deliveries, found.verdict) == (deliveries, verdict)
    assert found.reply == said.reply
    assert found.matched[0] == "blog"


def test_edits_and_changes_add_up() -> None:
    """What it edits and changes beside mail stand in the decision; of a message that is deferred nothing does."""
    said = Scripted(edits=(AddHeader("X-Page", "a"),), run=RUN)
    found = decided(said)
    assert found.edits == (AddHeader("X-Blog", "yes"), AddHeader("X-Page", "a"))
    assert found.scripts == (RUN,)
    assert found.to_json()["scripts"] == [
        {"script": "blog.py", "state": "POSTING", "stores": {"a": "1"}, "outputs": ["a.html"]}
    ]
    lines = explain(found).splitlines()
    assert "script blog.py: next state POSTING" in lines
    assert "script blog.py: store 'a' 1" in lines
    assert "script blog.py: output a.html" in lines
    later = decided(said, RULES.replace("{file: After}", "defer"))
    assert (later.verdict, later.scripts) == (Verdict.DEFER, ())


def test_a_script_without_a_route_has_no_say() -> None:
    """Where no route of it answers at the address, its rule does not match, the rule's other actions included."""
    found = decided(Scripted(routed=False))
    assert (found.matched, found.edits, found.deliveries) == (("after",), (), (AFTER,))
    assert "no route of it answers" in found.rules[0].reason


def test_a_script_that_failed_could_not_tell() -> None:
    """A failure is no answer: nothing is decided, and it is said why."""
    found = decided(Failed("blog.py: ValueError"))
    assert found.could_not_tell == "rule 'blog': could not tell: blog.py: ValueError"
    assert found.deliveries == ()


def test_a_script_runs_once_for_a_message() -> None:
    """Two rules that name it ask once, and what it changes is changed once."""
    text = "rules:\n- {name: a, then: {script: blog.py}}\n- {name: b, then: {script: blog.py}}\n"
    found = decided(Scripted(deliveries=(SendReply("hi"),), run=RUN), text)
    assert (found.matched, found.scripts) == (("a", "b"), (RUN,))
    assert found.deliveries == (SendReply("hi"), Keep(implicit=True))


def test_a_rule_that_observes_runs_it_and_changes_nothing() -> None:
    """The log says that the rule would have matched; nothing of what the script said is there."""
    found = decided(
        Scripted(verdict=Verdict.DISCARD, run=RUN), RULES.replace("- name: blog", "- observe: yes\n  name: blog")
    )
    assert (found.matched, found.verdict, found.scripts) == (("blog", "after"), Verdict.NONE, ())


BESIDE = ("file: A", "keep", "reply: hi", "{forward: {to: a@b.example, copy: true}}", "reject", "script: blog.py")


@pytest.mark.parametrize("action", BESIDE)
def test_no_other_delivery_beside_a_script(action: str) -> None:
    """A rule with a script has no delivery and no verdict of its own."""
    source = f"rules:\n- name: it\n  then:\n  - script: blog.py\n  - {action}\n".encode()
    policy, problems = load(source, "f", site=False, read_script=read_script)
    assert policy is None
    assert "`script` and `" in problems[0].text


def test_a_script_that_cannot_be_read_is_a_problem() -> None:
    """It is named with its place, as a list is."""
    source = b"rules:\n- name: it\n  then:\n    script: page.py\n"
    policy, problems = load(source, "f", site=False, read_script=read_script)
    assert policy is None
    assert str(problems[0]) == "f:4:13: the script 'page.py' cannot be read: No such file or directory"


def test_tests_beside_the_rules_run_no_script() -> None:
    """In them a script has nothing to say, so the rules stay pure."""
    tests = "tests:\n- {name: t, message: 'Subject: invoice', expect: [{file: After}, {no_rule: blog}]}\n"
    policy_of(RULES + tests)


# In site rules

SITE = """\
rules:
- name: by content
  if: {sender: {domain: outside.example}}
  then:
  - add_header: {X-Rule: yes}
  - script: blog.py
- name: after
  then:
    tag: after
"""


def site_policy(text: str = SITE) -> Policy:
    """Return site rules that have no problem."""
    policy, problems = load(text.encode(), "f", site=True, read_script=read_script)
    assert policy is not None, problems
    return policy


def test_a_site_rule_asks_once_when_the_message_is_there() -> None:
    """Whatever the number of recipients and rules, the script is asked once, at the body, with all recipients."""
    asked: list[tuple[Need, Envelope]] = []
    text = SITE + "- name: again\n  then:\n    script: blog.py\n"

    def answer(need: Need) -> Value:
        asked.append((need, session.envelope))
        return Scripted(edits=(AddHeader("X-Script", "a"),))

    session = SiteSession(site_policy(text), answer=answer)
    mail = Mail(b"Subject: x\r\n\r\nhello\r\n")
    session.connect("192.0.2.1", "", False)
    session.helo("x")
    session.mail("a@outside.example", "", False)
    for one in ("alice@example.org", "bob@example.org"):
        session.rcpt(one)
    assert not session.headers(mail).settled
    assert asked == []
    assert session.body(mail).settled
    assert [(need, envelope.recipients) for need, envelope in asked] == [
        (NEED, ("alice@example.org", "bob@example.org"))
    ]
    found = session.decision()
    assert found.matched == ("by content", "after", "again")
    assert (found.edits, found.tags) == (
        (AddHeader("X-Rule", "yes"), AddHeader("X-Script", "a"), AddHeader("X-Script", "a")), ("after",)
    )  # fmt: skip


SITE_SAID: dict[str, tuple[Value, Verdict, tuple[str, ...]]] = {
    "nothing": (Scripted(), Verdict.NONE, ("by content", "after")),
    "reject": (Scripted(verdict=Verdict.REJECT, reply=REFUSAL), Verdict.REJECT, ("by content",)),
    "defer": (Scripted(verdict=Verdict.DEFER, reply=Reply(450, "4.7.1", "later")), Verdict.DEFER, ("by content",)),
    "discard": (Scripted(verdict=Verdict.DISCARD), Verdict.DISCARD, ("by content",)),
    "it failed": (Failed("blog.py:2: ValueError: x"), Verdict.NONE, ()),
}


@pytest.mark.parametrize("name", SITE_SAID)
def test_what_a_sites_script_says(name: str) -> None:
    """A verdict ends the rules in its own words; without one they go on; a failure leaves them undecided."""
    answer, verdict, matched = SITE_SAID[name]
    envelope = Envelope(client="192.0.2.1", helo="x", sender="a@outside.example", recipients=("bob@example.org",))
    found = drive(site_policy(), Mail(b"Subject: x\r\n\r\n"), envelope, answer=lambda *_: answer)
    assert (found.verdict, found.matched) == (verdict, matched)
    assert found.reply == getattr(answer, "reply", None)
    assert ("ValueError" in found.could_not_tell) is isinstance(answer, Failed)


def test_nobody_is_asked_where_the_rest_does_not_hold() -> None:
    """A message that the rule's other conditions leave alone never reaches the script."""

    def answer(*_: object) -> Value:
        raise AssertionError("it was asked")

    envelope = Envelope(client="192.0.2.1", helo="x", sender="a@home.example", recipients=("bob@example.org",))
    assert drive(site_policy(), Mail(b"\r\n"), envelope, answer=answer).matched == ("after",)


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("recipient: bob@example.org", "`script` in a rule on one `recipient`"),
        ("duplicate: yes", "`script` in a site rule on `duplicate`"),
    ],
)
def test_where_a_sites_script_cannot_stand(condition: str, why: str) -> None:
    """Its verdict is for all recipients, and may be one that a second copy must not have."""
    source = f"rules:\n- name: it\n  if:\n    {condition}\n  then:\n    script: blog.py\n".encode()
    policy, problems = load(source, "f", site=True, read_script=read_script)
    assert policy is None
    assert why in problems[0].text
