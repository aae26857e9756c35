"""What the in-line milter costs beside its peers, through a real Postfix: as root,

    python -m tests.benchmarks.milter [--corpus DIR] [--rounds N] [--only WORD]

Unpacks the peers (Debian's rspamd, MIMEDefang, OpenDKIM; those that cannot be had are named and left out) below .venv,
enters a world of its own (packaging/world), and there sends the corpus through one Postfix, once for each candidate in
each round, eight connections at a time, a connection a message; delivery is to discard(8). Counted are the processor
time of the milter's processes (/proc) and the messages per second; the figures are medians over the rounds.

Must never: run one candidate to its end before the next begins, or take wall time for cost (the machines are shared).
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.decide import message
from tests.benchmarks.entering import CORPUS, ROOT, enter
from tests.benchmarks.peers import Rules, Running, body_rules, header_rules, start
from tests.benchmarks.table import render
from tests.postfix.host import Host, in_world

UNPACKED = ".venv/peers"
PACKAGES = ("rspamd", "mimedefang", "libnet-dns-perl", "opendkim")
IN_FLIGHT = 8
FIRST_PORT = 2600
LARGE = 100_000
_TICK = os.sysconf("SC_CLK_TCK")

NONE, MIXED, BIG = "no milter", "mixed", "100 KB"


@dataclass
class Candidate:
    """One way of a message: a peer with rules. running: None where no milter is asked."""

    name: str
    rules: str
    corpus: str
    running: Running | None
    port: int = 0
    cpu: list[float] = field(default_factory=list)  # milliseconds a message
    rate: list[float] = field(default_factory=list)  # messages per second


RULES: dict[str, Rules] = {
    "": Rules(),
    "50 header": header_rules(50),
    "1,000 header": header_rules(1000),
    "50 body and attachments": body_rules(50),
}

# What is measured: peer, rules, corpora.
PLAN: Sequence[tuple[str, str, tuple[str, ...]]] = (
    (NONE, "", (MIXED, BIG)),
    ("pymilter, nothing", "", (MIXED, BIG)),
    ("pymilter, all callbacks", "", (MIXED, BIG)),
    ("milterapp", "50 header", (MIXED, BIG)),
    ("milterapp", "1,000 header", (MIXED,)),
    ("milterapp", "50 body and attachments", (MIXED, BIG)),
    ("rspamd", "50 header", (MIXED, BIG)),
    ("rspamd", "1,000 header", (MIXED,)),
    ("rspamd", "50 body and attachments", (MIXED, BIG)),
    ("MIMEDefang", "50 header", (MIXED,)),
    ("MIMEDefang", "50 body and attachments", (MIXED, BIG)),
    ("OpenDKIM", "", (MIXED, BIG)),
)

# Ours against theirs, at most so many times: peer, rules, corpus.
TARGETS = (
    (("milterapp", "50 header", MIXED), ("rspamd", "50 header", MIXED), 1.0),
    (("milterapp", "1,000 header", MIXED), ("rspamd", "1,000 header", MIXED), 1.2),
    (("milterapp", "50 body and attachments", MIXED), ("MIMEDefang", "50 body and attachments", MIXED), 0.3),
    (("milterapp", "50 header", BIG), ("rspamd", "50 header", BIG), 0.3),
    (("milterapp", "50 body and attachments", BIG), ("rspamd", "50 body and attachments", BIG), 0.3),
)
MEMORY = 80  # MB of two workers together


# -- the load ----------------------------------------------------------------------------------------------------------


def wire(raw: bytes) -> bytes:
    """Return a message as DATA carries it."""
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n").split(b"\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b"\r\n.\r\n"


def large(number: int) -> bytes:
    """Return a message of 100 KB: text and an attachment, each half of it."""
    head, text = message(LARGE // 2).split(b"\r\n\r\n", 1)
    head = head.replace(b"Content-Type: text/plain; charset=utf-8", b'Content-Type: multipart/mixed; boundary="b"')
    line = base64.b64encode(bytes(range(54)))
    encoded = b"\r\n".join([line] * (LARGE // 2 // len(line)))
    return (
        head
        + b"\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%d " % number
        + text
        + b"\r\n--b\r\nContent-Type: application/pdf; name=report.pdf\r\n"
        + b"Content-Disposition: attachment; filename=report.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + encoded
        + b"\r\n--b--\r\n"
    )


class Client:
    """One SMTP connection that carries one message, as cheap for this side as it gets."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 60)
        self._file = self._sock.makefile("rb")
        self._reply()

    def _reply(self) -> bytes:
        while True:
            line = self._file.readline()
            if line[3:4] != b"-":
                return line

    def send(self, data: bytes, sender: str = "ann@office.example.net", recipient: str = "bob@example.org") -> bytes:
        """Send one message; return the reply that ended it."""
        self._sock.sendall(b"EHLO client.example\r\n")
        self._reply()
        self._sock.sendall(f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode())
        for _ in range(3):
            last = self._reply()
            if last[:1] not in b"23":
                return last
        self._sock.sendall(data + b"QUIT\r\n")
        last = self._reply()
        self._reply()
        return last

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._sock.close()


