"""Tests of milterapp.rules.stages: a session's verdicts at each stage, for one recipient and for all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.envelope import Stage
from milterapp.mail.limits import Limits
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.expectation import summary
from milterapp.rules.policy import Policy
from milterapp.rules.stages import Answer, SiteSession, drive
from tests.rules.helpers import ENVELOPE, FIELDS, MESSAGE, NOW, policy_of

A, B, C = "alice@example.com", "bob@example.com", "carol@example.com"


def site(*rules: tuple[str, str]) -> Policy:
    """Return a site policy of (condition, then)."""
    return policy_of(
        "rules:\n"
        + "".join(f"- name: '{at}'\n  if: {condition}\n  then: {then}\n" for at, (condition, then) in enumerate(rules)),
        site=True,
    )


def begun(policy: Policy, *, local: bool = False) -> SiteSession:
    """Return a session just before the first recipient."""
    session = SiteSession(policy)
    session.connect("" if local else "192.0.2.7", "mx.example.org", local)
    session.helo("mx.example.org")
    session.mail("bob@example.org", "", False, NOW)
    return session


def whole(session: SiteSession, *addresses: str) -> Decision:
    """Name the recipients, send the message, return the decision."""
    for address in addresses:
        session.rcpt(address)
    if session.headers(Mail(FIELDS)).reads_more:
        session.body(Mail(MESSAGE))
    return session.decision()


ONE_REFUSED = [(f"{{recipient: {B}}}", "{reject: 5.1.1 No such person}")]


def test_a_refusal_at_rcpt_is_for_that_one() -> None:
    """A reject at rcpt refuses one recipient; the message goes on to the others."""
    session = begun(site(*ONE_REFUSED))
    assert session.rcpt(A).verdict is Verdict.NONE
    answer = session.rcpt(B)
    assert (answer.verdict, str(answer.reply)) == (Verdict.REJECT, "550 5.1.1 No such person")
    decision = whole(session)
    assert decision.verdict is Verdict.NONE
    assert [(one.address, one.verdict) for one in decision.recipients] == [(A, Verdict.NONE), (B, Verdict.REJECT)]
    assert decision.matched == ("0",)
    assert decision.rules[0].reason.startswith(f"for {B}: ")


def test_all_refused_is_a_refusal() -> None:
    """Where every recipient was refused, so is the message."""
    session = begun(site(*ONE_REFUSED))
    session.rcpt(B)
    decision = session.decision()
    assert summary(decision) == "reject (550 5.1.1 No such person)"
    assert decision.stage is not None
    assert decision.stage.word == "rcpt"


def test_accept_at_rcpt_exempts_that_one() -> None:
    """A later discard takes the others' copies and leaves the exempted one's."""
    session = begun(site((f"{{recipient: {A}}}", "accept"), ("{kind: list}", "discard")))
    assert session.rcpt(A).verdict is Verdict.NONE
    assert session.rcpt(B).verdict is Verdict.NONE
    decision = whole(session)
    assert decision.verdict in (Verdict.NONE, Verdict.ACCEPT)
    assert [(one.address, one.verdict) for one in decision.recipients] == [(A, Verdict.ACCEPT), (B, Verdict.DISCARD)]


def test_a_refusal_after_rcpt_is_for_all() -> None:
    """SMTP has one answer after rcpt: an exempted recipient shares it."""
    decision = whole(begun(site((f"{{recipient: {A}}}", "accept"), ("{kind: list}", "reject"))), A, B)
    assert decision.verdict is Verdict.REJECT
    assert {one.verdict for one in decision.recipients} == {Verdict.REJECT}


def test_all_exempted_need_no_message() -> None:
    """Where every recipient is exempted the rules are not asked again."""
    session = begun(site(("{recipient: {domain: example.com}}", "accept"), ("{kind: list}", "reject")))
    assert session.rcpt(A).settled
    answer = session.headers(Mail(FIELDS))
    assert (answer.verdict, answer.settled, answer.pending) == (Verdict.ACCEPT, True, False)


def test_discard_at_rcpt_removes_that_one() -> None:
    """The client hears nothing, the recipient is taken off at the end of the message."""
    session = begun(site((f"{{recipient: {B}}}", "discard"), ("{kind: list}", "{add_header: {X-A: b}}")))
    session.rcpt(A)
    assert session.rcpt(B) == Answer(settled=True, pending=True)
    answer = session.headers(Mail(FIELDS))
    assert (answer.verdict, answer.settled, answer.pending) == (Verdict.NONE, True, True)
    decision = session.decision()
    assert [(one.address, one.verdict) for one in decision.recipients] == [(A, Verdict.NONE), (B, Verdict.DISCARD)]
    assert len(decision.edits) == 1


def test_all_discarded_is_a_discard() -> None:
    """Where nobody is left the whole message goes."""
    decision = whole(begun(site(("{recipient: {domain: example.com}}", "discard"))), A, B)
    assert decision.verdict is Verdict.DISCARD


def test_a_recipient_waits_for_an_earlier_rule() -> None:
    """A refusal of one recipient that an earlier rule could still change is not given at rcpt."""
    policy = site(("{subject: x}", "accept"), (f"{{recipient: {B}}}", "reject"))
    session = begun(policy)
    assert session.rcpt(B) == Answer()
    assert whole(session, A).verdict is Verdict.REJECT
    assert whole(begun(policy), A).verdict is Verdict.NONE


def test_local_submission_refuses_no_recipient() -> None:
    """A program that hands over mail cannot be told of one recipient: the message is refused, nobody silently lost."""
    session = begun(site(*ONE_REFUSED), local=True)
    session.rcpt(A)
    assert session.rcpt(B) == Answer(settled=True, pending=True)
    answer = session.headers(Mail(FIELDS))
    assert (answer.verdict, str(answer.reply)) == (Verdict.REJECT, "550 5.1.1 No such person")
    assert {one.verdict for one in session.decision().recipients} == {Verdict.REJECT}


def test_the_limit_of_recipients() -> None:
    """`recipients over` refuses those above the number, while the client still names them."""
    session = begun(site(("{recipients: {over: 2}}", "{defer: 4.5.3 Too many recipients}")))
    assert [session.rcpt(one).verdict for one in (A, B, C)] == [Verdict.NONE, Verdict.NONE, Verdict.DEFER]
    decision = whole(session)
    assert decision.verdict is Verdict.NONE
    assert [one.verdict for one in decision.recipients] == [Verdict.NONE, Verdict.NONE, Verdict.DEFER]


# name: (rules, how the session answers at connect, helo, mail, rcpt, headers, body; "-" for "go on")
ANSWERS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "client": ([("{client: 192.0.2.7}", "reject")], "reject reject reject reject reject reject"),
    "no rule": ([("{client: 192.0.2.8}", "reject")], "none none none none none none"),
    "helo": ([("{helo: {glob: 'mx.*'}}", "defer")], "- defer defer defer defer defer"),
    "sender": ([("{sender: bob@example.org}", "accept")], "- - accept accept accept accept"),
    "recipient": ([(f"{{recipient: {A}}}", "reject")], "- - - reject - -"),
    "header": ([("{kind: list}", "hold")], "- - - - hold hold"),
    "body": ([("{body: {contains: offer}}", "discard")], "- - - - - discard"),
    "an edit": ([("{kind: list}", "{add_header: {X-A: b}}")], "- - - - none+ none+"),
    "an edit at connect": ([("{client: 192.0.2.7}", "{add_header: {X-A: b}}")], "none+ none+ none+ none+ none+ none+"),
}


@pytest.mark.parametrize(("rules", "wanted"), ANSWERS.values(), ids=ANSWERS)
def test_each_stage_is_answered_when_it_can_be(rules: list[tuple[str, str]], wanted: str) -> None:
    """A verdict comes at its stage and stays; where nothing later can matter the session says so."""
    session = SiteSession(site(*rules))
    answers = [
        session.connect("192.0.2.7", "mx.example.org", False),
        session.helo("mx.example.org"),
        session.mail("bob@example.org", "", False, NOW),
        session.rcpt(A),
        session.headers(Mail(FIELDS)),
        session.body(Mail(MESSAGE)),
    ]
    told = [f"{one.verdict.value}{'+' if one.pending and one.verdict is Verdict.NONE else ''}" for one in answers]
    shown = [
        word if one.settled or one.verdict is not Verdict.NONE else "-" for word, one in zip(told, answers, strict=True)
    ]
    if rules[0][0].startswith("{recipient"):
        shown[4:] = ["-", "-"]
    assert " ".join(shown) == wanted


def test_the_next_message_starts_anew() -> None:
    """What one message came to says nothing of the next on the same connection; what HELO came to does."""
    session = begun(site(("{sender: bob@example.org}", "reject"), ("{client: 192.0.2.7, kind: list}", "discard")))
    assert session.mail("bob@example.org", "", False).verdict is Verdict.REJECT
    session.reset()
    assert not session.mail("carol@example.org", "", False).settled
    assert whole(session, A).verdict is Verdict.DISCARD
    refused = begun(site(("{helo: mx.example.org}", "reject")))
    refused.reset()
    assert refused.mail("carol@example.org", "", False).verdict is Verdict.REJECT
    assert refused.helo("other.example.org").settled
    assert refused.mail("carol@example.org", "", False).verdict is Verdict.NONE


def test_could_not_tell_is_told() -> None:
    """A limit that is hit reaches the edge as such, with no verdict of the rules."""
    session = begun(site(("{body: {contains: x}}", "accept")))
    session.rcpt(A)
    session.headers(Mail(FIELDS))
    answer = session.body(Mail(MESSAGE, Limits(decoded_bytes=10)))
    assert answer.verdict is Verdict.NONE
    assert answer.settled
    assert answer.could_not_tell
    assert session.decision().could_not_tell == answer.could_not_tell


def test_drive_is_a_session_in_one_call() -> None:
    """The dry run goes through the stages as the milter does."""
    policy = site((f"{{recipient: {B}}}", "reject"), ("{kind: list}", "{add_header: {X-A: b}}"))
    decision = drive(policy, Mail(MESSAGE), replace(ENVELOPE, recipients=(A, B)), now=NOW)
    assert summary(decision) == f"none, reject for {B}, add_header X-A: b"
    assert drive(policy, Mail(MESSAGE), replace(ENVELOPE, recipients=(B,))).verdict is Verdict.REJECT
    assert drive(policy, Mail(MESSAGE), replace(ENVELOPE, recipients=())).matched == ("1",)


def test_a_policy_knows_which_stages_it_reads() -> None:
    """Postfix is asked only for what a rule reads."""
    assert site(("{client: 192.0.2.7}", "reject")).reads_headers is False
    header = site(("{subject: x}", "reject"))
    assert (header.reads_headers, header.reads_body) == (True, False)
    assert site(("{size: {over: 1 MB}}", "reject")).reads_body is True
    assert site(("{client: 192.0.2.7}", "{add_header: {X-A: '${subject}'}}")).reads_headers is True


@pytest.mark.parametrize(
    ("condition", "first"),
    [
        ("{client: 192.0.2.7}", Stage.CONNECT),
        ("{helo: x}", Stage.HELO),
        ("{sender: a@example.com}", Stage.MAIL),
        (f"{{recipient: {A}}}", Stage.RCPT),
        ("{subject: x}", Stage.HEADERS),
        ("{body: x}", Stage.BODY),
        ("{any: [{body: x}, {subject: x}]}", Stage.HEADERS),
        ("{not: {any: [{helo: x}, {body: x}]}}", Stage.HELO),
        ("{score: {over: 3}}", Stage.CONNECT),
    ],
)
def test_first_stage_at_which_a_rule_may_be_known(condition: str, first: Stage) -> None:
    """Before its first stage a policy is not asked, and says what it would have said: nothing."""
    policy = site((condition, "{reject: 5.7.1 no}"))
    assert policy.first is first
    session = SiteSession(policy)
    answers = [session.connect("192.0.2.7", "", False), session.helo("x"), session.mail("a@example.com", "", False)]
    answers += [session.rcpt(A)]
    evaluated = drive(policy, Mail(MESSAGE), replace(ENVELOPE, client="192.0.2.7", helo="x", recipients=(A,)))
    for stage, answer in zip(Stage, answers, strict=False):
        if stage < first:
            assert answer == Answer()
    assert evaluated.settled


def test_a_policy_of_rules_without_conditions_is_known_at_connect() -> None:
    """A rule that always matches refuses at once."""
    policy = policy_of("rules:\n- name: all\n  then: {reject: 5.7.1 no}\n", site=True)
    assert policy.first is Stage.CONNECT
    assert SiteSession(policy).connect("192.0.2.7", "", False).verdict is Verdict.REJECT
