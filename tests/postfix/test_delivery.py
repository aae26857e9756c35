"""Each recipient's own rules on a real Postfix: what becomes of the mail, and what its sender hears."""

from __future__ import annotations

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"

LISTS = """\
rules:
  - name: lists
    if:
      list_id: {ends: .lists.example}
    then:
      file: Lists/Python
"""
NO_WORD = """\
rules:
  - name: no word
    if:
      subject: {contains: word}
    then:
      reject: "5.7.1 Please send plain text"
"""
TO_BOB = """\
rules:
  - name: receipts
    if:
      subject: {starts: Receipt}
    then:
      forward: bob@example.org
"""
OUT = """\
rules:
  - name: to the other address
    then:
      forward: alice@home.example
"""
AWAY = """\
rules:
  - name: away
    then:
      vacation:
        text: Back on Monday.
        days: 3
"""
ANSWER = """\
rules:
  - name: opening hours
    if:
      subject: {contains: opening hours}
    then:
      reply: We are open from 10 to 18 h.
"""


def subjects(messages: list[bytes]) -> list[str]:
    """Return the subjects of some messages, sorted."""
    return sorted(header(one, "Subject")[0] for one in messages)


def test_without_rules_mail_is_kept_as_postfix_always_did(site: Site) -> None:
    """Mail to somebody without rules arrives once, in the mailbox of local(8), with header and body as they came."""
    body = "one\n.\n..two\nFrom here\n\xe9\n"
    answer = site.send(message("hello", body, x_odd="  two blanks"))
    site.settle()
    (found,) = site.inbox("alice")
    assert header(found, "Return-Path") == ["<dora@home.example>"]
    assert header(found, "Delivered-To") == [ALICE]
    assert b"X-Odd:   two blanks\n" in found
    assert found.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")
    assert [(one.relay, one.status) for one in site.fates(answer.queue_id)] == [("milterapp", "sent")]


def test_keep_does_not_loop(site: Site) -> None:
    """A kept message passes milterapp once and milterapp-keep once, and no more."""
    site.rules("alice", "rules:\n  - name: everything\n    then: keep\n")
    site.send(message("hello"))
    site.settle()
    fates = sorted((one.relay, one.status) for one in site.fates())
    assert fates == [("milterapp", "sent"), ("milterapp-keep", "sent")]
    assert len(site.inbox("alice")) == 1


def test_file_goes_into_the_folder(site: Site) -> None:
    """`file` puts a message into a Maildir++ folder of its recipient, owned by them; what matches no rule is kept."""
    site.rules("bob", LISTS)
    site.send(message("listed", list_id="<python.lists.example>"), [BOB])
    site.send(message("not listed"), [BOB])
    site.settle()
    folders = site.folders("bob")
    assert {name: subjects(messages) for name, messages in folders.items()} == {
        "": ["not listed"],
        "Lists/Python": ["listed"],
    }
    assert site.run("find", "/home/bob/Maildir", "!", "-user", "bob") == ""


def test_reject_reaches_the_sender_in_the_words_of_the_rule(site: Site) -> None:
    """A personal reject is a notice with the rule's status and text, and nothing is delivered."""
    site.rules("carol", NO_WORD)
    answer = site.send(message("minutes.word"), [CAROL])
    site.settle()
    assert site.folders("carol") == {}
    (fate,) = site.fates(answer.queue_id)
    assert (fate.dsn, fate.status) == ("5.7.1", "bounced")
    (notice,) = site.elsewhere()
    assert header(notice, "X-Original-To") == ["dora@home.example"]
    assert header(notice, "Return-Path") == ["<>"]
    assert b"<carol@example.org>: Please send plain text" in notice
    assert b"Status: 5.7.1" in notice


def test_reject_of_a_null_sender_is_not_answered(site: Site) -> None:
    """A bounce that a rule refuses ends there: nobody is told, as there is nobody to tell."""
    site.rules("carol", NO_WORD)
    site.send(message("a word"), [CAROL], sender="")
    site.settle()
    assert (site.folders("carol"), site.elsewhere()) == ({}, [])


