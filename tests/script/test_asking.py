"""`confirm`: the question, the answer, and everything that is no answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from milterapp.script.actions import Answered, Ask, Discard, File, Header, Reject, Reply, Store
from milterapp.script.memory import Question, Remembered
from milterapp.script.plan import Failure, Plan, decode, encode
from milterapp.script.run import run
from tests.script.sample import MESSAGE, job

SOURCE = """
from milterapp.script import *

@route("{user}+{page}@{host}", per="page")
def START(mail, user, page, host):
    confirm.ask(mail, then=publish, page=page, note=mail.subject)

@route("{user}+{page}@{host}", per="page")
def POSTING(mail, user, page, host): ...

def publish(mail, page, note):
    store[page] = [mail.proven.address, mail.subject, mail.text, note, mail.recipient]
    mail.reply(text="Done.")
    return POSTING
"""
YES = b"From: joerg@example.org\nTo: x@example.com\nSubject: Re: x\n\nyes\n"


class Kept(Remembered):
    """A memory that takes what a plan stores."""

    def take(self, plan: Plan, raw: bytes, sender: str, to: str) -> None:
        """Make the changes of a plan for a message."""
        for one in plan.actions:
            if isinstance(one, Store) and one.value is not None:
                self.values[one.key] = one.marked, one.value
            elif isinstance(one, Ask):
                self.questions[one.digest] = Question(one.then, one.captures, sender, to, raw)
            elif isinstance(one, Answered):
                del self.questions[one.digest]


def ask(kept: Kept, raw: bytes = MESSAGE, sender: str = "joerg@example.org", source: str = SOURCE) -> Plan:
    """Have a message come in; return the plan, what it stores taken."""
    plan = run(job(source, raw, "bob+page@example.com", sender), kept)
    assert isinstance(plan, Plan), plan
    assert decode(encode(plan)) == plan
    kept.take(plan, raw, sender, "bob+page@example.com")
    return plan


def question(plan: Plan) -> Reply:
    """Return the question of a plan."""
    (found,) = (one for one in plan.actions if isinstance(one, Reply))
    return found


def answer(
    kept: Kept, to: str, raw: bytes = YES, sender: str = "joerg@example.org", source: str = SOURCE
) -> Plan | Failure:
    """Have an answer come in; what it stores is taken."""
    found = run(job(source, raw, to, sender), kept)
    if isinstance(found, Plan):
        kept.take(found, raw, sender, to)
    return found


def test_asked_and_answered() -> None:
    """The question keeps the message; the answer calls what waits, and leaves nothing of the question."""
    kept = Kept()
    asked = ask(kept)
    assert asked.actions[-1] == Discard()
    assert question(asked).subject == "Please confirm: Grüße"
    assert asked.state == ""
    (digest,) = kept.questions
    done = answer(kept, question(asked).sender, sender="joerg@home.example")
    assert isinstance(done, Plan)
    assert (done.state, done.per, done.about) == ("POSTING", ("page",), digest)
    want = '["l","joerg@example.org",["u","Gr\\u00fc\\u00dfe"],["u","hello\\nworld\\n"],["u","Gr\\u00fc\\u00dfe"]'
    assert Store("page", False, want + ',["u","bob+page@example.com"]]') in done.actions
    assert done.actions[-2:] == (Reply("Done.", "", "bob+page@example.com"), Discard())
    assert (list(kept.values), kept.questions) == (["page"], {})


def test_single_use() -> None:
    """A second answer does nothing, and is none of the script's messages: it is not taken for a page either."""
    kept = Kept()
    to = question(ask(kept)).sender
    answer(kept, to)
    before = dict(kept.values)
    assert answer(kept, to) == Plan(routed=False)
    assert kept.values == before


def test_how_long_it_waits() -> None:
    """The days are the plan's, three without any."""
    source = SOURCE.replace("page=page,", "page=page, days=9,")
    for text, want in ((SOURCE, "3"), (source, "9")):
        assert [one.days for one in ask(Kept(), source=text).actions if isinstance(one, Ask)] == [want]


