"""Tests of what milterapp.rules.load finds wrong, each at its place and with what to write instead."""

from __future__ import annotations

import pytest

from milterapp.rules.load import load
from tests.rules.helpers import rule_of

LISTS = "lists:\n  family: [mum@example.org]\n"

# name: (condition in one line, its problem from the column in that line on)
CONDITIONS = {
    "unknown": ("subjet: x", "1: unknown condition 'subjet', did you mean 'subject'?"),
    "unknown operator": (
        "subject: {contain: x}",
        (
            "11: unknown operator: 'contain', did you mean 'contains'?; known: is, contains, starts, ends, glob, regex,"
            " in, over, under, exists, count, case"
        ),
    ),
    "operator elsewhere": (
        "client: {contains: x}",
        "10: unknown operator here: 'contains'; known: is, in, exists, count",
    ),
    "address without @": (
        "from: bob",
        "7: 'bob' is no address, expected one such as bob@example.org",
    ),
    "name of a list": (
        "from: family",
        "7: 'family' is no address, expected one such as bob@example.org, did you mean {in: family}?",
    ),
    "nearly the name of a list": (
        "from: famly",
        "7: 'famly' is no address, expected one such as bob@example.org, did you mean {in: family}?",
    ),
    "a domain as address": (
        "from: example.org",
        "7: 'example.org' is no address, expected one such as bob@example.org, did you mean {domain: example.org}?",
    ),
    "an address as domain": (
        "from: {domain: a@example.org}",
        "16: 'a@example.org' is an address, expected a domain such as example.org",
    ),
    "unknown list": ("from: {in: famly}", "12: no list 'famly', did you mean 'family'?"),
    "brackets": (
        "subject: {contains: [SPAM]}",
        "21: a list of one, 'SPAM'; for the brackets quote it, thus: '[SPAM]'; for the text alone leave them out",
    ),
    "brackets alone": (
        "subject: [SPAM]",
        "10: a list of one, 'SPAM'; for the brackets quote it, thus: '[SPAM]'; for the text alone leave them out",
    ),
    "backslash in double quotes": (
        'subject: {regex: "\\bx\\b"}',
        "18: a backslash in a double-quoted pattern; write it in single quotes, thus: '\\bx\\b'",
    ),
    "look-ahead": (
        "subject: {regex: 'a(?=b)'}",
        "18: the pattern 'a(?=b)' has a look-ahead, which linear-time matching does not have",
    ),
    "back-reference": (
        r"subject: {regex: '(a)\1'}",
        (
            "18: the pattern '(a)\\\\1' has a backslash before a character it means nothing to (back-references are not"
            " there)"
        ),
    ),
    "unclosed group": ("subject: {regex: '(a'}", "18: the pattern '(a' has a parenthesis that is not closed"),
    "a group closed too early": (
        "subject: {regex: 'a)|(b'}",
        "18: the pattern 'a)|(b' has a parenthesis that was not opened",
    ),
    "a long pattern": (f"subject: {{regex: {'a' * 1025}}}", "18: a pattern of 1025 characters, expected at most 1024"),
    "a pattern too large": (
        "subject: {regex: '((a{100}){100}){100}'}",
        "18: the pattern '((a{100}){100}){100}' has a repetition of more than 1000, alone or multiplied",
    ),
    "host bits": (
        "client: 192.0.2.7/24",
        "9: found '192.0.2.7/24', expected an IP address or network such as 192.0.2.0/24, did you mean '192.0.2.0/24'?",
    ),
    "no network": (
        "client: mx.example",
        "9: found 'mx.example', expected an IP address or network such as 192.0.2.0/24",
    ),
    "no size": ("size: {over: 10 MX}", "14: found '10 MX', expected a size such as 500 kB, 10 MB or 10 MiB"),
    "no number": ("recipients: many", "13: found 'many', expected a whole number"),
    "no flag": ("tls: maybe", "6: found 'maybe', expected yes or no"),
    "no kind": (
        "kind: lists",
        "7: found 'lists', expected list, bulk, bounce, auto-reply, encrypted or signed, did you mean 'list'?",
    ),
    "nothing asked": ("subject: {case: yes}", "10: nothing is asked here, expected an operator such as contains"),
    "exists no and more": (
        "subject: {exists: no, is: x}",
        "10: `exists: no` beside another operator, expected it alone; see `not`",
    ),
    "dotted extension": (
        "attachment: {extension: .exe}",
        "25: found '.exe', expected it without the dot, did you mean 'exe'?",
    ),
    "attachment alone": (
        "attachment: x.exe",
        "13: found 'x.exe', expected a mapping of name, type, extension, size, exists, count",
    ),
    "header alone": ("header: X-Spam", "9: found 'X-Spam', expected a name and a test: {X-Spam-Flag: yes}"),
    "header name": (
        "header: {'X Y': z}",
        "10: 'X Y' cannot be a header field's name: at most 76 printable ASCII, no blank or ':'",
    ),
    "any of a mapping": (
        "any: {subject: x, tls: yes}",
        "6: found a mapping, expected a list: begin each condition with `- `",
    ),
    "not of several": (
        "not: {subject: x, tls: yes}",
        "6: `not` takes exactly one condition; for neither of several: `not: {any: [...]}`",
    ),
    "not of a list": (
        "not: [subject: x]",
        "6: `not` takes exactly one condition; for neither of several: `not: {any: [...]}`",
    ),
    "null sender": ("sender: '<>'", "9: the null sender has no address, expected {exists: no}"),
}

