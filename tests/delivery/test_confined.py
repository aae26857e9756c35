"""The wall between recipients that share one uid, tried from inside."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milterapp.delivery import confined, linux

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(linux.landlock_abi() < 2, reason="this kernel has no Landlock that the wall could be made of"),
]

UID = 20001
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def homes() -> Iterator[tuple[Path, Path]]:
    """Two homes of one uid, each with a mail in it."""
    with tempfile.TemporaryDirectory(prefix="milterapp-wall-", dir="/var") as base:
        os.chmod(base, 0o755)
        found = []
        for name in ("ann", "ben"):
            home = Path(base) / name
            (home / "Maildir").mkdir(parents=True)
            (home / "Maildir" / "mail").write_text(f"to {name}\n")
            for path in (home, home / "Maildir", home / "Maildir" / "mail"):
                os.chown(path, UID, UID)
            found.append(home)
        yield found[0], found[1]


def _raise(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")


def attempts(home: Path, other: int) -> dict[str, Callable[[], object]]:
    """Return what somebody may try on a home, and on a process of the same uid."""
    mail, folder = home / "Maildir" / "mail", home / "Maildir"
    old = (home / "mine").as_posix()
    return {
        "read": mail.read_text,
        "list": lambda: os.listdir(folder),
        "write": lambda: mail.open("r+").close(),
        "make": lambda: (folder / "new").write_text("x"),
        "make a folder": lambda: (folder / "folder").mkdir(),
        "truncate": lambda: os.truncate(mail, 3),
        "chmod": lambda: mail.chmod(0o666),
        "chmod of the home": lambda: home.chmod(0o777),
        "chown": lambda: os.chown(mail, UID, UID),
        "utime": lambda: os.utime(mail, (0, 0)),
        "setxattr": lambda: os.setxattr(mail, "user.x", b"x"),
        "link out": lambda: os.link(mail, f"/var/tmp/{os.getpid()}"),
        "symlink": lambda: os.symlink("/", folder / "link"),
        "rename": lambda: mail.rename(folder / "other"),
        "rename in": lambda: os.rename(old, folder / "in"),
        "remove": mail.unlink,
        "remove the folder": folder.rmdir,
        "watch": lambda: _raise(_libc.inotify_add_watch(_libc.inotify_init(), os.fsencode(folder), 0x100)),
        "trace": lambda: _raise(_libc.ptrace(16, other, None, None)),
        "memory": lambda: open(f"/proc/{other}/mem", "rb").close(),
        "environment": lambda: Path(f"/proc/{other}/environ").read_bytes(),
        "its files": lambda: os.readlink(f"/proc/{other}/fd/0"),
        "limits": lambda: resource.prlimit(other, resource.RLIMIT_CPU, (0, 0)),
    }


def inside(work: Callable[[], object], home: Path) -> dict[str, str]:
    """Return what the work says, done with the uid and confined to a home."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.become(UID, UID)
            confined.confine(str(home))
            answer = work()
        except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent
            answer = {"": repr(error)}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    found: dict[str, str] = json.loads(said)
    return found


def tried(table: dict[str, Callable[[], object]]) -> dict[str, str]:
    """Return how each attempt ended: done, or the name of the error."""
    said = {}
    for name, one in table.items():
        try:
            one()
            said[name] = "done"
        except OSError as error:
            said[name] = type(error).__name__
    return said


def test_another_home_is_out_of_reach(homes: tuple[Path, Path]) -> None:
    """Nothing of another's home is read, changed, made or removed, and its process is left alone, though the uid fits.

    The same attempts without the wall succeed, so each of them is one that the wall stops.
    """
    ann, ben = homes
    (ben / "mine").touch()
    with subprocess.Popen(["/bin/sleep", "120"], user=UID, group=UID, extra_groups=[]) as other:
        try:
            found = inside(lambda: tried(attempts(ben, other.pid)), ann)
            assert other.poll() is None
        finally:
            other.kill()
    assert {name: said for name, said in found.items() if said != "PermissionError"} == {"link out": "OSError"}  # EXDEV
    assert (ben / "Maildir" / "mail").read_text() == "to ben\n"
    assert sorted(os.listdir(ben / "Maildir")) == ["mail"]
    assert len(found) > 20


def test_without_the_wall_the_uid_would_do(homes: tuple[Path, Path]) -> None:
    """What the wall refuses, the uid alone allows: the attempts are real ones."""
    _, ben = homes
    found = subprocess.run(
        [sys.executable, "-c", "import os, sys; os.chmod(sys.argv[1], 0o700); print(open(sys.argv[1]).read())",
         str(ben / "Maildir" / "mail")],
        user=UID, group=UID, extra_groups=[], capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert found.stdout == "to ben\n\n"


@pytest.mark.skipif(linux.landlock_abi() < 6, reason="Landlock scopes signals from ABI 6 on")
def test_no_signal_reaches_another(homes: tuple[Path, Path]) -> None:
    """From ABI 6 of Landlock on another's process cannot be signalled either; one's own children can."""

    def work() -> dict[str, str]:
        child = os.fork()
        if child == 0:
            signal.pause()
        said = tried({"other": lambda: os.kill(other.pid, signal.SIGTERM), "own": lambda: os.kill(child, 9)})
        os.waitpid(child, 0)
        return said

    with subprocess.Popen(["/bin/sleep", "120"], user=UID, group=UID, extra_groups=[]) as other:
        try:
            assert inside(work, homes[0]) == {"other": "PermissionError", "own": "done"}
        finally:
            other.kill()


def test_the_own_home_works(homes: tuple[Path, Path]) -> None:
    """What a delivery needs works at home: files, folders, links, renames, and importing."""
    ann, _ = homes

    def work() -> dict[str, str]:
        import colorsys  # noqa: F401 - one that nothing has imported before

        folder = ann / "Maildir" / "new"
        return tried(
            {
                "folder": folder.mkdir,
                "write": lambda: (ann / "Maildir" / "tmp").write_text("x"),
                "link elsewhere": lambda: os.link(ann / "Maildir" / "tmp", folder / "1"),
                "rename": lambda: os.rename(folder / "1", ann / "2"),
                "remove": lambda: (ann / "2").unlink(),
                "null": lambda: open("/dev/null", "r+b").close(),
                "a file of the system": lambda: Path("/etc/passwd").read_bytes(),
            }
        )

    found = inside(work, ann)
    assert set(found.values()) == {"done"}, found


@pytest.mark.parametrize("home", ["/usr/local/mail", "/etc"])
def test_a_home_that_all_may_read_is_refused(home: str) -> None:
    """Where the home lies within what every recipient reads there is no wall, and no process goes on."""
    assert "every recipient may read" in inside(dict, Path(home))[""]


@pytest.mark.parametrize(("abi", "floor", "enough"), [(0, "good", False), (1, "basic", False), (2, "good", True),
                                                      (5, "full", False), (6, "full", True)])  # fmt: skip
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, abi: int, floor: str, *, enough: bool) -> None:
    """Below the site's level, and below what a Maildir needs, the remedy is named."""
    monkeypatch.setattr(linux, "landlock_abi", lambda: abi)
    assert (confined.missing(floor) == "") is enough
    assert enough or "Landlock ABI" in confined.missing(floor)
