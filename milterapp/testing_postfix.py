"""An application spoken to through the real Postfix of this host: milterapp.testing's interface, as one account's mail.

Must never: pass a test that it cannot run (it skips, and says why), lose what the account had, or wait without end.

The script and the files beside it are the account's for a test; its own ~/.milterapp and ~/Maildir stand aside, with
`.before-test` behind their names, and come back. What leaves the host is taken by a Sink (milterapp.testing_sink), to
which the host's default transport leads. Everything in the home is done with the account's own ids.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import smtplib
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import replies
from milterapp.delivery.record import from_text
from milterapp.mail.envelope import Envelope, split_address
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision, Verdict
from milterapp.rules.deliveries import Forward, Send, SendReply
from milterapp.script import stored
from milterapp.state.conversations import Conversations
from milterapp.testing import Application, Letter, Said, ScriptFailedError
from milterapp.testing_sink import Sink, Taken

__all__ = ["Host", "PostfixApplication"]

_ASIDE = ".before-test"
_KEPT = (".milterapp", "Maildir")
_ROUTED = "the test's script has answered"  # what the decision's log says where the script's rule matched
_DEADLINE = 30.0  # seconds for a message and all it causes
_LARGEST = 1 << 20  # bytes of a file beside the script


class Host:
    """What the tests of one run share: the accounts, the sink, the host's own domains.

    Raises OSError, KeyError (no such account), RuntimeError: also where what leaves the host would not go to the sink.
    """

    def __init__(self, accounts: list[str], port: int) -> None:
        self.accounts = {name: pwd.getpwnam(name) for name in accounts}
        for name in ("default_transport", "relay_transport"):
            if (found := _postfix("postconf", "-hx", name).strip()) != f"smtp:[127.0.0.1]:{port}":
                raise RuntimeError(f"{name}: expected smtp:[127.0.0.1]:{port} in main.cf, found {found!r}")
        self.sink = Sink(port)
        said = _postfix("postconf", "-hx", "mydestination")
        self.domains = {one.lower() for one in re.split(r"[,\s]+", said) if one}

    def close(self) -> None:
        """End the sink."""
        self.sink.close()

    def account(self, address: str) -> pwd.struct_passwd:
        """Return whose address it is; the test is skipped where it is none of the accounts'."""
        local, domain = split_address(address)
        if domain.lower() not in self.domains:
            pytest.skip(f"{address}: {domain} is not in this host's mydestination")
        if local not in self.accounts:
            pytest.skip(f"{address}: no --mailapp-account={local} was given")
        return self.accounts[local]