def send_all(port: int, messages: Iterable[bytes]) -> tuple[float, Counter[str]]:
    """Send messages, so many at a time; return seconds and what was answered."""
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for one in messages:
        waiting.put(one)
    answers: Counter[str] = Counter()

    def run() -> None:
        while (data := waiting.get()) is not None:
            client = Client(port)
            try:
                answers[client.send(data)[:3].decode()] += 1
            finally:
                client.close()

    threads = [threading.Thread(target=run) for _ in range(IN_FLIGHT)]
    for _ in threads:
        waiting.put(None)
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begun, answers


# -- what /proc says ---------------------------------------------------------------------------------------------------


def processes() -> dict[int, list[str]]:
    """Return the fields of proc_pid_stat(5) after the command name of each process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = Path(f"/proc/{entry}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
    return found


def tree(roots: Iterable[int], stat: dict[int, list[str]]) -> set[int]:
    """Return processes and all below them."""
    found = set(roots)
    while True:
        more = {pid for pid, words in stat.items() if int(words[1]) in found} - found
        if not more:
            return found
        found |= more


def cpu(running: Running) -> float:
    """Return the seconds of processor time of a peer's processes, and of their children that have ended."""
    stat = processes()
    some = tree((one.pid for one in running.processes), stat) & set(stat)
    return sum(int(word) for pid in some for word in stat[pid][11:15]) / _TICK


def memory(running: Running) -> tuple[float, float, float]:
    """Return MB: resident in all processes, their share of it (PSS), and resident in the busiest two."""
    stat = processes()
    each = []
    share = 0
    for pid in tree((one.pid for one in running.processes), stat):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        each.append((sum(int(word) for word in stat[pid][11:13]), sizes["Rss"]))
        share += sizes["Pss"]
    each.sort(reverse=True)
    return sum(rss for _, rss in each) / 1024, share / 1024, sum(rss for _, rss in each[:2]) / 1024


# -- the run -----------------------------------------------------------------------------------------------------------


def overlay(unpacked: Path) -> None:
    """Lay what was unpacked over /usr and /etc, in this world alone."""
    if not unpacked.is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for part, place in (("usr", "/usr"), ("lib", "/usr/lib")):
        options = f"lowerdir={unpacked / part}:{place}".encode()
        if (unpacked / part).is_dir() and libc.mount(b"overlay", place.encode(), b"overlay", 0, options) != 0:
            raise OSError(ctypes.get_errno(), f"cannot lay the peers over {place} (overlayfs)")
    subprocess.run(["cp", "-a", "--no-clobber", f"{unpacked}/etc/.", "/etc"], check=False)
    subprocess.run(["ldconfig"], check=False)


def host(candidates: Sequence[Candidate]) -> Host:
    """Start a Postfix with a port for each candidate, which throws away what it takes."""
    found = Host()
    found.install()
    found.postconf(default_transport="discard:", mydestination="", smtpd_client_connection_count_limit="0")
    found.postconf(relay_domains="example.org", relay_transport="discard:", smtpd_recipient_restrictions="permit")
    found.run("postconf", "-F", "*/*/chroot=n")
    for one in candidates:
        service = f"127.0.0.1:{one.port}/inet"
        found.run("postconf", "-M", f"{service}=127.0.0.1:{one.port} inet n - n - - smtpd")
        if one.running is not None:
            found.run("postconf", "-P", f"{service}/smtpd_milters={one.running.socket}")
    found.postfix("start")
    return found


