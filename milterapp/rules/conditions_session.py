"""Conditions on the session and the envelope, known before the message.

Must never: look at the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from milterapp.mail.address import Address
from milterapp.mail.envelope import Stage, split_address
from milterapp.rules.conditions import AddressField, Direct, Read, Sought
from milterapp.rules.facts import Facts
from milterapp.rules.operators import TestNumber

__all__ = ["SESSION_CONDITIONS"]

DOMAIN: Read = {"": ("domain", lambda value, _: (value,))}


def _address(text: str) -> Address:
    local, domain = split_address(text)
    return Address("", local, domain)


class Client(Sought):
    """The IP address of the SMTP client: an address or a network such as `192.0.2.0/24` or `2001:db8::/32`. A message
    submitted on this host has none.
    """

    word = "client"
    stage = Stage.CONNECT
    parts: ClassVar[Read] = {"": ("network", lambda value, _: (value,))}

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the address, if there is one."""
        return (facts.envelope.client,) if facts.envelope.client else ()


class ClientName(Sought):
    """The host name of the SMTP client as verified both ways; a client without one has none. `.example.org` is the
    domain and all below it.
    """

    word = "client_name"
    stage = Stage.CONNECT
    personal = False
    parts: ClassVar[Read] = DOMAIN

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the name, if there is one."""
        return (facts.envelope.client_name,) if facts.envelope.client_name else ()


class Helo(Sought):
    """What the client said in HELO or EHLO. Anybody can say anything there."""

    word = "helo"
    stage = Stage.HELO
    personal = False
    parts: ClassVar[Read] = DOMAIN

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the name, if one was said."""
        return (facts.envelope.helo,) if facts.envelope.helo else ()


class Sender(AddressField):
    """The envelope sender. A bounce has none: `sender: {exists: no}`."""

    word = "sender"
    stage = Stage.MAIL

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the address, if there is one."""
        return (_address(facts.envelope.sender),) if facts.envelope.sender else ()


class Login(Sought):
    """The name the client logged in with (SASL)."""

    word = "login"
    stage = Stage.MAIL
    personal = False

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the name, if there is one."""
        return (facts.envelope.login,) if facts.envelope.login else ()


@dataclass(frozen=True, slots=True)
class Flag(Direct):
    """A condition that is yes or no."""

    value: bool

    def found(self, facts: Facts) -> bool:
        """Return how it is."""
        raise NotImplementedError

    def holds(self, facts: Facts) -> bool | None:
        """Return whether it is as the rule says."""
        return self.found(facts) is self.value

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} is {'yes' if self.value else 'no'}"

    def saw(self, facts: Facts) -> str:
        """Return how it is."""
        return "yes" if self.found(facts) else "no"


class Local(Flag):
    """`yes`: the message was submitted on this host (sendmail(1)), not over SMTP."""

    word = "local"
    stage = Stage.CONNECT
    personal = False

    def found(self, facts: Facts) -> bool:
        """Return whether it was submitted here."""
        return facts.envelope.local


class Authenticated(Flag):
    """`yes`: the client logged in (SASL)."""

    word = "authenticated"
    stage = Stage.MAIL
    personal = False

    def found(self, facts: Facts) -> bool:
        """Return whether there is a login."""
        return bool(facts.envelope.login)


class Tls(Flag):
    """`yes`: the session is encrypted."""

    word = "tls"
    stage = Stage.MAIL
    personal = False

    def found(self, facts: Facts) -> bool:
        """Return whether the session is encrypted."""
        return facts.envelope.tls


class Recipient(AddressField):
    """The envelope recipient. In a site rule it is one recipient at a time, while the client names it: the rule's
    verdict is for that one, so the rule may not read anything of the message and may not change it; see
    `any_recipient`. In a personal rule it is the address that was delivered to, and the one that was first sent to,
    before aliases.
    """

    word = "recipient"
    stage = Stage.RCPT
    one_recipient = True

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return the recipient decided for, and what it was before aliases."""
        found = dict.fromkeys(filter(None, (facts.recipient, facts.envelope.original_recipient)))
        return tuple(map(_address, found))


class AnyRecipient(AddressField):
    """At least one of the envelope recipients, known when the client has named them all."""

    word = "any_recipient"
    stage = Stage.HEADERS
    personal = False

    def read(self, facts: Facts) -> Sequence[Any]:
        """Return all recipients."""
        return tuple(map(_address, facts.envelope.recipients))


class EveryRecipient(AnyRecipient):
    """Each of the envelope recipients, known when the client has named them all."""

    word = "every_recipient"
    every = True


@dataclass(frozen=True, slots=True)
class Recipients(Direct):
    """How many envelope recipients the message has: a number, or `over` and `under` one. While the client still names
    them, a rule with `over` refuses those above the number.
    """

    word = "recipients"
    stage = Stage.RCPT
    personal = False

    test: TestNumber

    def holds(self, facts: Facts) -> bool | None:
        """Return whether the number passes; at rcpt, where more may come, only what more cannot change."""
        if facts.stage == Stage.RCPT:
            return self.test.holds_from(len(facts.envelope.recipients))
        return self.test.holds(len(facts.envelope.recipients))

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        return f"{self.word} {self.test.say()}"

    def saw(self, facts: Facts) -> str:
        """Return how many there are."""
        return str(len(facts.envelope.recipients))


SESSION_CONDITIONS = (
    Client,
    ClientName,
    Local,
    Helo,
    Sender,
    Login,
    Authenticated,
    Tls,
    Recipient,
    AnyRecipient,
    EveryRecipient,
    Recipients,
)
