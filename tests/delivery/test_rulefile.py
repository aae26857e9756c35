"""Reading people's rule files: in every state a file can be in, safely, and saying what is wrong."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from milterapp.delivery import rulefile
from milterapp.delivery.rulefile import Loaded, RuleFile, Unavailable, open_home
from tests.delivery.agent_process import Person
from tests.delivery.inside import inside

RULES = b"rules:\n  - name: all\n    then:\n      file: Lists\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home with rules in it."""
    home = tmp_path / "home"
    (home / ".milterapp").mkdir(mode=0o700, parents=True)
    (home / ".milterapp/rules.yaml").write_bytes(RULES)
    (home / ".milterapp/rules.yaml").chmod(0o600)
    home.chmod(0o700)
    return home


@pytest.fixture
def descriptor(home: Path) -> Iterator[int]:
    """Give a descriptor of the home."""
    opened = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def _rules(home: Path) -> Path:
    return home / ".milterapp/rules.yaml"


def _open(path: Path) -> None:
    """Let others write to a file, at a time that tells it from the last change: some kernels count it in ticks."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.chmod(0o666)


def _replaced(home: Path, make: Callable[[Path], object]) -> None:
    path = _rules(home)
    path.unlink()
    make(path)


def _folder_replaced(home: Path, make: Callable[[Path], object]) -> None:
    (home / ".milterapp").rename(home / "x")
    make(home / ".milterapp")


def _no_folder(home: Path) -> None:
    _rules(home).unlink()
    (home / ".milterapp").rmdir()


def _no_file_in_an_open_home(home: Path) -> None:
    _rules(home).unlink()
    home.chmod(0o777)


FINE: dict[str, Callable[[Path], object]] = {
    "as it is": str,
    "readable by all": lambda home: os.chmod(_rules(home), 0o644),
    "read-only": lambda home: os.chmod(_rules(home), 0o400),
    "folder open to look at": lambda home: os.chmod(home / ".milterapp", 0o755),
    "home open to look at": lambda home: os.chmod(home, 0o755),
}
NONE: dict[str, Callable[[Path], object]] = {
    "no file": lambda home: os.unlink(_rules(home)),
    "no folder": _no_folder,
    "no file in an open home": _no_file_in_an_open_home,
}
OPEN = "can be written by others, expected: chmod go-w"
UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "group may write": (lambda home: os.chmod(_rules(home), 0o620), OPEN),
    "all may write": (lambda home: os.chmod(_rules(home), 0o602), OPEN),
    "foreign": (lambda home: os.chown(_rules(home), 12345, 12345), "belongs to another user"),
    "a link": (lambda home: _replaced(home, lambda path: path.symlink_to("/etc/hosts")), "symbolic link"),
    "a dangling link": (lambda home: _replaced(home, lambda path: path.symlink_to("nowhere")), "symbolic link"),
    "a second name": (lambda home: os.link(_rules(home), home / "other"), "hard link"),
    "a folder": (lambda home: _replaced(home, os.mkdir), "no plain file"),
    "a fifo": (lambda home: _replaced(home, os.mkfifo), "no plain file"),
    "a device": (
        lambda home: _replaced(home, lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))),
        "no plain file",
    ),
    "a socket": (lambda home: _replaced(home, lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK)), "no plain file"),
    "too long": (lambda home: _rules(home).write_bytes(b"#" * (1 << 20) + b"\n"), "larger than"),
    "empty": (lambda home: _rules(home).write_bytes(b""), ""),
    "all may write the folder": (lambda home: os.chmod(home / ".milterapp", 0o707), f"'.milterapp' {OPEN}"),
    "group may write the folder": (lambda home: os.chmod(home / ".milterapp", 0o770), f"'.milterapp' {OPEN}"),
    "foreign folder": (lambda home: os.chown(home / ".milterapp", 12345, 0), "'.milterapp' belongs to another user"),
    "folder a link": (lambda home: _folder_replaced(home, lambda path: path.symlink_to("x")), "no folder"),
    "folder a file": (lambda home: _folder_replaced(home, lambda path: path.write_text("")), "no folder"),
    "all may write the home": (lambda home: os.chmod(home, 0o707), f"the home {OPEN}"),
    "no YAML": (lambda home: _rules(home).write_bytes(b"rules: [\n"), ""),
    "not UTF-8": (lambda home: _rules(home).write_bytes(b"rules: \xff\n"), ""),
    "NUL": (lambda home: _rules(home).write_bytes(b"rules:\0\n"), ""),
}


@pytest.mark.parametrize("state", FINE)
@pytest.mark.root
def test_good_rules_are_loaded(home: Path, descriptor: int, state: str) -> None:
    """A plain file of the user's that only the user can write is loaded."""
    FINE[state](home)
    loaded = RuleFile(".milterapp/rules.yaml", os.geteuid()).load(descriptor)
    assert loaded.policy is not None
    assert [rule.name for rule in loaded.policy.rules] == ["all"]


