"""The condition on Authentication-Results: `auth`.

Must never: believe a field of anybody but the servers that the site names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from milterapp.mail import auth
from milterapp.mail.envelope import Stage, split_address
from milterapp.rules.conditions import Read, Sought
from milterapp.rules.facts import Facts

__all__ = ["METHODS", "Auth"]

# RFC 8601 and the registry it began, "Email Authentication Methods".
METHODS = (
    "spf", "dkim", "dmarc", "arc", "iprev", "auth", "dkim-adsp", "dkim-atps", "dnswl", "domainkeys", "sender-id",
    "smime", "rrvs", "vbr", "bimi",
)  # fmt: skip
# Whom a result is about, by its properties.
DOMAINS = ("header.d", "header.from", "smtp.mailfrom", "smtp.helo")


def _domains(one: auth.Result) -> tuple[str, ...]:
    found = (one.property(name) for name in DOMAINS)
    return tuple(dict.fromkeys(split_address(value)[1] or value for value in found if value))


@dataclass(frozen=True, slots=True)
class Auth(Sought):
    """What the site's own servers found out about who sent the message, by method: `auth: {dmarc: pass}`, with `spf`,
    `dkim`, `dmarc`, `arc`, `iprev` and what else RFC 8601 has. A test is of the result's word; beside it `domain` is
    of whom it is about: `auth: {dkim: {is: pass, domain: .example.org}}`. Several methods must all hold. Only
    Authentication-Results of the servers that the setting `authserv_ids` names count; without the setting `auth` is
    an error.
    """

    word = "auth"
    stage = Stage.HEADERS
    parts: ClassVar[Read] = {
        "": ("text", lambda one, _: (one.result,)),
        "domain": ("domain", lambda one, _: _domains(one)),
    }

    method: str = ""
    ids: tuple[str, ...] = ()

    def field(self) -> tuple[str, str]:
        """Return the word and the method."""
        return self.word, self.method

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the results of the method."""
        return auth.auth(facts.message, self.ids).get(self.method, ())

    def show(self, occurrence: Any) -> str:
        """Return a result as a trace shows it."""
        return " ".join((f"{occurrence.method}={occurrence.result}", *_domains(occurrence)))
