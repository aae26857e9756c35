"""The agent without a monitor, as whoever calls it: local(8)'s mailbox_command, a .forward, Exim, qmail.

Must never: run as root, look at anything that belongs to another user, answer 0 for what is not durable, or let a
fault of ours look like anything but a temporary failure.

The MTA has become the user already, so nothing here has a privilege to give up. The rules run in a child that has the
agent's sandbox all the same. This process stays outside of it and does one thing for the child: LMTP, where the site
keeps mail so. Forwards and replies it refuses: the guards and budgets on them are those of `submit`, which believes the
monitor alone. Source: local(8) "EXTERNAL COMMAND DELIVERY" for the environment.
"""

from __future__ import annotations

import itertools
import os
import pwd
import re
import resource
import select
import signal
import socket
import syslog
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from milterapp.delivery import client, event, fenced, linux, received, runner, sealed, seccomp, smtp, wire, zygote
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.requests import ANSWER, REQUESTS, printable, waiting

__all__ = ["Temporary", "deliver", "envelope"]

_CHUNK = 64 * 1024
_LEAVE = 3.0  # seconds for an agent that has answered to end by itself
_RETURN_PATH = re.compile(rb"(?i)return-path:[ \t]*<([^\r\n]*)>[ \t]*\r?\n")
_NULL = re.compile(r"(?i)(?:mailer-daemon(?:@.*)?|<>)?\Z")  # what an MTA says for the null sender
_STATUSES = {"ok": os.EX_OK, "reject": os.EX_UNAVAILABLE}
_REMEDY = (
    "--direct keeps mail without Postfix: set `delivery.keep` to maildir or lmtp:… in /etc/milterapp/milterapp.yaml"
)


class Temporary(Exception):  # noqa: N818 - a state of the world
    """Nothing can be done now; str() says why, and what would help."""


def envelope(environment: Mapping[str, str], head: bytes) -> dict[str, str]:
    """Return the fields of JOB but for the queue id, from the MTA's environment and the message's first lines.

    A Return-Path on top is believed before SENDER, which says MAILER-DAEMON for the null sender. Raises Temporary.
    """
    recipient = environment.get("RECIPIENT", "")
    if not recipient:
        raise Temporary("no RECIPIENT in the environment: call it from an MTA, which sets that and SENDER")
    sender, found = environment.get("SENDER", ""), _RETURN_PATH.match(head)
    if found:
        sender = found[1].decode("utf-8", "surrogateescape")
    return {
        "sender": "" if _NULL.match(sender) else sender,
        "recipient": recipient,
        "original": environment.get("ORIGINAL_RECIPIENT", "") or recipient,
        "client": environment.get("CLIENT_ADDRESS", "") or "unknown",
        "extension": environment.get("EXTENSION", "") or environment.get("EXT", ""),
    }


def deliver(settings: Mapping[str, Any], environment: Mapping[str, str], source: int = 0) -> tuple[int, bytes]:
    """Deliver what comes from `source` to whoever runs this; return exit status and line of output.

    settings: as in `dataclasses.asdict(Settings())`. Raises Temporary, client.Unfinished, OSError and others: all of
    them mean 75.
    """
    parent, keep = os.getppid(), settings["delivery"]["keep"]
    if keep != "maildir" and not keep.startswith(smtp.LMTP):
        raise Temporary(_REMEDY)
    if not os.getuid() or os.getuid() != os.geteuid():
        raise Temporary("--direct delivers to the user that runs it, and never to root")
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise Temporary(f"uid {os.getuid()} has no account") from error
    message = sealed.seal(_message(source, parent))
    try:
        if not os.fstat(message).st_size:
            raise client.Unfinished("no message on standard input")
        job = {**envelope(environment, os.pread(message, 8192, 0)), "queue_id": received.queue_id(message)}
        answer = _Courier(settings, job, message).run(user)
    finally:
        os.close(message)
    _log(settings, job, answer)
    status = _STATUSES.get(answer.text("status"), os.EX_TEMPFAIL)
    text = printable(answer.text("text"), 600)
    if status == os.EX_TEMPFAIL and not text.startswith("4."):
        text = f"4.3.0 {text}"
    return status, text.encode("ascii") if status else b""


def _message(source: int, parent: int) -> Iterator[bytes]:
    """Yield the message, without the `From ` line that local(8) puts on top: the time in it is new for each attempt."""
    head, more = b"", True
    while more and b"\n" not in head and len(head) < _CHUNK:
        chunk = os.read(source, _CHUNK)
        more = bool(chunk)
        head += chunk
    line, newline, rest = head.partition(b"\n")
    yield rest if newline and line.startswith(b"From ") else head
    while chunk := os.read(source, _CHUNK):
        yield chunk
    client.finished(parent)


