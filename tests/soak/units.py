"""The tests on a real Postfix once more, with milterapp's services as units of a real systemd:

    packaging/world .venv/bin/python -m tests.soak.units [TEST...]

Without arguments those that need no service killed behind systemd's back. Everything that hardens a unit holds: system
calls, namespaces, views of the file system, capabilities. Prints how each unit ended, and returns pytest's exit status.

Must never: pass where a unit was killed for a system call, or was started again.
"""

from __future__ import annotations

import sys

import pytest

from tests.postfix import units
from tests.postfix.host import in_world

TESTS = (
    "tests/postfix/test_inline.py",
    "tests/postfix/test_delivery.py",
    "tests/postfix/test_language.py",
    "tests/postfix/test_actions.py",
    "tests/postfix/test_script.py",
    "tests/postfix/test_site_script.py",
    "tests/postfix/test_programs.py",
    "tests/postfix/test_milter_actions.py",
)


def main() -> int:
    """Boot, run the tests, say what became of each unit; return an exit code."""
    if not in_world():
        print("tests.soak.units: it boots a systemd: run it through packaging/world", file=sys.stderr)
        return 64
    with units.booted():
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)]))
        for name in ("milter", "monitor", "submit", "script", "lmtp"):
            found = units.show(f"milterapp-{name}.service")
            said = {key: found.get(key, "") for key in ("ActiveState", "Result", "ExecMainStatus", "NRestarts")}
            print(name, *(f"{key}={value}" for key, value in said.items()))
            code = code or int(said["Result"] != "success" or said["NRestarts"] != "0")
    return code


if __name__ == "__main__":
    sys.exit(main())
