"""A compiled pipe client that a site names must be fit to run, and root's alone; else it is said what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from milterapp.commands import client
from milterapp.settings import Accounts, DeliverySettings, Settings

pytestmark = pytest.mark.root

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a program in a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="milterapp-client-"))
    folder.chmod(0o755)
    program = folder / "client"
    program.write_text("#!/bin/false\n")
    program.chmod(0o755)
    yield program
    shutil.rmtree(folder)


def fit(_: Path) -> None:
    """Leave it as it is."""


def a_link(program: Path) -> None:
    """Make it a link to a program of root's."""
    program.unlink()
    program.symlink_to("/bin/true")


def absent(program: Path) -> None:
    """Take it away."""
    program.unlink()


def a_folder(program: Path) -> None:
    """Make it a folder."""
    program.unlink()
    program.mkdir(0o755)


def everything(program: Path) -> None:
    """Have several things wrong with it."""
    program.chmod(0o4757)
    program.parent.chmod(0o777)


def elf(machine: int, order: Literal["little", "big"] = "little") -> bytes:
    """Return the head of a program that is compiled for a machine of that number, as elf(5) has it."""
    return b"\x7fELF\x02" + (b"\x01" if order == "little" else b"\x02") + bytes(12) + machine.to_bytes(2, order)


SPARC = 43
OURS = int.from_bytes(Path("/proc/self/exe").read_bytes()[18:20], sys.byteorder)
FOREIGN = f"{{}} is compiled for another kind of machine (ELF {SPARC}, this one is {OURS}): compile it here, with "


CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "fit": (fit, ()),
    "a link to one that is fit": (a_link, ()),
    "absent": (absent, ("{}: No such file or directory: make it with packaging/client",)),
    "a folder": (a_folder, ("{} is no file that every account may execute",)),
    "not executable": (lambda one: one.chmod(0o744), ("{} is no file that every account may execute",)),
    "compiled for this machine": (lambda one: one.write_bytes(elf(OURS)), ()),
    "compiled for another machine": (lambda one: one.write_bytes(elf(SPARC, "big")), (FOREIGN + "packaging/client",)),
    "no program": (
        lambda one: one.write_bytes(b"\x7fELF"), ("{} is no program: compile it here, with packaging/client",),
    ),
    "empty": (lambda one: one.write_bytes(b""), ("{} is no program: compile it here, with packaging/client",)),
    "setuid": (lambda one: one.chmod(0o4755), ("{} is setuid or setgid, which the client must not be",)),
    "its group's": (lambda one: one.chmod(0o775), ("{} can be changed by others than root",)),
    "everybody's": (lambda one: one.chmod(0o757), ("{} can be changed by others than root",)),
    "another's": (lambda one: os.chown(one, 1000, 0), ("{} can be changed by others than root",)),
    "in a closed folder": (
        lambda one: one.parent.chmod(0o750), ("{}: other accounts cannot execute it ({folder} is closed to others)",),
    ),
    "in everybody's folder": (
        lambda one: one.parent.chmod(0o777), ("{}: others than root may put another in its place ({folder})",),
    ),
    "in another's folder": (
        lambda one: os.chown(one.parent, 1000, 0), ("{}: others than root may put another in its place ({folder})",),
    ),
    "all at once": (
        everything,
        (
            "{} is setuid or setgid, which the client must not be", "{} can be changed by others than root",
            "{}: others than root may put another in its place ({folder})",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CASES.values(), ids=CASES)
def test_what_is_wrong_with_a_compiled_client(
    milterapp: Milterapp, tmp_path: Path, place: Path, change: Callable[[Path], object], said: tuple[str, ...]
) -> None:
    """`milterapp check` names each fault of it, 78; one that is fit is no word."""
    change(place)
    config = tmp_path / "m.yaml"
    config.write_text(f"delivery:\n  client: {place}\n")
    config.chmod(0o644)
    rules = tmp_path / "a.yaml"
    rules.write_text("rules:\n  - name: a\n    then: accept\n")
    rules.chmod(0o644)
    ended = milterapp("check", "--site", "--config", str(config), str(rules))
    found = [line for line in ended.stdout.splitlines() if "delivery.client" in line]
    want = [f"{config}:1:1: delivery.client: {one.format(place, folder=place.parent)}" for one in said]
    assert (ended.returncode, found) == (os.EX_CONFIG if said else 0, want)


def test_what_starts_it(place: Path) -> None:
    """The compiled client stands alone before its option; without one it is Python and pipe.py."""
    compiled = Settings(delivery=DeliverySettings(client=str(place)))
    assert client.command(compiled) == (str(place),)
    assert client.command(compiled, virtual=True) == (str(place), "--virtual=/run/milterapp/monitor/socket")
    python = Settings(delivery=DeliverySettings(socket="/run/x"), accounts=Accounts())
    assert client.command(python)[1:3] == ("-I", "-S")
    assert client.command(python)[3].endswith("/milterapp/delivery/pipe.py")
    assert client.command(python)[4:] == ("--socket=/run/x",)
