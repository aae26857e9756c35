"""What submit is told of the site's settings.

Must never: do anything; it is values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milterapp.mail.limits import Limits

__all__ = ["SubmitPolicy"]

_LINES = 100  # of agents at once, at least; each has one while it has a message
_BESIDE = 20  # requests about one message: keeps, replies, notices, and some that are refused


@dataclass(frozen=True, slots=True)
class SubmitPolicy:
    """The site's settings as submit needs them (milterapp.yaml(5), `submit`); seconds, paths. keep: `delivery.keep`.

    lines: how many agents may ask at once; output: bytes that a program may write, and so the message it filtered have.
    """

    state: str
    hand_back: str
    send: str
    hand_back_virtual: str = ""
    forward_sender: str = "envelope"
    forwards: int = 4
    reply_interval: float = 7 * 86400.0
    timeout: float = 60.0
    delimiter: str = "+"
    limits: Limits = field(default_factory=Limits)
    keep: str = "postfix"
    script_replies: int = 10
    daily_replies: int = 200
    script_recipients: int = 20
    script_domains: tuple[str, ...] = ()
    lines: int = _LINES
    output: int = 0

    @property
    def requests(self) -> int:
        """Return how many requests may come over the line of one message; an agent marks what was refused, too."""
        return self.forwards + 2 * self.script_recipients + _BESIDE  # a script forwards as often as it sends

    @classmethod
    def from_site(cls, settings: Mapping[str, Any]) -> SubmitPolicy:
        """Return submit's part of `dataclasses.asdict(Settings())`, or of that as JSON."""
        own = {name: value for name, value in settings["submit"].items() if name != "socket"}
        own["script_domains"] = tuple(one.lower() for one in own["script_domains"])
        delivery, limits = settings["delivery"], Limits(**settings["limits"])
        return cls(
            **own,
            delimiter=delivery["recipient_delimiter"],
            limits=limits,
            keep=delivery["keep"],
            script_recipients=delivery["script_recipients"],
            lines=max(_LINES, delivery["agents"]),
            output=max((one["output"] for one in settings["programs"].values()), default=0),
        )
