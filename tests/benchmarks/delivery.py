"""What delivery for each recipient costs beside its peers, through a real Postfix: as root,

    python -m tests.benchmarks.delivery [--corpus DIR] [--rounds N] [--messages N] [--only WORD]

Unpacks the peers (Debian's procmail, maildrop, fdm, Dovecot with its LMTP and Sieve; what cannot be had is named and
left out) below .venv, enters a world of its own (packaging/world) and sends mail for 20 users with 20 rules each by
SMTP through one Postfix, to each candidate in each round. Counted are the processor time of all of Postfix and of the
candidate, every child included (/proc), messages per second while eight connections send, and Postfix's own `delay` of
a message, its passes through the queue added up, while 20 a second come in. Medians over the rounds; a ratio of two
costs is taken in each round.

Must never: run one candidate to its end before the next begins, take wall time for cost (the machines are shared), or
count what did not arrive.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.decide import message
from tests.benchmarks.delivery_peers import (
    FOLDER,
    MATCHING,
    USERS,
    Candidate,
    make_users,
    plan,
    start_dovecot,
    start_nowhere,
    start_ours,
)
from tests.benchmarks.entering import CORPUS, ROOT, enter
from tests.benchmarks.milter import Client, overlay, processes, tree, wire
from tests.benchmarks.table import render
from tests.postfix.host import MAILLOG, Host, in_world
from tests.postfix.processes import master

UNPACKED = ".venv/peers-delivery"
PACKAGES = ("procmail", "maildrop", "fdm", "dovecot-core", "dovecot-lmtpd", "dovecot-sieve")
IN_FLIGHT = 8
PACE, PACED = 0.05, 40  # seconds between two messages, and how many, where the delay is measured
_PATIENCE = 120.0  # seconds for a round
_TICK = os.sysconf("SC_CLK_TCK")
_FROM = re.compile(r" ([0-9A-Za-z]+): from=<b([0-9]+)@")
_SENT = re.compile(r"/([a-z]+)\[[0-9]+\]: ([0-9A-Za-z]+): to=<.* delay=([0-9.]+), .*status=sent")

# Ours beside theirs: what, whose, at most how many times; a rate at least.
CPU_AIMS = (
    ("ours: LMTP door", "procmail", 1.0),
    ("ours: pipe door", "dovecot-lda", 0.8),
)
RATE_AIM = ("ours: LMTP door", "Dovecot LMTP")
FLOOR = "Postfix, its own Maildir"
# With hand-back, a pass of Postfix's more: than what is aimed at without it, and than what is reached.
PASS_AIMS = tuple(
    (f"{ours}, hand-back", theirs, most, f"{most} times {theirs}") for ours, theirs, most in CPU_AIMS
) + tuple((f"{ours}, hand-back", ours, 1.0, ours) for ours, *_ in CPU_AIMS)
MEMORY = 12.0  # MB of its own, a warm agent


class Bench:
    """The host, the messages, and a number for each message that was sent, which is in its sender."""

    def __init__(self, host: Host, messages: Sequence[bytes]) -> None:
        self.host, self._messages = host, messages
        self._number = 0

    def burst(self, one: Candidate, count: int) -> tuple[float, float]:
        """Send so many, as fast as they are taken; return CPU seconds and seconds until the last one arrived."""
        waiting: queue.SimpleQueue[tuple[str, str, bytes] | None] = queue.SimpleQueue()
        for number in range(count):
            waiting.put(self._next(one, number))
        before, since = cpu(one), MAILLOG.stat().st_size

        def run() -> None:
            while (envelope := waiting.get()) is not None:
                self._send(*envelope)

        threads = [threading.Thread(target=run) for _ in range(IN_FLIGHT)]
        for _ in threads:
            waiting.put(None)
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._arrived(count * one.passes, since)
        took = time.monotonic() - begun
        time.sleep(0.2)  # for what a process does after it has answered; it is part of the cost
        self._count(one, count)
        return cpu(one) - before, took

    def paced(self, one: Candidate) -> list[float]:
        """Send some messages, slowly; return for each how long Postfix had it, all passes together."""
        since, first = MAILLOG.stat().st_size, self._number
        count = PACED // one.share
        for number in range(count):
            due = time.monotonic() + PACE
            self._send(*self._next(one, number))
            time.sleep(max(0.0, due - time.monotonic()))
        text = self._arrived(count * one.passes, since)
        self._count(one, count)
        numbers = {queue_id: int(number) for queue_id, number in _FROM.findall(text)}
        delays: dict[int, float] = {}
        for _, queue_id, delay in _SENT.findall(text):
            number = numbers[queue_id]
            if number > first:
                delays[number] = delays.get(number, 0.0) + float(delay)
        return list(delays.values())

    def probe(self, one: Candidate) -> None:
        """Send one message that a rule matches; raise where its rules were not asked."""
        since = MAILLOG.stat().st_size
        raw = re.sub(rb"(?m)^Subject: .*", b"Subject: " + MATCHING.encode() + b"\r", message())
        self._number += 1
        self._send(f"b{self._number}@bench.example", f"{USERS[0]}@{one.domain}", wire(raw))
        self._arrived(1, since)
        box = Path(f"/home/{USERS[0]}/Maildir/.{FOLDER}/new")
        found = list(box.iterdir())
        if len(found) != (1 if one.options and one.kept else 0):
            raise RuntimeError(f"{one.name}: {len(found)} messages in {FOLDER}\n{self.host.log_tail(20)}")
        for entry in (*found, *(Path(f"/home/{USERS[0]}/Maildir/new").iterdir())):
            entry.unlink()

    def _next(self, one: Candidate, number: int) -> tuple[str, str, bytes]:
        self._number += 1
        raw = self._messages[number % len(self._messages)]
        return f"b{self._number}@bench.example", f"{USERS[number % len(USERS)]}@{one.domain}", raw

    @staticmethod
    def _send(sender: str, recipient: str, raw: bytes) -> None:
        client = Client(25)
        try:
            said = client.send(raw, sender, recipient)
        finally:
            client.close()
        if said[:3] != b"250":
            raise RuntimeError(f"not taken: {said!r}")

    def _arrived(self, count: int, since: int) -> str:
        """Wait until so many deliveries ended well; return the log of that time."""
        end = time.monotonic() + _PATIENCE
        while True:
            with MAILLOG.open("rb") as file:
                file.seek(since)
                text = file.read().decode("utf-8", "replace")
            if "status=deferred" in text or "status=bounced" in text or time.monotonic() > end:
                raise RuntimeError(f"{text.count('status=sent')} of {count} arrived\n{self.host.log_tail(30)}")
            if text.count("status=sent") >= count:
                return text
            time.sleep(0.01)

    def _count(self, one: Candidate, count: int) -> None:
        """Empty the mailboxes; raise where not everything is in them."""
        found = [entry for name in USERS for entry in Path(f"/home/{name}/Maildir/new").iterdir()]
        for entry in found:
            entry.unlink()
        if len(found) != (count if one.kept else 0):
            raise RuntimeError(f"{one.name}: {len(found)} of {count} messages are in the mailboxes")


def cpu(one: Candidate) -> float:
    """Return the seconds of processor time of Postfix and of a candidate, ended children included."""
    found = processes()
    some = tree((master(), *one.roots), found) & set(found)
    return sum(int(word) for pid in some for word in found[pid][11:15]) / _TICK


def split(one: Candidate) -> dict[str, float]:
    """Return the same by what the processes are: Postfix's by name, ours by service; ended children are a parent's."""
    found = processes()
    sums: dict[str, float] = {}
    for pid in tree((master(), *one.roots), found) & set(found):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("latin-1").split("\0")
        except OSError:
            continue
        modules = [word for word in command if word.startswith("milterapp.delivery.")]
        name = modules[0].rpartition(".")[2] if modules else command[0].rpartition("/")[2].split(" ")[0]
        name = "agent" if name == "zygote" and _of_user(pid) else name
        sums[name] = sums.get(name, 0.0) + sum(int(word) for word in found[pid][11:15]) / _TICK
    return sums


def _of_user(pid: int) -> bool:
    """Return whether a process runs as a person."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="latin-1")
    return int(status.partition("\nUid:\t")[2].split()[0]) >= 1000