def test_forward_within_the_host_passes_the_rules_there(site: Site) -> None:
    """A forward goes on as it is, its sender unchanged, and its new recipient's rules see it."""
    site.rules("carol", TO_BOB)
    site.rules(
        "bob", "rules:\n  - name: money\n    if:\n      subject: {starts: Receipt}\n    then:\n      file: Money\n"
    )
    site.send(message("Receipt 7"), [CAROL])
    site.settle()
    assert site.folders("carol") == {}
    (found,) = site.folders("bob")["Money"]
    assert header(found, "Return-Path") in ([], ["<dora@home.example>"])


def test_forward_leaves_the_host(site: Site) -> None:
    """A forward to an address elsewhere leaves the host with the sender it had."""
    site.rules("alice", OUT)
    site.send(message("hello"))
    site.settle()
    assert site.folders("alice") == {}
    (found,) = site.elsewhere()
    assert header(found, "X-Original-To") == ["alice@home.example"]
    assert header(found, "Return-Path") == ["<dora@home.example>"]
    assert header(found, "Subject") == ["hello"]


def test_forwards_in_a_circle_end(site: Site) -> None:
    """Two people who forward to each other lose no mail and make no loop: it ends with one of them, or as a notice."""
    site.rules("alice", "rules:\n  - name: on\n    then:\n      forward: bob@example.org\n")
    site.rules("bob", "rules:\n  - name: on\n    then:\n      forward: alice@example.org\n")
    site.send(message("round"))
    site.settle()
    ends = [*site.inbox("alice"), *site.inbox("bob"), *site.elsewhere()]
    assert len(ends) == 1


def test_reply_answers_and_keeps(site: Site) -> None:
    """A reply goes to the sender from a null sender, marked as automatic; the message itself is kept."""
    site.rules("alice", ANSWER)
    sent = message("Your opening hours?")
    site.send(sent)
    site.settle()
    assert subjects(site.inbox("alice")) == ["Your opening hours?"]
    (answer,) = site.elsewhere()
    assert header(answer, "X-Original-To") == ["dora@home.example"]
    assert header(answer, "Return-Path") == ["<>"]
    assert header(answer, "Auto-Submitted") == ["auto-replied"]
    assert header(answer, "In-Reply-To") == header(sent, "Message-Id")
    assert b"We are open from 10 to 18 h." in answer


@pytest.mark.parametrize(
    ("sender", "fields"),
    [
        ("", {}),
        ("dora@home.example", {"auto_submitted": "auto-replied"}),
        ("dora@home.example", {"list_id": "<x.lists.example>"}),
        ("dora@home.example", {"precedence": "bulk"}),
        ("dora@home.example", {"to": "somebody@else.example"}),
        ("owner-list@home.example", {}),
    ],
    ids=["null sender", "auto-submitted", "list", "bulk", "not addressed to alice", "list owner"],
)
def test_no_reply_where_nobody_wants_one(site: Site, sender: str, fields: dict[str, str]) -> None:
    """What a machine or a list sent is kept and never answered (RFC 3834)."""
    site.rules("alice", ANSWER)
    site.send(message("opening hours", **fields), sender=sender)
    site.settle()
    assert len(site.inbox("alice")) == 1
    assert site.elsewhere() == []


def test_a_second_question_gets_no_second_answer(site: Site) -> None:
    """One rule answers one correspondent once within its interval; both messages are kept."""
    site.rules("alice", ANSWER)
    for number in range(2):
        site.send(message(f"opening hours {number}"), sender="ernest@home.example")
        site.settle()
    assert len(site.inbox("alice")) == 2
    assert len(site.elsewhere()) == 1


RING = """rules:
  - name: first
    if:
      recipient: {detail: a}
    then:
      - remove_header: [Received, Delivered-To]
      - forward: bob+b@example.org
  - name: second
    if:
      recipient: {detail: b}
    then:
      - remove_header: [Received, Delivered-To]
      - forward: bob+a@example.org
"""


def test_a_ring_of_forwards_ends(site: Site) -> None:
    """Rules that forward in a ring and take every mark away end at the second sight: a notice, or a message kept."""
    site.rules("bob", RING)
    site.send(message("round"), ["bob+a@example.org"])
    site.settle()
    assert len(site.fates()) <= 5  # twice to the first, once to the second, and what becomes of it
    assert len([*site.inbox("bob"), *site.elsewhere()]) == 1


