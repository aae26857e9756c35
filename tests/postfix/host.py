"""A mail host: a real Postfix in the world of packaging/world, and milterapp's services, started as their manuals say.

Must never: run outside that world, or wait without a deadline.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.postfix import processes, units

__all__ = ["DOMAIN", "ELSEWHERE", "MAILLOG", "PYTHON", "SERVICES", "SITE_RULES", "Host", "in_world"]

DOMAIN = "example.org"
SERVICES = ("script", "submit", "monitor", "milter")  # in the order they start
PYTHON = "/opt/milterapp/.venv/bin/python"
CONFIGURATION = Path("/etc/postfix")
SETTINGS = Path("/etc/milterapp/milterapp.yaml")
MAILLOG = Path("/var/log/maillog")
ELSEWHERE = Path("/var/mail/elsewhere")
SITE_RULES = Path("/etc/milterapp/rules.yaml")
NO_RULES = "rules:\n  - name: none\n    if:\n      client: 203.0.113.255\n    then: accept\n"
_SOCKETS = {
    "lmtp": Path("/var/spool/postfix/milterapp-lmtp/socket"),
    "milter": Path("/var/spool/postfix/milterapp/milter"),
    "monitor": Path("/run/milterapp/monitor/socket"),
    "script": Path("/run/milterapp/script/socket"),
    "submit": Path("/run/milterapp/submit/socket"),
}
_OLD = ("smtpd", "cleanup", "local", "qmgr", "trivial-rewrite")  # which servers of Postfix a reload is waited for
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
    # master(8) waits a minute before it replaces a server that was killed at its first message.
    "service_throttle_time": "1s",
}


def in_world() -> bool:
    """Return whether this process is root in the world of packaging/world."""
    return os.geteuid() == 0 and socket.gethostname() == "mx.example.org" and Path("/opt/milterapp/tests").is_dir()


class Host:
    """The host: its Postfix and milterapp's services."""

    def __init__(self) -> None:
        self._services: dict[str, subprocess.Popen[bytes] | units.Unit] = {}
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
        if prepare_chroot.exists():  # what a chroot smtpd needs; on Debian 13 `postfix start` does it, and this fails
            subprocess.run([str(prepare_chroot), "-"], check=False, capture_output=True)

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
        """Stop everything that runs."""
        self.postfix("stop", check=False)
        for name in reversed([*self._services]):
            self.stop_service(name)

    def start_service(self, name: str) -> None:
        """Start `milterapp NAME` and wait until it takes connections."""
        self._services[name] = units.Unit(name) if units.ASKED in os.environ else self._start(name)
        self.wait(lambda: self.answers(name), f"milterapp {name} to take connections", 60)

    @staticmethod
    def _start(name: str) -> subprocess.Popen[bytes]:
        with open(f"/var/log/milterapp-{name}.log", "ab") as log:
            return subprocess.Popen(
                [PYTHON, "-I", "-m", "milterapp", name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

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

    @contextlib.contextmanager
    def configured(self, text: str, *services: str) -> Iterator[None]:
        """Give milterapp this configuration meanwhile; these services are started again with it, and without it."""
        try:
            SETTINGS.write_text(text)
            self._restart(services)
            yield
        finally:
            SETTINGS.unlink()
            self._restart(services)

    def _restart(self, services: Iterable[str]) -> None:
        for name in services:
            self.stop_service(name)
            self.start_service(name)

    def revive(self) -> list[str]:
        """Start again each service whose process ended, and Postfix, as an init system would; return their names."""
        ended = [name for name in (*SERVICES, "lmtp") if self._ended(name)]
        for name in ended:
            del self._services[name]
            self.start_service(name)
        if not processes.is_running(processes.master()):
            self.postfix("start")
            ended.append("postfix")
        return ended

    def _ended(self, name: str) -> bool:
        return name in self._services and self._services[name].poll() is not None

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
        """Run postfix(1). After `reload` the servers with the old settings, which end by themselves, are gone."""
        before = [pid for role in _OLD for pid in processes.of_role(role, {})] if command == ("reload",) else []
        done = subprocess.run(["postfix", *command], check=False, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"postfix {' '.join(command)}: {done.returncode}\n{done.stderr}\n{self.log_tail()}")
        end = time.monotonic() + 30
        while any(map(processes.is_running, before)) and time.monotonic() < end:  # one may be busy for longer
            time.sleep(0.02)
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

    def site_rules(self, text: str) -> None:
        """Give the site its in-line rules and have the milter read them; "" for none."""
        if text == self._site_rules:
            return
        SITE_RULES.write_text(text or NO_RULES)
        self._site_rules = text
        if "milter" in self._services:
            self.stop_service("milter")
            self.start_service("milter")

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

    def wait(self, done: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until something is so; fail with the logs where it is not in time."""
        end = time.monotonic() + deadline
        while not done():
            if time.monotonic() > end:
                services = "\n".join(f"-- {name}\n{self.service_log(name)[-2000:]}" for name in SERVICES)
                raise AssertionError(f"waited {deadline} s for {what}\n{self.log_tail()}\n{services}")
            time.sleep(0.02)