@pytest.mark.parametrize("state", NONE)
def test_without_a_file_there_are_no_rules(home: Path, descriptor: int, state: str) -> None:
    """No rule file is no problem, whatever the home looks like: the mail is kept as it always was."""
    NONE[state](home)
    loaded = RuleFile(".milterapp/rules.yaml", os.geteuid()).load(descriptor)
    assert (loaded.policy, loaded.problems, loaded.broken) == (None, (), False)


@pytest.mark.parametrize("state", UNSAFE)
@pytest.mark.root
def test_unsafe_or_broken_rules_are_a_problem_with_its_place(home: Path, descriptor: int, state: str) -> None:
    """What must not be read, or cannot be, is a problem that names the file and what to do; it is never no rules."""
    change, text = UNSAFE[state]
    change(home)
    loaded = RuleFile(".milterapp/rules.yaml", os.geteuid()).load(descriptor)
    assert loaded.broken
    assert str(loaded.problems[0]).startswith("~/.milterapp/rules.yaml:")
    assert text in str(loaded.problems[0])


@pytest.mark.parametrize("closed", [".milterapp/rules.yaml", ".milterapp"])
@pytest.mark.root
def test_rules_that_their_own_user_cannot_read_are_temporary(closed: str) -> None:
    """A mode that keeps the user out is no answer to what the rules are: the mail waits."""
    person = Person()
    try:
        person.write(RULES.decode())
        (person.home / closed).chmod(0)

        def run() -> str:
            os.setgroups([])
            os.setresgid(person.uid, person.uid, person.uid)
            os.setresuid(person.uid, person.uid, person.uid)
            with open_home(str(person.home), person.uid) as descriptor:
                assert descriptor is not None
                try:
                    return str(RuleFile(".milterapp/rules.yaml", person.uid).load(descriptor))
                except Unavailable as error:
                    return f"temporary: {error}"

        assert inside(run) == "temporary: ~/.milterapp/rules.yaml: Permission denied"
    finally:
        person.close()


def test_the_rules_are_read_again_when_they_changed(home: Path, descriptor: int) -> None:
    """Unchanged rules are not read a second time; changed, replaced, broken and mended ones are."""
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    first = rules.load(descriptor)
    assert rules.load(descriptor) is first
    replacement = home / ".milterapp/new"
    replacement.write_bytes(RULES.replace(b"all", b"two"))
    replacement.rename(_rules(home))
    second = rules.load(descriptor)
    assert second.policy is not None
    assert second.policy.rules[0].name == "two"
    _open(_rules(home))
    assert rules.load(descriptor).broken
    _rules(home).chmod(0o600)
    assert rules.load(descriptor).policy is not None
    _rules(home).unlink()
    assert rules.load(descriptor).problems == ()


@dataclass
class Clock:
    """Both clocks of rulefile: time goes by with a sleep alone, however busy the machine is. began: since 1970.

    then: what somebody else does meanwhile; at: when.
    """

    began: float
    then: Callable[[], object] = str
    at: float = float("inf")
    gone: float = 0.0

    def monotonic(self) -> float:
        """Return the seconds since it began."""
        return self.gone

    def time(self) -> float:
        """Return the seconds since 1970."""
        return self.began + self.gone

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.gone += seconds
        if self.gone >= self.at:
            self.at = float("inf")
            self.then()