# name: (then in one line, its problem from the column in that line on)
ACTIONS = {
    "unknown": ("rejct", "1: unknown action 'rejct', did you mean 'reject'?"),
    "two in one": (
        "{reject: a, stop: b}",
        "1: `reject` and `stop` in one action, expected a list of actions: begin each with `- `",
    ),
    "argument missing": ("add_header", "1: `add_header` needs its headers: `add_header: …`"),
    "argument too many": ("{stop: now}", "8: `stop` takes no argument, found 'now'"),
    "unknown argument": (
        "{reject: {test: x}}",
        "11: unknown key 'test', did you mean 'text'?; known: text, code, status",
    ),
    "code of another family": ("{reject: 450 4.7.1 no}", "10: code 450 for `reject`, expected 5xx such as 550"),
    "status of another family": ("{defer: 5.7.1 no}", "9: status 5.7.1 for `defer`, expected 4.x.x such as 4.7.1"),
    "status of other digits": (
        "{reject: {text: no, status: 5.٧.1}}",
        "10: status 5.٧.1 for `reject`, expected 5.x.x such as 5.7.1",
    ),
    "status of two numbers": (
        "{reject: {text: no, status: '5.7'}}",
        "10: status 5.7 for `reject`, expected 5.x.x such as 5.7.1",
    ),
    "code of other digits": ("{reject: {text: no, code: 55٣}}", "27: found '55٣', expected a whole number"),
    "score of other digits": ("{score: ٣}", "9: found '٣', expected a number"),
    "reply not ASCII": ("{reject: Käse}", "10: a reply with 'ä', expected ASCII: SMTP replies hold nothing else"),
    "reply of too many lines": (
        '{reject: "' + "x\\n" * 20 + 'x"}',
        "10: a reply of more than 20 lines",
    ),
    "reply with a control character": (
        '{reject: "a\\tb"}',
        "10: a reply with control characters",
    ),
    "two verdicts": ("[accept, reject]", "1: `accept` and `reject` in one rule, expected one verdict"),
    "a personal action": ("{file: A}", "2: the action 'file' cannot stand in a site rule"),
    "brackets": ("{prefix_subject: [EXT]}", "18: a list, expected a text; quote it, thus: '[EXT]'"),
    "unknown value": ("{reject: '${subjct}'}", "10: unknown value '${subjct}', did you mean 'subject'?; known: "),
    "nearly Postfix's word": (
        "{reject: '${extention}'}",
        "10: unknown value '${extention}', did you mean 'extension'?",
    ),
    "a part of what has none": (
        "{reject: '${extension.x}'}",
        "10: unknown value '${extension.x}', did you mean 'extension'?",
    ),
    "value not closed": (
        "{reject: '${subject'}",
        "10: '${subject' is not closed, expected '}'; write '$${' for a plain '${'",
    ),
    "no such group": ("{reject: '${match.x}'}", "1: no group named 'x' in a regex of the rule outside `any` and `not`"),
    "header name": (
        "{add_header: {'X:Y': z}}",
        "14: 'X:Y' cannot be a header field's name: at most 76 printable ASCII",
    ),
    "header of two lines": (
        '{add_header: {X-A: "a\\nb"}}',
        "14: a value of X-A of several lines or with control characters",
    ),
    "nested list": ("[[stop]]", "2: a list inside the list of actions, expected an action"),
}