def measure(candidates: Sequence[Candidate], corpora: dict[str, list[bytes]], rounds: int) -> Counter[str]:
    """Send the corpora through every candidate in each round; return what was answered."""
    answers: Counter[str] = Counter()
    for one in candidates:
        send_all(one.port, corpora[one.corpus][:40])  # a first round that does not count
    for number in range(rounds):
        for one in candidates[:: 1 if number % 2 else -1]:
            before = cpu(one.running) if one.running else 0.0
            took, said = send_all(one.port, corpora[one.corpus])
            spent = (cpu(one.running) if one.running else 0.0) - before
            answers.update(said)
            one.cpu.append(1000 * spent / len(corpora[one.corpus]))
            one.rate.append(len(corpora[one.corpus]) / took)
    return answers


def report(candidates: Sequence[Candidate]) -> str:
    """Return the tables: costs, memory, targets."""
    found = {(one.name, one.rules, one.corpus): one for one in candidates}
    rows = []
    for one in candidates:
        if one.corpus == MIXED:
            big = found.get((one.name, one.rules, BIG))
            rows.append([f"{one.name}: {one.rules}" if one.rules else one.name, *_cells(one), *_cells(big)])
    head = ["milter: rules", "mixed: CPU, ms", "messages/s", "100 KB: CPU, ms", "messages/s"]
    out = [render(head, rows), ""]
    rows = []
    for one in candidates:
        if one.running is not None and one.corpus == MIXED:
            resident, share, two = memory(one.running)
            name = f"{one.name}: {one.rules}" if one.rules else one.name
            rows.append([name, f"{two:.0f}", f"{resident:.0f}", f"{share:.0f}"])
    out += [render(["milter: rules", "two busiest, MB resident", "all, MB resident", "all, MB share"], rows), ""]
    rows = []
    for ours, theirs, most in TARGETS:
        if ours in found and theirs in found:
            ratio = statistics.median(found[ours].cpu) / statistics.median(found[theirs].cpu)
            rows.append([f"{ours[1]}, {ours[2]}", theirs[0], f"{ratio:.2f}", f"{most:.1f}"])
    out.append(render(["rules, corpus", "CPU, times that of", "reached", "aim"], rows))
    return "\n".join(out)


def _cells(one: Candidate | None) -> list[str]:
    if one is None or not one.rate:
        return ["", ""]
    spent = "" if one.running is None else f"{statistics.median(one.cpu):.2f}"
    return [spent, f"{statistics.median(one.rate):.0f}"]


def inside(given: argparse.Namespace) -> int:
    """Measure, in the world."""
    overlay(ROOT / UNPACKED)
    folder = ROOT / CORPUS
    mixed = [wire(path.read_bytes()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    mixed = mixed or [wire(message(4096)) for _ in range(300)]
    corpora = {MIXED: mixed, BIG: [wire(large(number)) for number in range(given.large)]}
    size = sum(map(len, mixed)) // len(mixed)
    running: dict[tuple[str, str], Running | None] = {}
    absent: list[str] = []
    candidates: list[Candidate] = []
    try:
        for name, rules, over in PLAN:
            if given.only and name != NONE and not any(word in f"{name}: {rules}" for word in given.only):
                continue
            if name == NONE:
                running[name, rules] = None
            else:
                label = f"{name}-{rules}".replace(" ", "-").replace(",", "")
                running[name, rules] = start(name, label, RULES[rules])
                if running[name, rules] is None:
                    absent += [name] if name not in absent else []
                    continue
            for corpus in over:
                candidates.append(Candidate(name, rules, corpus, running[name, rules], FIRST_PORT + len(candidates)))
        postfix = host(candidates)
        try:
            answers = measure(candidates, corpora, given.rounds)
            print(f"{len(mixed)} messages of {size:,} bytes on average; {given.large} of 100 KB; {given.rounds} rounds")
            print(f"answers: {dict(answers)}" + "".join(f"; not on this machine: {one}" for one in absent) + "\n")
            print(report(candidates))
        finally:
            postfix.postfix("stop", check=False)
    finally:
        for one in running.values():
            if one is not None:
                one.stop()
    return 0


def main() -> int:
    """Enter the world, or measure where this is it already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of messages; default: 300 generated ones of 4 KB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=100, help="messages of 100 KB in each round")
    parser.add_argument("--only", action="append", help="candidates whose name holds this; repeatable")
    given = parser.parse_args()
    if in_world():
        return inside(given)
    return enter("tests.benchmarks.milter", given.corpus, UNPACKED, PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
