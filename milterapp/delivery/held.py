"""What the monitor vouches for: an envelope and the sealed message that is of it.

Must never: take either from whoever asks for something about them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from milterapp.delivery import sealed, wire
from milterapp.delivery.tasks import Task
from milterapp.mail.envelope import Envelope, believed, stated
from milterapp.mail.message import Mail
from milterapp.state.journal import Key

__all__ = ["LONGEST", "Held", "hold"]

LONGEST = 1 << 31  # bytes of one message, far above any message_size_limit
_SMALL = 64 * 1024  # bytes of a message that is read once, for all that is done with it


@dataclass(frozen=True, slots=True)
class Held:
    """What the monitor vouches for. message: descriptor of the sealed message; digest: its SHA-256 in hexadecimal.

    size: in bytes; original: the original recipient, believed or not; virtual: the recipient is no account of this
    host, but one of a virtual domain; whole: the message, where it is small; header: the same, read.
    """

    envelope: Envelope
    user: str
    message: int
    digest: str
    size: int
    original: str
    virtual: bool = False
    whole: bytes | None = None
    header: list[Mail] = field(default_factory=list, compare=False, repr=False)

    @property
    def recipient(self) -> str:
        """Return the one recipient."""
        return self.envelope.recipients[0]

    @property
    def key(self) -> Key:
        """Return the journal's key."""
        return Key(self.envelope.queue_id, self.recipient, self.original, self.digest)


def hold(first: wire.Datagram) -> Task[Held]:
    """Return what the monitor vouches for, its message measured. Raises SealError or OSError."""
    message = first.descriptors[0]
    size = sealed.measure(message, LONGEST)
    recipient, original = first.text("recipient"), first.text("original")
    envelope = Envelope(
        sender=first.text("sender"),
        recipients=(recipient,),
        original_recipient=believed(original, recipient),
        queue_id=first.text("queue_id"),
    )
    whole = sealed.read(message, size) if size <= _SMALL else None
    digest = (yield from _digest(message, size)) if whole is None else hashlib.sha256(whole).hexdigest()
    virtual = first.kind == "VIRTUAL"
    return Held(envelope, first.text("user"), message, digest, size, stated(original), virtual=virtual, whole=whole)


def _digest(message: int, size: int) -> Task[str]:
    """Return the SHA-256 of a large message, in hexadecimal, read in turns with what else there is to do."""
    whole = hashlib.sha256()
    for chunk in sealed.chunks(message, size):
        whole.update(chunk)
        yield None
    return whole.hexdigest()
