"""A mail host to try milterapp on: a real Postfix in the world of packaging/world, attached as an administrator would.

Must never: run outside that world, or start a service in another way than its manual says.

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
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.postfix import mailboxes, maillog, processes
from tests.postfix.maillog import Fate

__all__ = ["DOMAIN", "OUTSIDE", "PEOPLE", "Answer", "Site", "in_world", "message"]

DOMAIN = "example.org"
PEOPLE = ("alice", "bob", "carol")
OUTSIDE = "192.0.2.10"  # an SMTP client that is none of ours
SERVICES = ("submit", "monitor", "milter")  # in the order they start
PYTHON = "/opt/milterapp/.venv/bin/python"
CONFIGURATION = Path("/etc/postfix")
MAILLOG = Path("/var/log/maillog")
ELSEWHERE = Path("/var/mail/elsewhere")
SITE_RULES = Path("/etc/milterapp/rules.yaml")
NO_RULES = "rules:\n  - name: none\n    if:\n      client: 203.0.113.255\n    then: accept\n"
_SOCKETS = {
    "lmtp": Path("/var/spool/postfix/milterapp-lmtp/socket"),
    "milter": Path("/var/spool/postfix/milterapp/milter"),
    "monitor": Path("/run/milterapp/monitor/socket"),
    "submit": Path("/run/milterapp/submit/socket"),
}
_MAIN = {
    "myhostname": "mx.example.org",
    "myorigin": DOMAIN,
    "mydestination": f"{DOMAIN}, mx.example.org, localhost",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "recipient_delimiter": "+",
    "alias_maps": "hash:/etc/aliases",
    "alias_database": "hash:/etc/aliases",
    "biff": "no",
    "append_dot_mydomain": "no",
    "maillog_file": str(MAILLOG),
    "smtpd_relay_restrictions": "permit_mynetworks, defer_unauth_destination",
    # What is not local goes to one Maildir: the rest of the world.
    "default_transport": "virtual",
    "relay_transport": "virtual",
    "virtual_mailbox_base": str(ELSEWHERE),
    "virtual_mailbox_domains": "",
    "virtual_mailbox_maps": "static:mail/",
    "virtual_uid_maps": "static:{uid}",
    "virtual_gid_maps": "static:{gid}",
    # A deferred message is tried again as soon as a test asks for it.
    "queue_run_delay": "1s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "2s",
    "smtpd_error_sleep_time": "0",
    "in_flow_delay": "0",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the SMTP client heard at the end: of DATA, or of the command that ended it; refused: single recipients."""

    code: int
    text: str
    queue_id: str = ""
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def in_world() -> bool:
    """Return whether this process is root in the world of packaging/world."""
    return os.geteuid() == 0 and socket.gethostname() == "mx.example.org" and Path("/opt/milterapp/tests").is_dir()


def message(subject: str = "hello", body: str = "Hello.\n", **fields: str) -> bytes:
    """Return a message with CRLF line ends; `_` in a field's name stands for `-`. message_id gives the Message-ID."""
    given = {name.replace("_", "-").title(): value for name, value in fields.items()}
    given = {"Message-Id": f"<{uuid.uuid4().hex}@test.example>", **given}
    head = {"From": "Dora <dora@home.example>", "To": f"alice@{DOMAIN}", "Subject": subject, **given}
    lines = [f"{name}: {value}" for name, value in head.items()]
    return ("\n".join([*lines, "", body]).replace("\n", "\r\n")).encode()


def _text(said: bytes | str) -> str:
    return said.decode() if isinstance(said, bytes) else said