PERSONAL = {
    "a site action": ("accept", "1: the action 'accept' cannot stand in a personal rule"),
    "no address": ("{forward: bob}", "11: 'bob' is no address, name@example.org is one"),
    "an address the message chose": (
        "{forward: '${from.address}'}",
        "1: ${from.address} is an address that the message chose",
    ),
    "part of an address": ("{forward: '${from.localpart}@example.org'}", "11: an address that the message chose"),
    "a path": ("{file: ../x}", "8: '..' cannot be a folder's name, "),
    "an absolute path": ("{file: /x}", "8: a folder begins and ends with a name, with one '/' between two levels"),
    "file and reject": (
        "[{file: A}, reject]",
        "1: `reject` and `file` in one rule; with `copy: true` the delivery is a copy",
    ),
    "a value of the session": ("{file: '${helo}'}", "1: the value ${helo} is not known in a personal rule"),
}


def problems_of(text: str, *, site: bool) -> list[str]:
    """Return the problems of a rule file, which must have some."""
    policy, problems = load((LISTS + text).encode(), "f", site=site)
    assert policy is None
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(("condition", "wanted"), CONDITIONS.values(), ids=CONDITIONS)
def test_a_wrong_condition(condition: str, wanted: str) -> None:
    """A condition that cannot be meant is one problem, at its place, with the near miss."""
    (problem,) = problems_of(rule_of(condition), site=True)
    column, _, text = wanted.partition(": ")
    assert problem.startswith(f"f:6:{int(column) + 6}: {text}")


@pytest.mark.parametrize(("then", "wanted"), ACTIONS.values(), ids=ACTIONS)
def test_a_wrong_site_action(then: str, wanted: str) -> None:
    """An action that cannot be meant is one problem, at its place."""
    (problem,) = problems_of(rule_of("tls: yes", then), site=True)
    column, _, text = wanted.partition(": ")
    assert problem.startswith(f"f:8:{int(column) + 6}: {text}")


@pytest.mark.parametrize(("then", "wanted"), PERSONAL.values(), ids=PERSONAL)
def test_a_wrong_personal_action(then: str, wanted: str) -> None:
    """A personal rule may neither do what is the site's, nor send mail where a message says."""
    (problem,) = problems_of(rule_of("subject: x", then), site=False)
    column, _, text = wanted.partition(": ")
    assert problem.startswith(f"f:8:{int(column) + 6}: {text}")


FILES = {
    "unknown key": (
        "rule:\n- x: y\n",
        [
            "f:3:1: unknown key 'rule', did you mean 'rules'?; known: lists, rules, tests",
            "f:1:1: the key 'rules' is missing",
        ],
    ),
    "no list": ("rules: x\n", ["f:3:8: found 'x', expected a list of rules: begin each with `- name: …`"]),
    "no name, no then": (
        "rules:\n- if: {tls: yes}\n",
        [
            "f:4:3: the key 'name' is missing: logs, traces and tests call the rule by it",
            "f:4:3: the key 'then' is missing",
        ],
    ),
    "near miss": (
        "rules:\n- name: a\n  thne: stop\n",
        [
            "f:4:3: the key 'then' is missing",
            "f:5:3: unknown key 'thne', did you mean 'then'?; known: name, if, then, observe, on_error",
        ],
    ),
    "a name twice": (
        "rules:\n- name: a\n  then: stop\n- name: a\n  then: stop\n",
        ["f:6:9: the name 'a' a second time, first on line 4"],
    ),
    "all at once": (
        "rules:\n- name: a\n  if: {subjet: x}\n  then: rejct\n- name: b\n  if: {tls: x}\n  then: stop\n",
        [
            "f:5:8: unknown condition 'subjet', did you mean 'subject'?",
            "f:6:9: unknown action 'rejct', did you mean 'reject'?",
            "f:8:13: found 'x', expected yes or no",
        ],
    ),
    "recipient and subject": (
        "rules:\n- name: a\n  if: {recipient: a@b.example, subject: x}\n  then: reject\n",
        [
            (
                "f:5:32: `subject` in a rule on one `recipient`; say `any_recipient` or `every_recipient`: what"
                " follows after rcpt is for all recipients"
            )
        ],
    ),
    "recipient and an edit": (
        "rules:\n- name: a\n  if: {recipient: a@b.example}\n  then: {add_header: {X-A: b}}\n",
        [
            (
                "f:6:9: `add_header` in a rule on one `recipient`; say `any_recipient` or `every_recipient`: what"
                " follows after rcpt is for all recipients"
            )
        ],
    ),
    "recipient and a later value": (
        "rules:\n- name: a\n  if: {recipient: a@b.example}\n  then: {reject: '${subject}'}\n",
        [
            (
                "f:6:9: ${subject} in a rule on one `recipient`; say `any_recipient` or `every_recipient`: what"
                " follows after rcpt is for all recipients"
            )
        ],
    ),
    "an extension and a later action": (
        "rules:\n- name: a\n  then: {add_header: {X-A: '${extension}'}}\n",
        [
            (
                "f:5:9: `add_header` in a rule on one `recipient`; say `any_recipient` or `every_recipient`: what"
                " follows after rcpt is for all recipients"
            )
        ],
    ),
    "test of an unknown rule": (
        "rules:\n- name: a\n  then: stop\ntests:\n- name: t\n  message: x\n  expect: {rule: b}\n",
        ["f:9:18: no rule 'b'"],
    ),
    "test with an unknown expectation": (
        "rules:\n- name: a\n  then: stop\ntests:\n- name: t\n  message: x\n  expect: rejct\n",
        [
            (
                "f:9:11: found 'rejct', expected one of none, accept, reject, defer, discard, hold, keep, file,"
                " forward, reply, vacation, pipe, send, as in file:Lists/Python, did you mean 'reject'?"
            )
        ],
    ),
    "test without a message": (
        "rules:\n- name: a\n  then: stop\ntests:\n- name: t\n  expect: none\n",
        ["f:7:3: the key 'message' is missing"],
    ),
}


