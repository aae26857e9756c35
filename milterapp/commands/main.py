"""`milterapp COMMAND`: find the command, import it alone, run it, and turn every end into an exit code of sysexits(3).

Must never: import a command that was not called, let argparse's exit status 2 out (pipe(8) would bounce on it), or
print a result on standard error or anything else on standard output.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import NoReturn, Protocol

from milterapp import __version__
from milterapp.commands.failure import Failure, complain, reason
from milterapp.rules.problem import near_miss

__all__ = ["COMMANDS", "Command", "main", "parser_of"]

_OUTPUT_LOST = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Command(Protocol):
    """What every module of COMMANDS has. Both may raise Failure."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options to its parser."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; return an exit code."""


COMMANDS: dict[str, tuple[str, str]] = {
    "test": ("milterapp.commands.test", "try rules on a message: what matched and why, what would become of it"),
    "check": ("milterapp.commands.check", "validate rules and configuration, and run the tests beside the rules"),
    "routes": ("milterapp.commands.routes", "list what of a script answers at which address"),
    "milter": ("milterapp.commands.milter", "run the in-line milter (a service)"),
    "monitor": ("milterapp.commands.monitor", "run delivery for each recipient (a service)"),
    "lmtp": ("milterapp.commands.lmtp", "take mail from Postfix over LMTP (a service)"),
    "submit": ("milterapp.commands.submit", "hand mail to Postfix for the agents (a service)"),
    "script": ("milterapp.commands.script", "run the scripts of the site's rules for the milter (a service)"),
    "reload": ("milterapp.commands.reload", "make the running milter read its rules again"),
    "status": ("milterapp.commands.status", "say how the running milter is doing"),
    "setup": ("milterapp.commands.setup", "put milterapp into Postfix's configuration, or take it out"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are usage errors of sysexits(3), 64."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End with 64, the message and where help is."""
        raise Failure(os.EX_USAGE, message, f"`{self.prog} --help` lists the options")

    def known_options(self) -> list[str]:
        """Return every option string, in the order of the help text."""
        return [text for action in self._actions for text in action.option_strings]


def parser_of(name: str) -> tuple[Command, Parser]:
    """Return a command's module and its parser. Raises KeyError where there is no such command."""
    module, summary = COMMANDS[name]
    command: Command = importlib.import_module(module)
    parser = Parser(f"milterapp {name}", f"{summary[0].upper()}{summary[1:]}.")
    command.arguments(parser)
    return command, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; argv defaults to the process's own arguments."""
    _tolerate_odd_characters()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
    except Failure as failure:
        failure.tell()
        code = failure.code
    except KeyboardInterrupt:
        code = 130  # what a shell reports of a command that SIGINT ended
    except Exception as error:  # noqa: BLE001 - the edge of the process: a fault of ours is 70, never 1, "not met"
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_LOST:
            _output_lost(error)
            return os.EX_IOERR
        traceback.print_exc()
        complain("a fault of milterapp's own, please report the lines above")
        code = os.EX_SOFTWARE
    return _flush(code)


def _dispatch(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("help", "--help", "-h") and not rest:
        print(_usage())
        return os.EX_OK
    if name == "help":
        name, rest = rest[0], ["--help"]
    if name == "--version":
        print(f"milterapp {__version__}")
        return os.EX_OK
    if not name:
        print(_usage(), file=sys.stderr)
        return os.EX_USAGE
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        miss = near_miss(name, [*COMMANDS, "help", "--help", "--version"])
        raise Failure(os.EX_USAGE, f"unknown {kind} {name!r}{miss}", "`milterapp help` lists the commands")
    command, parser = parser_of(name)
    if "--help" in rest or "-h" in rest:
        print(parser.format_help(), end="")
        return os.EX_OK
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        _refuse(parser, unknown)
    return command.run(options)


def _refuse(parser: Parser, unknown: Iterable[str]) -> NoReturn:
    """End with 64, a line for each argument that the command does not know."""
    lines = []
    for argument in unknown:
        if argument.startswith("-"):
            option = argument.partition("=")[0]
            lines.append(f"unknown option {option!r}{near_miss(option, parser.known_options())}")
        else:
            lines.append(f"unexpected argument {argument!r}")
    raise Failure(os.EX_USAGE, *lines, f"`{parser.prog} --help` lists the options")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: milterapp COMMAND [OPTIONS]",
            "",
            *commands,
            f"  {'help':{width}}  say this, or `help COMMAND` for its options",
            "",
            "`milterapp --version` names the version. milterapp(1) says it all.",
        ]
    )


def _flush(code: int) -> int:
    """Return the exit code, or 74 where the results could not be written out."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _output_lost(error)
        return os.EX_IOERR
    return code


def _output_lost(error: OSError) -> None:
    """Say so, unless the reader has gone (`| head`), and leave the interpreter's flush at exit nothing to fail on."""
    if not isinstance(error, BrokenPipeError):
        complain(f"cannot write standard output: {reason(error)}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tolerate_odd_characters() -> None:
    """Print what the terminal's charset lacks, and names that are no UTF-8, as escapes rather than fail on them."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