class _Courier:
    """The child with the rules, and what is done for it from here. job: the fields of JOB; message: sealed."""

    def __init__(self, settings: Mapping[str, Any], job: Mapping[str, str], message: int) -> None:
        self._settings, self._job, self._message = settings, job, message

    def run(self, user: pwd.struct_passwd) -> wire.Datagram:
        """Return the agent's answer. Raises Temporary where there is none in time, WireError, OSError."""
        kind = socket.SOCK_SEQPACKET
        control, child_control = socket.socketpair(socket.AF_UNIX, kind)
        requests, child_requests = socket.socketpair(socket.AF_UNIX, kind)
        with control, requests:
            pid = _fork()
            if pid == 0:
                self._child(child_control, user)
            with child_control, child_requests:
                wire.send(control, "JOB", self._job, (self._message, child_requests.fileno()))
            try:
                answer = self._converse(control, requests)
                _see_out(control)
            finally:
                control.close()
                requests.close()
                os.kill(pid, signal.SIGKILL)  # it has answered, or never will
                os.waitpid(pid, 0)
        return answer

    def _child(self, control: socket.socket, user: pwd.struct_passwd) -> None:
        """Be an agent, in an agent's sandbox."""
        try:
            from milterapp.delivery import agent

            os.dup2(control.fileno(), 3, inheritable=False)
            linux.close_from(4)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.close(null)
            os.chdir("/")
            linux.undumpable()
            room = resource.getrlimit(resource.RLIMIT_NPROC)[0] + zygote.ROOM
            linux.limit({**zygote.LIMITS, resource.RLIMIT_NPROC: room})
            own, programs = AgentSettings.from_site(self._settings), -1
            if own.programs:  # before this process loses the right to execute; it goes when this one goes
                programs = runner.beside(own.programs, user.pw_dir, user.pw_name, keep=4)
            fenced.Reach.of(own).fence(user.pw_dir)
            seccomp.install(seccomp.agent())
            agent.serve(socket.socket(fileno=3), own, user.pw_dir, user.pw_name, programs, alone=True)
        finally:
            os._exit(os.EX_TEMPFAIL)

    def _converse(self, control: socket.socket, requests: socket.socket) -> wire.Datagram:
        until = time.monotonic() + self._settings["delivery"]["deadline"]
        waiting = [control, requests]
        while True:
            ready, _, _ = select.select(waiting, [], [], max(0.0, until - time.monotonic()))
            if control in ready:
                answer = wire.receive(control, ANSWER)
                if answer is None:
                    raise Temporary("the rules of the recipient could not be run")
                return self._kept(answer) if answer.text("status") == "keep" else answer
            if not ready:
                raise Temporary("the delivery took too long")
            request = wire.receive(requests, REQUESTS, descriptors=(0, 1))
            if request is None:
                waiting = [control]
                continue
            try:
                kind, said = self._answer(request)
                wire.send(requests, kind, said)
            finally:
                request.close()

    def _kept(self, answer: wire.Datagram) -> wire.Datagram:
        """Return the answer of an agent that has no home to remember a keep in, once that has the mail, or why not."""
        kind, said = self._answer(wire.Datagram("KEEP", {}))
        status, text = ("ok", "") if kind == "DONE" else ("defer", waiting(f"keep: {said['text']}"))
        return replace(answer, fields={**answer.fields, "status": status.encode(), "text": text.encode()})

    def _answer(self, request: wire.Datagram) -> tuple[str, Mapping[str, str]]:
        """Return the response to one request of the agent's."""
        if request.kind not in ("KEEP", "NOTICE"):
            return "REFUSED", {"text": "milterapp-pipe --direct neither forwards nor replies"}
        keep = self._settings["delivery"]["keep"]
        if not keep.startswith(smtp.LMTP):
            return "FAILED", {"text": "this account has no home to keep mail in"}
        message = request.descriptors[0] if request.descriptors else self._message
        try:
            if request.kind == "NOTICE":
                message = sealed.seal(self._letter(request))
            sealed.measure(message, 1 << 31)
            eight_bit = any(not chunk.isascii() for chunk in sealed.chunks(message))
            sender = "" if request.kind == "NOTICE" else self._job["sender"]
            transaction = smtp.Transaction(sender, self._job["recipient"], eight_bit=eight_bit)
            taken = smtp.send(
                keep, transaction, sealed.chunks(message), timeout=self._settings["submit"]["timeout"]
            )  # fmt: skip
        except (smtp.SmtpError, smtp.AddressError, sealed.SealError, OSError) as error:
            return "FAILED", {"text": printable(str(error))}
        return "DONE", {"queue_id": taken}

    def _letter(self, request: wire.Datagram) -> Iterator[bytes]:
        """Return a notice of the agent's for the mailbox."""
        from milterapp.delivery import replies

        return replies.letter(
            own=self._job["recipient"],
            subject=request.text("subject"),
            text=request.text("text"),
            now=datetime.now(UTC),
            message_id=f"script.{time.time_ns()}.{os.getpid()}@localhost",
        )


def _fork() -> int:
    """Fork, with a soft limit of processes that this uid is not far below; what the child may have is above that."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    for most in itertools.count(zygote.ROOM, zygote.ROOM):
        last = hard != resource.RLIM_INFINITY and most >= hard
        resource.setrlimit(resource.RLIMIT_NPROC, (hard if last else most, hard))
        try:
            return os.fork()
        except BlockingIOError:
            if last:
                raise
    raise AssertionError("counting does not end")


def _see_out(control: socket.socket) -> None:
    """Wait until the agent ends, which once a day forgets what is old first. Its answer stands, whatever it does."""
    with suppress(OSError):
        control.shutdown(socket.SHUT_WR)
        select.select([control], [], [], _LEAVE)


def _log(settings: Mapping[str, Any], job: Mapping[str, str], answer: wire.Datagram) -> None:
    """Say what became of it, one line to syslog, as the monitor does to its own log."""
    status = answer.text("status")
    fields: dict[str, str | None] = {
        **{name: job[name] for name in ("queue_id", "sender", "recipient")},
        "original": job["original"] if job["original"] != job["recipient"] else None,
        "status": status,
        "text": answer.text("text") or None,
        "decided": answer.text("event"),
    }
    line = event.line(settings["log"], time.time(), "info", "direct", "delivery", fields)
    syslog.openlog("milterapp-pipe", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(syslog.LOG_WARNING if status == "defer" else syslog.LOG_INFO, line.decode("ascii").rstrip("\n"))
