"""Tests of what actions add to a decision, and of what the loader refuses of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from milterapp.rules.load import load
from milterapp.rules.reading import CAN
from tests.rules.helpers import MESSAGE, decide_text, rule_of

ANY = "from: {in: friends}"
LISTS = "lists:\n  friends: [bob+news@example.org, .example.org, Replies@example.org]\n"

# name: (action, whether in a site rule, the one entry of edits or deliveries)
DONE: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "prepend_header": (
        "prepend_header: {X-A: '${subject}'}",
        True,
        {"action": "prepend_header", "name": "X-A", "value": "Café invoice 2024"},
    ),
    "remove_header by value": (
        "remove_header: {name: X-Tag, value: {starts: tw}}",
        True,
        {"action": "remove_header", "name": "X-Tag", "occurrences": [2]},
    ),
    "banner": (
        "banner: {text: 'From ${from.name}', html: '<b>${from.name}</b>', only: html}",
        True,
        {"action": "banner", "text": "From Bob B", "html": "<b>Bob B</b>", "only": "html"},
    ),
    "footer": ("footer: Sent by us", False, {"action": "footer", "text": "Sent by us"}),
    "drop all attachments": ("drop_attachments", True, {"action": "drop_attachments", "parts": [3, 4], "note": ""}),
    "drop some attachments": (
        "drop_attachments: {extension: pdf}",
        True,
        {"action": "drop_attachments", "parts": [3], "note": ""},
    ),
    "drop with a note": (
        "drop_attachments: {which: {size: {under: 5}}, note: 'gone, ${from.name}'}",
        True,
        {"action": "drop_attachments", "parts": [4], "note": "gone, Bob B"},
    ),
    "replace_body": ("replace_body: nothing", True, {"action": "replace_body", "text": "nothing"}),
    "set_sender": ("set_sender: a@example.net", True, {"action": "set_sender", "sender": "a@example.net"}),
    "set_sender null": ("set_sender: <>", True, {"action": "set_sender", "sender": "<>"}),
    "set a listed sender": (
        "set_sender: '${reply_to.address}'",
        True,
        {"action": "set_sender", "sender": "Replies@example.org"},
    ),
    "add_recipient": ("add_recipient: a@example.net", True, {"action": "add_recipient", "address": "a@example.net"}),
    "add a listed recipient": (
        "add_recipient: '${from.address}'",
        True,
        {"action": "add_recipient", "address": "bob+news@example.org"},
    ),
    "remove_recipient": (
        "remove_recipient: a@example.net",
        True,
        {"action": "remove_recipient", "address": "a@example.net"},
    ),
    "transport": ("transport: 'smtp:[a.example]:25'", True, {"action": "transport", "to": "smtp:[a.example]:25"}),
    "file with a flag": (
        "[{file: A}, {flag: [seen, flagged]}]",
        False,
        {"action": "file", "folder": "A", "copy": False, "flags": ["flagged", "seen"]},
    ),
    "file into what is there": (
        "file: {folder: A, create: no}",
        False,
        {"action": "file", "folder": "A", "copy": False, "create": False},
    ),
    "keep with a flag": (
        "[keep, {flag: seen}]",
        False,
        {"action": "keep", "implicit": False, "flags": ["seen"]},
    ),
    "pipe": (
        "pipe: {program: spool, arguments: ['--from=${from.domain}', '${subject}']}",
        False,
        {"action": "pipe", "program": "spool", "arguments": ["--from=example.org", "Café invoice 2024"], "copy": False},
    ),
    "filter": ("filter: scan", False, {"action": "filter", "program": "scan", "arguments": []}),
    "vacation": (
        "vacation: {text: 'Away, ${from.name}', days: 3, from: me@a.example, addresses: [x@a.example], handle: h}",
        False,
        {
            "action": "vacation",
            "text": "Away, Bob B",
            "subject": "",
            "days": 3,
            "from": "me@a.example",
            "addresses": ["x@a.example"],
            "handle": "h",
            "refused": None,
        },
    ),
}


@pytest.mark.parametrize(("action", "site", "wanted"), DONE.values(), ids=DONE)
def test_what_an_action_adds(action: str, site: bool, wanted: dict[str, Any]) -> None:
    """Each action is one entry of the decision, as `--json` prints it."""
    found = decide_text(LISTS + rule_of(ANY, action), site=site).to_json()
    entries = [one for one in (*found["edits"], *found["deliveries"]) if one["action"] == wanted["action"]]
    assert entries == [wanted]


NOTHING = {
    "no field passes": "remove_header: {name: X-Tag, value: three}",
    "no attachment passes": "drop_attachments: {extension: exe}",
    "an address that no list holds": "add_recipient: '${to.address}'",
}


@pytest.mark.parametrize("action", NOTHING.values(), ids=NOTHING)
def test_what_an_action_does_not_find(action: str) -> None:
    """Where there is nothing to change there is no edit."""
    assert decide_text(LISTS + rule_of(ANY, action), site=True).changes == ()


def test_a_value_never_becomes_an_option() -> None:
    """A value that begins with hyphens does not begin the argument with them; what the rule wrote stays."""
    decision = decide_text(
        rule_of("size: {over: 1}", "pipe: {program: spool, arguments: ['${subject}', '-${subject}', '-x']}"),
        b"Subject: --config=/tmp/x\n\n",
    )
    assert decision.deliveries[0].to_json()["arguments"] == ["_--config=/tmp/x", "---config=/tmp/x", "-x"]


def test_html_of_a_banner_encodes_values() -> None:
    """A value in a banner's HTML is text there."""
    decision = decide_text(
        rule_of("size: {over: 1}", "banner: {text: '${subject}', html: '<p>${subject}</p>'}"),
        b"Subject: <script>\n\n",
        site=True,
    )
    assert decision.edits[0].to_json()["html"] == "<p>&lt;script&gt;</p>"


