"""Running `milterapp` as a caller does: a process of its own, with nothing of ours in its environment."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def milterapp(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `milterapp ARGUMENTS…` with a message on standard input, in an empty home."""
    home = tmp_path / "home"
    home.mkdir()

    def run(*arguments: str, message: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "-I", "-m", "milterapp", *arguments],
            input=message,
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8", **environment},
        )
        return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    return run


@pytest.fixture
def own() -> Iterator[Path]:
    """Give alice's ~/.milterapp, empty; for root. Her home is as an account's is, whatever a test before made of it."""
    account = pwd.getpwnam("alice")
    home = Path(account.pw_dir)
    home.chmod(0o755)
    os.chown(home, account.pw_uid, account.pw_gid)
    place = home / ".milterapp"
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    yield place
    shutil.rmtree(place, ignore_errors=True)  # her agent may write a journal there meanwhile