def test_an_editor_that_moves_the_old_file_away_first(
    home: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had rules a moment ago has the new ones, not none, where those come within a second."""
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    assert rules.load(descriptor).policy is not None
    backup = home / ".milterapp/rules.yaml~"
    _rules(home).rename(backup)

    def write() -> None:
        new = home / ".milterapp/new"
        new.write_bytes(RULES.replace(b"all", b"new"))
        new.rename(_rules(home))

    monkeypatch.setattr(rulefile, "time", Clock((home / ".milterapp").stat().st_mtime, write, at=0.9))
    found = rules.load(descriptor)
    assert found.policy is not None
    assert [rule.name for rule in found.policy.rules] == ["new"]


def test_rules_that_were_removed_are_none(home: Path, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for rules that were removed some time ago; lately, once, and no longer than that."""
    monkeypatch.setattr(rulefile, "time", clock := Clock(time.time()))
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    for age, waits in ((10, False), (0, True)):
        assert rules.load(descriptor).policy is not None
        _rules(home).rename(home / "away")
        os.utime(home / ".milterapp", (clock.time() - age,) * 2)
        for wait in (waits, False):
            begun = clock.gone
            assert rules.load(descriptor) == Loaded(None)
            assert (clock.gone - begun > 0.9) is wait
        (home / "away").rename(_rules(home))


LISTED = (
    b"lists:\n  family: {file: family.txt}\nrules:\n  - name: all\n    if:\n      from: {in: family}\n"
    b"    then:\n      file: Lists\n"
)


def test_a_list_beside_the_rules(home: Path, descriptor: int) -> None:
    """A list is read from beside the rules with the same checks, and its change is a change of the rules."""
    _rules(home).write_bytes(LISTED)
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    assert rules.load(descriptor).broken
    members = home / ".milterapp/family.txt"
    members.write_bytes(b"mum@example.org\n")
    members.chmod(0o600)
    first = rules.load(descriptor)
    assert first.policy is not None
    assert rules.load(descriptor) is first
    members.write_bytes(b"mum@example.org\n.cousins.example\n")
    assert rules.load(descriptor) is not first
    _open(members)
    broken = rules.load(descriptor)
    assert broken.broken
    assert "written by others" in str(broken.problems[0])


@pytest.mark.parametrize("name", ["family.txt", "pages/page.py"])
def test_what_the_rules_need_is_removed(home: Path, descriptor: int, name: str) -> None:
    """Rules without a list or script of theirs are broken, for who has read them before too, and never none at all."""
    _rules(home).write_bytes(LISTED + b"  - name: page\n    then:\n      script: pages/page.py\n")
    (home / ".milterapp/pages").mkdir(mode=0o700)
    (home / ".milterapp/family.txt").write_bytes(b"mum@example.org\n")
    (home / ".milterapp/pages/page.py").write_bytes(b"def main(mail): ...\n")
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    assert rules.load(descriptor).policy is not None
    (home / ".milterapp" / name).unlink()
    found = [rules.load(descriptor), rules.load(descriptor), RuleFile(rules.shown[2:], os.geteuid()).load(descriptor)]
    assert [(one.broken, name in str(one.problems[0])) for one in found] == [(True, True)] * 3


@pytest.mark.parametrize("name", ["../family.txt", "/etc/passwd", "..", "sub/family.txt"])
def test_a_list_stays_beside_the_rules(home: Path, descriptor: int, name: str) -> None:
    """A list outside the rules' folder is refused."""
    _rules(home).write_bytes(LISTED.replace(b"family.txt", name.encode()))
    assert RuleFile(".milterapp/rules.yaml", os.geteuid()).load(descriptor).broken


def test_rules_outside_the_home(home: Path, descriptor: int) -> None:
    """Personal rules may be configured outside the home; the folders on the way are checked from the root."""
    loaded = RuleFile(str(_rules(home)), os.geteuid()).load(descriptor)
    assert loaded.broken  # below /tmp, which all may write
    assert "can be written by others" in str(loaded.problems[0])


def _home(home: Path, uid: int) -> str:
    with open_home(str(home), uid) as descriptor:
        return "none" if descriptor is None else "open"


def _instead(home: Path, make: Callable[[Path], object]) -> None:
    home.rename(home.with_name(home.name + ".away"))
    make(home)


@pytest.mark.root
def test_a_home(home: Path) -> None:
    """A home of the user's or root's is opened, whether or not others may write to it."""
    assert _home(home, 0) == "open"
    os.chown(home, 12345, 12345)
    assert _home(home, 12345) == "open"
    home.chmod(0o777)
    assert _home(home, 12345) == "open"


@pytest.mark.parametrize("home", ["/nonexistent", "/dev/null", ""])
def test_an_account_without_a_home(home: str) -> None:
    """What passwd writes for an account that has no home is no fault: there are no rules."""
    with open_home(home, 1000) as descriptor:
        assert descriptor is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda home: _instead(home, str), "No such file", id="missing"),
        pytest.param(lambda home: os.chown(home, 12345, 12345), "another user", id="foreign"),
        pytest.param(lambda home: os.chmod(home, 0o1700), "sticky", id="sticky"),
        pytest.param(lambda home: _instead(home, os.mkfifo), "Not a directory", id="fifo"),
        pytest.param(lambda home: _instead(home, lambda path: path.write_text("")), "Not a directory", id="file"),
        pytest.param(lambda home: _instead(home, lambda path: path.symlink_to(path)), "symbolic links", id="loop"),
    ],
)
@pytest.mark.root
def test_a_home_that_cannot_be_used_is_temporary(home: Path, change: Callable[[Path], object], why: str) -> None:
    """A home that is not there, not the user's, or locked by its user defers the mail."""
    change(home)
    try:
        with pytest.raises(Unavailable, match=why):
            _home(home, 0)
    finally:
        if home.is_symlink():
            home.unlink()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENFILE])
