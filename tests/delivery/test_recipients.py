"""The site's file of virtual recipients: who has which address, and what must not be believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery import resolver, wire
from milterapp.delivery.recipients import MapError, Person, Recipients, parse

ANN = Person("ann@v.example", 5000, 5000, "/var/vmail/ann")
BEN = Person("Ben@v.example", 5000, 5000, "/var/vmail/ben")
ODD = Person('"two words"@v.example', 5001, 5001, "/var/vmail/two words")
ALL = Person("@all.example", 5000, 5000, "/var/vmail/all")
SZ = Person("bob@straße.example", 5000, 5000, "/var/vmail/sz")
SS = Person("bob@strasse.example", 5000, 5000, "/var/vmail/ss")
SSS = Person("bob@strasse.test", 5000, 5000, "/var/vmail/sss")
JÖRG = Person("jörg@müller.example", 5000, 5000, "/var/vmail/j")
FILE = """\
# who            uid  gid  home
ann@v.example    5000 5000 /var/vmail/ann
Ben@v.example\t5000\t5000\t/var/vmail/ben
info@V.Example   5000 5000 /var/vmail/ann
ann+lists@v.example 5000 5000 /var/vmail/ben

"two words"@v.example 5001 5001 /var/vmail/two words
  @all.example 5000 5000 /var/vmail/all
jörg@müller.example 5000 5000 /var/vmail/j
bob@straße.example 5000 5000 /var/vmail/sz
bob@strasse.example 5000 5000 /var/vmail/ss
bob@strasse.test 5000 5000 /var/vmail/sss
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file, root's."""
    path = tmp_path / "recipients"
    path.write_text(FILE)
    path.chmod(0o644)
    return path


@pytest.mark.root
@pytest.mark.parametrize(
    ("recipient", "found"),
    [
        pytest.param("ann@v.example", (ANN, ""), id="plain"),
        pytest.param("ANN@V.EXAMPLE", (ANN, ""), id="upper case"),
        pytest.param("ann@v.example.", (ANN, ""), id="a dot at the end"),
        pytest.param("info@v.example", (ANN, ""), id="a second address of one home"),
        pytest.param("ben+X.y@v.example", (BEN, "x.y"), id="extension"),
        pytest.param("ann+lists@v.example", (BEN, ""), id="the whole address before the one without extension"),
        pytest.param("ann+other@v.example", (ANN, "other"), id="another extension"),
        pytest.param('"ann"@v.example', (ANN, ""), id="quoted"),
        pytest.param('"two words"@v.example', (ODD, ""), id="with a blank"),
        pytest.param('"two words+x y"@v.example', (ODD, "x y"), id="with a blank, and an extension"),
        pytest.param("anybody+x@all.example", (ALL, "x"), id="catch-all"),
        pytest.param("jörg@müller.example", (JÖRG, ""), id="smtputf8"),
        pytest.param("jo\u0308rg@mu\u0308ller.example", (JÖRG, ""), id="the other form of unicode"),
        pytest.param("jörg@xn--mller-kva.example", (JÖRG, ""), id="domain in ascii"),
        pytest.param("bob@straße.example", (SZ, ""), id="sharp s"),
        pytest.param("bob@xn--strae-oqa.example", (SZ, ""), id="sharp s in ascii"),
        pytest.param("bob@strasse.example", (SS, ""), id="ss, another domain than with sharp s"),
        pytest.param("bob@straße.test", None, id="sharp s, where there is ss alone"),
        pytest.param("bob@STRAẞE.test", None, id="capital sharp s, where there is ss alone"),
        pytest.param("nobody@v.example", None, id="unknown"),
        pytest.param("root@elsewhere.example", None, id="unknown domain, though an account has that name"),
        pytest.param("@v.example", None, id="no local part"),
        pytest.param("@all.example", None, id="the line of the catch-all itself"),
        pytest.param("ann", None, id="no domain"),
        pytest.param("", None, id="nothing"),
        pytest.param("../../etc@v.example", None, id="path"),
        pytest.param("a" * 300 + "@v.example", None, id="300 characters"),
        pytest.param("\udcff@\udcff", None, id="bytes that are no UTF-8"),
    ],
)
def test_whose_an_address_is(file: Path, recipient: str, found: object) -> None:
    """The address as it stands, then without its extension, then its domain; never an account of the host."""
    assert Recipients(str(file)).find(recipient, "+") == found


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("ann@v.example 5000 5000", "2 fields", id="no home"),
        pytest.param("ann 5000 5000 /h/a", "an address", id="no domain"),
        pytest.param("ann@v.example x 5000 /h/a", "numbers above 0", id="no number"),
        pytest.param("ann@v.example 0 5000 /h/a", "numbers above 0", id="root"),
        pytest.param("ann@v.example 5000 -1 /h/a", "numbers above 0", id="negative"),
        pytest.param("ann@v.example 4294967295 5000 /h/a", "numbers above 0", id="the uid that changes nothing"),
        pytest.param("ann@v.example 5000 ５ /h/a", "numbers above 0", id="a digit of another script"),
        pytest.param("ann@v.example 5000 5000 h/a", "from `/`", id="relative"),
        pytest.param("ann@v.example 5000 5000 /h/../a", "from `/`", id="dots"),
        pytest.param("ann@v.example 5000 5000 /h/a/", "from `/`", id="slash at the end"),
        pytest.param("ann@v.example 5000 5000 /", "from `/`", id="everything"),
        pytest.param("ann@v.example 5000 5000 /etc/ann", "below /etc", id="where all may read"),
        pytest.param("ann@v.example 5000 5000 /h/a\0b", "an address", id="NUL"),
        pytest.param("ann@v.example 5000 5000 /h/a\nANN@v.example 5000 5000 /h/b", "a line before", id="twice"),
        pytest.param("a@v.example 5000 5000 /h/a\nb@v.example 5001 5000 /h/a", "another uid", id="a home of two uids"),
        pytest.param("a@v.example 5000 5000 /h/a\nb@v.example 5000 5000 /h/a/x/b", "within", id="within another home"),
    ],
)
def test_what_is_no_line(line: str, why: str) -> None:
    """Each slip is a problem with its place, and then nobody is found at all."""
    _, problems = parse(f"# first\n{line}\n".encode(), "/r")
    assert len(problems) == 1
    assert problems[0].startswith("/r:")
    assert why in problems[0]


