"""Filing into a Maildir so that it is durable and happens once, however often it is tried (qmail's maildir(5)).

Must never: follow a link below the home, leave the Maildir, overwrite a file, or return before the message and its
name are on disk. The name is derived from the journal's key, so a second attempt finds what the first one filed.

A message that carries flags goes into `cur` as NAME:2,FLAGS, any other into `new` as NAME.

Folders are Maildir++: `Lists/Python` is `.Lists.Python`. A dot within a level becomes `_`, what is not ASCII modified
UTF-7 (RFC 3501 section 5.1.3), and `INBOX` as the first level is the Maildir itself.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from milterapp.delivery import ways

__all__ = ["Maildir", "Name", "NoFolderError", "folder_name", "one_line", "stamped"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("tmp", "new", "cur")
_FLAGS = {"seen": "S", "flagged": "F", "answered": "R"}  # IMAP's words
_LONGEST = 200  # bytes of a folder's name; file systems allow 255
_UNSAFE = re.compile(r"[\x00-\x1f\x7f./]")
_RETURN_PATH = re.compile(rb"return-path:.*\n(?:[ \t].*\n)*", re.IGNORECASE)
_END_OF_HEADER = re.compile(rb"\n\r?\n")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NOT_ASCII = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a message in a Maildir. at: seconds since 1970 of its prepared record; unique: of key and step."""

    at: int
    unique: str

    def __str__(self) -> str:
        return f"{self.at}.{self.unique}.milterapp"


@dataclass(frozen=True, slots=True)
class Maildir:
    """A Maildir: home is a descriptor, path the names from there (from the root, where it is absolute)."""

    home: int
    path: str

    def deliver(
        self,
        folder: Sequence[str],
        name: Name,
        parts: Sequence[bytes],
        *,
        fresh: bool,
        flags: Collection[str] = (),
        create: bool = True,
        known: Collection[str] = (),
    ) -> bool:
        """File a message, durably; False where it was there already.

        fresh: nothing of that name can have been filed before, so that `cur` need not be searched. flags: any of seen,
        flagged, answered. known: what else than its name's `unique` it may be there as. Raises OSError; with create
        False NoFolderError where there is no such folder.
        """
        letters = "".join(sorted(_FLAGS[one] for one in set(flags)))
        final = f"{name}:2,{letters}" if letters else str(name)
        held: list[int] = []
        try:
            tmp, new, cur = self._open(folder, held, create=create)
            if not fresh and _filed(new, cur, {name.unique, *known}):
                os.fsync(new)
                os.fsync(cur)
                return False
            return _put(tmp, cur if letters else new, final, f"{name}.{os.getpid()}", parts)
        finally:
            for descriptor in reversed(held):
                os.close(descriptor)

    def _open(self, folder: Sequence[str], held: list[int], *, create: bool) -> list[int]:
        """Return descriptors of tmp, new and cur of the folder, made where they are missing. held: what to close."""
        here, made = self.home, False
        levels: Sequence[str] = ways.levels_of(self.path)
        if ".." in levels:
            raise OSError(errno.EINVAL, "a Maildir's path must not hold '..'")
        if self.path.startswith("/"):
            here, levels = ways.opened(levels)
            held.append(here)
        for level in levels:
            here, made = _enter(here, level)
            held.append(here)
        if made:
            for part in _PARTS:  # the inbox is whole before any folder of it
                os.close(_enter(here, part)[0])
        sub = folder_name(folder) if folder else ""
        if sub:
            if not create and not _is_there(here, sub):
                raise NoFolderError(errno.ENOENT, f"there is no folder {sub[1:]}")
            here = _enter(here, sub)[0]
            held.append(here)
            _mark_folder(here)
        for part in _PARTS:
            opened = _enter(here, part)[0]
            held.append(opened)
        return held[-len(_PARTS) :]


def _put(tmp: int, target: int, final: str, temporary: str, parts: Sequence[bytes]) -> bool:
    """Write a message below tmp and link it to its final name, durably; False where that name is taken."""
    try:
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=tmp)
    except FileExistsError:  # of a process of that number that did not finish
        os.unlink(temporary, dir_fd=tmp)
        descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=tmp)
    try:
        try:
            _write(descriptor, parts)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, final, src_dir_fd=tmp, dst_dir_fd=target, follow_symlinks=False)
            filed = True
        except FileExistsError:
            filed = False
        os.fsync(target)
    finally:
        with suppress(OSError):  # what is left in tmp, readers remove after 36 hours
            os.unlink(temporary, dir_fd=tmp)
    return filed


