"""What a test does with the host: people and their rules, mail in by every door, and what became of it.

Must never: take a shortcut past Postfix; mail enters by SMTP or sendmail(1), and is read where it arrived.

`Site` stands for the host. Local mail is for example.org; everything else ends in one Maildir, delivered there by
virtual(8), as if it were the rest of the world. Nothing here waits without a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import smtplib
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.postfix import mailboxes, maillog
from tests.postfix.host import DOMAIN, ELSEWHERE, MAILLOG, PYTHON, SITE_RULES, Host, in_world
from tests.postfix.maillog import Fate

__all__ = ["DOMAIN", "OUTSIDE", "PEOPLE", "PYTHON", "SITE_RULES", "Answer", "Site", "in_world", "message", "running"]

PEOPLE = ("alice", "bob", "carol")
OUTSIDE = "192.0.2.10"  # an SMTP client that is none of ours
_LOGGED = 3.0  # seconds in which postlogd(8) has written what it was told; a killed qmgr(8) never says `removed`


@dataclass(frozen=True, slots=True)
class Answer:
    """What the SMTP client heard at the end: of DATA, or of the command that ended it; refused: single recipients."""

    code: int
    text: str
    queue_id: str = ""
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def message(subject: str = "hello", body: str = "Hello.\n", **fields: str) -> bytes:
    """Return a message with CRLF line ends; `_` in a field's name stands for `-`. message_id gives the Message-ID."""
    given = {name.replace("_", "-").title(): value for name, value in fields.items()}
    given = {"Message-Id": f"<{uuid.uuid4().hex}@test.example>", **given}
    head = {"From": "Dora <dora@home.example>", "To": f"alice@{DOMAIN}", "Subject": subject, **given}
    lines = [f"{name}: {value}" for name, value in head.items()]
    return ("\n".join([*lines, "", body]).replace("\n", "\r\n")).encode()


def _text(said: bytes | str) -> str:
    return said.decode() if isinstance(said, bytes) else said


@contextlib.contextmanager
def running() -> Iterator[Site]:
    """Give the host, milterapp attached and everything running, and stop it in the end."""
    site = Site()
    try:
        site.install()
        site.attach()
        site.start()
        yield site
    finally:
        site.stop()


