"""What pipe, monitor, resolver and zygote may say to each other: the kinds of datagrams, each with its tags.

Must never: import anything; what agent and submit say stands in `requests`.
"""

from __future__ import annotations

__all__ = ["DELIVER", "FROM_RESOLVER", "FROM_ZYGOTE", "TO_RESOLVER", "TO_ZYGOTE"]

_ENVELOPE = ("sender", "recipient", "original", "queue_id", "client")
DELIVER = {"DELIVER": _ENVELOPE, "VIRTUAL": _ENVELOPE}  # VIRTUAL: the recipient is no account of this host
TO_RESOLVER = {"RESOLVE": ("id", "recipient"), "VIRTUAL": ("id", "recipient")}
FROM_RESOLVER = {
    "USER": ("id", "name", "uid", "gid", "home", "extension"),
    "UNKNOWN": ("id",),
    "FAILED": ("id", "text"),
}
_AGENT = ("id", "uid", "gid", "home", "name")
# CONFINE: SPAWN for one of several homes of one uid
TO_ZYGOTE = {"SPAWN": _AGENT, "CONFINE": _AGENT, "KILL": ("pid", "uid", "gid", "adopted")}
FROM_ZYGOTE = {"SPAWNED": ("id", "pid"), "FAILED": ("id", "text"), "EXITED": ("pid", "status")}
