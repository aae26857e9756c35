"""Carry out what `plan` says: attach milterapp to a Postfix, and take it out again.

Must never: leave a half-made change without its record, or write over what somebody else changed since.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from milterapp.postfix import queue
from milterapp.postfix.plan import Before, Changes, attach, detach, elements, without_ours
from milterapp.postfix.postconf import (
    Configuration,
    PostfixError,
    Service,
    is_running,
    postfix,
    read,
    write_main,
    write_services,
)
from milterapp.postfix.record import FILES, RECORD, Original, Record, digest, load, remove, replace_file, save
from milterapp.postfix.wiring import (
    KEEPERS,
    MILTER,
    STATUS_FILE,
    STATUS_TABLE,
    TRANSPORT,
    VIRTUAL,
    Site,
    Wanted,
    wanted,
)

__all__ = ["Undone", "apply", "goal_of", "reload", "undo"]


@dataclass(frozen=True, slots=True)
class Undone:
    """found: there was something of ours; waiting: queue ids of mail that still needs milterapp-keep."""

    found: bool
    waiting: tuple[str, ...] = ()


def goal_of(site: Site, configuration: Configuration, record: Record | None) -> tuple[Mapping[str, str], Wanted]:
    """Return main.cf as it is without milterapp, and the lines that attach it."""
    ours = _recognised(configuration.main) if record is None else record.ours
    base = without_ours(configuration.main, ours)
    table = os.path.join(configuration.directory, STATUS_FILE)
    return base, wanted(site, base, configuration.services, configuration.known, table)


def apply(site: Site, configuration: Configuration) -> Changes:
    """Attach milterapp; return what had to be changed, nothing where it was attached already.

    What Postfix itself then finds wrong (`postfix check`) is taken back. Raises PostfixError, OSError.
    """
    directory = configuration.directory
    record = load(directory)
    base, goal = goal_of(site, configuration, record)
    changes, ours = attach(configuration.main, configuration.services, base, goal)
    table = os.path.join(directory, STATUS_FILE)
    if not changes and record is not None and dict(record.ours) == ours and _content(table) == STATUS_TABLE.encode():
        return changes
    before = {name: _content(os.path.join(directory, name)) for name in FILES}
    record = Record(ours, {name: Original(_original(record, name, data)) for name, data in before.items()})
    save(directory, record)
    replace_file(table, STATUS_TABLE.encode())
    try:
        for name, data in before.items():
            if data and not data.endswith(b"\n"):  # postconf(1) would write on in that line
                replace_file(os.path.join(directory, name), data + b"\n")
        write_services(directory, changes.services, changes.gone)
        write_main(directory, changes.main)
        status, said = postfix(directory, "check")
        if status != 0:
            raise PostfixError(f"Postfix refuses the new configuration, all is as it was: {said or status}")
    except PostfixError:
        for name, data in before.items():
            replace_file(os.path.join(directory, name), data)
        if all(one.before == before[name] for name, one in record.files.items()):
            remove(directory, STATUS_FILE, RECORD)
        raise
    save(directory, _left(record, directory))
    return changes


def undo(configuration: Configuration) -> Undone:
    """Take milterapp out, but for what mail in the queue still names. Raises PostfixError, OSError."""
    directory, services = configuration.directory, configuration.services
    record = load(directory)
    found = record is not None
    record = _still_ours(record or Record(_recognised(configuration.main)), directory)
    gone = detach(configuration.main, services, record.ours, keep_keepers=False)
    if not gone and not found:
        return Undone(found=False)
    main = os.path.join(directory, "main.cf")
    original = record.restorable("main.cf", _content(main))
    if original is None:
        write_main(directory, gone.main)
    else:
        replace_file(main, original)
    keepers = [one for one in services.values() if one.name in KEEPERS and one.key in gone.gone]
    if keepers:  # first the doors are closed, then the queue is looked at
        _take_out(record, directory, detach({}, services, {}, keep_keepers=True).gone, keepers)
        record = _left(replace(record, ours={}), directory)
        save(directory, record)
        if is_running(configuration.queue):
            reload(directory)
        waiting = queue.named(configuration.queue, "milterapp-keep")
        if waiting:
            return Undone(found=True, waiting=tuple(waiting))
    _take_out(record, directory, gone.gone, ())
    remove(directory, STATUS_FILE, RECORD)
    return Undone(found=True)


def reload(directory: str) -> None:
    """Have a running Postfix read its configuration. Raises PostfixError."""
    status, said = postfix(directory, "reload")
    if status != 0:
        raise PostfixError(f"postfix reload: {said or status}")


def _take_out(record: Record, directory: str, keys: Iterable[str], stay: Iterable[Service]) -> None:
    """Take services out of master.cf: the file as it was, and what stays, or else the lines alone."""
    path = os.path.join(directory, "master.cf")
    original = record.restorable("master.cf", _content(path))
    if original is None:
        write_services(directory, (), [key for key in keys if key in read(directory).services])
    else:
        replace_file(path, original)
        write_services(directory, stay)


def _still_ours(record: Record, directory: str) -> Record:
    """Return the record without the bytes of files that were changed since: those are edited, not restored."""
    return replace(
        record,
        files={
            name: replace(one, before=record.restorable(name, _content(os.path.join(directory, name))))
            for name, one in record.files.items()
        },
    )


def _left(record: Record, directory: str) -> Record:
    """Return the record with the digests of what the files hold now."""
    return replace(
        record,
        files={
            name: Original(one.before, digest(_content(os.path.join(directory, name))))
            for name, one in record.files.items()
        },
    )


def _original(record: Record | None, name: str, data: bytes) -> bytes | None:
    """Return the file's bytes before any of this, None where others have changed it since."""
    return data if record is None else record.restorable(name, data)


def _recognised(main: Mapping[str, str]) -> dict[str, Before]:
    """Return what plainly is ours in a main.cf whose record is lost."""
    found = {
        name: Before(", ".join(one for one in elements(value) if one != MILTER) or None, value)
        for name, value in main.items()
        if name in ("smtpd_milters", "non_smtpd_milters") and MILTER in elements(value)
    }
    for name, value in main.items():
        ours = {"mailbox_transport": TRANSPORT, "virtual_transport": VIRTUAL}.get(name, "\n")
        if value.startswith(ours) or name.startswith(("milterapp_", "milterapp-keep_", "milterapp-virtual_")):
            found[name] = Before(None, value)
    return found


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