def test_a_wrong_token() -> None:
    """An address that looks like a question's and is none of the script's is left to others, not taken for a page."""
    kept = Kept()
    to = question(ask(kept)).sender
    token = to.partition("confirm-")[2].partition("@")[0]
    for wrong in ("a" * 26, token[1:] + token[0]):
        assert answer(kept, to.replace(token, wrong)) == Plan(routed=False)
    assert isinstance(answer(kept, to.upper()), Plan)
    assert "page" in kept.values


@pytest.mark.parametrize(
    ("field", "sender"),
    [
        ("Auto-Submitted: auto-replied", "joerg@example.org"),
        ("Precedence: bulk", "joerg@example.org"),
        ("List-Id: <a.example.org>", "joerg@example.org"),
        ("Subject: x", ""),
    ],
)
def test_no_person_answers(field: str, sender: str) -> None:
    """An automatic answer is none; the question still waits for a person's."""
    kept = Kept()
    to = question(ask(kept)).sender
    assert answer(kept, to, field.encode() + b"\n" + YES, sender) == Plan((Discard(),))
    assert "page" not in kept.values
    answer(kept, to)
    assert "page" in kept.values


def test_tokens_are_not_stored() -> None:
    """Nothing that is kept gives a token away, and no two are the same."""
    kept = Kept()
    tokens = {question(ask(kept)).sender.partition("confirm-")[2].partition("@")[0] for _ in range(4)}
    assert len(tokens) == 4
    assert not any(one in f"{kept.questions}{kept.values}" for one in tokens)


def test_a_failure_leaves_the_question_waiting() -> None:
    """What waits is called again with the next try, where it raised."""
    kept = Kept()
    to = question(ask(kept)).sender
    broken = answer(kept, to, source=SOURCE.replace('mail.reply(text="Done.")', "1 / 0"))
    assert isinstance(broken, Failure)
    assert broken.kind == "ZeroDivisionError"
    renamed = answer(kept, to, source=SOURCE.replace("publish", "print_it"))
    assert isinstance(renamed, Failure)
    assert "has no function 'publish' any more" in renamed.text
    assert isinstance(answer(kept, to), Plan)


def test_who_cannot_be_asked() -> None:
    """A message that is too large, or whose sender is no address, is refused, and nothing is kept."""
    kept = Kept()
    big = ask(kept, MESSAGE + b"x" * (1 << 20))
    assert big.actions == (Reject("5.3.4", "This message is too large to be confirmed"),)
    odd = ask(kept, sender='"a b"@example.org')
    assert odd.actions == (Reject("5.1.7", "This message has no sender who could be asked"),)
    assert kept.questions == {}


def test_what_was_confirmed_can_be_delivered() -> None:
    """Edits and deliveries are of the message of before; nothing is thrown away then."""
    kept = Kept()
    to = question(ask(kept)).sender
    source = SOURCE.replace('mail.reply(text="Done.")', 'mail.file("a"); mail.add_header("X-A", "b")')
    done = answer(kept, to, source=source)
    assert isinstance(done, Plan)
    assert done.actions[-2:] == (File(("a",)), Header("add_header", "X-A", "b"))
    assert done.about


def test_the_questions_template(tmp_path: Path) -> None:
    """The question's text is a template's, with the mail and what is given."""
    (tmp_path / "ask.txt").write_text("${mail.subject} on ${page}, within ${days} days\n")
    source = SOURCE.replace("then=publish", 'then=publish, template="ask.txt", subject="Well?"')
    made = dataclasses.replace(job(source, to="bob+page@example.com"), folder=str(tmp_path))
    plan = run(made, Remembered())
    assert isinstance(plan, Plan), plan
    assert question(plan).text == "Grüße on page, within 3 days\n"
    assert question(plan).subject == "Well?"


def test_of_a_plain_script() -> None:
    """main can ask as well; what waits is another function."""
    source = "from milterapp.script import *\ndef main(mail):\n    confirm.ask(mail, then=yes)\ndef yes(mail):\n"
    kept = Kept()
    to = question(ask(kept, source=source + "    store['a'] = 1\n")).sender
    answer(kept, to, source=source + "    store['a'] = 1\n")
    assert kept.values["a"] == (False, "1")
