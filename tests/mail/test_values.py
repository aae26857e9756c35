"""Whatever a message says, it lands harmless where a rule puts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.address import parse
from milterapp.mail.hypertext import to_text
from milterapp.mail.values import AddressText, HeaderText, HtmlText, Mailbox, Program, ReplyLine, ReplyText


@pytest.mark.parametrize(
    ("text", "levels"), [("Inbox", ("Inbox",)), ("Lists/Python", ("Lists", "Python")), ("a b/ü.x", ("a b", "ü.x"))]
)
def test_a_folder_of_a_rule(text: str, levels: tuple[str, ...]) -> None:
    """A folder's levels are its names from the top."""
    assert Mailbox.parse(text) == levels


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        ".hidden",
        "a/.b",
        "~a",
        "-a",
        "a\0b",
        "a\nb",
        "cur",
        "new/x",
        " a",
        "a*",
        "a\\b",
        "a" * 200,
        "/".join("abcdefghi"),
    ],
)
def test_a_folder_that_is_none(text: str) -> None:
    """What could be another path, or hidden, or no name at all, is refused with a sentence."""
    with pytest.raises(ValueError, match=r"folder|level"):
        Mailbox.parse(text)


@pytest.mark.parametrize(
    ("untrusted", "component"),
    [
        ("Money", "Money"),
        ("../../.ssh", "_._.._.ssh"),
        ("a/b\\c", "a_b_c"),
        ("", "_"),
        (" \t", "_"),
        (".", "_"),
        ("..", "_"),
        ("-rf", "_rf"),
        ("cur", "_cur"),
        ("a\0b\nc", "a_b_c"),
        ("x. .", "x"),
        ("example.org", "example.org"),
    ],
)
def test_a_component_from_a_message(untrusted: str, component: str) -> None:
    """Any text becomes one harmless name."""
    assert Mailbox.component(untrusted) == component


@given(st.text(max_size=400))
def test_every_text_is_one_component(untrusted: str) -> None:
    """A component is one file name, not hidden, not too long, and stays what it is when it is encoded again."""
    found = Mailbox.component(untrusted)
    assert found
    assert not {"/", "\0", "\\", "\n"} & set(found)
    assert found[0] not in ".-~#"
    assert len(found.encode()) <= 121
    assert Mailbox.component(found) == found
    assert Mailbox.parse(found) == (found,)


@given(st.text(max_size=200), st.sampled_from(["Subject", "From", "X-Very-Long-Name", ""]))
def test_no_text_ends_a_header_field(untrusted: str, name: str) -> None:
    """A value is one line of printable ASCII."""
    value = HeaderText.encode(untrusted, name)
    assert value.isascii()
    assert value.isprintable()


@pytest.mark.parametrize("name", ["Subject", "X-Foo", "!", "a" * 76])
def test_a_field_name(name: str) -> None:
    """A name is printable ASCII without a colon."""
    assert HeaderText.name(name) == name


@pytest.mark.parametrize("text", ["a@example.org", "a+b@example.org", "a@[192.0.2.1]", "ü@exämple.org"])
def test_an_address_to_send_to(text: str) -> None:
    """One address without anything around it."""
    assert AddressText.parse(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@b",
        "a@",
        "a@b, c@d",
        "A <a@b>",
        "a b@c",
        "-a@b",
        "a@b\n",
        "a@b@c",
        '"a"@b',
        "a@b..c",
        "a" * 400 + "@b",
    ],
)
def test_no_address_to_send_to(text: str) -> None:
    """Anything else is refused with a sentence."""
    with pytest.raises(ValueError, match="is no address"):
        AddressText.parse(text)


@pytest.mark.parametrize(
    ("untrusted", "value"),
    [
        ("a@b", "a@b"),
        ("Al <a@b>, c@d", "Al <a@b>, c@d"),
        ("Jörg <a@b>, c@d", "=?utf-8?B?SsO2cmc=?= <a@b>, c@d"),
        ('"Bo, Al" <a@b>, ü <c@d>', '"Bo, Al" <a@b>, =?utf-8?B?w7w=?= <c@d>'),
        ("a@b,\r\n ü <c@d>", "a@b, =?utf-8?B?w7w=?= <c@d>"),
    ],
)
def test_addresses_in_a_field(untrusted: str, value: str) -> None:
    """Addresses stay addresses, and their names are encoded."""
    assert AddressText.encode(untrusted) == value
    assert all(one.domain for one in parse(value))


@pytest.mark.parametrize("text", ["spamc", "/usr/bin/spamc", "/opt/my tools/x.sh", "/usr/lib/.hidden/x", "a-b+c.1"])
def test_a_program(text: str) -> None:
    """A program is a name, or a path from the top."""
    assert Program.parse(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-x",
        "bin/x",
        "./x",
        "../x",
        "/",
        "/usr/../bin/x",
        "/usr/./x",
        "//x",
        "/x/",
        "a b",
        "a;b",
        "/a\nb",
        "/a\0",
        "a|b",
    ],
)
def test_no_program(text: str) -> None:
    """Anything that is a command line, an option or a way out of a folder is refused with a sentence."""
    with pytest.raises(ValueError, match="is no program"):
        Program.parse(text)


@pytest.mark.parametrize(
    ("untrusted", "at_start", "argument"),
    [
        ("hello world", True, "hello world"),
        ("-rf", True, "_-rf"),
        ("--output=/etc/passwd", True, "_--output=/etc/passwd"),
        ("@file", True, "_@file"),
        ("+x", True, "_+x"),
        ("-rf", False, "-rf"),
        ("", True, ""),
        ("$(id); `id` 'x'", True, "$(id); `id` 'x'"),
        ("a\0b\nc", True, "a b c"),
        ("\ud800", True, "?"),
    ],
)
def test_an_argument(untrusted: str, at_start: bool, argument: str) -> None:
    """A value is one argument, and never an option."""
    assert Program.argument(untrusted, at_start=at_start) == argument


@given(st.text(max_size=50) | st.text(min_size=1, max_size=9).map(lambda text: text * 2000))
def test_every_text_is_one_argument(untrusted: str) -> None:
    """An argument can be given to execve, is bounded, and stays what it is when it is encoded again."""
    found = Program.argument(untrusted)
    assert "\0" not in found
    assert len(found.encode()) <= 4096
    assert found[:1] not in ("-", "+", "@")
    assert Program.argument(found) == found


@given(st.text(max_size=200))
def test_every_text_is_text(untrusted: str) -> None:
    """Text of a mail has lines and no control character; as HTML it is the same text; in a reply it is one line."""
    text = ReplyText.encode(untrusted)
    assert not any((char < " " and char not in "\t\n") or "\ud800" <= char <= "\udfff" for char in text)
    assert not {"<", ">", '"', "'"} & set(HtmlText.encode(untrusted).replace("<br>\n", ""))
    assert to_text(HtmlText.encode(untrusted)).split() == [word for word in text.split() if word]
    line = ReplyLine.encode(untrusted)
    assert line.isascii()
    assert line.isprintable()


def test_text_keeps_its_lines() -> None:
    """Line ends of all kinds become LF."""
    assert ReplyText.encode("a\r\nb\rc\n\td\0") == "a\nb\nc\n\td\ufffd"
    assert HtmlText.encode("<a\n'") == "&lt;a<br>\n&#x27;"
    assert ReplyLine.encode("5.7.1 no\r\n250 ü") == "5.7.1 no 250 ?"