class PostfixApplication(Application):
    """As Application; letters are what reached the sink, everything else is read where the account has it."""

    def __init__(
        self,
        host: Host,
        script: str | os.PathLike[str],
        *,
        user: str = "app@example.org",
        recipients: int = 20,
        site: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if recipients != 20:
            pytest.skip("recipients: the site's own delivery.script_recipients counts")
        if site is not None:
            pytest.skip("site: the lists of the site's own rules count")
        self._host, self._account = host, host.account(user)
        self._home = Path(self._account.pw_dir)
        self._path, self.user = os.fspath(script), user
        self.sent: list[Letter] = []
        self._box = Path("/var/mail") / self._account.pw_name
        _wait(lambda: not _queue(), "the queue to be empty before a test")
        host.sink.take()
        self._box_size = self._box.stat().st_size if self._box.exists() else 0
        with self._as_account():
            for name in _KEPT:
                if (self._home / (name + _ASIDE)).exists():
                    raise RuntimeError(f"{self._home / name}{_ASIDE}: left by a test that was killed; move it back")
        self._aside: list[str] = []
        self._taken: set[str] = set()
        self._told = 0
        try:
            self._lay_out()
        except BaseException:
            self.close()
            raise

    def _lay_out(self) -> None:
        beside = sorted(Path(self._path).resolve().parent.iterdir())
        wanted = [one for one in beside if one.is_file() and not one.name.startswith("test_")]
        texts = {one.name: one.read_bytes() for one in wanted if one.stat().st_size <= _LARGEST}
        texts["rules.yaml"] = (
            f"rules:\n  - name: the test's\n    then:\n      - script: {self._name}\n      - log: {_ROUTED}\n"
        ).encode()
        with self._as_account():
            for name in _KEPT:
                if (self._home / name).exists():
                    (self._home / name).rename(self._home / (name + _ASIDE))
                self._aside.append(name)
            folder = self._home / ".milterapp"
            folder.mkdir(mode=0o700)
            for name, text in texts.items():
                (folder / name).write_bytes(text)
                (folder / name).chmod(0o600)

    def close(self) -> None:
        """Put back what the account had; what this test sent and Postfix still has is deleted first."""
        for one in self._taken & {str(one["queue_id"]) for one in _queue()}:
            _postfix("postsuper", "-d", one)
        with self._as_account():
            while self._aside:
                name = self._aside.pop()
                _remove(self._home / name)
                if (self._home / (name + _ASIDE)).exists():
                    (self._home / (name + _ASIDE)).rename(self._home / name)

    # Speaking to it

    @property
    def now(self) -> datetime:
        """The time, which does not stand still here."""
        return datetime.now(UTC)

    @now.setter
    def now(self, _: datetime) -> None:
        pytest.skip("the clock of a real host cannot be set")

    def later(self, **_: float) -> None:
        """Skip the test."""
        pytest.skip("the clock of a real host cannot be moved")

    def deliver(self, raw: bytes, *, sender: str, to: str) -> Said:
        """Give Postfix a message, and wait for the end of all it causes. Raises ScriptFailedError, AssertionError."""
        if not replies.is_own(to, Envelope(recipients=(self.user,))):
            pytest.skip(f"{to} is no address of {self.user}")
        if split_address(sender)[1].lower() in self._host.domains:
            pytest.skip(f"{sender} is an address of this host: what is sent there does not leave it")
        lines = re.sub(rb"\r?\n", b"\r\n", raw)
        with smtplib.SMTP("127.0.0.1", 25, timeout=_DEADLINE) as smtp:
            smtp.ehlo()
            for code, text in (smtp.mail(sender), smtp.rcpt(to), smtp.data(lines)):
                if code != 250:
                    return Said(refused=text.decode("utf-8", "replace"))
        queue_id = text.decode().rpartition("queued as ")[2]
        self._taken.add(queue_id)
        reason = ""

        def ended() -> bool:
            nonlocal reason  # of the look that counts: the next one may come when Postfix tries again
            before, reason = reason, _deferred(queue_id)
            return bool(before) == bool(reason) and (reason != "" or not _queue())

        _wait(ended, f"{queue_id} and what it causes")
        result = Said()
        if reason:
            _postfix("postsuper", "-d", queue_id)
            found = re.search(r"\b4\.[0-9]\.[0-9]+ .*", reason)
            if self._name in reason:
                raise ScriptFailedError(reason)
            result.refused = found[0] if found else reason
            return result
        self._decided(result, queue_id, sender)
        return result

    def _decided(self, result: Said, queue_id: str, sender: str) -> None:
        """Say what was decided about a message, by the account's own journal, and what left because of it."""
        with self._as_account(), closing(sqlite3.connect(self._home / ".milterapp/journal.sqlite")) as journal:
            rows = journal.execute("SELECT key, record FROM prepared WHERE queue_id = ?", (queue_id,)).fetchall()
            if len(rows) != 1:
                raise AssertionError(f"{queue_id} did not reach the script: {len(rows)} records in the journal")
            steps = journal.execute("SELECT result FROM done WHERE key = ? ORDER BY step", rows[0][:1]).fetchall()
        decision = from_text(rows[0][1])
        told = [one for one in self._box_mail() if _is_told(one)]
        result.failed = "".join(Mail(one).text for one in told[self._told :])
        self._told = len(told)
        result.routed = any(_ROUTED in str(line) for line in decision.log)
        result.unsent = [text for (text,) in steps if text.split(" ")[0] not in ("done", "reject")]
        if decision.verdict is Verdict.REJECT and decision.reply is not None:
            result.refused = f"{decision.reply.status} {decision.reply.line}"
        result.kept = any(type(one).__name__ == "Keep" for one in decision.deliveries)
        order = _recipients(decision, sender)
        letters = [one for one in self._host.sink.take() if not (result.refused and _is_notice(one, sender))]
        letters.sort(key=lambda one: order.index(one.to) if one.to in order else len(order))
        result.letters = [Letter(one.sender, one.to, one.data) for one in letters]
        self.sent += result.letters

    # Looking at it

    def state(self, sender: str, *per: str) -> str:
        """Return a sender's state for these captures, "START" where it has none."""
        return self._remembered(lambda kept: kept.state(self._name, sender, per), "") or "START"

    def stored(self, key: str, default: Any = None) -> Any:
        """Return what is stored under a key."""
        found = self._remembered(lambda kept: kept.value(self._name, key), None)
        return default if found is None else stored.from_text(found)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin so, in order."""
        return [key for key, _ in self._remembered(lambda kept: kept.keys(self._name, prefix, 100_000), [])]

    @property
    def outputs(self) -> Mapping[str, str]:  # type: ignore[override]  # read anew each time
        """The files of the script's output folder, by name."""
        folder = self._home / ".milterapp/output" / self._name.removesuffix(".py")
        with self._as_account():
            files = [one for one in sorted(folder.rglob("*")) if one.is_file() and not one.name.startswith(".")]
            return {str(one.relative_to(folder)): one.read_text("utf-8") for one in files}

    @property
    def inbox(self) -> list[bytes]:  # type: ignore[override]
        """The messages kept since the test began, in ~/Maildir or the mbox below /var/mail."""
        return [one for one in self._box_mail() if not _is_told(one)]

    def _box_mail(self) -> list[bytes]:
        with self._as_account():
            box = self._box.read_bytes()[self._box_size :] if self._box.exists() else b""
            kept = [one.split(b"\n", 1)[1] for one in re.split(rb"^(?=From )", box, flags=re.MULTILINE) if one]
            return kept + _maildir(self._home / "Maildir")

    @property
    def folders(self) -> dict[str, list[bytes]]:  # type: ignore[override]
        """The messages filed since the test began, by folder."""
        with self._as_account():
            found = {one.name[1:].replace(".", "/"): _maildir(one) for one in (self._home / "Maildir").glob(".*")}
        return {name: messages for name, messages in found.items() if messages}

    def _remembered(self, ask: Callable[[Conversations], Any], default: Any) -> Any:
        file = self._home / ".milterapp/scripts.sqlite"
        with self._as_account():
            if not file.exists():
                return default
            with closing(Conversations(str(file))) as kept:
                return ask(kept)

    @contextmanager
    def _as_account(self) -> Iterator[None]:
        """Do what is done in the home with its owner's ids: a link there leads nowhere that its owner may not go."""
        groups = os.getgroups()
        os.setgroups([self._account.pw_gid])
        os.setegid(self._account.pw_gid)
        os.seteuid(self._account.pw_uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def _recipients(decision: Decision, sender: str) -> list[str]:
    """Return whom a decision writes to, in its order."""
    return [
        sender if isinstance(one, SendReply) else one.to
        for one in decision.deliveries
        if isinstance(one, SendReply | Send | Forward)
    ]


def _is_notice(one: Taken, sender: str) -> bool:
    """Return whether a message is Postfix's own notice to the sender of one that was refused."""
    head = one.data.partition(b"\n\n")[0].lower()
    return not one.sender and one.to == sender and b"\ncontent-type: multipart/report" in head


def _is_told(raw: bytes) -> bool:
    """Return whether a message is what the author of a script that failed is told."""
    found = Mail(raw)
    return (found.subject or "").startswith("Your script ") and bool(found.raw_values("Auto-Submitted"))


def _postfix(*command: str) -> str:
    """Run a command of Postfix; return what it printed. Raises RuntimeError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _queue() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _postfix("postqueue", "-j").splitlines()]


def _deferred(queue_id: str) -> str:
    """Return why a message waits, "" where it does not.

    Where qmgr(8) wants to try it again and finds it locked still, it waits in `incoming`, for a minute.
    """
    waiting = ("deferred", "incoming")
    found = [one for one in _queue() if one["queue_id"] == queue_id and one["queue_name"] in waiting]
    return next((to["delay_reason"] for one in found for to in one["recipients"] if "delay_reason" in to), "")


def _wait(done: Callable[[], bool], what: str) -> None:
    """Wait until something was so three times in a row: what moves between queues is seen in none of them."""
    until, times = time.monotonic() + _DEADLINE, 0
    while times < 3:
        times = times + 1 if done() else 0
        if time.monotonic() > until:
            raise AssertionError(f"waited {_DEADLINE:.0f} s for {what}; Postfix still has {_queue()}")
        time.sleep(0.02)


def _maildir(folder: Path) -> list[bytes]:
    found = [one for part in ("new", "cur") for one in (folder / part).glob("*")]
    return [one.read_bytes() for one in sorted(found, key=lambda one: one.name)]


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