def test_vacation_answers_once_and_keeps(site: Site) -> None:
    """A vacation goes to the sender once, from the null sender, and to no list; every message is kept."""
    site.rules("alice", AWAY)
    site.send(message("Lunch?"), sender="fanny@home.example")
    site.settle()
    (answer,) = site.elsewhere()
    assert header(answer, "X-Original-To") == ["fanny@home.example"]
    assert header(answer, "Return-Path") == ["<>"]
    assert header(answer, "Auto-Submitted") == ["auto-replied"]
    assert header(answer, "Subject") == ["Auto: Lunch?"]
    assert b"Back on Monday." in answer
    site.send(message("Dinner?"), sender="fanny@home.example")
    site.send(message("News", list_id="<x.lists.example>"), sender="gina@home.example")
    site.settle()
    assert len(site.elsewhere()) == 1
    assert subjects(site.inbox("alice")) == ["Dinner?", "Lunch?", "News"]


def test_each_recipient_has_their_own_rules(site: Site) -> None:
    """Of one message to three people one copy is kept, one filed and one refused; each of them alone."""
    site.rules("bob", LISTS)
    site.rules("carol", NO_WORD)
    site.send(message("a word", list_id="<python.lists.example>"), [ALICE, BOB, CAROL])
    site.settle()
    assert [list(site.folders(one)) for one in ("alice", "bob", "carol")] == [[""], ["Lists/Python"], []]
    (notice,) = site.elsewhere()
    assert b"<carol@example.org>: Please send plain text" in notice


def test_aliases_expand_before_the_rules(site: Site) -> None:
    """Mail to an alias passes each member's own rules, once each; the notice names the alias."""
    site.aliases({"team": "alice, bob, carol"})
    site.rules("bob", LISTS)
    site.rules("carol", NO_WORD)
    site.send(message("a word", list_id="<python.lists.example>"), ["team@example.org"])
    site.settle()
    folders = [{name: len(found) for name, found in site.folders(one).items()} for one in ("alice", "bob", "carol")]
    assert folders == [{"": 1}, {"Lists/Python": 1}, {}]
    (notice,) = site.elsewhere()
    assert b"<carol@example.org> (expanded from <team@example.org>): Please send plain text" in notice


def test_dot_forward_is_honoured_before_the_rules(site: Site) -> None:
    """A ~/.forward that names its owner and another gives both a copy; the owner's passes the owner's rules."""
    site.forward_file("bob", "\\bob, alice@home.example\n")
    site.rules("bob", LISTS)
    site.send(message("listed", list_id="<python.lists.example>"), [BOB])
    site.settle()
    assert list(site.folders("bob")) == ["Lists/Python"]
    assert len(site.elsewhere()) == 1


def test_an_extension_reaches_its_user_and_can_be_tested(site: Site) -> None:
    """user+extension is delivered to the user, and a rule may ask for the extension."""
    site.rules(
        "alice", "rules:\n  - name: shops\n    if:\n      recipient: {detail: shop}\n    then:\n      file: Shops\n"
    )
    site.send(message("to the shop"), ["alice+shop@example.org"])
    site.send(message("to another"), ["alice+other@example.org"])
    site.send(message("empty"), ["alice+@example.org"])
    site.settle()
    found = {name: subjects(messages) for name, messages in site.folders("alice").items()}
    assert found == {"": ["empty", "to another"], "Shops": ["to the shop"]}


def test_an_extension_by_either_name_makes_a_folder(site: Site) -> None:
    """`${extension}` and `${detail}` are the same value, at the SMTP door too; without one a rule does not hold."""
    site.site_rules("rules:\n  - name: no\n    if:\n      recipient: {detail: spam}\n    then:\n"
                    "      reject: '5.1.1 No such box as ${extension}'\n")  # fmt: skip
    site.rules("alice", "rules:\n  - name: plus\n    then:\n      file: 'Plus/${extension}'\n")
    site.rules("bob", "rules:\n  - name: plus\n    then:\n      file: 'Plus/${detail}'\n")
    for name in ("alice+shop", "alice", "bob+shop"):
        site.send(message("hello"), [f"{name}@example.org"])
    refused = site.send(message("hello"), ["alice+spam@example.org"])
    site.settle()
    assert {name: len(found) for name, found in site.folders("alice").items()} == {"Plus/shop": 1, "": 1}
    assert list(site.folders("bob")) == ["Plus/shop"]
    assert refused.refused["alice+spam@example.org"] == (550, "5.1.1 No such box as spam")


