"""Running `milterapp` as a caller does: a process of its own, with nothing of ours in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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