def _write(descriptor: int, parts: Sequence[bytes]) -> None:
    """Write all parts, in one call where the system takes them so."""
    written = os.writev(descriptor, parts)
    for part in parts:
        rest = memoryview(part)[written:] if written < len(part) else b""
        written = max(0, written - len(part))
        while rest:
            rest = rest[os.write(descriptor, rest) :]


class NoFolderError(OSError):
    """A folder that was not to be made is missing."""


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _enter(parent: int, name: str) -> tuple[int, bool]:
    """Return a descriptor of a folder, and whether it was made, its name on disk. Raises OSError."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent), False
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        os.fsync(parent)
        return os.open(name, _FOLDER, dir_fd=parent), True


def _mark_folder(folder: int) -> None:
    """Put the empty file there by which Maildir++ knows a folder from an inbox."""
    try:
        os.stat("maildirfolder", dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.close(os.open("maildirfolder", _CREATE, 0o600, dir_fd=folder))
        os.fsync(folder)


def _filed(new: int, cur: int, names: Collection[str]) -> bool:
    """Tell whether a message of one of these names is there, seen and flagged by its reader or not."""
    for place in (new, cur, new):  # a reader moves it from new to cur while we look
        with os.scandir(place) as entries:
            if any(word in names for entry in entries for word in entry.name.split(".", 2)[1:2]):
                return True
    return False


def folder_name(folder: Sequence[str]) -> str:
    """Return the name of a Maildir++ folder, "" for the inbox. No level escapes: no `/`, no `.`, no control character.

    A name too long for a file system is cut, and a hash of the whole put behind it.
    """
    levels = [_UNSAFE.sub("_", unicodedata.normalize("NFC", level)) for level in folder if level]
    if levels and levels[0].upper() == "INBOX":
        del levels[0]
    if not levels:
        return ""
    encoded = "".join("." + _modified_utf7(level) for level in levels)
    if len(encoded) <= _LONGEST:
        return encoded
    mark = "~" + hashlib.sha256("/".join(levels).encode("utf-8", "replace")).hexdigest()[:16]
    joined = ".".join(levels)[:_LONGEST]
    while len(cut := "".join("." + _modified_utf7(level) for level in joined.split("."))) + len(mark) > _LONGEST:
        joined = joined[:-1]
    return cut + mark


def _modified_utf7(text: str) -> str:
    """Return text as IMAP writes mailbox names (RFC 3501 section 5.1.3)."""

    def shifted(match: re.Match[str]) -> str:
        data = match[0].encode("utf-16-be", "replace")
        return "&" + base64.b64encode(data).decode().rstrip("=").replace("/", ",") + "-"

    return _NOT_ASCII.sub(shifted, text.replace("&", "&-"))


def stamped(message: bytes, sender: str, recipient: str, original: str) -> list[bytes]:
    """Return the parts of a message as a mailbox holds it: what came, with the trace fields that are missing.

    Return-Path (RFC 5321 section 4.4), X-Original-To and Delivered-To as Postfix's local(8) writes them.
    """
    header = _header(message)
    end = b"\r\n" if header[: header.find(b"\n") + 1].endswith(b"\r\n") else b"\n"
    lower = header.lower()
    top = _RETURN_PATH.match(message) if lower.startswith(b"return-path:") else None
    parts = [top[0] if top else b"Return-Path: <" + one_line(sender) + b">" + end]
    for field, value in ((b"X-Original-To", original), (b"Delivered-To", recipient)):
        line = one_line(value)
        if line and not (field.lower() + b":" in lower and _holds(header, field, line)):
            parts.append(field + b": " + line + end)
    parts.append(message[top.end() :] if top else message)
    return parts


def _holds(header: bytes, field: bytes, line: bytes) -> bool:
    return re.search(rb"(?mi)^" + field + rb":[ \t]*" + re.escape(line) + rb"[ \t]*\r?$", header) is not None


def _header(message: bytes) -> bytes:
    found = _END_OF_HEADER.search(message)
    return message[: found.start() + 1] if found else message


def one_line(address: str) -> bytes:
    """Return an envelope address as bytes that cannot end a header line."""
    return _CONTROL.sub(b"?", address.encode("utf-8", "surrogateescape"))