def test_a_file_system_that_fails_is_temporary(descriptor: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that cannot be read just now are neither broken nor none."""
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "rules.yaml":
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(Unavailable, match=r"rules\.yaml"):
        RuleFile(".milterapp/rules.yaml", os.geteuid()).load(descriptor)


BESIDE = {
    "list.txt": "lists:\n  l: {file: list.txt}\nrules:\n- {name: a, if: {from: {in: l}}, then: {file: A}}\n",
    "page.py": "rules:\n- {name: a, then: {script: page.py}}\n",
}


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_the_rules_that_cannot_be_read_now(
    home: Path, descriptor: int, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the moment is no problem of the rules, of which their user would be told; closed to its user it is."""
    _rules(home).write_text(BESIDE[name])
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == name:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    rules = RuleFile(".milterapp/rules.yaml", os.geteuid())
    if number == errno.EACCES:
        assert "cannot be read: Permission denied" in str(rules.load(descriptor).problems[0])
        return
    with pytest.raises(Unavailable, match=name):
        rules.load(descriptor)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("if: {auth: {dmarc: pass}}\n  then: {file: A}", ""),
        ("then: {banner: x}", ""),
        ("then: {pipe: x}", "the site does not allow the program 'x'; it allows none"),
        ("then: {vacation: x}", ""),
        ("then: [{vacation: x}, reject]", "`vacation` and `reject` in one rule"),
        ("if: {duplicate: yes}\n  then: discard", ""),
        ("then: [{file: A}, {flag: seen}]", ""),
        ("then: [keep, {flag: seen}]", "`flag` beside `keep`"),
        ("then: {log: x}", ""),
    ],
    ids=["auth", "banner", "pipe", "vacation", "vacation and reject", "duplicate", "flag", "flag beside keep", "log"],
)
def test_what_the_agent_cannot_do_is_refused(home: Path, rule: str, problem: str) -> None:
    """Rules that the agent could not carry out whole are a problem, and never carried out in part."""
    _rules(home).write_text(f"rules:\n- name: it\n  {rule}\n")
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        loaded = RuleFile(".milterapp/rules.yaml", os.geteuid(), ("mx.example",)).load(descriptor)
    finally:
        os.close(descriptor)
    assert (loaded.policy is None) is bool(problem)
    assert problem in "".join(map(str, loaded.problems))
