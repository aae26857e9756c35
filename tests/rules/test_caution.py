"""Tests of warnings: each about what it names, none where the rule is careful."""

from __future__ import annotations

import pytest

from milterapp.rules.load import load

SIGNED = "`{}` breaks the DKIM signature of a message that has one; whoever it goes to sees that"
BARE = "anybody can write that From, and `{}` spares the message what follows; ask `auth` as well"
EVADED = "a sender evades this with a header: whoever writes the message decides whether it is {}"
LATER = "- {name: later, if: {subject: x}, then: discard}\n"

# name: (whether a site rule, if, then, rules that follow, the warning with its column in `if` or `then`)
CASES = {
    "a subject": (True, "tls: yes", "{prefix_subject: x}", "", ("then", 1, SIGNED.format("prefix_subject"))),
    "a banner": (True, "tls: yes", "[stop, {banner: x}]", "", ("then", 8, SIGNED.format("banner"))),
    "a signed header": (True, "tls: yes", "{set_header: {From: x}}", "", ("then", 1, SIGNED.format("set_header"))),
    "a header of no interest": (True, "tls: yes", "{set_header: {X-A: x}}", "", None),
    "an added header": (True, "tls: yes", "{add_header: {X-A: x}}", "", None),
    "mail that begins here": (True, "authenticated: yes", "{footer: x}", "", None),
    "mail that does not": (True, "authenticated: no", "{footer: x}", "", ("then", 1, SIGNED.format("footer"))),
    "a personal edit": (False, "kind: list", "{prefix_subject: x}", "", None),
    "a personal edit of what is sent on": (
        False,
        "kind: list",
        "[{prefix_subject: x}, {forward: a@b.example}]",
        "",
        ("then", 2, SIGNED.format("prefix_subject")),
    ),
    "accept by From": (True, "from: a@b.example", "accept", "", ("if", 1, BARE.format("accept"))),
    "accept by From and proof": (True, "{from: a@b.example, auth: {dmarc: pass}}", "accept", "", None),
    "accept by From and client": (True, "{from: a@b.example, client: 192.0.2.1}", "accept", "", None),
    "accept by proof": (True, "auth: {dmarc: pass}", "accept", "", None),
    "keep before a discard": (False, "from: a@b.example", "keep", LATER, ("if", 1, BARE.format("keep"))),
    "keep before nothing": (False, "from: a@b.example", "keep", "", None),
    "file before a discard": (False, "from: a@b.example", "{file: A}", LATER, None),
    "refuse what is no list": (True, "not: {kind: list}", "reject", "", ("if", 7, EVADED.format("list"))),
    "answer what is no list": (False, "not: {kind: list}", "{reply: x}", "", None),
    "refuse a list": (True, "kind: list", "reject", "", None),
}


@pytest.mark.parametrize(("site", "asked", "then", "later", "wanted"), CASES.values(), ids=CASES)
def test_a_warning(site: bool, asked: str, then: str, later: str, wanted: tuple[str, int, str] | None) -> None:
    """The rule is used all the same, and what may not be meant is said at its place."""
    asked = asked.strip("{}") if asked.startswith("{from") else asked
    asked = asked.replace(", auth: {dmarc: pass", "\n    auth: {dmarc: pass}").replace(", client", "\n    client")
    source = f"rules:\n- name: it\n  if:\n    {asked}\n  then:\n    {then}\n{later}"
    policy, problems = load(source.encode(), "f", site=site, authserv_ids=("mx.example.com",))
    assert policy is not None, problems
    lines = source.splitlines()
    found = None
    if wanted is not None:
        line = lines.index("  if:" if wanted[0] == "if" else "  then:") + 2
        found = f"f:{line}:{wanted[1] + 4}: warning: {wanted[2]}"
    assert [str(one) for one in problems] == ([] if found is None else [found])
