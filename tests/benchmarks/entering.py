"""Entering the world of packaging/world with a benchmark: messages and peers are brought along, nothing is installed.

Must never: measure what is not installed in .venv, or write anywhere outside it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CORPUS", "ROOT", "enter"]

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = ".venv/corpus"  # a copy, as the world hides many a place


def enter(module: str, corpus: Path | None, unpacked: str, packages: Sequence[str]) -> int:
    """Run this command again within the world; return its exit status.

    corpus: a folder of messages to bring along. unpacked: where the peers go, Debian packages, below the checkout.
    """
    shutil.rmtree(ROOT / CORPUS, ignore_errors=True)
    if corpus:
        (ROOT / CORPUS).mkdir()
        for number, path in enumerate(sorted(corpus.rglob("*"))):
            if path.is_file() and path.suffix != ".md":
                shutil.copyfile(path, ROOT / CORPUS / f"{number:05}.eml")
    subprocess.run([str(ROOT / "packaging/prepare")], check=True)
    subprocess.run([str(ROOT / "packaging/unpack"), str(ROOT / unpacked), *packages], check=False)
    command = [str(ROOT / "packaging/world"), ".venv/bin/python", "-m", module, *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode
