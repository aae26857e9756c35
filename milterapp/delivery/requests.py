"""What our processes may say to each other: the kinds of datagrams, each with its tags.

Must never: import anything but the standard library; the monitor reads with these tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = [
    "ANSWER", "ENVELOPE", "JOB", "KEPT", "REQUESTS", "RESPONSES", "SCRIPT_ANSWERS", "SCRIPT_JOBS", "printable",
    "waiting",
]  # fmt: skip

_REPLIED = re.compile(r": [45][0-9]{2} [45](\.[0-9]{1,3}\.[0-9]{1,3}) ", re.ASCII)  # as `smtp` words it

JOB: Mapping[str, Collection[str]] = {
    "JOB": ("sender", "recipient", "original", "queue_id", "client", "extension"),
}
# status: ok, defer or reject; keep: to keep it is all there is to do, which the monitor asks submit for, with a sealed
# memfd beside the answer where the message was edited; again: an agent has not begun, and another one must
ANSWER: Mapping[str, Collection[str]] = {"ANSWER": ("status", "text", "event")}
# id: of a message that the monitor itself asks to keep, as edited where two come, answered over the same connection;
# without one a line comes with it, over which all is asked about it. VIRTUAL: what is kept goes on as virtual_transport
# was
_ENVELOPE = ("sender", "recipient", "original", "queue_id", "user", "id")
ENVELOPE: Mapping[str, Collection[str]] = {"ENVELOPE": _ENVELOPE, "VIRTUAL": _ENVELOPE}
REQUESTS: Mapping[str, Collection[str]] = {
    "KEEP": (),
    # script: the script that forwards, replies or sends, from: the recipient's address that it does so as; of a rule's
    # there is neither
    "FORWARD": ("to", "step", "script", "from"),
    # days: only of a vacation (RFC 5230), and with it handle, from, and addresses, one a line
    "REPLY": ("rule", "subject", "text", "step", "days", "handle", "from", "addresses", "script"),
    "SEND": ("to", "subject", "text", "step", "script", "from"),
    # to the recipient's own mailbox, past the rules
    "NOTICE": ("subject", "text", "step"),
}
RESPONSES: Mapping[str, Collection[str]] = {"DONE": ("queue_id",), "REFUSED": ("text",), "FAILED": ("text",)}
KEPT: Mapping[str, Collection[str]] = {"DONE": ("id", "queue_id"), "FAILED": ("id", "text")}

# To the spawner, each with one sealed memfd; milliseconds: how long who asks will wait. DONE brings one back.
SCRIPT_JOBS: Mapping[str, Collection[str]] = {"RUN": ("milliseconds",), "EXAMINE": ("milliseconds",)}
SCRIPT_ANSWERS: Mapping[str, Collection[str]] = {"DONE": (), "FAILED": ("reason", "text")}


def printable(text: str, limit: int = 300) -> str:
    """Return the text as one line of printable ASCII of at most `limit` characters, anything else as `?`.

    It is for answers: pipe(8) gives them to the sender, where a charset would have to be declared.
    """
    one_line = " ".join(text.split())
    plain = one_line.isascii() and one_line.isprintable()
    safe = one_line if plain else "".join(char if " " <= char <= "~" else "?" for char in one_line)
    return safe if len(safe) <= limit else safe[: limit - 3].rstrip() + "..."


def waiting(why: str) -> str:
    """Return why a message waits, in one printable line, behind the status that a server gave, if that is why.

    It is of class 4 then, whatever the server said: what it refuses for good waits as well.
    """
    found = _REPLIED.search(why)
    return printable(f"4{found[1]} {why}" if found else why)
