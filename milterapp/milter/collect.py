"""The message as it comes in over the milter protocol, piece by piece, within the limits.

Must never: hold more of a message than the limits allow, or forget that a limit was hit.
"""

from __future__ import annotations

from collections.abc import Iterable

from milterapp.mail.limits import LimitHit, Limits
from milterapp.mail.message import Mail

__all__ = ["Collector"]


class Collector:
    """Header fields and body of one message. A limit that is hit is raised later, when the message is asked for."""

    __slots__ = ("_body", "_fields", "_limits", "hit", "size")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self.size = 0
        self.hit = ""

    def fields(self, some: Iterable[tuple[bytes, bytes]]) -> None:
        """Take header fields, each its name and its value as it was sent: folded with LF, with or without its leading
        blank.
        """
        if self.hit:
            return
        mine, most, size = self._fields, self._limits.header_fields, self.size
        for name, value in some:
            size += len(name) + len(value) + 3
            mine.append((name, value.replace(b"\n", b"\r\n")))
            if size > self._limits.header_bytes or len(mine) > most:
                break
        self.size = size
        if len(mine) > most:
            self._stop(f"more than {most} header fields")
        elif size > self._limits.header_bytes:
            self._stop(f"a header of more than {self._limits.header_bytes} bytes")

    def body(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        if self.hit:
            return
        self.size += len(chunk)
        if self.size > self._limits.message_bytes:
            self._stop(f"a message of more than {self._limits.message_bytes} bytes")
        else:
            self._body.append(chunk)

    def _stop(self, why: str) -> None:
        self.hit = why
        self._fields.clear()
        self._body.clear()

    def leave_out(self, fields: frozenset[int]) -> None:
        """Forget these fields, by their places from 0."""
        self._fields = [one for place, one in enumerate(self._fields) if place not in fields]

    def header(self) -> Mail:
        """Return the message so far, its body unknown. Raises LimitHit."""
        if self.hit:
            raise LimitHit(self.hit)
        return Mail.from_fields(self._fields, self._limits)

    def message(self, header: Mail | None = None) -> Mail:
        """Return the whole message, and let go of the pieces. header: as `header` gave it last. Raises LimitHit."""
        if self.hit:
            raise LimitHit(self.hit)
        body = b"".join(self._body)
        self._body.clear()
        return header.with_body(body) if header else Mail.from_fields(self._fields, self._limits, body)