def test_a_vacation_without_a_handle_has_one_of_its_own() -> None:
    """The handle is over the arguments as they are written, so it is the same for every correspondent."""
    text = rule_of("size: {over: 1}", "vacation: 'Away, ${subject}'")
    handles = [decide_text(text, b"Subject: %d\n\n" % at).deliveries[0].to_json()["handle"] for at in (1, 2)]
    other = decide_text(text.replace("Away", "Gone"), MESSAGE).deliveries[0].to_json()["handle"]
    assert handles[0] == handles[1] != other


def test_an_edit_of_the_body_waits_for_it() -> None:
    """A rule whose action looks at the message is not decided before that is known."""
    policy, _ = load(rule_of("client: 192.0.2.7", "drop_attachments").encode(), "f", site=True)
    assert policy is not None
    assert policy.reads_body


# name: (action, whether in a site rule, part of the problem, its column in the line)
PROBLEMS = {
    "a site's program": ("pipe: spool", True, "1: the action 'pipe' cannot stand in a site rule"),
    "a site's script and nobody to read it": ("script: blog.py", True, "9: the script 'blog.py': no files are read"),
    "a script above": ("script: ../blog.py", False, "9: found '../blog.py', expected a script such as"),
    "a script from the root": ("script: /blog.py", False, "9: found '/blog.py', expected a script such as"),
    "a script of no Python": ("script: blog.sh", False, "9: found 'blog.sh', expected a script such as"),
    "a script and nobody to read it": ("script: blog.py", False, "9: the script 'blog.py': no files are read here"),
    "exists of fields": ("remove_header: {name: X, value: {exists: yes}}", True, "33: `exists` and `count` are of all"),
    "count of attachments": ("drop_attachments: {count: 2}", True, "19: `exists` and `count` are of all"),
    "no transport": ("transport: relay", True, "12: found 'relay', expected a transport and a next hop"),
    "a transport in two words": ("transport: 'smtp:a b'", True, "12: found 'smtp:a b', expected a transport"),
    "an address of the message": ("set_sender: '${header.X}'", True, "13: an address that the message chose"),
    "no address": ("add_recipient: bob", True, "16: 'bob' is no address"),
    "null recipient": ("add_recipient: <>", True, "16: '<>' is no address"),
    "null forward": ("forward: <>", False, "10: '<>' is no address"),
    "a program not allowed": ("pipe: rm", False, "7: the site does not allow the program 'rm'; it allows scan, spool"),
    "flag alone": ("flag: seen", False, "1: `flag` in a rule without `file` or `keep`"),
    "no flag": ("flag: deleted", False, "7: found 'deleted', expected seen, flagged or answered"),
    "many addresses": (
        f"vacation: {{text: x, addresses: [{', '.join(f'a{n}@b.example' for n in range(21))}]}}",
        False,
        "11: at most 20 addresses",
    ),
    "many days": ("vacation: {text: x, days: 1000}", False, "11: 1000 days, expected 1 to 365"),
    "no tag": ("tag: a b", False, "6: found 'a b', expected a word of letters"),
    "no points": ("score: many", False, "8: found 'many', expected a number"),
    "site only": ("transport: 'smtp:a'", False, "1: the action 'transport' cannot stand in a personal rule"),
}


@pytest.mark.parametrize(("action", "site", "wanted"), PROBLEMS.values(), ids=PROBLEMS)
def test_an_action_that_cannot_be(action: str, site: bool, wanted: str) -> None:
    """What cannot be carried out as it is written is a problem at its place."""
    source = f"rules:\n- name: it\n  then:\n  - stop\n  - {action}\n".encode()
    policy, problems = load(source, "f", site=site, programs=("scan", "spool"))
    assert policy is None
    column, text = wanted.split(": ", 1)
    assert str(problems[0]).startswith(f"f:5:{int(column) + 4}: {text}")


