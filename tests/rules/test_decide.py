"""Tests of milterapp.rules.decide: the order of rules, what ends them, and what is not known."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from milterapp.mail.envelope import Stage
from milterapp.mail.limits import Limits
from milterapp.rules.decide import decide
from milterapp.rules.decision import Reply, Verdict
from milterapp.rules.deliveries import File, Keep, SendReply
from milterapp.rules.evaluate import Evaluation, Unknown
from milterapp.rules.expectation import summary
from tests.rules.helpers import ENVELOPE, MESSAGE, decide_text, facts_of, policy_of

HOLDS = "{kind: list}"
FAILS = "{kind: bounce}"


def rules_of(*rules: tuple[str, str]) -> str:
    """Return a rule file of (condition, then) in flow style, named 0, 1, …"""
    return "rules:\n" + "".join(
        f"  - name: '{at}'\n    if: {condition}\n    then: {then}\n" for at, (condition, then) in enumerate(rules)
    )


# name: (rules, what they come to)
PERSONAL: dict[str, tuple[list[tuple[str, str]], str]] = {
    "no rule holds": ([(FAILS, "discard")], "none, keep"),
    "file ends the rules": ([(HOLDS, "{file: A}"), (HOLDS, "{file: B}")], "none, file:A"),
    "a copy goes on": ([(HOLDS, "{file: {folder: A, copy: yes}}"), (HOLDS, "{file: B}")], "none, file:A, file:B"),
    "a copy alone is kept": ([(HOLDS, "{file: {folder: A, copy: yes}}")], "none, file:A, keep"),
    "a copy of a forward": ([(HOLDS, "{forward: {to: a@b.example, copy: yes}}")], "none, forward:a@b.example, keep"),
    "forward": ([(HOLDS, "{forward: a@b.example}"), (HOLDS, "{file: A}")], "none, forward:a@b.example"),
    "two forwards": (
        [(HOLDS, "{forward: [a@b.example, c@d.example]}")],
        "none, forward:a@b.example, forward:c@d.example",
    ),
    "a rule's own actions are all done": (
        [(HOLDS, "[{file: A}, {forward: a@b.example}]")],
        "none, file:A, forward:a@b.example",
    ),
    "stop keeps": ([(HOLDS, "stop"), (HOLDS, "discard")], "none, keep"),
    "keep ends": ([(HOLDS, "keep"), (HOLDS, "discard")], "none, keep"),
    "keep and file": ([(HOLDS, "[keep, {file: A}]")], "none, keep, file:A"),
    "discard": ([(HOLDS, "discard"), (HOLDS, "{file: A}")], "discard"),
    "discard leaves copies": ([(HOLDS, "{file: {folder: A, copy: yes}}"), (HOLDS, "discard")], "discard, file:A"),
    "a reply goes on and is kept": ([(HOLDS, "{reply: I am away}")], "none, reply, keep"),
    "a reply and a folder": ([(HOLDS, "{reply: I am away}"), (HOLDS, "{file: A}")], "none, reply, file:A"),
    "edits add up": (
        [(HOLDS, "{add_header: {X-A: b}}"), (HOLDS, "{remove_header: X-Tag}")],
        "none, keep, add_header X-A: b, remove_header X-Tag",
    ),
    "the same folder once": (
        [(HOLDS, "{file: {folder: A, copy: yes}}"), (HOLDS, "{file: {folder: A, copy: yes}}")],
        "none, file:A, keep",
    ),
    "reject": ([(HOLDS, "reject")], "reject (550 5.7.1 Message refused)"),
    "edits of a refused message stay, it may be kept": (
        [(HOLDS, "{add_header: {X-A: b}}"), (HOLDS, "reject")],
        "reject (550 5.7.1 Message refused), add_header X-A: b",
    ),
    "edits of a discarded message go": ([(HOLDS, "{add_header: {X-A: b}}"), (HOLDS, "discard")], "discard"),
}

SITE: dict[str, tuple[list[tuple[str, str]], str]] = {
    "nothing": ([(FAILS, "reject")], "none"),
    "accept ends": ([(HOLDS, "accept"), (HOLDS, "reject")], "accept"),
    "accept keeps edits": ([(HOLDS, "{add_header: {X-A: b}}"), (HOLDS, "accept")], "accept, add_header X-A: b"),
    "edits of a refused message go": (
        [(HOLDS, "{add_header: {X-A: b}}"), (HOLDS, "reject")],
        "reject (550 5.7.1 Message refused)",
    ),
    "stop": ([(HOLDS, "stop"), (HOLDS, "reject")], "none"),
    "defer": ([(HOLDS, "{defer: Later}")], "defer (451 4.7.1 Later)"),
    "hold": ([(HOLDS, "hold"), (HOLDS, "reject")], "hold"),
}


@pytest.mark.parametrize(("rules", "wanted"), PERSONAL.values(), ids=PERSONAL)
def test_when_personal_rules_end(rules: list[tuple[str, str]], wanted: str) -> None:
    """A verdict, stop, file or forward ends the rules; everything else adds up; what nobody took is kept."""
    assert summary(decide_text(rules_of(*rules))) == wanted


@pytest.mark.parametrize(("rules", "wanted"), SITE.values(), ids=SITE)
def test_when_site_rules_end(rules: list[tuple[str, str]], wanted: str) -> None:
    """A verdict or stop ends the rules; edits add up."""
    assert summary(decide_text(rules_of(*rules), site=True)) == wanted


def test_a_rule_that_observes_changes_nothing() -> None:
    """`observe: true` is decided and named, and that is all."""
    text = rules_of((HOLDS, "reject")).replace("then:", "observe: yes\n    then:")
    decision = decide_text(text)
    assert decision.verdict is Verdict.NONE
    assert decision.matched == ("0",)
    assert decision.rules[0].observe
    assert decision.rules[0].matched is True


def test_a_rule_without_a_condition_always_holds() -> None:
    """Without `if` a rule holds for every message."""
    assert decide_text("rules:\n  - name: it\n    then: discard\n").verdict is Verdict.DISCARD


TINY = Limits(decoded_bytes=10)

# name: (rules, what they come to where the body cannot be read)
UNTOLD: dict[str, tuple[list[tuple[str, str]], str]] = {
    "a condition": ([("{body: {contains: x}}", "discard")], "untold"),
    "under not": ([("{not: {body: {contains: x}}}", "discard")], "untold"),
    "beside what fails": ([("{body: {contains: x}, kind: bounce}", "discard")], "none, keep"),
    "beside what holds, any": ([("{any: [{body: {contains: x}}, {kind: list}]}", "discard")], "discard"),
    "after what ended": ([(HOLDS, "{file: A}"), ("{body: {contains: x}}", "discard")], "none, file:A"),
    "an edit before a folder": ([("{body: {contains: x}}", "{add_header: {X-A: b}}"), (HOLDS, "{file: A}")], "untold"),
}


@pytest.mark.parametrize(("rules", "wanted"), UNTOLD.values(), ids=UNTOLD)
def test_could_not_tell_is_not_no_match(rules: list[tuple[str, str]], wanted: str) -> None:
    """A limit that is hit survives `not`, and leaves the decision open unless it cannot matter."""
    decision = decide(policy_of(rules_of(*rules)), facts_of(MESSAGE, limits=TINY))
    assert ("untold" if decision.could_not_tell else summary(decision)) == wanted
    if wanted == "untold":
        assert decision.verdict is Verdict.NONE
        assert decision.deliveries == ()
        assert decision.could_not_tell.startswith("rule '0': could not tell: ")


def test_a_refusal_stands_over_an_edit_that_could_not_be_told() -> None:
    """In a site's policy an edit whose condition could not be told does not keep a later reject from being given."""
    rules = rules_of(("{body: {contains: x}}", "{add_header: {X-A: b}}"), (HOLDS, "reject"))
    assert decide(policy_of(rules, site=True), facts_of(MESSAGE, limits=TINY)).verdict is Verdict.REJECT


