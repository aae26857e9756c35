"""No mail is lost or doubled: agent, client and submit are killed, or their calls fail, at chosen system calls.

`python -m tests.soak.killed` does so at every one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import pytest

from tests.soak import killed
from tests.soak.killed_agent import AGENTS
from tests.soak.killed_client import became
from tests.soak.ledger import Ledger, Tried, total
from tests.soak.strace import Call, Fault, sample

pytestmark = pytest.mark.root
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

EVERY = {"agent": 70, "script": 40, "client": 9, "compiled client": 3, "submit": 80}  # beside the critical ones


@pytest.fixture(scope="module")
def cases() -> Iterator[Sequence[killed.Case]]:
    """Give the scenarios of the sweep, their chain and service running."""
    with killed.scenarios() as cases:
        yield cases


@needs_strace
@pytest.mark.parametrize("at", range(len(AGENTS) + 6))
def test_killed_or_failing_at_chosen_calls(cases: Sequence[killed.Case], at: int) -> None:
    """Whatever befalls it, and its mail read meanwhile, a retry completes what is missing and repeats nothing."""
    who = cases[at][0].partition(",")[0]
    part = {"script": 3, "submit": 2}.get(who, 2 if 0 < at < len(AGENTS) else 1)  # so that it takes less than a minute
    ledger = killed.run(cases[at], lambda calls: sample(calls, EVERY[who])[::part])
    assert ledger.defects == []
    ends = [one.first for one in ledger.tried if one.fault.what == "KILL"]
    assert len(ends) > 20
    assert sum(one in ("ended", "defer") for one in ends) > len(ends) // 2  # the kills did come, before the answer
    assert any(one.first == "defer" for one in ledger.tried if one.fault.what != "KILL")


FAULT = Fault(Call("fsync", 2), "EIO")


def test_a_ledger_counts_and_names() -> None:
    """What may never be is a line with its fault; the gap is counted and is none."""
    ledger = Ledger("agent", 9, [Tried(FAULT, "ok", ("lost",)), Tried(FAULT, "ended", ("doubled in the gap",))])
    assert ledger.defects == ["agent: EIO at fsync 2: lost (first attempt: ok)"]
    assert "1 lost, 0 corrupted" in total([ledger])
    assert total([ledger]).endswith("1 doubled in the gap")


def test_a_fault_tells_strace() -> None:
    """A kill, an error, and an error that stays, as strace(1) takes them."""
    assert FAULT.options[-1] == "inject=fsync:error=EIO:when=2"
    assert Fault(Call("fsync", 2), "EIO", stays=True).options[-1] == "inject=fsync:error=EIO:when=2+"
    assert Fault(Call("read", 1), "KILL").options[-1] == "inject=read:signal=KILL:when=1"


@pytest.mark.parametrize(
    ("status", "output", "want"),
    [
        pytest.param(0, b"", "ok", id="0"),
        pytest.param(-9, b"", "defer", id="killed"),
        pytest.param(75, b"4.3.0 busy\n", "defer", id="75"),
        pytest.param(69, b"5.7.1 no\n", "bounce", id="69 with its text"),
        pytest.param(69, b"", "defer", id="69 without"),
        pytest.param(1, b"Traceback", "defer", id="a traceback"),
        pytest.param(120, b"", "defer", id="an output that could not be flushed"),
        pytest.param(127, b"python3: error while loading shared libraries\n", "defer", id="no interpreter"),
        pytest.param(67, b"", "bounce", id="a status that nothing of ours has"),
    ],
)
def test_what_pipe_makes_of_the_client(status: int, output: bytes, want: str) -> None:
    """The sweep judges the client as pipe(8) does, with the filter that `setup` writes."""
    assert became(status, output) == want
