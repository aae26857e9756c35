"""Expectations: what a test beside the rules, or `--expect`, says of a Decision.

Must never: be met by a decision that could not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.deliveries import Delivery, File, Forward, Keep, Pipe, Send, SendReply, Vacation
from milterapp.rules.problem import near_miss

__all__ = ["WORDS", "Expectation"]

DELIVERIES = ("keep", "file", "forward", "reply", "vacation", "pipe", "send")
WORDS = (*(verdict.value for verdict in Verdict), *DELIVERIES)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One expectation. word: a verdict or a delivery; argument: `Lists/Python` of `file`, part of a reply's text, …

    `rule` and `no_rule` expect a rule of that name to match or not, `edit` an edit such as `add_header X-Spam: yes`,
    `banner` and the like a part of its text, `tag` a tag, `score` a number, `log` a part of a line.
    """

    word: str
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read `reject`, `keep`, `file:Lists/Python`, `forward:a@example.org`; raises ValueError with what is known."""
        word, _, argument = text.partition(":")
        if word not in WORDS or (argument and word not in DELIVERIES):
            raise ValueError(
                f"found {text!r}, expected one of {', '.join(WORDS)}, as in file:Lists/Python{near_miss(word, WORDS)}"
            )
        return cls(word, argument.strip())

    def __str__(self) -> str:
        return f"{self.word}: {self.argument}" if self.argument else self.word

    def unmet(self, decision: Decision) -> str:
        """Return "" where the decision is as expected, otherwise what it is instead."""
        if decision.could_not_tell:
            return f"it could not be told: {decision.could_not_tell}"
        return "" if self.met(decision) else f"it came to {summary(decision)}"

    def met(self, decision: Decision) -> bool:
        """Return whether the decision is as expected."""
        if self.word in ("rule", "no_rule"):
            return (self.argument in decision.matched) is (self.word == "rule")
        if self.word == "edit":
            return any(describe(edit.to_json()) == self.argument for edit in decision.changes)
        if self.word in PARTS_OF:
            part = "" if self.word == "drop_attachments" else self.argument
            made = [edit.to_json() for edit in decision.changes]
            return any(one["action"] == self.word and part in str(one.get("text", "")) for one in made)
        if self.word in LEFT:
            return LEFT[self.word](decision, self.argument)
        if self.word in DELIVERIES:
            return any(_is(delivery, self.word, self.argument) for delivery in decision.deliveries)
        said = not self.argument or self.argument in str(decision.reply)
        return decision.verdict is Verdict(self.word) and said


# What rules leave beside edits and deliveries.
LEFT: dict[str, Callable[[Decision, str], bool]] = {
    "tag": lambda decision, argument: argument.lower() in decision.tags,
    "score": lambda decision, argument: f"{decision.score:g}" == argument,
    "log": lambda decision, argument: any(argument in line for line in decision.log),
}
# Edits of which an expectation has a part of the text.
PARTS_OF = ("banner", "footer", "replace_body", "drop_attachments")


def _is(delivery: Delivery, word: str, argument: str) -> bool:
    if isinstance(delivery, Keep):
        return word == "keep"
    if isinstance(delivery, File):
        return word == "file" and argument in ("", "/".join(delivery.folder))
    if isinstance(delivery, Forward | Send):
        return word == delivery.to_json()["action"] and argument.lower() in ("", delivery.to.lower())
    if isinstance(delivery, Pipe):
        return word == "pipe" and argument in ("", delivery.program)
    if isinstance(delivery, Vacation):
        return word == "vacation" and argument in delivery.text
    return isinstance(delivery, SendReply) and word == "reply" and argument in delivery.text


MAIN = ("prefix", "text", "sender", "address", "to", "program")


def describe(edit: dict[str, Any]) -> str:
    """Return an edit as an expectation writes it: `add_header X-Spam: yes`, `remove_header X-Spam`."""
    words = str(edit["action"])
    if "name" in edit:
        return words + f" {edit['name']}" + (f": {edit['value']}" if "value" in edit else "")
    main = next((str(edit[key]) for key in MAIN if key in edit), "")
    return f"{words} {main}".rstrip() if words not in PARTS_OF else f"{words} {_shown(edit)}".rstrip()


def _shown(edit: dict[str, Any]) -> str:
    text = " ".join(str(edit.get("text", edit.get("note", ""))).split())
    return text if len(text) <= 60 else text[:60] + "…"


def summary(decision: Decision) -> str:
    """Return a decision in a line: verdict, deliveries, edits."""
    words = [decision.verdict.value]
    if decision.reply:
        words[0] += f" ({decision.reply})"
    words += [
        f"{one.verdict.value} for {one.address}"
        for one in decision.recipients
        if one.verdict not in (Verdict.NONE, decision.verdict)
    ]
    for delivery in decision.deliveries:
        shown = delivery.to_json()
        words.append(":".join(str(shown[key]) for key in ("action", "folder", "to", "program") if key in shown))
    words += [describe(edit.to_json()) for edit in decision.changes]
    return ", ".join(words)
