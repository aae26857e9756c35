"""Does the milter grow? Many messages through the real service, its memory looked at on the way; run by hand:

    python -m tests.benchmarks.milter_soak [MESSAGES] [--connections N] [--workers N]

Exits 1 where the workers' own memory grew by more than 4 MiB between the second and third tenth of the messages and the
last two: less is the heap's unrest, and over 100,000 messages 50 bytes kept of each would be more.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.milter.conftest import Service

RULES = """\
rules:
  - name: bob
    if: {recipient: bob@example.org}
    then: {reject: "5.7.2 no"}
  - name: offers
    if: {subject: {contains: offer}}
    then: {reject: "5.7.3 no"}
  - name: marked
    if: {subject: {contains: invoice}}
    then:
      - prefix_subject: "[x]"
      - add_header: {X-Site: yes}
      - footer: The end
  - name: bad words
    if: {body: {regex: 'lottery|casino'}}
    then: hold
  - name: programs
    if: {attachment: {name: {glob: '*.exe'}}}
    then: drop_attachments
"""
PER_CONNECTION = 20
TOLERANCE = 4096  # KiB


def _message(number: int) -> dict[str, object]:
    kind = random.Random(number)
    subject = kind.choice(["hello", "an offer", "invoice", "report", "caf\u00e9"]).encode()
    words = b"lorem ipsum dolor sit amet " * kind.choice([5, 150, 4000])
    body = words + b"\r\n" + (b"casino" if kind.random() < 0.1 else b"") + str(number).encode() + b"\r\n"
    fields = [(b"From", b"a%d@example.net" % number), (b"Subject", subject), (b"X-Milterapp-Score", b"1")]
    fields += [(b"X-Number-%d" % at, b"%d" % number) for at in range(kind.randrange(20))]
    if kind.random() < 0.2:
        fields.append((b"Content-Type", b'multipart/mixed; boundary="b"'))
        body = (
            b"--b\r\n\r\n" + body + b'--b\r\nContent-Type: application/octet-stream; name="a.exe"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\nTVqQAAMAAAAEAAAA\r\n--b--\r\n"
        )
    recipients = [b"<alice@example.org>"] + ([b"<bob@example.org>"] if kind.random() < 0.2 else [])
    return {"fields": fields, "body": body, "recipients": recipients}


def _send(service: Service, numbers: range) -> None:
    peer = None
    for at, number in enumerate(numbers):
        if at % PER_CONNECTION == 0:
            if peer is not None:
                peer.quit()
            peer = service.peer()
            peer.connect()
            peer.helo()
        assert peer is not None
        peer.message(**_message(number))  # type: ignore[arg-type]
    if peer is not None:
        peer.quit()


def _memory(pid: int) -> tuple[int, int]:
    """Return KiB resident, and of these what no other process shares."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found["Rss"], found["Private_Clean"] + found["Private_Dirty"]


def _cpu(pid: int) -> float:
    """Return seconds of processor time."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def soak(service: Service, messages: int, connections: int) -> bool:
    """Send, and print a line each tenth; return whether the workers kept their size."""
    workers = sorted(service.status()["workers"])
    steps = 10
    sizes = []
    print(f"{'messages':>9} {'seconds':>8} {'cpu ms/message':>14}  supervisor KiB  workers KiB resident (own)")
    for step in range(steps):
        begun, spent = time.monotonic(), sum(map(_cpu, workers))
        share = messages // steps // connections
        first = step * connections * share
        threads = [
            threading.Thread(target=_send, args=(service, range(first + at * share, first + (at + 1) * share)))
            for at in range(connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, cpu = time.monotonic() - begun, sum(map(_cpu, workers)) - spent
        assert sorted(service.status()["workers"]) == workers, "a worker was replaced"
        found = [_memory(pid) for pid in workers]
        sizes.append(sum(own for _, own in found))
        shown = "  ".join(f"{resident} ({own})" for resident, own in found)
        supervisor = _memory(service.process.pid)[0]
        done = (step + 1) * share * connections
        per_message = 1000 * cpu / (share * connections)
        print(f"{done:>9} {took:>8.1f} {per_message:>14.2f}  {supervisor:>14}  {shown}", flush=True)
    before, after = (sizes[1] + sizes[2]) // 2, (sizes[-1] + sizes[-2]) // 2
    print(f"growth: {after - before} KiB of {before}")
    return after - before <= TOLERANCE


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="Does the milter grow?")
    parser.add_argument("messages", type=int, nargs="?", default=100_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="milterapp-soak-"))
    folder.chmod(0o755)
    service = Service(folder, RULES, {"milter": {"workers": options.workers}})
    try:
        return 0 if soak(service, options.messages, options.connections) else 1
    finally:
        service.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
