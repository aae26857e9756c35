"""Is mail lost or doubled through a real Postfix while everything is killed, stopped and filled up at random?

    packaging/world .venv/bin/python -m tests.soak.chaos [--messages N] [--blows M] [--seed S] [--door pipe|lmtp]

Messages go in over SMTP, to people whose rules file, hand back, forward and refuse. Meanwhile every process of
milterapp and of Postfix is killed again and again, Postfix is stopped and started, and one user's disk is full, then
has room, then the quota is used up: on a tmpfs with quotas, else on a btrfs (mkfs.btrfs, a loop device); where there is
neither, the output says so, and the disk alone is filled. At the end the queue must become empty, and a ledger holds
SHA-256 of each message in and each copy out against each other. Exits 1 where one was lost, corrupted, misplaced,
bounced, or doubled outside the gap that milterapp-submit(8) names. The seed fixes messages and blows, not the moments
at which processes meet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import smtplib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.postfix import limited, mailboxes, processes
from tests.postfix.harness import DOMAIN, Site, in_world, message, running
from tests.soak.host_ledger import HostLedger, Sent, marked_ids, payload

__all__ = ["main", "soak"]

MARK = "      - add_header: {X-Mark: seen}\n"
RULES = {
    "alice": f"rules:\n  - name: all\n    then:\n{MARK}      - file: Filed\n",
    "bob": f"rules:\n  - name: all\n    then:\n{MARK}      - keep\n",
    "carol": (
        "rules:\n"
        "  - name: no\n    if: {subject: refuse}\n    then: {reject: '5.7.1 Not for me'}\n"
        "  - name: on\n    then:\n      - forward: {to: carol@home.example, copy: true}\n"
        "  - name: read\n    then:\n      - flag: seen\n      - file: Read/Mail\n"
    ),
    "erin": "rules:\n  - name: all\n    then:\n      - file: {folder: Filed, copy: true}\n      - keep\n",
}
PLACES = {
    "alice": ("alice Filed",),
    "bob": ("bob ",),
    "carol": ("carol Read/Mail", "elsewhere"),
    "erin": ("erin Filed", "erin "),
    "dave": ("dave ",),  # without rules
    "team": ("alice Filed", "bob "),
}
SETTINGS = {
    "local_delivery_status_filter": r"regexp:{ { /^5\.2\.2 (.*)/ 4.2.2 $$1 } }",  # local(8) bounces for a used-up quota
    "home_mailbox": "Maildir/",  # local(8), killed in the middle of an mbox, leaves a part there
    "transport_retry_time": "1s",
    "ipc_timeout": "60s",
}
OURS = ("client", "lmtp", "worker", "milter", "monitor", "resolver", "zygote", "agent", "submit")
BLOWS = {**dict.fromkeys(OURS, 4), "one of Postfix's": 12, "master": 1, "postfix stop": 1, "disk": 5}
_AHEAD = 4  # blows that messages may be ahead of: so they pile up, and are not over before the blows come
_LARGEST = 40_000  # bytes of a message, before base64


class Blows:
    """What is done to the host, at random moments, in a thread of its own until it is stopped."""

    def __init__(
        self, site: Site, seed: int, kinds: Mapping[str, int] = BLOWS, disk: limited.Disk | None = None
    ) -> None:
        self._site = site
        self._disk = disk
        self._kinds = kinds
        self._dice = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.counts: Counter[str] = Counter()
        self.fault: BaseException | None = None

    def __enter__(self) -> Blows:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._disk is not None:
            _empty_disk(self._disk)
        revive(self._site)
        if self.fault is not None:
            raise self.fault

    def due(self, number: int) -> bool:
        """Return whether so many have been struck. Raises what went wrong with them."""
        if self.fault is not None:
            raise self.fault
        return self.counts.total() >= number

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._dice.uniform(0, 0.1)):
                self._strike(self._dice.choices(list(self._kinds), list(self._kinds.values()))[0])
                revive(self._site)
        except BaseException as fault:  # noqa: BLE001 - said by the thread that waits
            self.fault = fault

    def _strike(self, blow: str) -> None:
        if blow == "postfix stop":
            self._site.postfix("stop", check=False)
        elif blow == "disk" and self._disk is not None:
            blow = _fill_disk(self._disk, self._dice)
        else:
            found = self._found(blow)
            for pid in self._dice.sample(found, min(len(found), 1)):
                with contextlib.suppress(ProcessLookupError):
                    if blow in ("agent", "monitor") and self._dice.random() < 0.3:
                        os.kill(pid, signal.SIGSTOP)  # it hangs before it dies
                        time.sleep(self._dice.uniform(0, 0.3))
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
        self.counts[blow] += 1

    def _found(self, blow: str) -> list[int]:
        """Return the processes to choose from; those that live shortly are waited for, shortly."""
        until = time.monotonic() + 0.5
        while True:
            found = _postfix() if blow == "one of Postfix's" else self._site.pids(blow)
            if found or time.monotonic() > until:
                return found
            time.sleep(0.01)


def revive(site: Site) -> None:
    """Start again what has ended, as an init system does: also what ends as it starts."""
    until = time.monotonic() + 120
    while True:
        try:
            site.revive()
        except (AssertionError, subprocess.SubprocessError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def _postfix() -> list[int]:
    master = processes.master()
    return [pid for pid in processes.children(master) if processes.is_running(pid)] if master else []


def _ballast(disk: limited.Disk) -> tuple[Path, Path]:
    """Return what fills the disk, and what uses up the quota."""
    return disk.rest / "ballast", Path("/home/erin/spent")


def _empty_disk(disk: limited.Disk) -> bool:
    """Make room; return whether there was none."""
    found = [one for one in _ballast(disk) if one.exists()]
    for one in found:
        one.unlink()
    if found:  # a btrfs has the room only once that is on disk
        subprocess.run(["sync", "-f", str(disk.rest)], check=True)
    return bool(found)


def _fill_disk(disk: limited.Disk, dice: random.Random) -> str:
    """Fill erin's disk, or use up her quota where there is one, or make room again; return which."""
    if _empty_disk(disk):
        return "disk with room"
    full, spent = _ballast(disk)
    if disk.quota and dice.random() < 0.5:
        limited.use_up(spent, "erin")
        return f"quota of {disk.quota} used up"
    limited.use_up(full)
    return "disk full"