class Site:
    """The host: its Postfix, milterapp's services, its users and their mail."""

    def __init__(self) -> None:
        self._services: dict[str, subprocess.Popen[bytes]] = {}
        self._site_rules: str | None = None
        self._mark = 0  # where in the mail log the present test begins

    # Starting and stopping

    def install(self) -> None:
        """Configure Postfix as its administrator would, before anybody thought of milterapp."""
        subprocess.run(["useradd", "--system", "--user-group", "elsewhere"], check=True)
        account = pwd.getpwnam("elsewhere")
        ELSEWHERE.mkdir()
        shutil.chown(ELSEWHERE, "elsewhere", "elsewhere")
        ids = {"uid": account.pw_uid, "gid": account.pw_gid}
        self.postconf(**{name: value.format(**ids) for name, value in _MAIN.items()})
        subprocess.run(["newaliases"], check=True)
        prepare_chroot = Path("/usr/lib/postfix/configure-instance.sh")
        if prepare_chroot.exists():  # Debian copies what a chroot smtpd needs; its unit file calls this
            subprocess.run([str(prepare_chroot), "-"], check=True, capture_output=True)

    def postconf(self, **settings: str) -> None:
        """Set parameters of main.cf."""
        subprocess.run(["postconf", "-e", *(f"{name}={value}" for name, value in settings.items())], check=True)
        os.utime(CONFIGURATION / "main.cf", (0, 0))  # Postfix waits two seconds before it believes a file just written

    def attach(self) -> None:
        """Run `milterapp setup --apply`."""
        self.milterapp("setup", "--apply", check=True)

    def start(self) -> None:
        """Start milterapp's services, then Postfix; without in-line rules where none were given."""
        if self._site_rules is None:
            self.site_rules("")
        for name in SERVICES:
            self.start_service(name)
        self.postfix("start")

    def stop(self) -> None:
        """Stop everything that start() started."""
        self.postfix("stop", check=False)
        for name in reversed(SERVICES):
            self.stop_service(name)

    def start_service(self, name: str) -> None:
        """Start `milterapp NAME` and wait until it takes connections."""
        with open(f"/var/log/milterapp-{name}.log", "ab") as log:
            self._services[name] = subprocess.Popen(
                [PYTHON, "-I", "-m", "milterapp", name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self.wait(lambda: self.answers(name), f"milterapp {name} to take connections", 20)

    def stop_service(self, name: str) -> None:
        """Stop a service as an administrator does, with SIGTERM."""
        process = self._services.pop(name, None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"milterapp {name} did not stop within 20 s of SIGTERM") from None

    def revive(self) -> list[str]:
        """Start again each service whose process ended, and Postfix, as an init system would; return their names."""
        ended = [name for name in SERVICES if name in self._services and self._services[name].poll() is not None]
        for name in ended:
            del self._services[name]
            self.start_service(name)
        if not processes.is_running(processes.master()):
            self.postfix("start")
            ended.append("postfix")
        return ended

    def pids(self, role: str) -> list[int]:
        """Return the processes of a role (processes.ROLES), none where none runs."""
        return processes.of_role(role, {name: process.pid for name, process in self._services.items()})

    def answers(self, name: str) -> bool:
        """Return whether a service takes connections on its socket. Raises AssertionError where it ended."""
        process = self._services.get(name)
        if process is not None and process.poll() is not None:
            raise AssertionError(f"milterapp {name} ended with {process.returncode}:\n{self.service_log(name)[-3000:]}")
        kind = socket.SOCK_STREAM if name in ("milter", "lmtp") else socket.SOCK_SEQPACKET
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                probe.connect(str(_SOCKETS[name]))
            except OSError:
                return False
        return True

    def postfix(self, *command: str, check: bool = True) -> int:
        """Run postfix(1)."""
        done = subprocess.run(["postfix", *command], check=False, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"postfix {' '.join(command)}: {done.returncode}\n{done.stderr}\n{self.log_tail()}")
        return done.returncode

    def milterapp(
        self, *arguments: str, message: bytes = b"", check: bool = False, user: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of milterapp, as root or as a user."""
        done = subprocess.run(
            [PYTHON, "-I", "-m", "milterapp", *arguments],
            input=message,
            capture_output=True,
            check=False,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": f"/home/{user}" if user else "/root"},
            cwd="/",
        )
        if check and done.returncode != 0:
            raise AssertionError(f"milterapp {' '.join(arguments)}: {done.returncode}\n{done.stderr.decode()}")
        return done

    def run(self, *command: str) -> str:
        """Run a command of Postfix or of the system as root; return what it printed."""
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    # What a test begins with

    def reset(self) -> None:
        """Empty queue, mailboxes, homes and rules; start again what a test has killed."""
        self.revive()
        # What is being delivered right now still ends as it began.
        self.wait(lambda: not self.pids("client"), "deliveries to end", 30)
        subprocess.run(["postsuper", "-d", "ALL"], check=True, capture_output=True)
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
        self.site_rules("")
        self.aliases({})
        self._mark = MAILLOG.stat().st_size if MAILLOG.exists() else 0

    def site_rules(self, text: str) -> None:
        """Give the site its in-line rules and have the milter read them; "" for none."""
        if text == self._site_rules:
            return
        SITE_RULES.write_text(text or NO_RULES)
        self._site_rules = text
        if "milter" in self._services:
            self.stop_service("milter")
            self.start_service("milter")

    def rules(self, user: str, text: str) -> None:
        """Give a user rules."""
        folder = Path(f"/home/{user}/.milterapp")
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / "rules.yaml"
        file.write_text(text)
        for path in (folder, file):
            shutil.chown(path, user, user)

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

    def log(self) -> list[str]:
        """Return the lines of Postfix's log since the test began."""
        with MAILLOG.open("rb") as file:
            file.seek(self._mark)
            return file.read().decode("utf-8", "replace").splitlines()

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the log, for a message to people."""
        return "\n".join(self.log()[-lines:]) if MAILLOG.exists() else "(no log)"

    def service_log(self, name: str) -> str:
        """Return all that a service has logged."""
        file = Path(f"/var/log/milterapp-{name}.log")
        return file.read_text(errors="replace") if file.exists() else ""

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
            subprocess.run(["postkick", "public", "qmgr", "IA"], check=False)  # its SIGPIPE: qmgr(8) closed first

    def settle(self, deadline: float = 60) -> None:
        """Wait until the queue is empty: everything that was sent has ended somewhere."""
        next_flush = time.monotonic() + 0.3

        def empty() -> bool:
            nonlocal next_flush
            self.revive()
            queued = self.queue()
            if queued and time.monotonic() > next_flush:
                self.flush()
                next_flush = time.monotonic() + 0.3
            return not queued

        self.wait(empty, "the queue to become empty", deadline)

    def deferred(self, queue_id: str, deadline: float = 60) -> Fate:
        """Wait until a message is deferred; return its last fate."""
        found: list[Fate] = []

        def seen() -> bool:
            found[:] = [one for one in self.fates(queue_id) if one.status == "deferred"]
            return bool(found)

        self.wait(seen, f"{queue_id} to be deferred", deadline)
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

    def wait(self, done: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until something is so; fail with the logs where it is not in time."""
        end = time.monotonic() + deadline
        while not done():
            if time.monotonic() > end:
                services = "\n".join(f"-- {name}\n{self.service_log(name)[-2000:]}" for name in SERVICES)
                raise AssertionError(f"waited {deadline} s for {what}\n{self.log_tail()}\n{services}")
            time.sleep(0.02)
