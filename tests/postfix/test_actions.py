"""Every action word on a real Postfix, in each place that has it: what it does, and that other mail is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from milterapp.rules.actions import ACTIONS
from tests.postfix.harness import SITE_RULES, Answer, Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

SETTINGS = """\
programs:
  save: {run: [/usr/bin/tee, piped]}
  retitle: {run: [/bin/sed, '1,/^$/s/^X-Old: /X-Filtered: /']}
"""
ALICE, FAR = "alice@example.org", "dora@home.example"
PARTS = (
    "--b\nContent-Type: text/plain\n\nHello.\n--b\nContent-Type: application/x-msdownload; name=bad.exe\n\nMZ\n--b--\n"
)


@dataclass(frozen=True)
class Seen:
    """What became of one message. here: in alice's inbox; away: what left the host; folders: alice's others."""

    site: Site
    answer: Answer
    here: list[bytes]
    away: list[bytes]
    folders: dict[str, list[bytes]]

    @property
    def one(self) -> bytes:
        """The message in the inbox, and nothing anywhere else."""
        assert (len(self.here), self.away, self.folders) == (1, [], {}), self
        return self.here[0]

    @property
    def nothing(self) -> bool:
        """Whether there is nothing anywhere."""
        return not (self.here or self.away or self.folders)

    def statuses(self) -> list[str]:
        """Return what the delivery agents said of it."""
        return [one.status for one in self.site.fates(self.answer.queue_id)]


def fields(name: str, *wanted: str) -> Callable[[Seen], bool]:
    """Return the check that the message has these values of a field, in this order."""
    return lambda seen: header(seen.one, name) == list(wanted)


Case = tuple[str, Callable[[Seen], bool]]  # what stands below `then`, and whether it happened
EDITS: dict[str, Case] = {
    "add_header": ("add_header: {X-Old: new}", fields("X-Old", "old", "new")),
    "prepend_header": ("prepend_header: {X-Old: new}", fields("X-Old", "new", "old")),
    "set_header": ("set_header: {X-Old: new}", fields("X-Old", "new")),
    "remove_header": ("remove_header: X-Old", fields("X-Old")),
    "prefix_subject": ("prefix_subject: '[all]'", fields("Subject", "[all] do prefix_subject")),
    "banner": ("banner: Beware", lambda seen: b"Beware" in seen.one.partition(b"Hello.")[0]),
    "footer": ("footer: The end", lambda seen: b"The end" in seen.one.partition(b"Hello.")[2]),
    "drop_attachments": ("drop_attachments", lambda seen: b"MZ" not in seen.one and b"Hello." in seen.one),
    "replace_body": ("replace_body: Nothing to see", lambda seen: b"Nothing to see" in seen.one
                     and b"Hello." not in seen.one),
}  # fmt: skip
SITE: dict[str, Case] = EDITS | {
    "accept": ("accept", lambda seen: header(seen.one, "X-Went") == []),
    "reject": ('reject: "5.7.1 Not this"', lambda seen: (seen.answer.code, seen.answer.text, seen.nothing)
               == (550, "5.7.1 Not this", True)),
    "defer": ('defer: "4.7.1 Not now"', lambda seen: (seen.answer.code, seen.answer.text, seen.nothing)
              == (451, "4.7.1 Not now", True)),
    "discard": ("discard", lambda seen: (seen.answer.code, seen.statuses(), seen.nothing) == (250, [], True)),
    "hold": ("hold", lambda seen: [one["queue_name"] for one in seen.site.queue()
             if one["queue_id"] == seen.answer.queue_id] == ["hold"]),
    "set_sender": ("set_sender: other@home.example", fields("Return-Path", "<other@home.example>")),
    "add_recipient": ("add_recipient: far@home.example", lambda seen: (len(seen.here), len(seen.away)) == (1, 1)),
    "remove_recipient": ("[{remove_recipient: alice@example.org}, {add_recipient: far@home.example}]",
                         lambda seen: (len(seen.here), len(seen.away)) == (0, 1)),
    "stop": ("stop", lambda seen: header(seen.one, "X-Went") == []),
    "score": ("score: 3", lambda seen: header(seen.one, "X-Over") == ["2"]),
    "tag": ("tag: marked", lambda seen: header(seen.one, "X-Tagged") == ["marked"]),
    "log": ("log: 'a word about ${subject}'",
            lambda seen: "a word about do log" in seen.site.service_log("milter") and len(seen.here) == 1),
    "script": ("script: it.py", fields("X-Script", "do script")),
}  # fmt: skip
OWN: dict[str, Case] = EDITS | {
    "keep": ("keep", lambda seen: header(seen.one, "X-Went") == []),
    "reject": ('reject: "5.7.1 Not this"', lambda seen: seen.here == [] and b"Not this" in seen.away[0]
               and header(seen.away[0], "X-Original-To") == [FAR]),
    "defer": ('defer: "4.7.1 Not now"', lambda seen: seen.nothing and "deferred" in seen.statuses()),
    "discard": ("discard", lambda seen: seen.nothing and seen.statuses() == ["sent"]),
    "file": ("file: Box", lambda seen: not seen.here and len(seen.folders["Box"]) == 1),
    "flag": ("[{file: Flagged}, {flag: seen}]", lambda seen: not seen.here and bool(
             list(Path("/home/alice/Maildir/.Flagged").glob("cur/*:2,S")))),
    "forward": ("forward: far@home.example", lambda seen: not seen.here
                and [header(one, "X-Original-To") for one in seen.away] == [["far@home.example"]]),
    "reply": ("reply: I am away", lambda seen: len(seen.here) == 1 and b"I am away" in seen.away[0]),
    "vacation": ("vacation: On the beach", lambda seen: len(seen.here) == 1 and b"On the beach" in seen.away[0]),
    "pipe": ("pipe: save", lambda seen: seen.nothing
             and b"Subject: do pipe" in Path("/home/alice/piped").read_bytes()),
    "filter": ("filter: retitle", lambda seen: (header(seen.one, "X-Filtered"), header(seen.one, "X-Old"))
               == (["old"], [])),
    "stop": ("stop", lambda seen: header(seen.one, "X-Went") == []),
    "score": ("score: 3", lambda seen: header(seen.one, "X-Over") == ["2"]),
    "tag": ("tag: marked", lambda seen: header(seen.one, "X-Tagged") == ["marked"]),
    "log": ("log: 'a word about ${subject}'",
            lambda seen: "a word about do log" in seen.site.service_log("monitor") and len(seen.here) == 1),
    "script": ("script: it.py", lambda seen: list(seen.folders) == ["By/Script"]),
}  # fmt: skip
MARKS = (
    ("over", "score: {over: 2}", "X-Over: '2'"),
    ("tagged", "tag: marked", "X-Tagged: marked"),
    ("went on", "subject: {exists: yes}", "X-Went: on"),
)
ELSEWHERE = {
    ("site", "transport"): "test_milter_transport.py: it needs lines in main.cf",
}


def rules(cases: Mapping[str, Case]) -> str:
    """Return a rule for each word that its own message alone meets, and what shows that the rules went on."""
    lines = ["rules:"]
    for word, (then, _) in cases.items():
        lines += [f"  - name: {word}", "    if:", f"      subject: do {word}"]
        mapping = ":" in then and not then.startswith("[")
        lines += ["    then:", f"      {then}"] if mapping else [f"    then: {then}"]
    for name, condition, value in MARKS:
        lines += [f"  - name: {name}", "    if:", f"      {condition}", "    then:", f"      add_header: {{{value}}}"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def allowing(host: Site) -> Iterator[Site]:
    """The host with programs that rules may start."""
    with host.configured(SETTINGS, "monitor"):
        yield host


@pytest.fixture
def site(allowing: Site) -> Site:
    """That host, with empty mailboxes and no rules."""
    allowing.reset()
    return allowing


def send(site: Site, word: str) -> Answer:
    """Send the message that the rule for a word is about."""
    kind = {"content_type": "multipart/mixed; boundary=b"} if word == "drop_attachments" else {}
    return site.send(message(f"do {word}", PARTS if kind else "Hello.\n", x_old="old", **kind), [ALICE])


def seen(site: Site, word: str, answer: Answer) -> Seen:
    """Return what became of it."""

    def about(found: list[bytes]) -> list[bytes]:
        return [one for one in found if f"do {word}\n".encode() in one]

    folders = {name: about(found) for name, found in site.folders("alice").items() if name and about(found)}
    return Seen(site, answer, about(site.inbox("alice")), about(site.elsewhere()), folders)


@pytest.mark.parametrize("word", sorted(ACTIONS))
def test_every_word_has_a_case(word: str) -> None:
    """An action that is added gets its case here, in each place that has it, or says where it is tried."""
    action = ACTIONS[word]
    assert action.site == (word in SITE or ("site", word) in ELSEWHERE)
    assert action.personal == (word in OWN)


def test_every_action_of_the_site(site: Site) -> None:
    """What each action of in-line rules does to the message whose rule says so."""
    (SITE_RULES.parent / "it.py").write_text("def main(mail):\n    mail.add_header('X-Script', mail.subject)\n")
    site.site_rules(rules(SITE))
    answers = {word: send(site, word) for word in [*SITE, "nothing"]}
    site.settle(but=[answers["hold"].queue_id])
    failed = [word for word in SITE if not SITE[word][1](seen(site, word, answers[word]))]
    assert failed == []
    plain = seen(site, "nothing", answers["nothing"]).one
    assert (header(plain, "X-Old"), header(plain, "X-Went"), header(plain, "X-Over")) == (["old"], ["on"], [])


def test_every_action_of_a_recipient(site: Site) -> None:
    """What each action of personal rules does to the message whose rule says so."""
    site.rules("alice", rules(OWN))
    site.script("alice", "it.py", "def main(mail):\n    mail.file('By/Script')\n")
    answers = {word: send(site, word) for word in [*OWN, "nothing"]}
    site.deferred(answers["defer"].queue_id)
    site.settle(but=[answers["defer"].queue_id])
    # The monitor answers before it logs.
    site.wait(lambda: "a word about do log" in site.service_log("monitor"), "the monitor's log", 30)
    failed = [word for word in OWN if not OWN[word][1](seen(site, word, answers[word]))]
    assert failed == []
    plain = seen(site, "nothing", answers["nothing"]).one
    assert (header(plain, "X-Old"), header(plain, "X-Went"), header(plain, "X-Over")) == (["old"], ["on"], [])