class Site(Host):
    """The host with its users and their mail."""

    _tables = 0  # how often the aliases were set

    # What a test begins with

    def reset(self) -> None:
        """Empty queue, mailboxes, homes, rules and the budget of answers; start again what a test has killed."""
        self.revive()
        # What is being delivered right now still ends as it began.
        self.wait(lambda: not self.pids("client"), "deliveries to end", 30)
        self._come_to_rest()
        self.run("postsuper", "-d", "ALL")
        for person in PEOPLE:
            account = pwd.getpwnam(person)
            home = Path(account.pw_dir)
            home.chmod(0o755)
            os.chown(home, account.pw_uid, account.pw_gid)
            for name in (".milterapp", "Maildir"):
                shutil.rmtree(home / name, ignore_errors=True)
            (home / ".forward").unlink(missing_ok=True)
        for entry in Path("/var/mail").iterdir():
            if entry != ELSEWHERE:
                entry.unlink()
        shutil.rmtree(ELSEWHERE / "mail", ignore_errors=True)
        for name, table in (("replied", "replied"), ("rates", "counted")):
            file = f"file:/var/lib/milterapp/submit/{name}.sqlite?mode=rw"  # submit has it open
            with contextlib.closing(sqlite3.connect(file, uri=True, timeout=30)) as answered, answered:
                answered.execute(f"DELETE FROM {table}")
        self.site_rules("")
        self.aliases({})
        self._logged()
        self._mark = MAILLOG.stat().st_size

    def _come_to_rest(self, patience: float = 60) -> bool:
        """Let what is under way arrive or wait, and hold what waits, so that it stays there; return whether all rests.

        Deleted from the queue while it is under way, a message would arrive in the next test.
        """
        until, quiet = time.monotonic() + patience, 0
        next_try = time.monotonic() + 0.3
        while quiet < 3 and time.monotonic() < until:  # three times in a row, as in settle()
            moving = [one["queue_name"] for one in self.queue() if one["queue_name"] != "hold"]
            if "deferred" in moving:
                self.run("postsuper", "-h", "ALL", "deferred")
            if "incoming" in moving and time.monotonic() > next_try:
                self._have_incoming_tried()
                next_try = time.monotonic() + 0.3
            quiet = 0 if moving else quiet + 1
        return quiet >= 3

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep waiting mail from being tried meanwhile: it would find half of what a test changes in several steps."""
        assert self._come_to_rest(), self.queue()
        yield
        self.run("postsuper", "-H", "ALL")

    def rules(self, user: str, text: str) -> None:
        """Give a user rules."""
        folder = Path(f"/home/{user}/.milterapp")
        folder.mkdir(mode=0o700, exist_ok=True)
        shutil.chown(folder, user, user)
        self._give(user, folder / "rules.yaml", text)

    def script(self, user: str, name: str, text: str) -> None:
        """Give a user a script, by its path from the rules."""
        file = Path(f"/home/{user}/.milterapp") / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in file.parents[: name.count("/") + 1]:
            shutil.chown(path, user, user)
        self._give(user, file, text)

    @staticmethod
    def _give(user: str, file: Path, text: str) -> None:
        """Put a user's file in its place whole: mail that waits is tried, and it is read, at any moment."""
        new = file.with_name(f"{file.name}.new")
        new.write_text(text)
        shutil.chown(new, user, user)
        new.rename(file)

    def forward_file(self, user: str, text: str) -> None:
        """Give a user a ~/.forward."""
        file = Path(f"/home/{user}/.forward")
        file.write_text(text)
        shutil.chown(file, user, user)

    def aliases(self, aliases: Mapping[str, str]) -> None:
        """Set the aliases beside postmaster's."""
        lines = [f"{name}: {value}" for name, value in {"postmaster": "root", **aliases}.items()]
        text = "\n".join(lines) + "\n"
        file = Path("/etc/aliases")
        if file.read_text() != text:
            file.write_text(text)
            subprocess.run(["newaliases"], check=True)
            # local(8) sees a change by the second: two within one would be the same to it. The past is never now.
            self._tables += 1
            for one, seconds in ((file, 0), (file.with_name("aliases.db"), self._tables)):
                os.utime(one, (seconds, seconds))

    # Mail in

    def send(
        self,
        data: bytes,
        recipients: Sequence[str] = (f"alice@{DOMAIN}",),
        *,
        sender: str = "dora@home.example",
        client: str = OUTSIDE,
        helo: str = "client.example",
    ) -> Answer:
        """Send a message over SMTP from a client address of loopback; return what Postfix answered."""
        refused: dict[str, tuple[int, str]] = {}
        with contextlib.ExitStack() as stack:
            try:
                smtp = stack.enter_context(self.connection(client, helo))
            except smtplib.SMTPConnectError as error:
                return Answer(error.smtp_code, _text(error.smtp_error))
            code, text = smtp.mail(sender, [])
            if code != 250:
                return Answer(code, text.decode())
            for one in recipients:
                code, text = smtp.rcpt(one)
                if code != 250:
                    refused[one] = (code, text.decode())
            if len(refused) < len(recipients):
                try:
                    code, text = smtp.data(data)
                except smtplib.SMTPDataError as error:
                    return Answer(error.smtp_code, _text(error.smtp_error), refused=refused)
            said = text.decode()
            return Answer(code, said, said.rpartition("queued as ")[2] if code == 250 else "", refused)

    @contextlib.contextmanager
    def connection(self, client: str = OUTSIDE, helo: str = "client.example") -> Iterator[smtplib.SMTP]:
        """Give an SMTP connection from a client address of loopback, greeted."""
        with smtplib.SMTP("127.0.0.1", 25, helo, timeout=60, source_address=(client, 0)) as smtp:
            smtp.ehlo()
            yield smtp

    def sendmail(
        self, data: bytes, recipients: Sequence[str], *, sender: str | None = None, user: str = "bob"
    ) -> subprocess.CompletedProcess[bytes]:
        """Submit a message with sendmail(1), as a user of the host."""
        return subprocess.run(
            ["/usr/sbin/sendmail", "-i", *([] if sender is None else ["-f", sender]), "--", *recipients],
            input=data.replace(b"\r\n", b"\n"),
            capture_output=True,
            check=False,
            user=user,
            group=user,
            extra_groups=[],
            cwd="/",
        )

    # What became of it

    def fates(self, queue_id: str | None = None) -> list[Fate]:
        """Return what the delivery agents logged since the test began, of one queue file or of all."""
        return [one for one in maillog.fates(self.log()) if queue_id in (None, one.queue_id)]

    def notices(self, queue_id: str) -> list[str]:
        """Return the queue ids of the notices to the sender of a message."""
        return maillog.notices(self.log(), queue_id)

    def queue(self) -> list[dict[str, object]]:
        """Return what is queued (postqueue -j)."""
        done = subprocess.run(["postqueue", "-j"], check=True, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def flush(self) -> None:
        """Have Postfix try all waiting mail now, also what it put back into `incoming` as it was under way."""
        subprocess.run(["postqueue", "-f"], check=True)
        if any(one["queue_name"] == "incoming" for one in self.queue()):
            self._have_incoming_tried()

    @staticmethod
    def _have_incoming_tried() -> None:
        """Have Postfix take up what is in `incoming`: of what it put back there nothing tells it."""
        subprocess.run(["postkick", "public", "qmgr", "IA"], check=False)  # its SIGPIPE: qmgr(8) closed first

    def settle(self, deadline: float = 60, *, but: Collection[str] = ()) -> None:
        """Wait until the queue is empty and the log says so: everything that was sent has ended somewhere.

        but: the queue ids of what stays in the queue.
        """
        next_flush = time.monotonic() + 0.3
        quiet = 0
        told: float | None = None

        def empty() -> bool:
            nonlocal next_flush, quiet, told
            self.revive()
            queued = [one for one in self.queue() if one["queue_id"] not in but]
            if queued and time.monotonic() > next_flush:
                self.flush()
                next_flush = time.monotonic() + 0.3
            # Three times in a row: what moves while showq(8) looks at one queue after the other is seen in none.
            quiet = 0 if queued else quiet + 1
            if quiet < 3:
                return False
            self._logged()  # that a message was taken up too
            told = told or time.monotonic() + _LOGGED
            return not maillog.under_way(self.log()).difference(but) or time.monotonic() > told

        self.wait(empty, "the queue to become empty", deadline)

    def _logged(self) -> None:
        """Wait until all that Postfix has said by now is in the log: postlogd(8) writes it in that order."""
        mark = f"so far: {uuid.uuid4()}"
        self.run("postlog", "-t", "tests", mark)
        self.wait(lambda: any(line.endswith(mark) for line in self.log()), "the log to be written", 30)

    def deferred(self, queue_id: str, deadline: float = 60, *, times: int = 1) -> Fate:
        """Wait until a message has been deferred that often, tried again as it must be; return its last fate."""
        found: list[Fate] = []
        next_flush = time.monotonic() + 0.3

        def seen() -> bool:
            nonlocal next_flush
            found[:] = [one for one in self.fates(queue_id) if one.status == "deferred"]
            # Once is not enough: what is flushed while it is still being delivered waits in `incoming`.
            if 0 < len(found) < times and time.monotonic() > next_flush:
                self.flush()
                next_flush = time.monotonic() + 0.3
            return len(found) >= times

        self.wait(seen, f"{queue_id} to be deferred, {times} times", deadline)
        return found[-1]

    def folders(self, user: str) -> dict[str, list[bytes]]:
        """Return a user's mail by folder, `""` the inbox; folders without mail are not there."""
        return mailboxes.folders(Path(f"/home/{user}"), Path(f"/var/mail/{user}"))

    def mailbox(self, user: str) -> list[bytes]:
        """Return the messages in the mbox of any account."""
        return mailboxes.mbox(Path(f"/var/mail/{user}"))

    def inbox(self, user: str) -> list[bytes]:
        """Return the messages in a user's inbox."""
        return self.folders(user).get("", [])

    def elsewhere(self) -> list[bytes]:
        """Return what left the host; its envelope is in Return-Path and X-Original-To."""
        return mailboxes.maildir(ELSEWHERE / "mail")
