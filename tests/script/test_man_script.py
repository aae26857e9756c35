"""milterapp-script(7) names what there is, and its examples run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from milterapp import script
from milterapp.commands.main import COMMANDS
from milterapp.delivery.sandbox import Bounds
from milterapp.rules.load import load
from milterapp.script.actions import File, Header, Reject, Reply, Store
from milterapp.script.bounce import Bounce
from milterapp.script.examining import examine
from milterapp.script.load import MODULES
from milterapp.script.mail import Attachment, Mail, Person
from milterapp.script.memory import Remembered
from milterapp.script.plan import Plan, PlanLimits
from milterapp.script.untrusted import Untrusted
from milterapp.testing import Application
from tests.script.sample import planned
from tests.script.test_run import HARD, report

SOURCE = (Path(__file__).parents[2] / "man/milterapp-script.7").read_text()
PAGE = re.sub(r"\\f[BIR]", "", SOURCE).replace("\\-", "-")
EXAMPLES = re.findall(r"^\.EX\n(.*?)^\.EE$", PAGE, re.MULTILINE | re.DOTALL)


def names(kind: type) -> set[str]:
    """Return the public names of a class."""
    return {name for name in vars(kind) if not name.startswith("_")} - {"index"}


@pytest.mark.parametrize("kind", [Mail, Person, Attachment, Bounce, Untrusted], ids=lambda one: one.__name__)
def test_names(kind: type) -> None:
    """Everything that a script can ask or do stands in the page."""
    assert {name for name in names(kind) if not re.search(rf"\b{name}\b", PAGE)} == set()


def test_public_names() -> None:
    """So do the names to import."""
    assert {name for name in script.__all__ if not re.search(rf"\b{name}\b", PAGE)} == set()


def test_modules() -> None:
    """The page lists the modules that can be imported, those and no others."""
    listed = PAGE.partition(".SH WHAT A SCRIPT CAN IMPORT\n")[2].partition(".SH")[0].split()
    assert sorted(listed) == sorted(one for one in MODULES if not one.endswith("."))


def test_limits() -> None:
    """The page gives every limit that an author can meet, with its value."""
    text = PAGE.partition(".SH LIMITS\n")[2].partition(".SH")[0]
    shown = dict(re.findall(r'([a-z]+) "? ?(?:and " )?([0-9]+)', text.replace('" ', " ")))
    bounds, limits = Bounds(), PlanLimits()
    want = {one.name: getattr(limits, one.name) for one in dataclasses.fields(limits)}
    want |= {"memory": bounds.memory >> 20, "cpu": bounds.cpu, "wall": int(bounds.wall)}
    want |= {"output": bounds.output >> 20, "questions": bounds.questions}
    assert {name: int(value) for name, value in shown.items() if name in want} == want


def test_the_plain_example() -> None:
    """The first example files an order, and nothing else."""
    source = EXAMPLES[1]
    assert planned(source, raw=b"Subject: Order 17\n\n").actions == (File(("Orders", "17")),)
    assert planned(source, raw=b"Subject: Order ../x\n\n").actions == ()
    assert planned(source, raw=b"List-Id: <../a.example>\n\n").actions == (File(("Lists", "_._a.example")),)


def test_the_application_example() -> None:
    """The second example keeps a state for each list."""
    source, member = EXAMPLES[2], Remembered({("dev",): "MEMBER"})
    subscribed = planned(source, to="dev-subscribe@h")
    assert subscribed == Plan((Store("dev/count", False, "1"), Reply("Welcome to dev.")), "MEMBER", ("dev",))
    assert planned(source, member, to="dev@h").actions == (Reply("Grüße has arrived."),)
    assert planned(source, member, to="dev-unsubscribe@h").state == "START"
    bounced = planned(source, to="dev-bounce@h", sender="", raw=report(HARD, "Action: failed", "Status: 5.1.1"))
    assert bounced.actions == (Store("bob@example.net", True, '"5.1.1"'),)


def test_the_sites_example() -> None:
    """The example under "In the site's rules" refuses and edits, and has nothing that has no place there."""
    (source,) = [one for one in EXAMPLES if "screen savers" in one]
    assert examine(source.encode(), "example", site=True) == b"[]"
    part = b"Content-Type: application/octet-stream\nContent-Disposition: attachment; filename=a.scr\n\nx\n"
    assert planned(source, raw=part).actions == (Reject("5.7.1", "No screen savers, please"),)
    assert planned(source, raw=b"Subject: x\n\n").actions == (Header("add_header", "X-Odd", "no date"),)
    assert planned(source, raw=b"Date: x\n\n").actions == ()


TUTORIAL = re.findall(r"^\.EX\n(.*?)^\.EE$", PAGE.partition(".SH TUTORIAL\n")[2], re.MULTILINE | re.DOTALL)
TABLE = PAGE.partition(".SH FROM LAMSON OR SALMON\n")[2].partition(".SH")[0]


def test_the_tutorial(tmp_path: Path) -> None:
    """Each step of the tutorial does what it says, its test included."""
    rule, thanks, counting, page, asking, test = TUTORIAL
    policy, problems = load(rule.encode(), "rules.yaml", site=False, read_script=lambda _: b"")
    assert policy is not None, problems
    script, template = tmp_path / "guests.py", tmp_path / "guests.html"
    template.write_text(page)
    script.write_text(thanks)
    with Application(script, user="ana@example.org") as book:
        said = book.say("ana+guests@example.org", sender="bo@example.net", subject="x")
        assert (said.letter.text, said.kept) == ("Thank you for: x\n", True)
    script.write_text(counting)
    with Application(script, user="ana@example.org") as book:
        for number in (1, 2):
            said = book.say("ana+guests@example.org", sender="bo@example.net", subject=f"<{number}>")
            assert said.letter.text == f"You are guest number {number}\n"
        assert book.outputs["index.html"].endswith("<p>&lt;1&gt;</p>\n<p>&lt;2&gt;</p>\n")
    script.write_text(asking)
    made: list[Application] = []

    def mailapp(name: str, user: str) -> Application:
        made.append(Application(tmp_path / name, user=user))
        return made[-1]

    names: dict[str, Any] = {}
    exec(test, names)
    names["test_a_guest"](mailapp)
    again = made[0].say("ana+guests@example.org", sender="bo@example.net").letter
    assert again.text == "You are in the book already.\n"
    made[0].close()


def test_the_table() -> None:
    """Every name of ours beside one of Lamson's is there."""
    right = [row.split("\n", 1)[1] for row in TABLE.split(".TP\n.B ")[1:]]
    text = "\n".join(right)
    assert len(right) > 15
    assert set(re.findall(r"mail\.(\w+)", text)) <= names(Mail)
    assert set(re.findall(r"\b(confirm|output|store|template|route|stateless)\b", text)) <= set(script.__all__)
    assert re.findall(r"milterapp (\w+)", text) == ["routes"]
    assert "routes" in COMMANDS
    assert set(re.findall(r"\b(sent|letters|state|say|deliver)\b", text)) == {
        "sent",
        "letters",
        "state",
        "say",
        "deliver",
    }
    assert all(hasattr(Application, name) for name in ("say", "deliver", "state"))
    assert all(one in PAGE for one in ("per=", "@stateless", "mailapp"))


def test_the_rule_that_calls_it() -> None:
    """The first example of all is a rule that can be used."""
    policy, problems = load(EXAMPLES[0].encode(), "example", site=False, read_script=lambda _: b"")
    assert policy is not None, problems


def test_the_readmes_example() -> None:
    """What README.md shows is a script that does what it says."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    joined = planned(source, to="bob+join@example.org")
    assert joined.state == "MEMBER"
    assert [one.word for one in joined.actions] == ["store", "output", "reply"]
    posted = planned(source, Remembered({(): "MEMBER"}), to="bob+news@example.org")
    assert [one.word for one in posted.actions] == ["send"]
