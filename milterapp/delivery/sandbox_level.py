"""What this machine can enforce on a script, as a level that a site's floor is compared with, and in words.

Must never: guess; each level is what the kernel answers.
"""

from __future__ import annotations

import errno
import functools
from dataclasses import dataclass

from milterapp.delivery import linux

__all__ = ["LEVELS", "Level", "level_of", "probe"]

LEVELS = ("basic", "good", "full")
_LEAST_ABI = {"full": 6, "good": 2}


@dataclass(frozen=True, slots=True)
class Level:
    """What the kernel here can enforce on a script. word: full, good or basic; missing: what it cannot, in words."""

    word: str
    landlock: int
    seccomp: bool
    missing: tuple[str, ...] = ()

    def reaches(self, floor: str) -> bool:
        """Return whether this is at least the floor, a word of LEVELS. Raises ValueError for another word."""
        return LEVELS.index(self.word) >= LEVELS.index(floor)

    def __str__(self) -> str:
        landlock_words = f"Landlock ABI {self.landlock}" if self.landlock else "no Landlock"
        return f"sandbox {self.word} ({landlock_words}, {'seccomp' if self.seccomp else 'no seccomp'})"


_WITHOUT_SECCOMP = "no seccomp: a script has the network, processes and signals that its user has"
_WITHOUT_LANDLOCK = (  # the ABI that brings it, and what is so without
    (1, "no Landlock: a script reads every file that its user may read"),
    (4, "Landlock below ABI 4: TCP is refused by seccomp alone"),
    (6, "Landlock below ABI 6: signals and abstract sockets are refused by seccomp alone"),
)


@functools.cache
def probe() -> Level:
    """Return what this kernel enforces; asked once. Raises OSError where it could not be told."""
    return level_of(linux.landlock_abi(), has_seccomp=_has_seccomp())


def level_of(abi: int, *, has_seccomp: bool) -> Level:
    """Return the level that an ABI of Landlock (0: none), with seccomp or without, comes to."""
    word = next((word for word, least in _LEAST_ABI.items() if has_seccomp and abi >= least), "basic")
    missing = [text for least, text in _WITHOUT_LANDLOCK if abi < least]
    return Level(word, abi, has_seccomp, tuple(missing if has_seccomp else [_WITHOUT_SECCOMP, *missing[:1]]))


def _has_seccomp() -> bool:
    """Return whether filters can be installed: the kernel then reads the one at address 0, and fails at that.

    Raises OSError.
    """
    try:
        linux.prctl(22, 2, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER; prctl(2)
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.EINVAL, errno.ENOSYS, errno.EPERM):
            raise  # it could not be told
        return error.errno == errno.EFAULT
    return False
