"""What the log says of one message: who, what matched, what was answered, how long it took. Nothing of the message.

Must never: log a body, a header value, or more of an edit than its header's name or its address; a rule's `log` is its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from milterapp.mail.edits import Edit
from milterapp.rules.decision import Decision, EnvelopeEdit, Verdict

__all__ = ["Happening", "fields_of"]


@dataclass(frozen=True, slots=True)
class Happening:
    """A message, or a refusal before there was one.

    sender: None before MAIL. fault: why the rules did not decide; answer: what was said then. undone: edits of the body
    that could not be carried out, and why.
    """

    queue_id: str
    client: str
    client_name: str
    helo: str
    login: str
    sender: str | None
    recipients: tuple[str, ...]
    decision: Decision
    fault: str = ""
    answer: str = ""
    undone: tuple[str, ...] = ()


def fields_of(happening: Happening, observers: Mapping[str, str], milliseconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the event's fields in reading order; what there is nothing to say of is None and left out.

    observers: by the name of each rule that only observes, the words of its actions.
    """
    decision = happening.decision
    return {
        "queue_id": happening.queue_id or "NOQUEUE",
        "client": happening.client or "local",
        "client_name": happening.client_name or None,
        "helo": happening.helo or None,
        "login": happening.login or None,
        "sender": None if happening.sender is None else f"<{happening.sender}>",
        "recipients": list(happening.recipients) or None,
        "verdict": decision.verdict.value if not happening.fault else happening.answer,
        "reply": None if decision.reply is None else str(decision.reply),
        "stage": None if decision.stage is None else decision.stage.word,
        "rules": [one for one in decision.matched if one not in observers] or None,
        "would_have": [f"{one}: {observers[one]}" for one in decision.matched if one in observers] or None,
        "refused": _recipients(decision, Verdict.REJECT, Verdict.DEFER),
        "removed": _recipients(decision, Verdict.DISCARD),
        "exempt": _recipients(decision, Verdict.ACCEPT),
        "edits": [_edit(one) for one in (*decision.edits, *decision.envelope)] or None,
        "undone": list(happening.undone) or None,
        "tags": list(decision.tags) or None,
        "score": decision.score or None,
        "log": list(decision.log) or None,
        "hold": decision.hold_reason or None if decision.verdict is Verdict.HOLD else None,
        "fault": happening.fault or None,
        "ms": round(sum(milliseconds.values()), 2),
        "ms_by_step": {step: round(spent, 2) for step, spent in milliseconds.items() if spent >= 0.01} or None,
    }


def _recipients(decision: Decision, *verdicts: Verdict) -> list[str] | None:
    """Return the recipients for which the rules had an answer that is not the message's."""
    others = [one for one in decision.recipients if one.verdict is not decision.verdict]
    return [one.address for one in others if one.verdict in verdicts] or None


def _edit(edit: Edit | EnvelopeEdit) -> str:
    said = edit.to_json()
    what = next((said[key] for key in ("name", "sender", "address", "to") if said.get(key)), "")
    return f"{said['action']}:{what}" if what else str(said["action"])