# name: (rules, stage, verdict, settled)
EARLY: dict[str, tuple[list[tuple[str, str]], Stage, Verdict, bool]] = {
    "client at connect": ([("{client: 192.0.2.7}", "reject")], Stage.CONNECT, Verdict.REJECT, True),
    "client that is not": ([("{client: 192.0.2.8}", "reject")], Stage.CONNECT, Verdict.NONE, True),
    "helo is not known at connect": ([("{helo: mx.example.org}", "reject")], Stage.CONNECT, Verdict.NONE, False),
    "helo at helo": ([("{helo: mx.example.org}", "reject")], Stage.HELO, Verdict.REJECT, True),
    "an earlier verdict to come": (
        [("{subject: x}", "accept"), ("{client: 192.0.2.7}", "reject")],
        Stage.CONNECT,
        Verdict.NONE,
        False,
    ),
    "an earlier edit to come": (
        [("{subject: x}", "{add_header: {X-A: b}}"), ("{client: 192.0.2.7}", "reject")],
        Stage.CONNECT,
        Verdict.REJECT,
        True,
    ),
    "an earlier edit before accept": (
        [("{subject: x}", "{add_header: {X-A: b}}"), ("{client: 192.0.2.7}", "accept")],
        Stage.CONNECT,
        Verdict.NONE,
        False,
    ),
    "a later verdict to come": (
        [("{client: 192.0.2.7}", "accept"), ("{subject: x}", "reject")],
        Stage.CONNECT,
        Verdict.ACCEPT,
        True,
    ),
    "an earlier one that fails already": (
        [("{client: 192.0.2.8, subject: x}", "accept"), ("{client: 192.0.2.7}", "reject")],
        Stage.CONNECT,
        Verdict.REJECT,
        True,
    ),
    "not of what is not known": ([("{not: {subject: x}}", "reject")], Stage.MAIL, Verdict.NONE, False),
    "a value not known": ([("{client: 192.0.2.7}", "{reject: 'no ${subject}'}")], Stage.CONNECT, Verdict.NONE, False),
    "a value known": ([("{client: 192.0.2.7}", "{reject: 'no ${client}'}")], Stage.CONNECT, Verdict.REJECT, True),
}


