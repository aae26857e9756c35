"""The attachments of a message: under which names readers would save them, of what type and size.

Must never: write one anywhere, or take one reading of a name where there are two.
"""

from __future__ import annotations

from collections.abc import Iterable

from milterapp.mail.lazy import Lazy
from milterapp.mail.mime import Part

__all__ = ["Attachment", "attachments_of", "extensions"]


class Attachment:
    """One attachment. names: every reading, () without a name; type: media type in lower case."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.names: tuple[str, ...] = part.names
        self.type: str = part.type

    @Lazy
    def extensions(self) -> tuple[str, ...]:
        """The extension of each name, lower case, without the dot; `tar.gz` gives `gz`. Names without one give none."""
        return extensions(self.names)

    @property
    def extension(self) -> str:
        """The first extension, "" without one."""
        return self.extensions[0] if self.extensions else ""

    @property
    def size(self) -> int:
        """Bytes of the decoded content. Raises LimitHit."""
        return self.part.size

    @property
    def content(self) -> bytes:
        """The decoded content; not kept. Raises LimitHit."""
        return bytes(self.part.content)

    def __repr__(self) -> str:
        return f"Attachment(names={self.names!r}, type={self.type!r})"


def extensions(names: Iterable[str]) -> tuple[str, ...]:
    """Return the extensions of file names in lower case; blanks and dots at their ends do not count, as in Windows."""
    found = []
    for name in names:
        base, dot, extension = name.strip().rstrip(". \t\0").rpartition(".")
        if dot and extension and base and "/" not in extension and "\\" not in extension:
            found.append(extension.lower())
    return tuple(dict.fromkeys(found))


def attachments_of(parts: Iterable[Part]) -> tuple[Attachment, ...]:
    """Return the attachments among the parts, in their order, those of attached messages too."""
    return tuple(Attachment(part) for part in parts if part.is_attachment)
