"""Text from a message: what it can do, that what wants a str refuses it, and what each typed place makes of it."""

from __future__ import annotations

import array
import ast
import base64
import binascii
import codecs
import copy
import ctypes
import datetime
import email.message
import hashlib
import importlib
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable
from decimal import Decimal
from string import Template
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milterapp.mail.values import Mailbox as Folder
from milterapp.script.untrusted import TaintError, Untrusted, reveal
from milterapp.script.values import Address, HeaderText, Mailbox, body_text, header_name

ODD = "a./\\\0\r\n\t ~-%*$`'\"\u202e\u2028\u0085\u200b\ud800\udfff\U0010ffffＡ․．\u0301é"
HOSTILE = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.text(st.sampled_from(ODD), max_size=40),
    st.sampled_from(["../../.ssh/keys", "..", ".", "", "cur", "NEW", "a\r\nBcc: x@example.org", "-oProxy", "\0"]),
)
U: Any = Untrusted("../../.ssh")

REFUSED: dict[str, Callable[[], object]] = {
    "str": lambda: str(U),
    "f-string": lambda: f"{U}",
    "f-string-s": lambda: f"{U!s}",
    "format": lambda: "{}".format(U),  # noqa: UP032
    "format-spec": lambda: format(U, ">10"),
    "percent": lambda: "%s" % U,  # noqa: UP031
    "percent-tuple": lambda: "%s/%s" % ("a", U),  # noqa: UP031
    "percent-of-it": lambda: U % ("a",),
    "percent-left": lambda: b"%s" % U,
    "join": lambda: "/".join(["a", U]),
    "bytes": lambda: bytes(U),
    "bytearray": lambda: bytearray(U),
    "memoryview": lambda: memoryview(U),
    "int": lambda: int(U),
    "float": lambda: float(U),
    "complex": lambda: complex(U),
    "decimal": lambda: Decimal(U),
    "index": lambda: [1, 2][U],
    "range": lambda: range(U),
    "chr": lambda: chr(U),
    "ord": lambda: ord(U),
    "hash": lambda: hash(U),
    "dict-key": lambda: {U: 1},
    "dict-get": lambda: {"a": 1}.get(U),
    "set": lambda: {U},
    "str-in": lambda: U in "abc",
    "str-method": lambda: str.lower(U),
    "str-replace": lambda: "abc".replace("a", U),
    "str-startswith": lambda: "abc".startswith(U),
    "str-translate": lambda: "abc".translate({97: U}),
    "encode": lambda: U.encode(),
    "codecs": lambda: codecs.encode(U, "utf-8"),
    "open": lambda: open(U),  # noqa: SIM115
    "os-open": lambda: os.open(U, os.O_RDONLY),
    "fspath": lambda: os.fspath(U),
    "fsencode": lambda: os.fsencode(U),
    "path-join": lambda: os.path.join("/home", U),
    "basename": lambda: os.path.basename(U),
    "pathlib": lambda: pathlib.Path(U),
    "pathlib-div": lambda: pathlib.Path("/home") / U,
    "unlink": lambda: os.unlink(U),
    "listdir": lambda: os.listdir(U),
    "shutil": lambda: shutil.rmtree(U),
    "environ": lambda: os.environ.__setitem__("A", U),
    "getenv": lambda: os.getenv(U),
    "system": lambda: os.system(U),
    "exec": lambda: os.execv(U, [U]),
    "subprocess": lambda: subprocess.run(["/bin/echo", U], check=False),
    "subprocess-shell": lambda: subprocess.run(U, shell=True, check=False),
    "getaddrinfo": lambda: socket.getaddrinfo(U, 25),
    "eval": lambda: eval(U),
    "exec-text": lambda: exec(U),
    "compile": lambda: compile(U, "a", "exec"),
    "literal-eval": lambda: ast.literal_eval(U),
    "getattr": lambda: getattr(os, U),
    "setattr": lambda: setattr(os, U, 1),
    "import": lambda: __import__(U),
    "importlib": lambda: importlib.import_module(U),
    "type": lambda: type(U, (), {}),
    "re-pattern": lambda: re.compile(U),
    "re-text": lambda: re.search("a", U),
    "re-sub": lambda: re.sub("a", U, "abc"),
    "re-escape": lambda: re.escape(U),
    "string-template": lambda: Template(U).substitute(),
    "template-value": lambda: Template("$a").substitute(a=U),
    "json": lambda: json.dumps(U),
    "json-in": lambda: json.dumps({"a": [U]}),
    "json-loads": lambda: json.loads(U),
    "pickle": lambda: pickle.dumps(U),
    "base64": lambda: base64.b64decode(U),
    "hexlify": lambda: binascii.hexlify(U),
    "hashlib": lambda: hashlib.sha256(U),
    "struct": lambda: struct.pack("s", U),
    "array": lambda: array.array("b", U),
    "ctypes": lambda: ctypes.c_char_p(U),
    "ctypes-wide": lambda: ctypes.c_wchar_p(U),
    "stringio": lambda: io.StringIO(U),
    "stringio-write": lambda: io.StringIO().write(U),
    "print": lambda: print(U),
    "quote": lambda: urllib.parse.quote(U),
    "urlsplit": lambda: urllib.parse.urlsplit(U).geturl().encode(),
    "strptime": lambda: datetime.datetime.strptime(U, "%Y"),
    "fromisoformat": lambda: datetime.date.fromisoformat(U),
    "sqlite-statement": lambda: sqlite3.connect(":memory:").execute(U),
    "header-name": lambda: email.message.EmailMessage().__setitem__(U, "a"),
    "unicodedata": lambda: unicodedata.normalize("NFC", U),
    "intern": lambda: sys.intern(U),
    "exit": lambda: os.putenv("A", U),
    "pattern-of-itself": lambda: Untrusted("a").search(U),
    "fullmatch-of-itself": lambda: Untrusted("a").fullmatch(U),
    "lookup-in-text": lambda: Untrusted("a").lookup("abc"),
    "change": lambda: setattr(U, "_Untrusted__text", "a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_wants_a_str_refuses_it(name: str) -> None:
    """Every way into a path, a program, a name, a pattern, a number or a str fails."""
    with pytest.raises((TypeError, AttributeError, sqlite3.Error, struct.error, ValueError)) as caught:
        REFUSED[name]()
    if isinstance(caught.value, ValueError):
        assert name == "literal-eval"  # which names the object that it was given


def test_the_error_says_what_to_do() -> None:
    """It names the value, the line it stands at and the ways out, in one line of ASCII."""
    with pytest.raises(TaintError) as caught:
        f"/var/www/{U}"
    text = str(caught.value)
    assert f"{__file__}:{sys._getframe().f_lineno - 2}: Untrusted('../../.ssh') came from the message" in text
    for way in ("fullmatch(PATTERN)", "lookup(TABLE)", "Mailbox(…)", "HeaderText(…)"):
        assert way in text
    assert "\n" not in text


def test_the_error_names_the_line_below_a_library() -> None:
    """Where Python's own library asked for the str, the line is the caller's."""
    with pytest.raises(TaintError, match=r"test_untrusted\.py:\d+: .* used as a str"):
        Template("$a").substitute(a=U)


@given(HOSTILE)
@example("\n" * 500)
def test_a_repr_is_one_line_of_ascii(text: str) -> None:
    """A value in a log, a traceback or an error is one short line."""
    shown = repr(Untrusted(text))
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 700


SAME: dict[str, Callable[[Any, Any], object]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: b in a,
    "startswith": lambda a, b: a.startswith(b),
    "startswith-any": lambda a, b: a.startswith((b, "a")),
    "endswith": lambda a, b: a.endswith(b),
    "find": lambda a, b: a.find(b),
    "find-from": lambda a, b: a.find(b, 1),
    "rfind": lambda a, b: a.rfind(b),
    "count": lambda a, b: a.count(b),
    "len": lambda a, b: len(a),
    "bool": lambda a, b: bool(a),
    "isdigit": lambda a, b: (a.isdigit(), a.isalpha(), a.isalnum(), a.isspace(), a.isascii()),
    "in-list": lambda a, b: a in [b, "a"],
    "+": lambda a, b: a + b,
    "+str": lambda a, b: a + "x",
    "str+": lambda a, b: "x" + a,
    "slice": lambda a, b: a[1:5],
    "iterate": lambda a, b: list(a),
    "split": lambda a, b: a.split(),
    "split-by": lambda a, b: a.split(".", 1),
    "rsplit": lambda a, b: a.rsplit("/", 1),
    "splitlines": lambda a, b: a.splitlines(),
    "partition": lambda a, b: a.partition("."),
    "rpartition": lambda a, b: a.rpartition("."),
    "strip": lambda a, b: a.strip(),
    "lstrip": lambda a, b: a.lstrip("."),
    "rstrip": lambda a, b: a.rstrip(),
    "lower": lambda a, b: a.lower(),
    "upper": lambda a, b: a.upper(),
    "casefold": lambda a, b: a.casefold(),
    "replace": lambda a, b: a.replace("a", b),
    "removeprefix": lambda a, b: a.removeprefix(b),
    "removesuffix": lambda a, b: a.removesuffix(b),
    "join": lambda a, b: a.join([b, "a"]),
    "deepcopy": lambda a, b: copy.deepcopy(a),
}


def revealed(value: Any) -> Any:
    """Return a result with its Untrusted texts plain; a plain str in it is one that lost its mark."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(revealed, value))
    assert not isinstance(value, str), "the mark is lost"
    return reveal(value) if isinstance(value, Untrusted) else value


@pytest.mark.parametrize("name", SAME)
@given(
    one=HOSTILE.map(lambda text: text.encode("utf-8", "replace").decode()), other=st.sampled_from(["", ".", "a", "/"])
)
def test_it_does_what_str_does(name: str, one: str, other: str) -> None:
    """Comparing, searching, splitting and joining give what str gives, and text that comes of it keeps the mark."""
    act = SAME[name]
    want = act(one, other)
    assert revealed(act(Untrusted(one), Untrusted(other))) == want
    assert revealed(act(Untrusted(one), other)) == want


@pytest.mark.parametrize(
    ("text", "pattern", "want"),
    [
        pytest.param("subscribe python-dev", r"subscribe ([a-z-]+)", "python-dev", id="group"),
        pytest.param("subscribe ../x", r"subscribe ([a-z-]+)", None, id="outside the pattern"),
        pytest.param("xsubscribe a", r"subscribe ([a-z-]+)", None, id="anchored before"),
        pytest.param("subscribe a\n", r"subscribe ([a-z-]+)", None, id="anchored behind"),
        pytest.param("subscribe a", r"subscribe (?P<name>[a-z-]+)|x", "a", id="named"),
    ],
)
def test_fullmatch(text: str, pattern: str, want: str | None) -> None:
    """A pattern that fits the whole value gives plain text."""
    match = Untrusted(text).fullmatch(pattern)
    assert (match and match[1]) == want
    if match:
        assert type(match[1]) is str
        assert str(match) == text


@pytest.mark.parametrize("pattern", ["(", "(?=a)", "a" * 2000])
def test_a_pattern_that_is_none(pattern: str) -> None:
    """What RE2 does not take is an error that says so."""
    with pytest.raises(ValueError, match="pattern"):
        Untrusted("a").fullmatch(pattern)
    with pytest.raises(IndexError):
        Untrusted("a").fullmatch("a")[1]  # type: ignore[index]


def test_lookup() -> None:
    """What comes out of a table is the table's own, never the message's."""
    own = "mum@example.org"
    text = Untrusted("mum@" + "example.org")
    assert text.lookup([own, "other"]) is own
    assert text.lookup({own: 1}) == 1
    assert text.lookup({"x"}) is None
    assert text.lookup({"x": 1}) is None
    assert text.lookup([text]) is None  # type: ignore[list-item]  # a table of the message's own words is no table


@given(HOSTILE)
def test_a_mailbox_is_harmless(text: str) -> None:
    """Any text makes one level that a rule could have written, below the folder that the script names."""
    levels = Mailbox("Lists", Untrusted(text)).levels
    assert levels[0] == "Lists"
    assert len(levels) == 2
    assert Folder.parse("/".join(levels)) == levels
    assert not set(levels[1]) & set("/\\\0\r\n")
    assert len(levels[1].encode()) <= 120


@pytest.mark.parametrize("parts", [(), ("",), ("../a",), ("a//b",), ("a/cur",), ("a",) * 9])
def test_a_mailbox_of_the_script_is_checked(parts: tuple[str, ...]) -> None:
    """The script's own folder names are held to what a rule's are."""
    with pytest.raises(ValueError, match=r"folder"):
        Mailbox(*parts)


@given(HOSTILE)
def test_header_text_is_one_line(text: str) -> None:
    """Any text makes one line, without control characters, surrogates or line separators of any kind."""
    made = HeaderText("[list] ", Untrusted(text)).text
    assert made.isprintable()
    assert made.splitlines() in ([made], [])
    made.encode()
    assert len(made) <= 900


@given(HOSTILE)
def test_an_address_is_never_the_messages(text: str) -> None:
    """No text from a message becomes an address to send to, nor a header's name, whatever it looks like."""
    for value in (Untrusted(text), Untrusted("bob@example.org")):
        with pytest.raises(TaintError, match="an address to send to"):
            Address(value)  # type: ignore[arg-type]
        with pytest.raises(TaintError, match="a header field's name"):
            header_name(value)


@given(HOSTILE)
@example("0@\x85")
@example("a\u2003b@example.org")
def test_an_address_of_the_script_is_one(text: str) -> None:
    """Plain text is an address, or an error."""
    try:
        address = Address(text).address
    except ValueError:
        return
    assert address.count("@") >= 1
    assert not re.search(r"[\s<>,;:\x00-\x1f]|^-", address)


@given(HOSTILE)
def test_body_text_is_lines(text: str) -> None:
    """Any text makes lines that end in LF, without other control characters or surrogates."""
    made = body_text(Untrusted(text))
    made.encode()
    assert not [char for char in made if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]
    assert body_text(made) == made