def agents(roots: Sequence[int]) -> list[tuple[float, float]]:
    """Return MB of its own (private dirty) and MB resident of each agent below these processes."""
    sizes = []
    found = processes()
    for pid in tree(roots, found) & set(found):
        try:
            if not _of_user(pid):
                continue
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        sizes.append((kib["Private_Dirty"] / 1024, kib["Rss"] / 1024))
    return sizes


def report(candidates: Sequence[Candidate]) -> str:
    """Return the tables: costs, and what was to be reached."""
    found = {one.name: one for one in candidates}
    spent = {name: statistics.median(one.cpu) for name, one in found.items()}
    rate = {name: statistics.median(one.rate) for name, one in found.items()}
    rows = [
        [one.name, f"{spent[one.name]:.1f}", f"{rate[one.name]:.0f}", *(f"{1000 * part:.1f}" for part in _shares(one))]
        for one in sorted(candidates, key=lambda one: spent[one.name])
    ]
    out = [render(["through Postfix to", "CPU, ms", "messages/s", "delay p50, ms", "p95, ms"], rows), ""]
    rows = [
        [ours, f"CPU, times that of {theirs}", _each(found, ours, theirs), f"at most {most:.1f}"]
        for ours, theirs, most in CPU_AIMS
        if ours in found and theirs in found
    ]
    ours, theirs = RATE_AIM
    if ours in found and theirs in found:
        rows.append([ours, f"rate, times that of {theirs}", f"{rate[ours] / rate[theirs]:.2f}", "at least 1.0"])
    rows += [
        [more, f"CPU beyond {words}, in passes of Postfix", _each(found, more, FLOOR, less, times), "at most 1.0"]
        for more, less, times, words in PASS_AIMS
        if {FLOOR, more, less} <= found.keys()
    ]
    roots = [pid for one in candidates if one.name.startswith("ours: ") for pid in one.roots]
    if sizes := agents(roots):
        own, resident = (max(part) for part in zip(*sizes, strict=True))
        rows.append(["a warm agent", f"MB of its own ({resident:.0f} resident)", f"{own:.1f}", f"under {MEMORY:.0f}"])
    out.append(render(["ours", "", "reached", "aim"], rows))
    return "\n".join(out)


