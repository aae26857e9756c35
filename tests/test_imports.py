"""Which room may import which, and what a process with privileges may not even have loaded."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import milterapp

PACKAGE = Path(milterapp.__file__).parent
ROOMS = {
    "mail": set(),
    "rules": {"mail"},
    "script": {"mail", "rules"},
    "state": set(),
    "milter": {"mail", "rules", "script", "state"},
    "delivery": {"mail", "rules", "script", "state"},
    "postfix": {"mail"},
    "commands": {"mail", "rules", "script", "state", "milter", "delivery", "postfix"},
}
# Beside the rooms: plain values and the log, which any edge may use; the pure rooms use none of them.
BESIDE = {"settings", "log"}
PURE = {"mail", "rules", "script", "state", "postfix"}

# What a process must not have loaded when it takes its first request, and why.
FOREIGN = ("yaml", "_yaml", "email", "structlog", "Milter", "milter", "re2", "_re2")
OURS = ("milterapp.rules", "milterapp.script", "milterapp.mail.message", "milterapp.mail.mime")
FORBIDDEN = {
    "milterapp.delivery.pipe": (*FOREIGN, *OURS, "sqlite3", "milterapp.mail", "milterapp.state", "milterapp.commands"),
    "milterapp.delivery.monitor": (*FOREIGN, *OURS, "sqlite3", "milterapp.state", "milterapp.commands"),
    "milterapp.delivery.lmtp": (*FOREIGN, *OURS, "sqlite3", "milterapp.state", "milterapp.commands"),
    "milterapp.delivery.resolver": (*FOREIGN, *OURS, "sqlite3", "milterapp.state", "milterapp.commands"),
}


def modules() -> list[Path]:
    """Return every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of everything a module imports, also inside functions, relative names resolved."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level] if node.level else ()
            base = ".".join((*parent, *([node.module] if node.module else [])))
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{one.name}") for one in node.names)


def room_of(name: str) -> str:
    """Return the room that a dotted name is in, "" where it is in none."""
    parts = name.split(".")
    return parts[1] if parts[0] == "milterapp" and len(parts) > 1 and parts[1] in ROOMS else ""


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    """No module imports a room that its own may not know (the layout in README.md)."""
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for line, name in imported(path):
            other = room_of(name)
            if other and other != room and other not in ROOMS[room]:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {name}")
            beside = name.split(".")[1:2]
            if room in PURE and name.startswith("milterapp.") and beside and beside[0] in BESIDE:
                wrong.append(
                    f"{path.relative_to(PACKAGE.parent)}:{line}: {name}, and {room} has no settings and no log"
                )
    assert wrong == []


def test_no_room_knows_the_tests_of_scripts() -> None:
    """What tests speak to scripts with is beside the rooms, and no part of what runs imports it."""
    names = {path.stem for path in PACKAGE.glob("testing*.py")} | {"pytest_plugin"}
    assert {"testing", "testing_postfix", "testing_sink"} < names
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in modules()
        if path.parent != PACKAGE
        for line, name in imported(path)
        if name.startswith("milterapp.") and name.split(".")[1] in names
    ]
    assert wrong == []


def test_every_folder_is_a_room() -> None:
    """A new folder gets its line in the layout before it gets a module."""
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == set(ROOMS)


def test_the_milter_protocol_has_two_importers() -> None:
    """Only session.py, and serving.py for a packet of its own, know the milter protocol; nobody has libmilter."""
    importers = {
        str(path.relative_to(PACKAGE)): {
            one for _, one in imported(path) if one.partition(".")[0] in ("Milter", "milter")
        }
        for path in modules()
        for _, name in imported(path)
        if name.startswith(("milterapp.milter.protocol", "Milter", "milter.")) or name == "milter"
    }
    assert importers == {"milter/session.py": set(), "milter/serving.py": set()}


def test_only_the_supervisor_forks() -> None:
    """Workers are threaded: of the in-line edge the supervisor alone forks, and nobody runs a program."""
    forking = set()
    for path in (PACKAGE / "milter").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty", "posix_spawn", "system", "popen"):
                forking.add(path.name)
        assert not {"subprocess", "multiprocessing"} & {name.partition(".")[0] for _, name in imported(path)}
    assert forking == {"supervisor.py"}


def test_the_pipe_client_imports_the_standard_library_only() -> None:
    """What pipe(8) runs for each message has no import beyond the standard library, not even of ours."""
    names = {name.partition(".")[0] for _, name in imported(PACKAGE / "delivery/pipe.py")}
    assert names <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", FORBIDDEN)
def test_what_a_process_with_privileges_has_loaded(module: str) -> None:
    """In a fresh interpreter, with all it imports, nothing that reads mail, YAML or rules is there."""
    if module.endswith(".pipe"):
        code = f"import sys; sys.path.insert(0, {str(PACKAGE / 'delivery')!r}); import pipe"
        flags = ["-I", "-S"]
    else:
        code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import {module}"
        flags = ["-I"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", f"{code}; import json; print(json.dumps(sorted(sys.modules)))"],
        check=True,
        capture_output=True,
    )
    loaded = json.loads(done.stdout)
    wrong = [name for name in loaded if any(name == one or name.startswith(f"{one}.") for one in FORBIDDEN[module])]
    assert wrong == []


def test_nothing_imports_what_would_be_unsafe() -> None:
    """No module uses pickle, a shell or evaluation of text."""
    wrong = []
    for path in modules():
        tree = ast.parse(path.read_bytes())
        wrong += [f"{path.name}:{line}: {name}" for line, name in imported(path)
                  if name.partition(".")[0] in ("pickle", "marshal", "shelve", "dbm")]  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                wrong.append(f"{path.name}:{node.lineno}: {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{path.name}:{node.lineno}: shell=")
    assert wrong == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_must_never_do(path: Path) -> None:
    """Whoever opens a file reads at its top what it is for, and what must not happen in it."""
    said = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    assert "Must never: " in said
