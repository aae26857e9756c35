"""What pipe, monitor, resolver and zygote may say to each other: the kinds of datagrams, each with its tags.

Must never: import anything; what agent and submit say stands in `requests`.
"""

from __future__ import annotations

__all__ = ["DELIVER", "FROM_RESOLVER", "FROM_ZYGOTE", "TO_RESOLVER", "TO_ZYGOTE"]

DELIVER = {"DELIVER": ("sender", "recipient", "original", "queue_id", "client")}
TO_RESOLVER = {"RESOLVE": ("id", "recipient")}
FROM_RESOLVER = {
    "USER": ("id", "name", "uid", "gid", "home", "extension"),
    "UNKNOWN": ("id",),
    "FAILED": ("id", "text"),
}
TO_ZYGOTE = {"SPAWN": ("id", "uid", "gid", "home", "name"), "KILL": ("pid", "uid", "gid", "adopted")}
FROM_ZYGOTE = {"SPAWNED": ("id", "pid"), "FAILED": ("id", "text"), "EXITED": ("pid", "status")}
