"""Reading what arrived: mbox files and Maildirs, whole messages as bytes.

Must never: change or lock what it reads; the tests read after delivery is done.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["folders", "header", "maildir", "mbox"]

_FROM = re.compile(rb"^From .*\n", re.MULTILINE)


def mbox(path: Path) -> list[bytes]:
    """Return the messages of an mbox file as local(8) writes it, without their `From ` lines."""
    if not path.exists():
        return []
    data = path.read_bytes()
    starts = [one for one in _FROM.finditer(data) if one.start() == 0 or data[one.start() - 2 : one.start()] == b"\n\n"]
    ends = [one.start() for one in starts[1:]] + [len(data)]
    return [
        data[one.end() : end].removesuffix(b"\n").replace(b"\n>From ", b"\nFrom ")
        for one, end in zip(starts, ends, strict=True)
    ]


def maildir(path: Path) -> list[bytes]:
    """Return the messages in new/ and cur/ of a Maildir folder, by name."""
    found = [one for part in ("new", "cur") for one in (path / part).glob("*") if one.is_file()]
    return [one.read_bytes() for one in sorted(found, key=lambda one: one.name)]


def folders(home: Path, inbox: Path) -> dict[str, list[bytes]]:
    """Return what a user has: `""` is the inbox (mbox and ~/Maildir), `A/B` the Maildir++ folder `.A.B`."""
    root = home / "Maildir"
    found = {"": mbox(inbox) + maildir(root)}
    if root.is_dir():
        for one in sorted(root.iterdir()):
            if one.is_dir() and one.name.startswith(".") and (one / "new").is_dir():
                found[one.name[1:].replace(".", "/")] = maildir(one)
    return {name: messages for name, messages in found.items() if messages}


def header(message: bytes, name: str) -> list[str]:
    """Return the values of a header field, unfolded."""
    head = re.split(rb"\r?\n\r?\n", message, maxsplit=1)[0]
    unfolded = re.sub(rb"\r?\n[ \t]+", b" ", head).decode("utf-8", "replace").splitlines()
    wanted = f"{name.lower()}:"
    return [line.partition(":")[2].strip() for line in unfolded if line.lower().startswith(wanted)]
