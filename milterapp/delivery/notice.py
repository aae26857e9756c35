"""The letter that people find in their mailbox where their rules or a script of theirs failed: where and why, once.

Must never: go anywhere but into the mailbox of the recipient whose rules they are, or past it into the rules again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from milterapp.delivery.carry_out import Outcome, Submit
from milterapp.delivery.replies import letter
from milterapp.delivery.scripts import Told
from milterapp.delivery.stores import Maildir, Name, stamped
from milterapp.mail.envelope import Envelope
from milterapp.rules.problem import Problem
from milterapp.state.journal import Key

__all__ = ["FAILED", "Letter", "of_rules", "tell"]

FAILED = "failed"  # the folder of messages with which a script failed, below the state folder
_MOST = 20  # of them
_MOST_TEXT = 30 * 1024  # bytes of a letter
_LONGEST = 16 << 20  # bytes of a message that is put there
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_PROBLEMS = 20
_MEANWHILE = {
    True: "Meanwhile your mail is kept as if you had no rules.",
    False: "Meanwhile your mail waits. It comes once they are good; after some days it would go back to its senders.",
}
_ANSWERED = {True: "Its function ERROR answered then.", False: "The message waits, and is tried again."}
_RULES = """\
Your mail rules cannot be used:

{}
{}

`milterapp check` says whether they are good now. You are told of these problems once.
"""


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter about what failed with one message. now: seconds since 1970.

    keeps: whether mail is kept meanwhile, else it waits.
    """

    told: Told
    envelope: Envelope
    key: Key
    raw: bytes
    now: int
    keeps: bool = False

    @property
    def step(self) -> str:
        """Return what tells this letter from others that the same message caused: of each failure there is one."""
        return f"notice{self.told.handle[:24]}"


def of_rules(problems: Sequence[Problem]) -> Told:
    """Return what is to be told of rules with problems."""
    lines = [f"    {one}\n" for one in problems if not one.warning]
    more = f"    and {len(lines) - _MOST_PROBLEMS} more\n" if len(lines) > _MOST_PROBLEMS else ""
    text = "".join(lines[:_MOST_PROBLEMS]) + more
    return Told("", hashlib.sha256("".join(lines).encode("utf-8", "backslashreplace")).hexdigest(), text)


def tell(about: Letter, home: int, state: str, maildir: Maildir | None, submit: Submit) -> Outcome:
    """Put the letter into the mailbox: the Maildir where that is given, else by way of submit. Raises OSError.

    home: a descriptor; state: the folder below it in which the message is put for another try.
    """
    if about.told.script:
        saved = _save(about, home, state)
        subject, text = f"Your script {about.told.script} failed", "".join(_words(about, state, saved))
    else:
        subject, text = "Your mail rules cannot be used", _RULES.format(about.told.text, _MEANWHILE[about.keeps])
    text = _cut(text)
    if maildir is None:
        return submit.ask("NOTICE", {"subject": subject, "text": text, "step": about.step})
    own = about.key.recipient
    parts = letter(own=own, subject=subject, text=text, now=datetime.fromtimestamp(about.now, UTC),
                   message_id=f"{about.key.word}.{about.step}@localhost")  # fmt: skip
    raw = b"".join(parts).replace(b"\r\n", b"\n")
    name = Name(about.now, f"M{about.key.word}S{about.step}")
    maildir.deliver((), name, stamped(raw, "", own, about.key.original), fresh=False)
    return Outcome("done", str(name))


def _cut(text: str) -> str:
    """Return the text within what one datagram holds: the middle of a long one says least."""
    data = text.encode("utf-8", "replace")
    if len(data) <= _MOST_TEXT:
        return text
    half = _MOST_TEXT // 2
    return data[:half].decode("utf-8", "ignore") + "\n[...]\n" + data[-half:].decode("utf-8", "ignore")


def _words(about: Letter, state: str, saved: str) -> Iterator[str]:
    told = about.told
    yield f"The script {told.script} failed with the message {about.key.queue_id}. Nothing of what it asked for was\n"
    yield f"done. {_ANSWERED[told.answered]} You are told of this failure once.\n\n"
    yield told.text.rstrip("\n") + "\n"
    if saved:
        sender, recipient = shlex.quote(about.envelope.sender), shlex.quote(about.key.recipient)
        command = f"milterapp test --sender={sender} --recipient={recipient} < ~/{state}/{saved}"
        yield f"\nTo see it again:\n\n    {command}\n"


def _save(about: Letter, home: int, state: str) -> str:
    """Return the name of a file below the state folder with the message; "" where it is too long. Raises OSError."""
    if len(about.raw) > _LONGEST:
        return ""
    above = os.open(state, _FOLDER, dir_fd=home)
    try:
        with suppress(FileExistsError):
            os.mkdir(FAILED, 0o700, dir_fd=above)
        folder = os.open(FAILED, _FOLDER, dir_fd=above)
    finally:
        os.close(above)
    name = f"{about.key.word}.eml"
    try:
        there = [(os.stat(one, dir_fd=folder, follow_symlinks=False).st_mtime, one) for one in os.listdir(folder)
                 if one.endswith(".eml")]  # fmt: skip
        for _, one in sorted(there)[: max(0, len(there) - _MOST + 1)]:
            os.unlink(one, dir_fd=folder)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(stamped(about.raw, about.envelope.sender, about.key.recipient, about.key.original))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ""  # the letter matters more
        raise
    finally:
        os.close(folder)
    return f"{FAILED}/{name}"
