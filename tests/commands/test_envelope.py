"""What no option says of the envelope is taken from what the message remembers, and the output says from where."""

from __future__ import annotations

import argparse
import os

import pytest

from milterapp.commands import envelope
from milterapp.commands.failure import Failure
from milterapp.mail.message import Mail

HEAD = "From: Dora <dora@home.example>\nTo: Team: bob@example.org, alice+shop@example.org;\nSubject: hello\n"

SENDER = {
    "option": ("Return-Path: <a@b.example>\n", ["--sender", "x@y.example"], "x@y.example", None),
    "option-in-brackets": ("", ["--sender", "<x@y.example>"], "x@y.example", None),
    "null-option": ("Return-Path: <a@b.example>\n", ["--sender", ""], "", None),
    "null-option-in-brackets": ("", ["--sender", "<>"], "", None),
    "return-path": ("Return-Path: <a@b.example>\n", [], "a@b.example", "sender: from Return-Path"),
    "topmost-return-path": ("Return-Path: <1@b.example>\nReturn-Path: <2@b.example>\n", [], "1@b.example", "sender: f"),
    "null-return-path": ("Return-Path: <>\n", [], "", "sender: from Return-Path"),
    "from": ("", [], "dora@home.example", "sender: from From, as there is no Return-Path"),
}
RECIPIENT = {
    "option": ("Delivered-To: alice@example.org\n", ["--recipient", "z@example.org"], ("z@example.org",), None),
    "delivered-to": ("Delivered-To: alice@mx.example.org\n", [], ("alice@mx.example.org",), "recipient: from Deliv"),
    "delivered-to-another": ("Delivered-To: bob@mx.example.org\n", [], ("alice+shop@example.org",), "recipient: the a"),
    "original-to": ("X-Original-To: alice+x@example.org\n", [], ("alice+x@example.org",), "recipient: from X-Orig"),
    "named-in-to": ("", [], ("alice+shop@example.org",), "recipient: the address in To, Cc or Bcc that has"),
}


def parsed(*options: str) -> argparse.Namespace:
    """Return the options of a session."""
    parser = argparse.ArgumentParser()
    envelope.arguments(parser)
    return parser.parse_args(options)


def assumed(head: str, options: list[str], user: str = "alice") -> envelope.Assumed:
    """Return what is assumed of a message with these fields."""
    return envelope.envelope_of(parsed(*options), Mail((head + HEAD + "\nhello\n").encode()), user, "+")


@pytest.mark.parametrize(("head", "options", "want", "note"), SENDER.values(), ids=SENDER)
def test_sender(head: str, options: list[str], want: str, note: str | None) -> None:
    """The sender is the option's, or Return-Path's, or From's."""
    got = assumed(head, options)
    assert got.envelope.sender == want
    assert any(one.startswith("sender") for one in got.notes) == bool(note)
    assert note is None or any(one.startswith(note) for one in got.notes)


@pytest.mark.parametrize(("head", "options", "want", "note"), RECIPIENT.values(), ids=RECIPIENT)
def test_recipient(head: str, options: list[str], want: tuple[str, ...], note: str | None) -> None:
    """The recipient is the option's, or the one of the person's that the message names."""
    got = assumed(head, options)
    assert got.envelope.recipients == want
    assert any(one.startswith("recipient") for one in got.notes) == bool(note)
    assert note is None or any(one.startswith(note) for one in got.notes)


def test_recipient_of_a_stranger() -> None:
    """A person whom the message does not name is delivered to on this host."""
    assert assumed("", [], "carol").envelope.recipients == ("carol@localhost",)


def test_recipients_of_the_site() -> None:
    """For the site everybody whom the message names is a recipient, once."""
    got = assumed("Cc: bob@example.org\n", [], "")
    assert got.envelope.recipients == ("bob@example.org", "alice+shop@example.org")


CLIENT = {
    "none": ([], "", False),
    "ipv4": (["--client", "192.0.2.1"], "192.0.2.1", False),
    "ipv6": (["--client", "2001:DB8:0::1"], "2001:db8::1", False),
    "literal": (["--client", "[IPv6:2001:db8::1]"], "2001:db8::1", False),
    "local": (["--client", "local"], "", True),
}


@pytest.mark.parametrize(("options", "client", "local"), CLIENT.values(), ids=CLIENT)
def test_client(options: list[str], client: str, local: bool) -> None:
    """The client is an address, this host, or not known."""
    got = assumed("", options).envelope
    assert (got.client, got.local) == (client, local)


@pytest.mark.parametrize("text", ["localhost", "192.0.2.0/24", "192.0.2", "::1::"])
def test_no_client(text: str) -> None:
    """What is no address is a usage error."""
    with pytest.raises(Failure) as caught:
        assumed("", ["--client", text])
    assert caught.value.code == os.EX_USAGE