@contextmanager
def _people(site: Site, messages: int) -> Iterator[limited.Disk]:
    """Give the host its people: erin's home is a disk of its own, with room for all her mail; dave has no rules."""
    for name in ("dave", "erin"):
        subprocess.run(["useradd", "--create-home", "--user-group", name], check=True)
    with limited.disk("erin", 4_000_000 + messages * _LARGEST, plain=True) as disk:
        assert disk is not None, "no disk for erin's home"
        with _settings(site):
            yield disk
    for name in ("dave", "erin"):
        subprocess.run(["userdel", "--remove", "--force", name], check=False, capture_output=True)


@contextmanager
def _settings(site: Site) -> Iterator[None]:
    """Give the host its settings and rules."""
    site.postconf(**SETTINGS)
    site.postfix("reload")
    site.aliases({"team": "alice, bob"})
    for name, rules in RULES.items():
        site.rules(name, rules)
    try:
        yield
    finally:
        site.run("postconf", "-X", *SETTINGS)
        site.postfix("reload", check=False)
        site.aliases({})


def _send(site: Site, ledger: HostLedger, dice: random.Random, number: int) -> None:
    """Send one message as an SMTP client does: again, as another message for the ledger, until it is taken."""
    people = dice.sample(list(PLACES), dice.choice((1, 1, 1, 2, 3)))
    refused = people == ["carol"] and dice.random() < 0.3
    places = Counter(place for person in people for place in PLACES[person] if not refused)
    until = time.monotonic() + 180
    for attempt in range(1_000_000):
        token = f"{number}.{attempt}"
        body, digest = payload(dice, _LARGEST)
        data = message("refuse" if refused else "hello", body, x_token=token)
        heard = False
        try:
            answer = site.send(data, [f"{person}@{DOMAIN}" for person in people])
            heard = answer.code == 250
            if answer.refused or answer.code >= 500:
                ledger.defects.append(f"bounced: {token} at the door: {answer}")
                return
            unsure = False
        except (OSError, smtplib.SMTPException):
            unsure = True
        if heard or unsure:
            ledger.sent[token] = Sent(token, digest, places, refused, heard)
        if heard:
            return
        assert time.monotonic() < until, f"message {number} is not taken"
        time.sleep(0.05)


def soak(site: Site, messages: int, blows: int, seed: int) -> tuple[HostLedger, Counter[str]]:
    """Send so many messages under so many blows, wait until the queue is empty; return ledger and blows by name."""
    dice, ledger = random.Random(seed), HostLedger()
    with _people(site, messages) as disk:
        if not disk.quota:
            print(
                "no quota here: neither a tmpfs with quotas, nor mkfs.btrfs and a loop device; the disk alone is filled"
            )
        with Blows(site, seed, disk=disk) as struck:
            for number in range(messages):
                _send(site, ledger, dice, number)
                site.wait(lambda: struck.due(blows * number // messages - _AHEAD), "the next blow", 120)  # noqa: B023
            site.wait(lambda: struck.due(blows), "the last blow", 120)
        site.settle(300)
        marked = set(marked_ids(site.service_log("submit").splitlines()))
        for person in ("alice", "bob", "carol", "dave", "erin"):
            found = mailboxes.folders(Path(f"/home/{person}"), Path(f"/var/mail/{person}"))
            for folder, content in found.items():
                ledger.read(f"{person} {folder}", content, marked)
        ledger.read("elsewhere", site.elsewhere(), marked)
    ledger.close()
    return ledger, struck.counts


def main() -> int:
    """Run it; return an exit code."""
    parser = argparse.ArgumentParser(description="Mail through a Postfix under blows.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--door", choices=("pipe", "lmtp"), default="pipe")
    parser.add_argument("--blows", type=int, default=500)
    options = parser.parse_args()
    if not in_world():
        parser.error("it kills a whole mail host: run it through packaging/world")
    begun = time.monotonic()
    with running() as site:
        if options.door == "lmtp":
            site.start_service("lmtp")
            site.milterapp("setup", "--apply", "--door", "lmtp", check=True)
            site.postfix("reload")
        ledger, blows = soak(site, options.messages, options.blows, options.seed)
    print(f"blows: {blows.total()}: {', '.join(f'{count} {name}' for name, count in sorted(blows.items()))}")
    print(*ledger.lines(), *ledger.defects[:50], f"{time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if ledger.defects else 0


if __name__ == "__main__":
    sys.exit(main())
