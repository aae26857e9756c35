"""milterapp-rules(5) says what the code does: every condition, operator, action and value, in the code's own words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from milterapp.rules import document, patterns
from milterapp.rules.actions import ACTIONS
from milterapp.rules.clauses import JOINTS
from milterapp.rules.expectation import WORDS as EXPECTATIONS
from milterapp.rules.finishing import MAX_TEXT
from milterapp.rules.load import KEYS, MAX_NAME, RULE_KEYS, load
from milterapp.rules.operators import OPERATORS, SUBTESTS, WORDS
from milterapp.rules.placeholders import VALUES
from milterapp.rules.reading_conditions import CONDITIONS
from tests.rules.roff import escaped, paragraph

PAGE = (Path(__file__).parents[2] / "man" / "milterapp-rules.5").read_text()

PARAGRAPHS = {
    **{f"joint {word}": (word, paragraph(one.__doc__)) for word, one in JOINTS.items()},
    **{f"condition {word}": (word, paragraph(one.__doc__)) for word, one in CONDITIONS.items()},
    **{f"operator {word}": (word, paragraph(one.__doc__)) for word, one in OPERATORS.items()},
    **{f"operator {word}": (word, paragraph(text)) for word, text in (WORDS | SUBTESTS).items()},
    **{f"action {word}": (word, paragraph(one.__doc__)) for word, one in ACTIONS.items()},
}


def flat(roff: str) -> str:
    """Return roff with its line ends gone."""
    return " ".join(roff.replace("…", "\\&.\\|.\\|.").split())


@pytest.mark.parametrize(("word", "wanted"), PARAGRAPHS.values(), ids=PARAGRAPHS)
def test_a_word_has_its_docstring_for_a_paragraph(word: str, wanted: str) -> None:
    """The page names every joint, condition, operator and action, and says of it what the code says."""
    assert flat(f".TP\n.B {escaped(word)}\n{wanted}") in flat(PAGE)


@pytest.mark.parametrize("word", VALUES)
def test_a_value_is_named(word: str) -> None:
    """The page has every value from the message, with its parts."""
    page = PAGE.partition(".SH VALUES FROM THE MESSAGE")[2].partition(".SH ")[0]
    assert f".TP\n.B {escaped(word)}\n" in page
    for part in VALUES[word].arguments or ():
        assert part in page


def test_keys_and_expectations_are_named() -> None:
    """The page has every key of the file, of a rule, and every word of `expect`."""
    bold = set(re.findall(r"(?:\\fB|^\.B )([\w-]+)", PAGE, re.MULTILINE))
    assert {*KEYS, *RULE_KEYS, *EXPECTATIONS} <= bold


def test_limits_are_those_of_the_code() -> None:
    """The numbers under LIMITS are the ones that are held to."""
    limits = PAGE.partition(".SH LIMITS")[2].partition(".SH ")[0]
    megabytes = document.MAX_SIZE // 1024**2
    numbers = (megabytes, document.MAX_DEPTH, patterns.MAX_PATTERN, MAX_NAME, MAX_TEXT, patterns.MAX_LOOSE)
    found = re.findall(r"\d+", limits.replace("1 MiB", "").partition(" places")[0])
    assert [int(number) for number in found] == list(numbers)
    assert f"{patterns.MOST_SECONDS} seconds" in limits


def examples() -> list[str]:
    """Return the page's examples as they are shown."""
    shown = re.findall(r"^\.EX\n(.*?)^\.EE", PAGE, re.MULTILINE | re.DOTALL)
    marks = {"\\&": "", "\\e": "\\", "\\-": "-", "\\(aq": "'", "\\(ga": "`", "\\(ha": "^"}
    return [re.sub("|".join(map(re.escape, marks)), lambda found: marks[found[0]], one) for one in shown]


@pytest.mark.parametrize("example", [one for one in examples() if "rules:" in one], ids=["personal", "site"])
def test_an_example_is_a_rule_file(example: str, request: pytest.FixtureRequest) -> None:
    """What the page shows can be used as it stands, its tests included."""
    policy, problems = load(example.encode(), "example", site=request.node.callspec.id == "site")
    assert [str(problem) for problem in problems if not problem.warning] == []
    assert policy is not None
