"""How a command ends where it cannot do what it was asked: an exit code of sysexits(3) and the sentence that says why.

Must never: be raised for what rules decided (a dry run that rejects is done, exit 0).
"""

from __future__ import annotations

import os
import sys

from milterapp.rules.problem import Problem

__all__ = ["MEANINGS", "UNMET", "Failure", "cannot_read", "complain", "reason"]

UNMET = 1  # an expectation or a test beside the rules was not met; no sysexits code says that

MEANINGS: dict[int, str] = {
    os.EX_OK: "done",
    UNMET: "an expectation, or a test beside the rules, was not met",
    os.EX_USAGE: "the command line was wrong",
    os.EX_DATAERR: "rules or message are invalid",
    os.EX_NOINPUT: "a file cannot be read",
    os.EX_NOUSER: "an account that is needed is not there",
    os.EX_UNAVAILABLE: "a service or a program that is needed is not there",
    os.EX_SOFTWARE: "a fault of milterapp's own",
    os.EX_OSERR: "the system refused what is needed",
    os.EX_CANTCREAT: "an output file cannot be written",
    os.EX_IOERR: "standard output could not be written",
    os.EX_TEMPFAIL: "a temporary failure: try again",
    os.EX_NOPERM: "the caller may not do that",
    os.EX_CONFIG: "the configuration is invalid",
}


class Failure(Exception):  # noqa: N818 - it is the end of a command, not always an error
    """The end of a command. code: one of MEANINGS; lines: what goes to standard error, sentences and problems."""

    def __init__(self, code: int, *lines: str | Problem) -> None:
        super().__init__("\n".join(map(str, lines)))
        self.code = code
        self.lines = lines

    def tell(self) -> None:
        """Print the lines on standard error."""
        complain(*self.lines)


def cannot_read(path: str, error: OSError) -> Failure:
    """Return the end of a command whose file cannot be read, 66, with the reason in the words of the system."""
    return Failure(os.EX_NOINPUT, f"{path}: cannot read: {reason(error)}")


def complain(*lines: str | Problem) -> None:
    """Print to standard error; a problem stands at the beginning of its line, where editors look for its place."""
    for line in lines:
        print(line if isinstance(line, Problem) else f"milterapp: {line}", file=sys.stderr)


def reason(error: OSError) -> str:
    """Return what the system said, without number and path."""
    return str(error) if error.errno is None else os.strerror(error.errno)
