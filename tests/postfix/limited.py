"""A user's folder with a quota of the file system's: a tmpfs that has them (Linux 6.6), or a btrfs on a loop device.

Must never: say that there is a quota where there is none, or leave a device behind when its world ends.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Disk", "disk", "use_up"]

_SMALLEST = 256 << 20  # bytes of a btrfs
_QUOTA = "usrquota,usrquota_block_hard_limit"  # of tmpfs(5)


@dataclass(frozen=True, slots=True)
class Disk:
    """What holds the folder. quota: tmpfs, btrfs, or "" for none; rest: where root can fill it for everybody."""

    quota: str
    rest: Path


def _run(*command: str) -> bool:
    """Run a command; return whether it is there and could do it."""
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def disk(user: str, room: int, *, plain: bool = False) -> Iterator[Disk | None]:
    """Mount twice that room over a user's home, and that room for the user in it; None where that cannot be had.

    plain: have it without a quota then.
    """
    account = pwd.getpwnam(user)
    home, owner = account.pw_dir, f"{account.pw_uid}:{account.pw_gid}"
    options = f"size={2 * room},mode=755,uid={account.pw_uid},gid={account.pw_gid}"
    with ExitStack() as stack:
        if _run("mount", "-t", "tmpfs", "-o", f"{options},{_QUOTA}={room}", "tmpfs", home):
            found: Disk | None = Disk("tmpfs", Path(home))
        elif top := _btrfs(stack, room):
            _run("chown", owner, str(top / "home"))
            found = Disk("btrfs", top) if _run("mount", "--bind", str(top / "home"), home) else None
        else:
            found = None
        if found is None and plain and _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", home):
            found = Disk("", Path(home))
        if found is not None:
            stack.callback(_run, "umount", "-l", home)
        yield found


def _btrfs(stack: ExitStack, room: int) -> Path | None:
    """Return where a btrfs is mounted whose subvolume `home` has so much room, None where there is none."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="milterapp-limited-")))
    image, top = folder / "image", folder / "top"
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(max(2 * room, _SMALLEST))
    # Data and metadata in the same blocks: else a full disk may have none for a transaction, and becomes read-only.
    if not _run("mkfs.btrfs", "-q", "--mixed", str(image)) or not _run("mount", "-o", "loop", str(image), str(top)):
        return None
    stack.callback(_run, "umount", "-l", str(top))
    volume = str(top / "home")
    steps = (
        ("quota", "enable", str(top)), ("subvolume", "create", volume), ("qgroup", "limit", str(room), volume),
        ("quota", "rescan", "-w", str(top)),
    )  # fmt: skip
    return top if all(_run("btrfs", *one) for one in steps) else None


def use_up(path: Path, user: str = "") -> None:
    """Write to a file until there is no room, as a user, else as root."""
    ids: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4096"],
        check=False,
        capture_output=True,
        cwd="/",
        **ids,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )
    assert b"No space left" in done.stderr or b"quota exceeded" in done.stderr, done.stderr
