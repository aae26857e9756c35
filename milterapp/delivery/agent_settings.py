"""What an agent is told of the site's settings, as one JSON object.

Must never: import anything but the standard library; monitor and zygote carry it too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AgentSettings"]

_MARGIN = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The part of the site's settings that an agent needs (milterapp.yaml(5)).

    personal_rules, maildir: below the home unless absolute. rules_before, rules_after: the site's around them,
    or "". keep: as the site has it. broken_rules: defer or keep. reject: of refusals.WORDS.
    limits: the fields of mail.limits.Limits. deadline: seconds for one message; `working` of them are for programs and
    scripts. keep_records: seconds for which the journal remembers a message; longer than Postfix keeps trying
    (maximal_queue_lifetime). authserv_ids: as the site's.
    sandbox: the least level below which no script runs. script_recipients: of one message's sends and forwards;
    script_folders: into which one may be filed;
    script_messages: mails that a user's scripts may cause in a day; script_output: as maildir, where their files go.
    programs: as the site's, each as `dataclasses.asdict` has it.
    """

    personal_rules: str = ".milterapp/rules.yaml"
    rules_before: str = ""
    rules_after: str = ""
    maildir: str = "Maildir"
    keep: str = "postfix"
    broken_rules: str = "defer"
    reject: str = "likely"
    delimiter: str = "+"
    limits: Mapping[str, int] = field(default_factory=dict)
    deadline: float = 120.0
    keep_records: int = 30 * 86400
    authserv_ids: Sequence[str] = ()
    sandbox: str = "good"
    script_recipients: int = 20
    script_folders: int = 20
    script_messages: int = 500
    script_output: str = ".milterapp/output"
    programs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take what JSON makes of a tuple for one."""
        object.__setattr__(self, "authserv_ids", tuple(self.authserv_ids))

    @property
    def working(self) -> float:
        """Return how many seconds of the deadline are for what rules run; the rest is for carrying out and answering.

        The clock of who keeps the deadline began a little earlier: with the job, not with the agent that had to start.
        """
        return self.deadline - min(_MARGIN, self.deadline / 6)

    @classmethod
    def from_site(cls, settings: Mapping[str, Any]) -> AgentSettings:
        """Return the agent's part of `dataclasses.asdict(Settings())`, or of that as JSON."""
        delivery = settings["delivery"]
        return cls(
            personal_rules=delivery["personal_rules"],
            maildir=delivery["maildir"],
            keep=delivery["keep"],
            broken_rules=delivery["broken_rules"],
            reject=delivery["reject"],
            delimiter=delivery["recipient_delimiter"],
            limits=dict(settings["limits"]),
            deadline=delivery["deadline"],
            authserv_ids=settings.get("authserv_ids", ()),
            programs=settings.get("programs", {}),
            **{
                name: delivery[name]
                for name in (
                    "rules_before",
                    "rules_after",
                    "sandbox",
                    "script_recipients",
                    "script_folders",
                    "script_messages",
                    "script_output",
                )
            },
        )

    def to_json(self) -> str:
        """Return the settings as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AgentSettings:
        """Return the settings that to_json wrote. Raises ValueError or TypeError where it did not."""
        return cls(**json.loads(text))
