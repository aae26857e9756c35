"""What became of every message of a sweep: counted, and each finding with the fault that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.soak.strace import Fault

__all__ = ["Ledger", "Tried"]

# What may never be, and what the manual names as the one gap.
DEFECTS = ("lost", "corrupted", "false success", "bounced", "doubled", "never done")
GAP = "doubled in the gap"


@dataclass(frozen=True, slots=True)
class Tried:
    """How one fault ended. first: of the attempt it befell (ok, defer, reject, ended); findings: of DEFECTS, or GAP."""

    fault: Fault
    first: str
    findings: tuple[str, ...] = ()
    retries: int = 1


@dataclass
class Ledger:
    """The counts of one scenario."""

    name: str
    calls: int = 0
    tried: list[Tried] = field(default_factory=list)

    @property
    def defects(self) -> list[str]:
        """Return a line for each finding that may never be."""
        return [
            f"{self.name}: {one.fault}: {', '.join(one.findings)} (first attempt: {one.first})"
            for one in self.tried
            if set(one.findings) & set(DEFECTS)
        ]

    def count(self, finding: str) -> int:
        """Return how many messages that befell."""
        return sum(finding in one.findings for one in self.tried)

    def lines(self) -> list[str]:
        """Return the ledger as text."""
        what = Counter("kills" if one.fault.what == "KILL" else "errors" for one in self.tried)
        ends = Counter(one.first for one in self.tried)
        found = ", ".join(f"{self.count(one)} {one}" for one in (*DEFECTS, GAP))
        return [
            f"{self.name}: {self.calls} system calls; {what['kills']} kills, {what['errors']} injected errors",
            f"    first attempt: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}",
            f"    after the retry: {found}",
        ]


def total(ledgers: Sequence[Ledger]) -> str:
    """Return the last line of all."""
    kills = sum(one.fault.what == "KILL" for ledger in ledgers for one in ledger.tried)
    errors = sum(len(ledger.tried) for ledger in ledgers) - kills
    found = ", ".join(f"{sum(ledger.count(one) for ledger in ledgers)} {one}" for one in (*DEFECTS, GAP))
    return f"{kills} kills, {errors} injected errors: {found}"
