"""The tests on a real Postfix once more, with milterapp's services as units of a real systemd:

    packaging/world .venv/bin/python -m tests.soak.units [TEST...]

Without arguments those that kill no service behind systemd's back. Everything that hardens a unit holds: system calls,
namespaces, views of the file system, capabilities. Then each unit is killed, and has to be back. Prints what became of
each, and returns pytest's exit status, or 1 where a unit did not do as it should.

Must never: pass where a unit was killed for a system call, or started again while the tests ran.
"""

from __future__ import annotations

import contextlib
import sys
import time

import pytest

from tests.postfix import units
from tests.postfix.host import Host, in_world

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
LEFT_OUT = ("-k", "not no_spawner and not services_mail_waits")  # they kill a service, and systemd starts it again
SERVICES = ("script", "submit", "monitor", "milter", "lmtp")
_BACK = 20.0  # seconds


def killed(name: str) -> str:
    """Kill a unit's first process; return in how many seconds another one serves, "" where none does."""
    unit = units.Unit(name)
    begun = time.monotonic()
    units.systemctl("kill", "--signal=KILL", "--kill-who=main", unit.name)
    while time.monotonic() - begun < _BACK:
        found = units.show(unit.name)
        if found["ActiveState"] == "active" and found["NRestarts"] == "1" and found["MainPID"] != "0":
            with contextlib.suppress(AssertionError):
                if Host().answers(name):
                    return f"{time.monotonic() - begun:.1f}"
        time.sleep(0.05)
    return ""


def main() -> int:
    """Boot, run the tests, say what became of each unit; return an exit code."""
    if not in_world():
        print("tests.soak.units: it boots a systemd: run it through packaging/world", file=sys.stderr)
        return 64
    with units.booted():
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", *(sys.argv[1:] or (*TESTS, *LEFT_OUT))]))
        for name in SERVICES:
            found = units.show(f"milterapp-{name}.service")
            back = killed(name)
            print(f"{name}: ended with {found['Result']}, started again {found['NRestarts']} times; ", end="")
            print(f"killed, it served again after {back} s" if back else "killed, it did not come back")
            code = code or int(found["Result"] != "success" or found["NRestarts"] != "0" or not back)
    return code


if __name__ == "__main__":
    sys.exit(main())
