"""Does an agent ever write outside its home, while its hostile user swaps links in there as fast as can be?

    packaging/world .venv/bin/python -m tests.soak.links [--deliveries N] [--seed S]

A process with the user's uid exchanges folders and files of the Maildir and of ~/.milterapp with symbolic links to a
tree outside the home, in which that uid may write everywhere; atomically, so that each is always one or the other.
Meanwhile messages are delivered. Exits 1 where anything outside was made or changed, the agent died, or, once the user
has stopped, a message is not there exactly once.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.delivery.agent_process import AgentProcess, Person, Submit

__all__ = ["Outcome", "main", "soak"]

UID = 20041
RULES = """\
rules:
  - name: lists
    if: {subject: {contains: list}}
    then: {file: Lists}
  - name: flagged
    if: {subject: {contains: flag}}
    then:
      - flag: flagged
      - file: Deep/Folder
"""
SUBJECTS = ("list", "flag", "other")
# What is exchanged with a link, and where in the tree outside that leads.
SWAPPED = {
    "Maildir": "maildir", "Maildir/tmp": "tmp", "Maildir/new": "new", "Maildir/cur": "cur",
    "Maildir/.Lists": "maildir", "Maildir/.Lists/tmp": "tmp", "Maildir/.Lists/new": "new", "Maildir/.Lists/cur": "cur",
    "Maildir/.Deep.Folder": "maildir", "Maildir/.Deep.Folder/cur": "cur", "Maildir/.Deep.Folder/tmp": "tmp",
    ".milterapp": "state", ".milterapp/rules.yaml": "file", ".milterapp/journal.sqlite": "file",
    ".milterapp/journal.sqlite-wal": "file", ".milterapp/journal.sqlite-shm": "file",
}  # fmt: skip
_FEWEST = 50  # swaps, below which nothing was tried
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass
class Outcome:
    """What came of it. defects: what may never be."""

    answers: Counter[str] = field(default_factory=Counter)
    swaps: int = 0
    defects: list[str] = field(default_factory=list)


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), str(one))


def _swap(home: Path, outside: Path, seed: int, counter: mmap.mmap) -> None:
    """Be the hostile user, until SIGTERM; then leave everything as it belongs."""
    dice = random.Random(seed)
    links = home / "links"
    links.mkdir()
    going = [True]
    signal.signal(signal.SIGTERM, lambda *_: going.clear())
    swaps = 0
    while going:
        name = dice.choice(list(SWAPPED))
        link = links / name.replace("/", "_")
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(outside / SWAPPED[name])
        try:
            _exchange(home / name, link)
        except OSError:
            continue  # it is not there yet
        for _ in range(dice.choice((0, 0, 1, 10, 100))):
            os.sched_yield()
        try:
            _exchange(home / name, link)
        except FileNotFoundError:
            link.rename(home / name)  # the agent has removed the link: SQLite ends a log so
        swaps += 1
        counter[:8] = swaps.to_bytes(8, "little")
        for part in (home / "Maildir").glob("**/tmp/*"):  # a message that is being written
            with suppress(OSError):
                part.unlink()
                part.symlink_to(outside / "file")


def _snapshot(outside: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (outside, *sorted(outside.rglob("*"))):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (
            stat.st_ino,
            stat.st_mode,
            stat.st_uid,
            stat.st_nlink,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
            content,
        )
    return found


@contextmanager
def _hostile(person: Person, outside: Path, seed: int, outcome: Outcome) -> Iterator[Callable[[], int]]:
    """Have the user swap links meanwhile; give what tells how often it has."""
    counter = mmap.mmap(-1, 8)  # shared with the child
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(person.uid, person.uid, person.uid)
            os.setresuid(person.uid, person.uid, person.uid)
            _swap(person.home, outside, seed, counter)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield lambda: int.from_bytes(counter[:8], "little")
    finally:
        os.kill(pid, signal.SIGTERM)
        ended = os.waitpid(pid, 0)[1]
        outcome.swaps = int.from_bytes(counter[:8], "little")
        if ended:
            outcome.defects.append("the hostile user failed: nothing is proven")


def _outside(base: Path) -> Path:
    """Make the tree outside the home: Maildirs, and a folder as the agent keeps its state in, open to the user."""
    outside = base / "outside"
    for name in ("maildir/tmp", "maildir/new", "maildir/cur", "tmp", "new", "cur", "state"):
        (outside / name).mkdir(parents=True)
    (outside / "file").write_text("not yours\n")
    for path in (outside, *outside.rglob("*")):
        os.chown(path, UID, UID)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return outside


def soak(deliveries: int, seed: int) -> Outcome:
    """Deliver so many messages to the hostile user, and more until there were some swaps."""
    outcome, submit, person = Outcome(), Submit(), Person(UID)
    outside = _outside(Path(tempfile.mkdtemp(dir=person.base)))
    outside.parent.chmod(0o755)
    person.write(RULES)
    agent = AgentProcess(person, keep="maildir")
    waiting: list[int] = []

    def deliver(number: int) -> str:
        nonlocal agent
        subject = SUBJECTS[number % len(SUBJECTS)]
        message = f"Subject: {subject}\nX-Number: {number}\n\n{'x' * (number % 3000)}\n".encode()
        result = agent.deliver(submit, message, queue_id=f"4A{number}")
        if result.status is None:
            outcome.defects.append(f"the agent died at message {number}")
            agent.close()
            agent = AgentProcess(person, keep="maildir")
        return result.status or "died"

    try:
        for number in range(len(SUBJECTS)):  # the folders are there before the user begins
            assert deliver(number) == "ok"
        before = _snapshot(outside)
        number, until = len(SUBJECTS), time.monotonic() + 60
        with _hostile(person, outside, seed, outcome) as swaps:
            while number < deliveries or (swaps() < _FEWEST and time.monotonic() < until):
                answer = deliver(number)
                outcome.answers[answer] += 1
                if answer != "ok":
                    waiting.append(number)
                number += 1
        changed = sorted(dict(set(before.items()) ^ set(_snapshot(outside).items())))
        outcome.defects += [f"made or changed outside the home: {one}" for one in changed]
        until = time.monotonic() + 60
        while waiting and time.monotonic() < until:
            waiting = [number for number in waiting if deliver(number) != "ok"]
        outcome.defects += [f"message {number} is never delivered" for number in waiting]
        outcome.defects += _miscounted(person, number)
    finally:
        agent.close()
        person.close()
    return outcome


def _miscounted(person: Person, deliveries: int) -> list[str]:
    """Return what is not there once. A link in the place of a message is one that its owner has spoilt in tmp."""
    found: Counter[int] = Counter()
    spoilt = 0
    for part in ("new", "cur"):
        for path in person.home.glob(f"Maildir/**/{part}/*"):
            if path.is_symlink():
                spoilt += 1
                continue
            head = path.read_bytes().partition(b"\n\n")[0]
            if b"\nAuto-Submitted: auto-generated\n" in head:
                continue  # the notice that the rules cannot be used, as a link stood in their place
            found[int(head.rpartition(b"X-Number: ")[2].split(b"\n")[0])] += 1
    wrong = [f"message {number}: {found[number]} copies" for number in range(deliveries) if found[number] != 1]
    return wrong if len(wrong) > spoilt else []


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="Deliver to a user who swaps links.")
    parser.add_argument("--deliveries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begun = time.monotonic()
    outcome = soak(options.deliveries, options.seed)
    answers = ", ".join(f"{count} {answer}" for answer, count in sorted(outcome.answers.items()))
    print(f"{options.deliveries} deliveries, {outcome.swaps} swaps; at the first attempt {answers}")
    print(*outcome.defects[:40], f"{len(outcome.defects)} defects, {time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if outcome.defects else 0


if __name__ == "__main__":
    sys.exit(main())