def _each(found: Mapping[str, Candidate], ours: str, theirs: str, beyond: str = "", times: float = 1.0) -> str:
    """Return how many times theirs ours costs, the median over the rounds: in each the machine is as busy for both.

    beyond: what is taken off ours first, so many times.
    """
    less = [times * off for off in found[beyond].cpu] if beyond else [0.0] * len(found[ours].cpu)
    each = [(own - off) / other for own, off, other in zip(found[ours].cpu, less, found[theirs].cpu, strict=True)]
    return f"{statistics.median(each):.2f}"


def _shares(one: Candidate) -> tuple[float, float]:
    cuts = statistics.quantiles(one.delays, n=20)
    return cuts[9], cuts[18]


def inside(given: argparse.Namespace) -> int:
    """Measure, in the world."""
    overlay(ROOT / UNPACKED)
    make_users()
    folder = ROOT / CORPUS
    corpus = [wire(path.read_bytes()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    messages = corpus or [wire(message(4096))]
    host = Host()
    host.install()
    started = []
    try:
        ours = {}
        for keep in ("maildir", "postfix"):
            ours[keep] = start_ours(host, keep)
            started += ours[keep]
        dovecot = start_dovecot()
        started += [dovecot] if dovecot else []
        nowhere = start_nowhere(host)
        started += nowhere
        candidates, absent = [], []
        for one in plan():
            if given.only and not any(word in one.name for word in given.only):
                continue
            if one.program and shutil.which(one.program) is None:
                absent.append(one.name)
                continue
            if one.name.startswith("ours"):
                one.roots = [process.pid for process in ours["maildir" if one.passes == 1 else "postfix"]]
            elif one.name.startswith("Dovecot") and dovecot:
                one.roots = [dovecot.pid]
            elif one.program == "smtp-sink":
                one.roots = [process.pid for process in nowhere]
            candidates.append(one)
        _attach(host, candidates)
        bench = Bench(host, messages)
        try:
            for one in candidates:
                bench.probe(one)
                bench.burst(one, 3 * len(USERS) // one.share)  # what does not count
            for number in range(given.rounds):
                for one in candidates[:: 1 if number % 2 else -1]:
                    before = split(one) if given.split else {}
                    count = given.messages // one.share
                    spent, took = bench.burst(one, count)
                    for name, value in split(one).items() if given.split else ():
                        one.parts[name] = one.parts.get(name, 0.0) + value - before.get(name, 0.0)
                    one.cpu.append(1000 * spent / count)
                    one.rate.append(count / took)
                    one.delays += bench.paced(one)
            size = sum(map(len, messages)) // len(messages)
            print(
                f"{given.rounds} rounds of {given.messages} messages of {size:,} bytes on average, {len(USERS)} users"
            )
            print("".join(f"not on this machine: {one}\n" for one in absent))
            print(report(candidates))
            for one in candidates if given.split else ():
                each = {
                    name: 1000 * value * one.share / given.messages / given.rounds for name, value in one.parts.items()
                }
                print(
                    f"{one.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in each.items() if value >= 0.01)
                )
        finally:
            host.postfix("stop", check=False)
    except RuntimeError:
        for log in (Path("/run/dovecot-benchmark/log"), *sorted(Path("/var/log").glob("milterapp-*.log"))):
            if log.exists():
                print(f"-- {log}\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        raise
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()
    return 0


def _attach(host: Host, candidates: Sequence[Candidate]) -> None:
    """Give each candidate a local(8) and a domain of its own, and start Postfix."""
    host.postconf(
        mailbox_transport="", home_mailbox="Maildir/", smtpd_milters="", non_smtpd_milters="",
        mydestination=", ".join(["localhost", *(one.domain for one in candidates)]),
        transport_maps="inline:{ " + ", ".join(f"{one.domain}=local-{one.word}:" for one in candidates) + " }",
        smtpd_client_connection_count_limit="0", local_recipient_maps="", smtpd_recipient_restrictions="permit",
        delay_logging_resolution_limit="4",
        max_idle="3600s",  # a process that ends while others are measured would be started, and paid for, by the next
    )  # fmt: skip
    for one in candidates:
        name = f"local-{one.word}"
        options = "".join(f" -o {{ {key}={value} }}" for key, value in one.options.items())
        host.run("postconf", "-M", f"{name}/unix={name} unix - n n - - local{options}")
        host.postconf(**{f"{name}_destination_recipient_limit": "1", f"{name}_destination_concurrency_limit": "2"})
    host.run("postconf", "-F", "*/*/chroot=n")
    host.postfix("start")


def main() -> int:
    """Enter the world, or measure where this is it already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of messages; default: one of 4 KB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=200, help="in each round, for each candidate")
    parser.add_argument("--only", action="append", help="candidates whose name holds this; repeatable")
    parser.add_argument("--split", action="store_true", help="say which processes spent it")
    given = parser.parse_args()
    if in_world():
        return inside(given)
    return enter("tests.benchmarks.delivery", given.corpus, UNPACKED, PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
