"""The command line ends with exit codes of sysexits(3), whatever it is called with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from milterapp import __version__
from milterapp.commands import main as command_line
from milterapp.commands.failure import MEANINGS, Failure
from milterapp.rules.problem import Place, Problem

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]


USAGE = {
    "no-command": ([], "usage: milterapp COMMAND"),
    "unknown-command": (["tset"], "unknown command 'tset', did you mean 'test'?"),
    "unknown-command-like-nothing": (["zzz"], "unknown command 'zzz'\n"),
    "unknown-option-before": (["--verison"], "unknown option '--verison', did you mean '--version'?"),
    "unknown-option-after": (["test", "--recipent=a"], "unknown option '--recipent', did you mean '--recipient'?"),
    "abbreviated-option": (["test", "--recip", "a@example.org"], "unknown option '--recip'"),
    "every-unknown-option": (["check", "--aa", "--bb"], "unknown option '--bb'"),
    "option-without-its-value": (["test", "--sender"], "expected one argument"),
    "help-on-nothing": (["help", "tset"], "unknown command 'tset'"),
}


@pytest.mark.parametrize(("arguments", "said"), USAGE.values(), ids=USAGE)
def test_usage(milterapp: Milterapp, arguments: list[str], said: str) -> None:
    """A wrong command line ends with 64, says why on standard error and nothing on standard output."""
    ended = milterapp(*arguments)
    assert (ended.returncode, ended.stdout) == (os.EX_USAGE, "")
    assert said in ended.stderr


ASKED = {
    "version": (["--version"], f"milterapp {__version__}\n"),
    "help": (["help"], "usage: milterapp COMMAND"),
    "help-option": (["--help"], "usage: milterapp COMMAND"),
    "help-of-a-command": (["help", "test"], "usage: milterapp test"),
    "help-option-of-a-command": (["test", "--help"], "usage: milterapp test"),
}


@pytest.mark.parametrize(("arguments", "said"), ASKED.values(), ids=ASKED)
def test_help(milterapp: Milterapp, arguments: list[str], said: str) -> None:
    """Who asks for help or the version gets it on standard output, exit 0."""
    ended = milterapp(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(said)


def test_only_the_command_called_is_imported() -> None:
    """`milterapp check` imports neither the milter nor structlog, `milterapp help` no command at all."""
    source = (
        "import sys; from milterapp.commands.main import main; main({!r});"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] in ('structlog', 'yaml')"
        " or name.startswith('milterapp.commands.')), file=sys.stderr)"
    )
    for argv, want in [(["help"], {"yaml": False}), (["check", "--help"], {"structlog": False})]:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", source.format(argv)], capture_output=True, check=True, text=True
        )
        got = set(ended.stderr.split())
        assert {name: name in got for name in want} == want
        assert got & {"milterapp.commands.setup", "milterapp.commands.milter"} == set()


@pytest.mark.parametrize(
    ("target", "said"), [("/dev/full", "cannot write standard output"), ("closed pipe", "")], ids=["full", "head"]
)
@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_lost_output(target: str, said: str, unbuffered: list[str]) -> None:
    """Results that cannot be written end with 74; a reader that has gone is no news."""
    if target == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-I", *unbuffered, "-m", "milterapp", "help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(writer)
    assert ended.returncode == os.EX_IOERR
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert bool(ended.stderr) == bool(said)


class Ends:
    """A command that ends in one way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def arguments(self, parser: object) -> None:
        """Add nothing."""

    def run(self, options: object) -> int:
        """End."""
        raise self.error


PROBLEM = Problem(Place("rules.yaml", 2, 3), "unknown key 'thne'")
ENDS = {
    "our-fault": (ValueError("oops"), os.EX_SOFTWARE, "ValueError: oops\nmilterapp: a fault of milterapp's own"),
    "a-file-of-ours": (FileNotFoundError(2, "no", "x"), os.EX_SOFTWARE, "a fault of milterapp's own"),
    "interrupted": (KeyboardInterrupt(), 130, ""),
    "a-sentence": (Failure(os.EX_NOINPUT, "rules.yaml: cannot read"), 66, "milterapp: rules.yaml: cannot read\n"),
    "a-problem": (Failure(os.EX_DATAERR, PROBLEM), 65, "rules.yaml:2:3: unknown key 'thne'\n"),
}


@pytest.mark.parametrize(("error", "code", "said"), ENDS.values(), ids=ENDS)
def test_ends(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of ours is 70 with its traceback, never 1; a failure is its code and its lines, no traceback."""
    monkeypatch.setitem(sys.modules, "milterapp.commands.end", Ends(error))
    monkeypatch.setitem(command_line.COMMANDS, "end", ("milterapp.commands.end", "end"))
    assert command_line.main(["end"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert ("Traceback" in err) == (code == os.EX_SOFTWARE)


def test_every_code_has_a_meaning() -> None:
    """No failure ends with a code that the manual page does not list."""
    assert {0, 1, 64, 65, 66, 69, 70, 75, 78} <= set(MEANINGS)
