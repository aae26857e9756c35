"""The attachments of a message: under which names readers would save them, of what type and size.

Must never: write one anywhere, or take one reading of a name where there are two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from milterapp.mail import archives, transfer
from milterapp.mail.lazy import Lazy
from milterapp.mail.mime import Part

__all__ = ["Attachment", "attachments_of", "extensions"]


class Attachment:
    """One attachment. names: every reading, () without a name; type: media type in lower case."""

    def __init__(self, part: Part, names: tuple[str, ...], media_type: str, content: bytes | None = None) -> None:
        self.part = part
        self.names = names
        self.type = media_type
        self._content = content

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
        return self.part.size if self._content is None else len(self._content)

    @property
    def content(self) -> bytes:
        """The decoded content; not kept. Raises LimitHit."""
        return bytes(self.part.content) if self._content is None else self._content

    @Lazy
    def _listing(self) -> archives.Listing:
        if self._content is None and not _may_be_archive(self.part, self.extensions):
            return archives.Listing()
        return archives.listing(self.content, self.names[0] if self.names else "", self.part.budget.archives)

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of what stands in it where it is an archive: zip, 7z, tar, gzip, bzip2, xz. Raises LimitHit."""
        return self._listing.names

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with it as an archive: damaged, encrypted, two names for one member. Raises LimitHit."""
        return self._listing.faults

    def __repr__(self) -> str:
        return f"Attachment(names={self.names!r}, type={self.type!r})"


_ARCHIVES = (
    "zip",
    "jar",
    "7z",
    "tar",
    "gz",
    "tgz",
    "bz2",
    "xz",
    "docx",
    "docm",
    "xlsx",
    "xlsm",
    "pptx",
    "pptm",
    "odt",
    "ods",
)
_BEGINS = {
    "base64": (b"UEs", b"H4s", b"Qlp", b"/Td6", b"N3q8ryc"),
    "": (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7z", b"7z\xbc\xaf"),
}


def _may_be_archive(part: Part, known: tuple[str, ...]) -> bool:
    """Return whether it is worth decoding: by its extension, or by how it begins."""
    if any(one in _ARCHIVES for one in known):
        return True
    begins = bytes(part.body[:80]).lstrip()
    return begins.startswith(_BEGINS.get(part.encoding, _BEGINS[""]))


def extensions(names: Iterable[str]) -> tuple[str, ...]:
    """Return the extensions of file names in lower case; blanks and dots at their ends do not count, as in Windows."""
    found = []
    for name in names:
        base, dot, extension = name.strip().rstrip(". \t\0").rpartition(".")
        if dot and extension and base and "/" not in extension and "\\" not in extension:
            found.append(extension.lower())
    return tuple(dict.fromkeys(found))


def attachments_of(parts: Iterable[Part]) -> tuple[Attachment, ...]:
    """Return the attachments among the parts, in their order, those of attached messages too. Raises LimitHit."""
    return tuple(one for part in parts for one in _attached(part))


def _attached(part: Part) -> Iterator[Attachment]:
    if part.is_attachment:
        yield Attachment(part, part.names, part.type)
    elif part.type == "text/plain" and part.source.find(b"begin ", part.header.body, part.end) >= 0:
        for name, content in transfer.uudecode(part.content):  # files in the text itself, as before MIME
            yield Attachment(part, (name,) if name else (), "application/octet-stream", content)