@pytest.mark.parametrize(("rules", "stage", "verdict", "settled"), EARLY.values(), ids=EARLY)
def test_the_first_stage_that_can_tell(
    rules: list[tuple[str, str]], stage: Stage, verdict: Verdict, settled: bool
) -> None:
    """A verdict is given at the first stage at which no undecided earlier rule could change it, and not before."""
    decision = decide(policy_of(rules_of(*rules), site=True), facts_of(stage=stage, recipient=""))
    assert (decision.verdict, decision.settled) == (verdict, settled)
    assert decision.stage == (stage if verdict is not Verdict.NONE else None)


def test_an_observer_keeps_the_message_being_read() -> None:
    """A rule that only observes is read to its end, unless the message is refused before."""
    text = rules_of(("{subject: x}", "discard")).replace("then:", "observe: yes\n    then:")
    assert not decide(policy_of(text, site=True), facts_of(stage=Stage.CONNECT)).settled


VALUES = {
    "folder": ("{file: 'Money/${from.domain}'}", File(("Money", "example.org"))),
    "folder of a list": ("{file: 'Lists/${list_id}'}", File(("Lists", "python-dev.python.org"))),
    "folder of a subject": ("{file: '${subject}'}", File(("Café invoice 2024",))),
    "name": ("{file: '${from.name}'}", File(("Bob B",))),
    "localpart": ("{file: '${from.localpart}'}", File(("bob+news",))),
    "header": ("{file: '${header.X-Tag}'}", File(("one",))),
    "now": ("{file: '${now.year}/${now.month}'}", File(("2024", "02"))),
    "weekday": ("{file: '${now.weekday}'}", File(("thursday",))),
    "sender": ("{file: '${sender}'}", File(("bob@example.org",))),
    "match": ("{file: 'Y${match.year}'}", File(("Y2024",))),
    "literal": ("{file: 'a$${b}'}", File(("a${b}",))),
    "absent": ("{file: '${header.X-None}'}", Keep(implicit=True)),
    "absent detail": ("{file: '${detail}'}", Keep(implicit=True)),
    "reply": ("{reply: 'About ${subject}'}", SendReply("About Café invoice 2024", "", "0")),
}