def test_a_flag_that_keep_cannot_carry() -> None:
    """Where the site hands kept mail on, `flag` beside `keep` is a problem that names the way out: `file`."""
    rules = b"rules:\n- {name: it, then: [keep, {flag: seen}]}\n"
    assert load(rules, "f", site=False)[1] == ()
    _, problems = load(rules, "f", site=False, flags_kept=False)
    assert str(problems[0]).startswith(
        "f:2:27: `flag` beside `keep`: what this site keeps carries no flags; `file: INBOX`"
    )
    assert load(rules.replace(b"keep", b"{file: INBOX}"), "f", site=False, flags_kept=False)[1] == ()


ARGUMENTS = {
    "an option": ("then: {pipe: {program: scan, arguments: [x, -y]}}", "the argument '-y': rules may give 'scan' no"),
    "of a filter": ("then: {filter: {program: scan, arguments: ['-${subject}']}}", "the argument '-'"),
    "of a command": ("if: {command: {run: scan, arguments: [-q]}}, then: stop", "the argument '-q'"),
    "many": (f"then: {{pipe: {{program: spool, arguments: [{', '.join('x' * 51)}]}}}}", "more than 50 arguments"),
    "many of a command": (
        f"if: {{command: {{run: spool, arguments: [{', '.join('x' * 51)}]}}}}, then: stop",
        "more than 50 arguments",
    ),
    "a long one": (
        f"then: {{pipe: {{program: spool, arguments: ['{'x' * 4097}']}}}}",
        "an argument of more than 4096 bytes",
    ),
    "long ones": (
        f"then: {{filter: {{program: spool, arguments: [{', '.join(['x' * 4000] * 7)}]}}}}",
        "arguments of more than 24576 bytes together",
    ),
    "long ones of a command": (
        f"if: {{command: {{run: spool, arguments: [{', '.join(['x' * 4000] * 7)}]}}}}, then: stop",
        "arguments of more than 24576 bytes together",
    ),
    "a status that says nothing": (
        "if: {command: {run: scan, status: 75}}, then: stop",
        "status 75, expected 0 to 255",
    ),
    "a status that is none": ("if: {command: {run: scan, status: 256}}, then: stop", "status 256, expected 0 to 255"),
}


@pytest.mark.parametrize(("rule", "wanted"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_what_a_program_cannot_be_given(rule: str, wanted: str) -> None:
    """A program that takes no options from rules, too many arguments, and a status that no rule may ask for."""
    source = f"rules:\n- {{name: it, {rule}}}\n".encode()
    _, problems = load(source, "f", site=False, programs=("scan", "spool"), plain=("scan",))
    assert wanted in str(problems[0])


def test_long_values_of_a_program_are_cut_together() -> None:
    """What a message holds cannot make a program's arguments too long; what the rule wrote stays whole."""
    written = ["x" * 4000, "short", *(f"{number}=${{header.X-{number}}}" for number in range(40)), "${subject}"]
    source = rule_of("size: {over: 1}", f"pipe: {{program: spool, arguments: {json.dumps(written)}}}")
    long = "".join(f"X-{number}: {chr(0x4F60) * 1400}\n" for number in range(40)).encode()
    given = decide_text(source, long + MESSAGE).deliveries[0].to_json()["arguments"]
    assert sum(len(one.encode()) + 1 for one in given) <= 48 * 1024
    assert (given[0], given[1], given[-1]) == ("x" * 4000, "short", "Café invoice 2024")
    assert all(one.startswith(f"{number}={chr(0x4F60) * 300}") for number, one in enumerate(given[2:-1]))


def test_an_answer_beside_a_refusal() -> None:
    """Who is refused is not answered as well."""
    _, problems = load(b"rules:\n- {name: it, then: [{vacation: x}, reject]}\n", "f", site=False)
    assert "the refusal is answer enough" in str(problems[0])


@pytest.mark.parametrize("word", sorted(CAN))
def test_an_edge_names_what_it_can(word: str) -> None:
    """Each word that not every edge can carry out is a problem where it is not named."""
    cases = {
        "rate": ("if", "rate: {by: sender, over: 1, within: 1 h}"),
        "duplicate": ("if", "duplicate: yes"),
        "command": ("if", "command: scan"),
    }
    found = next((one for one in DONE.values() if one[2]["action"] == word), None)
    others = {"flag": "[{file: A}, {flag: seen}]", "log": "log: x", "script": "script: blog.py"}
    action = others.get(word) or (found[0] if found else "")
    condition = cases[word][1] if word in cases else ANY
    site = found[1] if found else False
    source = (LISTS + rule_of(condition, action or "stop")).encode()
    for can, good in (((), False), ((word,), True)):
        policy, problems = load(source, "f", site=site, programs=("scan", "spool"), can=can, read_script=lambda _: b"")
        assert (policy is not None) is good, problems
        assert good or "cannot be used here yet" in str(problems[0])