@given(st.binary(max_size=300))
def test_no_file_is_a_fault(data: bytes) -> None:
    """Whatever the file holds, it gives people or problems."""
    people, problems = parse(data, "/r")
    assert all(one.uid > 0 and one.home.startswith("/") for one in people.values())
    assert len(problems) <= 20


@pytest.mark.root
def test_a_change_counts_with_the_next_message(file: Path) -> None:
    """The file is read again when it changed; while it is broken or gone nothing is known, which is no "unknown"."""
    people = Recipients(str(file))
    assert people.find("ann@v.example", "+") == (ANN, "")
    file.write_text("ann@v.example 5002 5002 /var/vmail/new\n")
    assert people.find("ann@v.example", "+") == (Person("ann@v.example", 5002, 5002, "/var/vmail/new"), "")
    file.write_text("ann@v.example\n")
    for _ in range(2):
        with pytest.raises(MapError, match="recipients:1: found 0 fields"):
            people.find("ann@v.example", "+")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        people.find("ann@v.example", "+")
    assert resolver.answer_virtual("ann@v.example", "+", people, "")[0] == "FAILED"
    file.write_text(FILE)
    assert people.find("ann@v.example", "+") == (ANN, "")


@pytest.mark.root
@pytest.mark.parametrize("fault", ["mode", "owner", "link", "folder", "fifo"])
def test_only_roots_file_is_believed(file: Path, fault: str) -> None:
    """A file that anybody but root could have written, or that is none, makes mail wait."""
    if fault == "mode":
        file.chmod(0o664)
    elif fault == "owner":
        os.chown(file, 20001, 20001)
    else:
        file.rename(file.with_suffix(".real"))
        if fault == "link":
            file.symlink_to(file.with_suffix(".real"))
        elif fault == "folder":
            file.mkdir()
        else:
            os.mkfifo(file)
    kind, fields = resolver.answer_virtual("ann@v.example", "+", Recipients(str(file)), "")
    assert kind == "FAILED"
    assert "delivery.recipients: " in str(fields["text"])


@pytest.mark.root
def test_what_the_resolver_says(file: Path) -> None:
    """A person with all that an agent needs, unknown, or, where there is no wall, to wait, and why."""
    people = Recipients(str(file))
    kind, fields = resolver.answer_virtual("ben+x@v.example", "+", people, "")
    assert (kind, fields) == (
        "USER", {"name": "Ben@v.example", "uid": 5000, "gid": 5000, "home": "/var/vmail/ben", "extension": "x"},
    )  # fmt: skip
    assert wire.encode(kind, fields)
    assert resolver.answer_virtual("x@v.example", "+", people, "no Landlock") == ("UNKNOWN", {})
    assert resolver.answer_virtual("ann@v.example", "+", people, "no Landlock") == ("FAILED", {"text": "no Landlock"})
    assert resolver.answer_virtual("ann@v.example", "+", None, "") == ("UNKNOWN", {})