@pytest.mark.parametrize(("then", "wanted"), VALUES.values(), ids=VALUES)
def test_values_of_the_message(then: str, wanted: object) -> None:
    """A value lands where it is named; a rule whose values are not all there does not hold."""
    decision = decide_text(rules_of((r"{kind: list, subject: {regex: '(?P<year>\d{4})'}}", then)))
    assert decision.deliveries[0] == wanted


@pytest.mark.parametrize("word", ["detail", "extension"])
def test_a_detail_under_either_name(word: str) -> None:
    """What follows the delimiter goes by our word and by Postfix's, in personal rules and in site rules."""
    rules = policy_of(rules_of((HOLDS, f"{{file: 'Plus/${{{word}}}'}}")))
    assert decide(rules, facts_of(recipient="alice+shop@example.com")).deliveries[0] == File(("Plus", "shop"))
    without = decide(rules, facts_of())
    assert (without.deliveries[0], f"no value for ${{{word}}}" in without.rules[0].reason) == (
        Keep(implicit=True),
        True,
    )
    site = policy_of(f"rules:\n- name: a\n  then: {{reject: '5.1.1 No ${{{word}}}'}}\n", site=True)
    answer = decide(site, facts_of(recipient="alice+shop@example.com", stage=Stage.RCPT)).reply
    assert str(answer) == "550 5.1.1 No shop"
    assert decide(site, facts_of(stage=Stage.RCPT)).verdict is Verdict.NONE


def test_an_absent_value_is_explained() -> None:
    """The trace names the value that was not there."""
    decision = decide_text(rules_of((HOLDS, "{file: '${header.X-None}'}")))
    assert decision.rules[0].matched is False
    assert "no value for ${header.X-None}" in decision.rules[0].reason


HOSTILE = {
    "a path": (b"../../.ssh", "_._.__.ssh"),
    "a hidden name": (b".ssh", "_ssh"),
    "a newline": (b"=?utf-8?q?a=0Ab?=", "a b"),
    "an option": (b"-rf", "_rf"),
    "a NUL": (b"a\x00b", "a b"),
}


