"""The envelope of a dry run: what the options say, and for the rest what the message itself remembers of its delivery.

Must never: be used outside a dry run; what stands in a message is no envelope, here it only stands in for one.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from dataclasses import dataclass

from milterapp.commands.failure import Failure
from milterapp.mail.envelope import Envelope, split_address, split_detail
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail

__all__ = ["Assumed", "arguments", "envelope_of"]

_DELIVERED = ("Delivered-To", "X-Original-To")  # Postfix local(8), pipe(8): the topmost is the last delivery's
_NAMED = ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc")


@dataclass(frozen=True, slots=True)
class Assumed:
    """An envelope, and in words what of it no option said."""

    envelope: Envelope
    notes: tuple[str, ...]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the SMTP session."""
    group = parser.add_argument_group("the session the message came in")
    group.add_argument("--sender", metavar="ADDRESS", help="envelope sender, '' for the null sender (Return-Path)")
    group.add_argument(
        "--recipient", metavar="ADDRESS", action="append", help="envelope recipient; with --site, one or more"
    )
    group.add_argument(
        "--client", metavar="IP", help="address of the SMTP client, or `local` for mail submitted on this host"
    )
    group.add_argument("--client-name", metavar="NAME", default="", help="its verified name")
    group.add_argument("--helo", metavar="NAME", default="", help="what it said in HELO or EHLO")
    group.add_argument("--login", metavar="USER", default="", help="SASL login of an authenticated client")
    group.add_argument("--tls", action="store_true", help="the session is encrypted")


def envelope_of(options: argparse.Namespace, mail: Mail, user: str, delimiter: str) -> Assumed:
    """Return the envelope. user: whose rules they are, "" for the site's. Raises Failure 64."""
    try:
        return _envelope(options, mail, user, delimiter)
    except LimitHit as limit:  # the header cannot be read whole, so it stands in for nothing
        assumed = _envelope(options, Mail(b""), user, delimiter)
        return Assumed(assumed.envelope, (*assumed.notes, str(limit)))


def _envelope(options: argparse.Namespace, mail: Mail, user: str, delimiter: str) -> Assumed:
    notes: list[str] = []
    sender = options.sender
    if sender is None:
        sender, note = _sender(mail)
        notes.append(note)
    recipients = tuple(_bare(one) for one in options.recipient or ())
    if user and len(recipients) > 1:
        raise Failure(os.EX_USAGE, "personal rules are asked for one recipient at a time: one --recipient, or --site")
    if not recipients:
        recipients, note = _recipients(mail, user, delimiter)
        notes.append(note)
    local, client = _client(options.client)
    return Assumed(
        Envelope(
            client=client,
            client_name=options.client_name,
            local=local,
            helo=options.helo,
            sender=_bare(sender),
            login=options.login,
            tls=options.tls,
            recipients=recipients,
            original_recipient="".join(mail.raw_values("X-Original-To")[:1] or recipients[:1]).strip(),
        ),
        tuple(notes),
    )


def _bare(address: str) -> str:
    """Return an envelope address without angle brackets."""
    return address[1:-1] if address.startswith("<") and address.endswith(">") else address


def _client(text: str | None) -> tuple[bool, str]:
    """Return (submitted on this host, address of the client)."""
    if not text:
        return False, ""
    if text == "local":
        return True, ""
    try:
        return False, str(ipaddress.ip_address(text.strip("[]").removeprefix("IPv6:")))
    except ValueError:
        raise Failure(os.EX_USAGE, f"--client {text!r} is no IP address, nor `local`") from None


def _sender(mail: Mail) -> tuple[str, str]:
    for text in mail.raw_values("Return-Path"):
        return text.strip(), "sender: from Return-Path"
    for address in mail.addresses("From"):
        return address.address, "sender: from From, as there is no Return-Path"
    return "", "sender: none, as there is neither Return-Path nor From"


def _recipients(mail: Mail, user: str, delimiter: str) -> tuple[tuple[str, ...], str]:
    """Return the recipients that the message speaks of, and in words which of its fields did."""
    named = tuple(one.address for one in mail.addresses(*_NAMED))
    if not user:
        return tuple(dict.fromkeys(named)), "recipients: from To, Cc and Bcc"
    for name in _DELIVERED:
        for text in mail.raw_values(name):
            if _is_users(text.strip(), user, delimiter):
                return (text.strip(),), f"recipient: from {name}"
    for address in named:
        if _is_users(address, user, delimiter):
            return (address,), "recipient: the address in To, Cc or Bcc that has the user's name"
    return (f"{user}@localhost",), "recipient: the user on this host, as the message names no other"


def _is_users(address: str, user: str, delimiter: str) -> bool:
    return split_detail(split_address(address)[0], delimiter)[0].lower() == user.lower()
