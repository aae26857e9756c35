"""Is mail lost or doubled when a process is killed, or one of its calls fails, at any system call it makes?

    packaging/world .venv/bin/python -m tests.soak.killed [--only WORD] [--every N]

Each fault befalls a delivery of its own: killed at a system call, at every one in turn; each of seven errors at every
call; a disk that fails from there on. Then Postfix's retry. Prints a ledger for each scenario, and exits 1 where one
message was lost, corrupted, doubled outside the gap that milterapp-submit(8) names, bounced, or called delivered when
it was not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.delivery.chain import Chain
from tests.delivery.clients import build
from tests.soak.killed_agent import AGENTS
from tests.soak.killed_client import ClientCase
from tests.soak.killed_script import SCRIPT
from tests.soak.killed_submit import SubmitCase
from tests.soak.ledger import Ledger, Tried, total
from tests.soak.strace import Call, Fault, sample, sweep

__all__ = ["Case", "main", "run", "scenarios"]

Case = tuple[str, Callable[[], list[Call]], Callable[[Fault], Tried]]


@contextmanager
def scenarios() -> Iterator[Sequence[Case]]:
    """Give every scenario: its name, what counts its calls, and what tries one fault."""
    chain = Chain(real=True, deadline=60.0, wait=60.0, idle=600.0)
    submit = SubmitCase()
    folder = tempfile.TemporaryDirectory(prefix="milterapp-client-")
    try:
        Path(folder.name).chmod(0o755)  # the client has an account of its own
        compiled = build(Path(folder.name) / "milterapp-client")
        cases: list[Case] = [(one.name, one.calls, one.tried) for one in (*AGENTS, SCRIPT)]
        cases += [(one.name, one.calls, one.tried) for one in ClientCase.all(chain, compiled)]
        cases.append((submit.name, submit.calls, submit.tried))
        yield cases
    finally:
        submit.close()
        chain.close()
        folder.cleanup()


def run(case: Case, choose: Callable[[Sequence[Call]], Sequence[Fault]]) -> Ledger:
    """Try the faults that `choose` makes of the calls."""
    name, calls_of, tried = case
    calls = calls_of()
    assert len(calls) > 40, f"{name}: {len(calls)} calls"
    ledger = Ledger(name, len(calls))
    for fault in choose(calls):
        try:
            ledger.tried.append(tried(fault))
        except Exception as error:
            error.add_note(f"{name}: {fault}")
            raise
    return ledger


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="Kill at every system call.")
    parser.add_argument("--only", default="", help="scenarios with this word in their name")
    parser.add_argument("--every", type=int, default=0, help="a part: every so manieth call, and the critical ones")
    options = parser.parse_args()
    ledgers = []
    with scenarios() as cases:
        for case in cases:
            if options.only not in case[0]:
                continue
            begun = time.monotonic()
            ledger = run(case, sweep if not options.every else lambda calls: sample(calls, options.every))
            ledgers.append(ledger)
            print(*ledger.lines(), f"    {time.monotonic() - begun:.0f} s", *ledger.defects, sep="\n", flush=True)
    print(total(ledgers))
    return 1 if any(ledger.defects for ledger in ledgers) else 0


if __name__ == "__main__":
    sys.exit(main())