@pytest.mark.parametrize(("subject", "_folder"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_subject_is_one_harmless_folder(subject: bytes, _folder: str) -> None:
    """Whatever a subject holds, it becomes one level that no store takes for another path."""
    decision = decide_text(
        rules_of(("{subject: {exists: yes}}", "{file: 'S/${subject}'}")), b"Subject: " + subject + b"\n\n"
    )
    (delivery,) = decision.deliveries
    assert isinstance(delivery, File)
    assert len(delivery.folder) == 2
    level = delivery.folder[1]
    assert level.isprintable()
    assert "/" not in level
    assert level[0] not in ".-~"


def test_a_reject_text_is_one_line_of_ascii() -> None:
    """A value in an SMTP reply can neither end its line nor hold what SMTP cannot."""
    raw = b"Subject: =?utf-8?q?=C3=A9=0D=0A250_ok?=\n\n"
    decision = decide_text(rules_of(("{subject: {exists: yes}}", "{reject: 'no: ${subject}'}")), raw)
    assert decision.reply == Reply(550, "5.7.1", "no: ? 250 ok")


CONDITIONS = st.sampled_from(
    [
        "client: 192.0.2.0/24",
        "client: 198.51.100.0/24",
        "helo: mx.example.org",
        "sender: {exists: no}",
        "recipients: {over: 1}",
        "subject: {contains: invoice}",
        "subject: {contains: viagra}",
        r"subject: {regex: '\d+'}",
        "header: {X-Tag: {starts: t, ends: e}}",
        "header: {X-Tag: two}",
        "header: {X-None: {exists: no}}",
        "from: {domain: example.org}",
        "list_id: .python.org",
        "kind: list",
        "body: {contains: offer}",
        "body: {contains: nothing}",
        "attachment: {extension: pdf}",
        "size: {over: 100}",
    ]
).map(lambda one: "{" + one + "}")
TREES = st.recursive(
    CONDITIONS,
    lambda below: st.one_of(
        below.map(lambda one: f"{{not: {one}}}"),
        st.lists(below, min_size=1, max_size=3).map(lambda some: f"{{any: [{', '.join(some)}]}}"),
        st.lists(below, min_size=1, max_size=3).map(lambda some: f"{{all: [{', '.join(some)}]}}"),
    ),
    max_leaves=5,
)
ACTIONS = st.sampled_from(["reject", "accept", "stop", "{add_header: {X-A: b}}", "{add_header: {X-C: d}}", "discard"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TREES, ACTIONS), min_size=1, max_size=8), st.sampled_from(list(Stage)), st.booleans())
def test_the_index_leaves_no_rule_out(rules: list[tuple[str, str]], stage: Stage, limited: bool) -> None:
    """Looking at the rules whose guard holds gives what looking at every rule gives, at every stage."""
    policy = policy_of(rules_of(*rules), site=True)
    facts = facts_of(stage=stage, recipient="", limits=TINY if limited else Limits())
    evaluation = Evaluation(policy.index, facts)
    candidates = list(evaluation.candidates([False]))
    assert candidates == sorted(set(candidates))
    for at in range(len(policy.rules)):
        truth = Evaluation(policy.index, facts).rule(at)
        assert truth is False or at in candidates, (truth, rules[at])
    decision = decide(policy, facts)
    naive = _naively(
        [Evaluation(policy.index, facts).rule(at) for at in range(len(rules))], [then for _, then in rules]
    )
    if decision.settled and not decision.could_not_tell:
        assert summary(decision).split(" (")[0].split(",")[0] == naive


def _naively(truths: list[bool | Unknown], actions: list[str]) -> str:
    """Return the verdict by going through all the rules in order; "?" where it is open."""
    open_edit = False
    for truth, then in zip(truths, actions, strict=True):
        ends = not then.startswith("{")
        if isinstance(truth, Unknown):
            if ends:
                return "?"
            open_edit = True
        elif truth and ends:
            if then in ("reject", "discard"):
                return then
            return "?" if open_edit else {"stop": "none"}.get(then, then)
    return "?" if open_edit else "none"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TREES, ACTIONS), min_size=1, max_size=6))
def test_a_settled_verdict_is_never_taken_back(rules: list[tuple[str, str]]) -> None:
    """What is settled at a stage is what the whole message comes to."""
    policy = policy_of(rules_of(*rules), site=True)
    last = decide(policy, facts_of(recipient="", envelope=ENVELOPE))
    for stage in Stage:
        decision = decide(policy, facts_of(stage=stage, recipient="", envelope=ENVELOPE))
        if decision.settled:
            assert (decision.verdict, decision.edits) == (last.verdict, last.edits)


def test_the_same_facts_give_the_same_decision() -> None:
    """Deciding is pure: twice the same, and the trace with it."""
    policy = policy_of(rules_of((FAILS, "discard"), (HOLDS, "{file: A}"), (HOLDS, "discard")))
    assert decide(policy, facts_of()) == decide(policy, facts_of())


def test_nothing_is_decoded_that_no_rule_needs() -> None:
    """The body is not looked at where the header has settled the rules, in whatever order conditions are written."""
    rules = [
        ("{body: {contains: x}, kind: bounce}", "discard"),
        (HOLDS, "{file: A}"),
        ("{body: {contains: x}}", "discard"),
    ]
    facts = facts_of()
    assert decide(policy_of(rules_of(*rules)), facts).deliveries == (File(("A",)),)
    assert facts.mail is not None
    assert "text" not in facts.mail.__dict__