@pytest.mark.parametrize(("text", "wanted"), FILES.values(), ids=FILES)
def test_a_wrong_file(text: str, wanted: list[str]) -> None:
    """Every problem of a file is told at once, in the order of its places."""
    assert problems_of(text, site=True) == sorted(wanted, key=lambda one: [int(n) for n in one.split(":")[1:3]])


def test_personal_rules_know_no_session() -> None:
    """What the per-recipient edge cannot know is a problem, not a condition that never holds."""
    problems = problems_of(rule_of("helo: x\nlogin: y\nany_recipient: a@b.example"), site=False)
    assert [problem.split(": ", 1)[1] for problem in problems] == [
        f"the condition {word!r} is not known in a personal rule" for word in ("helo", "login", "any_recipient")
    ]


def test_an_empty_file_is_a_problem() -> None:
    """A file cut to nothing, by an editor or a full disk, is not "no rules"."""
    policy, problems = load(b"# nothing\n", "f", site=True)
    assert policy is None
    assert [str(problem) for problem in problems] == ["f:1:1: nothing but comments, expected `rules:`"]


def test_a_late_refusal_of_one_recipient_is_warned_of() -> None:
    """A warning is told, and does not keep the file from being used."""
    text = "rules:\n- name: a\n  if: {subject: x}\n  then: accept\n"
    text += "- name: b\n  if: {recipient: a@b.example}\n  then: reject\n"
    policy, problems = load(text.encode(), "f", site=True)
    assert policy is not None
    assert [str(problem) for problem in problems] == [
        (
            "f:5:3: warning: the rule 'b' refuses one recipient, but 'a' before it needs headers and could end the"
            " rules first, so all recipients would be refused; move it up"
        )
    ]


def test_a_list_from_a_file() -> None:
    """A list's file is read by the name the rule file gives, and its problems have its own places."""
    text = b"lists:\n  bad: {file: bad.txt}\nrules:\n- name: a\n  if: {client: {in: bad}}\n  then: reject\n"

    def read_list(name: str) -> bytes:
        assert name == "bad.txt"
        return b"# clients\n192.0.2.0/24\n\nnot-a-client\n"

    policy, problems = load(text, "f", site=True, read_list=read_list)
    assert policy is None
    assert [str(problem) for problem in problems] == [
        "bad.txt:4:1: in the list 'bad': found 'not-a-client', expected an IP address or network such as 192.0.2.0/24"
    ]


def test_a_list_that_cannot_be_read() -> None:
    """A missing list is one problem where it is named, and none in the rules that ask it."""

    def read_list(name: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", name)

    text = b"lists:\n  bad: {file: bad.txt}\nrules:\n- name: a\n  if: {client: {in: bad}}\n  then: reject\n"
    _, problems = load(text, "f", site=True, read_list=read_list)
    assert [str(problem) for problem in problems] == [
        "f:2:15: the list 'bad.txt' cannot be read: No such file or directory"
    ]
