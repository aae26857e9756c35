"""`milterapp reload`: has the running milter read its rules again, and says what came of it.

Must never: report rules as taken that were not, or touch the milter but over its control socket.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from milterapp.commands import handover, site_file
from milterapp.commands.failure import Failure, reason
from milterapp.milter.control import ask, control_path

__all__ = ["answer_of", "arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    site_file.argument(parser)


def run(options: argparse.Namespace) -> int:
    """Ask, and print the problems. Raises Failure 65 where the old rules stay, 69 where no milter runs, 77."""
    path = json.loads(handover.settings_as_json(options.config))["milter"]["socket"]
    answer = answer_of(path, "reload")
    problems = [str(one) for one in answer.get("problems", ["no reason was given"])]
    for one in problems if answer.get("done") else []:
        print(one, file=sys.stderr)
    if not answer.get("done"):
        raise Failure(os.EX_DATAERR, *problems, "the rules from before stay")
    return os.EX_OK


def answer_of(path: str, word: str) -> dict[str, Any]:
    """Return what the milter at this socket answers. Raises Failure 69 where none runs, 75, 77."""
    try:
        answer = ask(path, word)
    except PermissionError as error:
        raise Failure(os.EX_NOPERM, f"{control_path(path)}: {reason(error)}; only root and its account may") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Failure(os.EX_UNAVAILABLE, f"no milter runs at {path}") from error
    except (OSError, ValueError) as error:
        raise Failure(os.EX_TEMPFAIL, f"the milter at {path} did not answer: {error}") from error
    if "error" in answer:
        raise Failure(os.EX_NOPERM, str(answer["error"]))
    return answer
