"""What our processes may say to each other: the kinds of datagrams, each with its tags.

Must never: import anything but the standard library; the monitor reads with these tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

__all__ = ["ANSWER", "ENVELOPE", "JOB", "REQUESTS", "RESPONSES", "SCRIPT_ANSWERS", "SCRIPT_JOBS", "printable"]

JOB: Mapping[str, Collection[str]] = {
    "JOB": ("sender", "recipient", "original", "queue_id", "client", "extension"),
}
ANSWER: Mapping[str, Collection[str]] = {"ANSWER": ("status", "text", "event")}
_ENVELOPE = ("sender", "recipient", "original", "queue_id", "user")
# VIRTUAL: what is kept goes on as virtual_transport was
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
