"""Who a recipient is: as local(8) finds it, and never a fault."""

from __future__ import annotations

import pwd
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import kinds, resolver, wire

ROOT = resolver.User("root", 0, 0, pwd.getpwnam("root").pw_dir)


@pytest.mark.parametrize(
    ("recipient", "extension"),
    [
        pytest.param("root@example.org", "", id="plain"),
        pytest.param("root", "", id="without a domain"),
        pytest.param("ROOT@example.org", "", id="upper case"),
        pytest.param("root+Lists.Python@example.org", "lists.python", id="extension"),
        pytest.param("root+a+b@example.org", "a+b", id="first delimiter splits"),
        pytest.param("root+@example.org", "", id="empty extension"),
        pytest.param('"root"@example.org', "", id="quoted"),
        pytest.param('"ro\\ot"@example.org', "", id="quoted with a backslash"),
        pytest.param('"root+a b"@example.org', "a b", id="quoted with an extension with a blank"),
        pytest.param('"root+x@y"@example.org', "x@y", id="quoted with an at sign"),
        pytest.param("root+../../etc@example.org", "../../etc", id="path as extension"),
    ],
)
def test_a_user_is_found(recipient: str, extension: str) -> None:
    """The local part, unquoted, in lower case, up to the delimiter, is the user."""
    assert resolver.resolve(recipient, "+") == (ROOT, extension)


@pytest.mark.parametrize(
    "recipient",
    [
        pytest.param("nobody-here-by-that-name@x", id="unknown"),
        pytest.param("", id="nothing"),
        pytest.param("@x", id="no local part"),
        pytest.param("+a@x", id="extension only"),
        pytest.param('""@x', id="empty quotes"),
        pytest.param('"@x', id="one quote"),
        pytest.param("-x@x", id="option"),
        pytest.param("--help@x", id="long option"),
        pytest.param("../../etc@x", id="path"),
        pytest.param("$(id)@x", id="shell"),
        pytest.param("root\x7f@x", id="delete character"),
        pytest.param("root\0@x", id="NUL"),
        pytest.param("root\n@x", id="newline"),
        pytest.param("root:x@x", id="colon"),
        pytest.param("a" * 300 + "@x", id="300 characters"),
        pytest.param("ro ot@x", id="blank"),
        pytest.param("\udcff@x", id="byte that is no UTF-8"),
        pytest.param("röot@x", id="not ASCII"),
    ],
)
def test_hostile_recipients_are_unknown(recipient: str) -> None:
    """What is no name is nobody: Postfix gets it back, and says what it always said."""
    assert resolver.answer(recipient, "+") == ("UNKNOWN", {})


@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
def test_no_recipient_is_a_fault(recipient: str) -> None:
    """Any recipient at all gets one of three answers, and the answer can be sent."""
    kind, fields = resolver.answer(recipient, "+-")
    assert wire.encode(kind, fields)
    assert kind in kinds.FROM_RESOLVER


def test_without_delimiter_nothing_is_split() -> None:
    """Where Postfix splits nothing, `root+x` is a name."""
    assert resolver.resolve("root+x@example.org", "") is None


def test_numbers_are_names() -> None:
    """`0` is a name like any other, never a uid."""
    assert resolver.resolve("0@example.org", "+") is None


FAILING = """
import os, sys
from milterapp.delivery import resolver
class Failing:
    def getpwnam_r(self, *_):
        return 111
resolver._libc = Failing()
print(resolver.answer("root@x", "+"))
"""


def test_a_failing_nss_is_not_an_unknown_user() -> None:
    """An error of the name service is FAILED with its reason, so that the mail waits."""
    result = subprocess.run([sys.executable, "-I", "-c", FAILING], capture_output=True, text=True, check=True)
    assert result.stdout == "('FAILED', {'text': 'getpwnam: Connection refused'})\n"


def test_the_process_answers_in_order_and_ends_with_its_monitor() -> None:
    """Requests are answered with their numbers, and the end of the connection is the end of the process."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        for number, recipient in ((7, "root+x@y"), (8, "-@y")):
            wire.send(mine, "RESOLVE", {"id": number, "recipient": recipient})
        mine.shutdown(socket.SHUT_WR)
        resolver.serve(theirs, "+")
        first, second = wire.receive(mine, kinds.FROM_RESOLVER), wire.receive(mine, kinds.FROM_RESOLVER)
    assert first is not None
    assert second is not None
    assert (first.kind, first.number("id"), first.number("uid"), first.text("extension")) == ("USER", 7, 0, "x")
    assert (second.kind, second.number("id")) == ("UNKNOWN", 8)
