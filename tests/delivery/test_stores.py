"""Filing into a Maildir: once, whole, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.delivery.stores import Maildir, Name, folder_name, stamped
from milterapp.mail.values import Mailbox
from milterapp.rules.deliveries import File, place_of

NAME = Name(1_700_000_000, "M0123456789abcdefS0")
MESSAGE = b"Subject: x\n\nhello\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of an empty home."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_message_is_filed_whole(home: int, tmp_path: Path) -> None:
    """The Maildir is made with its three parts, the message lies in new, nothing stays in tmp."""
    assert Maildir(home, "Maildir").deliver((), NAME, [MESSAGE[:5], MESSAGE[5:]], fresh=True)
    assert _files(tmp_path) == {f"Maildir/new/{NAME}": MESSAGE}
    assert sorted(os.listdir(tmp_path / "Maildir")) == ["cur", "new", "tmp"]
    assert (tmp_path / "Maildir").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "Maildir/new" / str(NAME)).stat().st_mode & 0o777 == 0o600


def test_a_folder_is_made_on_demand(home: int, tmp_path: Path) -> None:
    """A folder below the inbox is Maildir++: beside tmp, new and cur it has maildirfolder."""
    Maildir(home, "mail/dir").deliver(("Lists", "Python"), NAME, [MESSAGE], fresh=True)
    assert _files(tmp_path) == {
        "mail/dir/.Lists.Python/maildirfolder": b"",
        f"mail/dir/.Lists.Python/new/{NAME}": MESSAGE,
    }
    assert sorted(os.listdir(tmp_path / "mail/dir")) == [".Lists.Python", "cur", "new", "tmp"]


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param(None, id="still new"),
        pytest.param(f"cur/{NAME}:2,S", id="seen"),
        pytest.param(f"cur/{NAME},S=18:2,", id="renamed by its reader"),
    ],
)
def test_a_second_attempt_files_nothing(home: int, tmp_path: Path, moved: str | None) -> None:
    """What an attempt filed, a later one finds, also where its reader has seen and moved it meanwhile."""
    maildir = Maildir(home, "Maildir")
    assert maildir.deliver((), NAME, [MESSAGE], fresh=True)
    if moved:
        os.rename(tmp_path / "Maildir/new" / str(NAME), tmp_path / "Maildir" / moved)
    assert not maildir.deliver((), NAME, [MESSAGE], fresh=False)
    assert len(_files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        pytest.param(("seen",), "cur/{}:2,S", id="seen"),
        pytest.param(("flagged",), "cur/{}:2,F", id="flagged"),
        pytest.param(("answered",), "cur/{}:2,R", id="answered"),
        pytest.param(("seen", "answered", "flagged", "seen"), "cur/{}:2,FRS", id="sorted, each once"),
        pytest.param((), "new/{}", id="none"),
    ],
)
def test_flags(home: int, tmp_path: Path, flags: tuple[str, ...], name: str) -> None:
    """A message that carries flags is filed into cur with their letters, one without any into new."""
    assert Maildir(home, "Maildir").deliver((), NAME, [MESSAGE], fresh=True, flags=flags)
    assert _files(tmp_path) == {f"Maildir/{name.format(NAME)}": MESSAGE}


@pytest.mark.parametrize(
    "moved", [None, f"{NAME}:2,", f"{NAME}:2,FST"], ids=["as filed", "flag taken off", "more flags"]
)
def test_a_flagged_message_is_filed_once(home: int, tmp_path: Path, moved: str | None) -> None:
    """A second attempt finds a flagged message in cur, whatever its reader made of the flags."""
    maildir = Maildir(home, "Maildir")
    assert maildir.deliver((), NAME, [MESSAGE], fresh=True, flags=("flagged",))
    if moved:
        os.rename(tmp_path / f"Maildir/cur/{NAME}:2,F", tmp_path / "Maildir/cur" / moved)
    assert not maildir.deliver((), NAME, [MESSAGE], fresh=False, flags=("flagged",))
    assert len(_files(tmp_path)) == 1


def test_the_name_is_taken(home: int, tmp_path: Path) -> None:
    """A file of that name is never written over."""
    maildir = Maildir(home, "Maildir")
    maildir.deliver((), NAME, [MESSAGE], fresh=True)
    assert not maildir.deliver((), NAME, [b"other\n"], fresh=True)
    assert _files(tmp_path) == {f"Maildir/new/{NAME}": MESSAGE}


def test_another_message_is_another(home: int, tmp_path: Path) -> None:
    """A message of another key is filed although one is there."""
    maildir = Maildir(home, "Maildir")
    maildir.deliver((), NAME, [MESSAGE], fresh=True)
    assert maildir.deliver((), Name(NAME.at, "M0123456789abcdefS1"), [MESSAGE], fresh=False)
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize("link", ["Maildir", "Maildir/new", "Maildir/tmp", "Maildir/cur", "Maildir/.Lists"])
def test_no_link_is_followed(home: int, tmp_path: Path, link: str) -> None:
    """A symbolic link anywhere below the home is an error, and nothing is written where it points."""
    outside = tmp_path / "outside"
    for part in ("tmp", "new", "cur"):
        (outside / part).mkdir(parents=True)
    (tmp_path / link).parent.mkdir(exist_ok=True)
    os.symlink(outside, tmp_path / link)
    with pytest.raises(OSError, match=r"."):
        Maildir(home, "Maildir").deliver(("Lists",) if "Lists" in link else (), NAME, [MESSAGE], fresh=True)
    assert _files(outside) == {}


@pytest.mark.parametrize("path", ["../Maildir", "a/../../Maildir"])
def test_a_path_stays_below_the_home(home: int, path: str) -> None:
    """A configured Maildir with `..` in it is refused."""
    with pytest.raises(OSError, match=r"\.\."):
        Maildir(home, path).deliver((), NAME, [MESSAGE], fresh=True)


def test_an_absolute_maildir(home: int, tmp_path: Path) -> None:
    """A Maildir may be configured outside the home."""
    Maildir(home, f"{tmp_path}/elsewhere").deliver((), NAME, [MESSAGE], fresh=True)
    assert _files(tmp_path) == {f"elsewhere/new/{NAME}": MESSAGE}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        pytest.param(("Lists", "Python"), ".Lists.Python", id="two levels"),
        pytest.param((), "", id="inbox"),
        pytest.param(("INBOX",), "", id="inbox by name"),
        pytest.param(("inbox", "Lists"), ".Lists", id="below the inbox"),
        pytest.param(("Lists", "INBOX"), ".Lists.INBOX", id="a level called inbox"),
        pytest.param(("billing.example",), ".billing_example", id="dots"),
        pytest.param(("..", "..", "etc"), ".__.__.etc", id="up"),
        pytest.param(("a/b",), ".a_b", id="slash"),
        pytest.param(("a\nb\0",), ".a_b_", id="controls"),
        pytest.param(("Entwürfe",), ".Entw&APw-rfe", id="modified UTF-7"),
        pytest.param(("日本語",), ".&ZeVnLIqe-", id="RFC 3501's own example"),
        pytest.param(("R&D",), ".R&-D", id="ampersand"),
    ],
)
def test_folder_names(folder: tuple[str, ...], name: str) -> None:
    """Levels become one name as Dovecot and Courier read it, without a dot or slash of their own."""
    assert folder_name(folder) == name


@given(st.lists(st.text()), st.text(min_size=1))
def test_no_folder_escapes(folder: list[str], long: str) -> None:
    """Whatever the levels hold, the name is one harmless path component that fits a file system."""
    for levels in (folder, [*folder, long * 300]):
        name = folder_name(levels)
        assert len(name.encode("ascii")) <= 255
        assert name == "" or (name[0] == "." and re.fullmatch(r"[\x20-\x2e\x30-\x7e]+", name) and name[1:2] != "")
        assert name not in (".", "..")


def test_long_names_stay_apart() -> None:
    """Two names that differ only behind the cut are two folders."""
    one, two = (folder_name(("x" * 300 + end,)) for end in "ab")
    assert one != two


LEVELS = st.lists(st.text("aA._ßI", min_size=1, max_size=3).map(Mailbox.component) | st.just("Inbox"), max_size=3)


@given(LEVELS, LEVELS)
def test_deliveries_know_which_folders_are_one(one: list[str], other: list[str]) -> None:
    """Two names are one place to the rules where, and only where, they are one folder here."""
    same = place_of(File(tuple(one))) == place_of(File(tuple(other)))
    assert same is (folder_name(one) == folder_name(other))


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        pytest.param(
            b"Return-Path: <a@x.org>\nSubject: x\n\nhi\n",
            b"Return-Path: <a@x.org>\nX-Original-To: info@x.org\nDelivered-To: bob@x.org\nSubject: x\n\nhi\n",
            id="as pipe(8) gives it",
        ),
        pytest.param(
            b"Subject: x\r\n\r\nhi\r\n",
            b"Return-Path: <a@x.org>\r\nX-Original-To: info@x.org\r\nDelivered-To: bob@x.org\r\nSubject: x\r\n"
            b"\r\nhi\r\n",
            id="CRLF",
        ),
        pytest.param(
            b"Return-Path: <a@x.org>\nX-Original-To: info@x.org\nDelivered-To: bob@x.org\nSubject: x\n\nhi\n",
            b"Return-Path: <a@x.org>\nX-Original-To: info@x.org\nDelivered-To: bob@x.org\nSubject: x\n\nhi\n",
            id="nothing missing",
        ),
        pytest.param(
            b"Return-Path: <a@x.org>\nSubject: x\n\nDelivered-To: bob@x.org\n",
            b"Return-Path: <a@x.org>\nX-Original-To: info@x.org\nDelivered-To: bob@x.org\nSubject: x\n\n"
            b"Delivered-To: bob@x.org\n",
            id="in the body it does not count",
        ),
        pytest.param(
            b"return-path:\n <a@x.org>\nDELIVERED-TO: bob@x.org\n\n",
            b"return-path:\n <a@x.org>\nX-Original-To: info@x.org\nDELIVERED-TO: bob@x.org\n\n",
            id="folded, other case",
        ),
        pytest.param(b"", b"Return-Path: <a@x.org>\nX-Original-To: info@x.org\nDelivered-To: bob@x.org\n", id="empty"),
    ],
)
def test_trace_fields(message: bytes, wanted: bytes) -> None:
    """Return-Path, X-Original-To and Delivered-To stand on top where they were missing; the rest is as it came."""
    assert b"".join(stamped(message, "a@x.org", "bob@x.org", "info@x.org")) == wanted


def test_trace_fields_of_hostile_addresses() -> None:
    """A line end in an envelope address does not make a header field; a null sender is `<>`."""
    out = b"".join(stamped(b"\n", "", "b\r\nX: y@x.org", "\udcff@x.org"))
    assert out == b"Return-Path: <>\nX-Original-To: \xff@x.org\nDelivered-To: b??X: y@x.org\n\n"
