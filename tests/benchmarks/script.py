"""What a rule's script costs beside a YAML rule, through a real agent: `python -m tests.benchmarks.script` as root.

One 4 KB message from another sender each time. `rule` files it by a condition on its subject; `script` has three routes
and a state for each sender, asks for that state, changes it and files the message; `plain` is a script of one line, so
what lies between the two is routes and state. `10,000 states` is `script` with so many senders remembered beforehand.
CPU time of the agent and the script processes it forks, sandbox included; candidates take turns. Wall time is shown
beside it, and is as good as the machine is idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

from milterapp.delivery import sandbox
from milterapp.state.conversations import Change, Conversations
from tests.benchmarks.decide import message
from tests.benchmarks.table import render
from tests.delivery.agent_process import AgentProcess, Person, Submit

__all__ = ["SCRIPT", "Candidate", "main", "measure"]

RULE = "rules:\n  - name: it\n    if:\n      subject: {contains: minutes}\n    then:\n      file: Pages\n"
RUN = "rules:\n  - name: it\n    if:\n      subject: {contains: minutes}\n    then:\n      script: apps/page.py\n"
SCRIPT = """
from milterapp.script import route, stateless

@route("{list}-subscribe@{host}", per="list")
def START(mail, list, host):
    mail.file("Pages")
    return MEMBER

@route("{list}-unsubscribe@{host}", per="list")
def MEMBER(mail, list, host):
    mail.file("Pages")
    return START

@stateless
@route("{list}-bounce@{host}")
def bounce(mail, list, host):
    mail.discard()
"""
PLAIN = "def main(mail):\n    mail.file('Pages')\n"
TIMES, STATES = 3.0, 10_000


@dataclass
class Candidate:
    """One way to handle the message, with a user and a warm agent of its own."""

    rules: str
    script: str = ""
    states: int = 0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.person, self.number = Person(), 0
        self.person.write(self.rules)
        if self.script:
            self.person.write(self.script, ".milterapp/apps/page.py")
        if self.states:
            made = self.person.base / "scripts.sqlite"
            kept = Conversations(str(made))
            changes = [
                Change("apps/page.py", f"s{number}@example.net", ("dev",), "MEMBER") for number in range(self.states)
            ]
            kept.commit("before", "", changes, mails=0, now=1)
            kept.close()
            os.chown(made, self.person.uid, self.person.uid)
            made.rename(self.person.home / ".milterapp/scripts.sqlite")

    def turn(self, raw: bytes, count: int) -> None:
        """Handle so many messages with one agent, after a first one that is not counted."""
        agent, submit = AgentProcess(self.person), Submit()
        self._deliver(agent, submit, raw)
        begun = time.monotonic()
        used = _cpu_of(agent.pid)
        for _ in range(count):
            self._deliver(agent, submit, raw)
        self.wall.append((time.monotonic() - begun) / count)
        self.cpu.append((_cpu_of(agent.pid) - used) / count)
        assert agent.close() == 0

    def _deliver(self, agent: AgentProcess, submit: Submit, raw: bytes) -> None:
        self.number += 1
        result = agent.deliver(
            submit, raw, queue_id=f"4Q{self.number}", sender=f"new{self.number}@example.net",
            recipient="dev-subscribe@example.org", original="dev-subscribe@example.org",
        )  # fmt: skip
        assert (result.status, submit.asked) == ("ok", []), result

    def close(self) -> None:
        """Remove what it made, having looked that the messages are there."""
        folder = self.person.home / "Maildir/.Pages/new"
        assert len(os.listdir(folder)) == self.number
        self.person.close()


def _cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and its children, those that live and those that it has waited for."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(one) for one in file.read().split()]
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_of, children))


def measure(count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return for each candidate the median of CPU and wall seconds a message."""
    sandbox.prepare()
    raw = message()
    candidates = {
        "rule": Candidate(RULE),
        "plain": Candidate(RUN, PLAIN),
        "script": Candidate(RUN, SCRIPT),
        "10 states": Candidate(RUN, SCRIPT, 10),
        "10,000 states": Candidate(RUN, SCRIPT, STATES),
    }
    for _ in range(rounds):
        for one in candidates.values():
            one.turn(raw, count)
    for one in candidates.values():
        one.close()
    return {name: (statistics.median(one.cpu), statistics.median(one.wall)) for name, one in candidates.items()}


def main() -> int:
    """Print the table; return 1 where a script costs more than it may."""
    parser = argparse.ArgumentParser(description="What a rule's script costs.")
    parser.add_argument("--count", type=int, default=300)  # the kernel counts CPU in steps of 10 ms
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    found = measure(given.count, given.rounds)
    base = found["rule"]
    rows = [
        [name, f"{cpu * 1e3:.2f}", f"{cpu / base[0]:.2f}", f"{wall * 1e3:.2f}", f"{wall / base[1]:.2f}"]
        for name, (cpu, wall) in found.items()
    ]
    print(render(["", "CPU, ms", "of a rule", "wall, ms", "of a rule"], rows))
    times = found["script"][0] / base[0]
    many = found["10,000 states"][0] / found["10 states"][0]
    print(f"script: {times:.2f} times a rule's delivery (at most {TIMES:g}); 10,000 states: {many:.2f} times 10")
    return 0 if times <= TIMES else 1


if __name__ == "__main__":
    sys.exit(main())