def test_the_null_sender_is_delivered(site: Site) -> None:
    """A bounce from elsewhere is delivered with its empty return path."""
    site.rules("alice", LISTS)
    site.send(message("Undelivered"), sender="")
    site.settle()
    (found,) = site.inbox("alice")
    assert header(found, "Return-Path") == ["<>"]


@pytest.mark.parametrize("person", ["root", "nobody", "daemon"])
def test_accounts_below_the_floor_get_their_mail_without_rules(site: Site, person: str) -> None:
    """Mail to root and to system accounts is kept as it always was; no agent runs for them."""
    site.send(message("from cron"), [f"{person}@example.org"])
    site.settle()
    assert len(site.mailbox(person)) == 1


def test_an_unknown_user_bounces_as_postfix_always_did(site: Site) -> None:
    """A recipient that does not exist gets Postfix's own 5.1.1, through milterapp-keep."""
    site.sendmail(message("hello"), ["nosuch@example.org"], user="bob")
    site.settle()
    assert sorted(one.dsn for one in site.fates() if one.to == "nosuch@example.org") == ["2.0.0", "5.1.1"]
    (notice,) = site.inbox("bob")
    assert b'unknown user: "nosuch"' in notice


@pytest.mark.parametrize(
    "recipient",
    ["-x@example.org", "../../etc/passwd@example.org", "$(id)@example.org", '"a b"@example.org', "|true@example.org"],
)
def test_an_odd_recipient_is_only_an_unknown_user(site: Site, recipient: str) -> None:
    """A local part that looks like an option, a path or a command is a name, and nobody has it."""
    site.sendmail(message("hello"), [recipient], user="bob")
    site.settle()
    (notice,) = site.inbox("bob")
    assert b"Status: 5.1." in notice


def test_sendmail_enters_by_the_same_door(site: Site) -> None:
    """Mail that a user of the host submits passes its recipient's rules as any other."""
    site.rules("bob", LISTS)
    site.sendmail(message("listed", list_id="<python.lists.example>"), [BOB], user="alice")
    site.settle()
    assert list(site.folders("bob")) == ["Lists/Python"]


def test_discard_and_defer(site: Site) -> None:
    """`discard` ends silently; `defer` leaves the message in Postfix's queue with the rule's status and words."""
    site.rules(
        "alice",
        "rules:\n  - name: away\n    if:\n      subject: gone\n    then: discard\n"
        '  - name: later\n    then:\n      defer: "4.2.1 Not today"\n',
    )
    gone = site.send(message("gone"))
    later = site.send(message("later"))
    fate = site.deferred(later.queue_id)
    assert (fate.dsn, fate.text.strip()) == ("4.2.1", "Not today")
    # While it is tried again the queue has no reason for it, and while it moves showq(8) may not see it.
    site.wait(
        lambda: ["Not today" in str(one["recipients"]) for one in site.queue() if one["queue_id"] == later.queue_id]
        == [True],
        "the rule's words in the queue", 30,
    )  # fmt: skip
    site.wait(lambda: bool(site.fates(gone.queue_id)), "the first to end", 30)
    assert [one.status for one in site.fates(gone.queue_id)] == ["sent"]
    site.rules("alice", "rules:\n  - name: all\n    then: keep\n")
    site.settle()
    assert subjects(site.inbox("alice")) == ["later"]


def test_a_large_message_passes_whole(site: Site) -> None:
    """A message of some megabytes is kept whole, though message_size_limit is just above it."""
    body = "".join(f"{number:060d}\n" for number in range(100_000))
    assert site.send(message("large", body)).code == 250
    site.settle()
    (found,) = site.inbox("alice")
    assert found.partition(b"\n\n")[2].rstrip(b"\n") == body.encode().rstrip(b"\n")
