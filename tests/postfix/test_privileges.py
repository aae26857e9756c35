"""Each process of milterapp, taken over (`taken_over.py`) beside the others on a running host: what it may, and never.

`tests/delivery/test_cells.py` has the table of who may what, and never, and names what proves each line of it.
"""

from __future__ import annotations

import dataclasses
import json
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import linux
from milterapp.settings import Program, Settings
from tests.postfix import processes
from tests.postfix.harness import PYTHON, Site, message

pytestmark = [pytest.mark.root, pytest.mark.postfix]

PROGRAM = str(Path(__file__).with_name("taken_over.py"))
ACCOUNTS = ("alice", "bob", "milterapp-submit", "milterapp-monitor", "milterapp-pipe", "milterapp-lmtp")
QUEUE = "/var/spool/postfix"
WRITTEN = Path("/home/programs-write")
SOCKETS = {
    "the monitor": (socket.SOCK_SEQPACKET, "/run/milterapp/monitor/socket"),
    "submit": (socket.SOCK_SEQPACKET, "/run/milterapp/submit/socket"),
    "the spawner": (socket.SOCK_SEQPACKET, "/run/milterapp/script/socket"),
    "the milter": (socket.SOCK_STREAM, f"{QUEUE}/milterapp/milter"),
    "the milter's control": (socket.SOCK_STREAM, f"{QUEUE}/milterapp/milter.control"),
    "the LMTP door": (socket.SOCK_STREAM, f"{QUEUE}/milterapp-lmtp/socket"),
    "hand-back": (socket.SOCK_STREAM, f"{QUEUE}/public/milterapp-hand-back"),
    "sending": (socket.SOCK_STREAM, f"{QUEUE}/public/milterapp-send"),
    "Postfix's queue manager": (socket.SOCK_STREAM, f"{QUEUE}/public/qmgr"),
    "Postfix's bounce": (socket.SOCK_STREAM, f"{QUEUE}/private/bounce"),
}


def _settings(folder: Path) -> str:
    """Return the site's settings, with sockets and state of its own."""
    settings = dataclasses.asdict(Settings())
    rules = folder / "rules.yaml"
    rules.write_text("rules:\n  - name: none\n    if:\n      client: 203.0.113.255\n    then: accept\n")
    settings["milter"] |= {"socket": f"{folder}/milter/socket", "rules": str(rules), "workers": 1}
    settings["delivery"] |= {"socket": f"{folder}/monitor/socket"}
    settings["submit"] |= {"socket": f"{folder}/submit/socket", "state": f"{folder}/state"}
    settings["lmtp"] |= {"socket": f"{folder}/lmtp/socket"}
    settings["script"] |= {"socket": f"{folder}/script/socket"}
    probing = dataclasses.asdict(Program((PYTHON, "-I", "-B", PROGRAM, "program", str(folder), "{}"), time=60,
                                         write=(str(WRITTEN),)))  # fmt: skip
    settings["programs"] = {"program": probing, "program with the network": probing | {"network": True}}
    return json.dumps(settings)


def _uid(pid: int) -> int:
    """Return as whom a process runs; of one that is not dumpable the folder in /proc does not tell."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("\nUid:\t")[2].split()[0])


@pytest.fixture(scope="module")
def patient(host: Site) -> Iterator[Site]:
    """The host, whose agents wait longer than all of this takes: their processes are named, and tried, by number."""
    host.reset()
    with host.configured("delivery:\n  idle: 3600\n", "monitor"):
        yield host


@pytest.fixture(scope="module")
def found(patient: Site) -> Iterator[Mapping[str, Mapping[str, str]]]:
    """Take over every process, once; give what each tried, and what came of it."""
    host = patient
    host.rules("alice", "rules:\n  - name: all\n    then: {file: Filed}\n")
    host.send(message("warm"))
    host.settle()
    host.start_service("lmtp")
    Path("/var/mail/bob").write_text("")
    shutil.chown("/var/mail/bob", "bob", "bob")
    Path("/var/mail/bob").chmod(0o600)
    folder = Path("/tmp/taken-over")
    folder.mkdir()
    folder.chmod(0o1777)
    roles = ("milter", "worker", "monitor", "resolver", "zygote", "agent", "submit", "script")
    pids = {role: host.pids(role)[0] for role in roles}
    pids["agent"] = next(pid for pid in host.pids("agent") if _uid(pid) == pwd.getpwnam("alice").pw_uid)
    pids |= {"postfix": processes.master(), "lmtp": host._services["lmtp"].pid}
    setuid = folder / "head"
    shutil.copy("/usr/bin/head", setuid)
    setuid.chmod(0o4755)
    ids = {name: pwd.getpwnam(name).pw_uid for name in ACCOUNTS}
    Path("/home/bob/public").write_text("for all\n")
    WRITTEN.mkdir()
    WRITTEN.chmod(0o1777)
    targets = {"ids": ids, "pids": pids, "sockets": SOCKETS, "setuid": str(setuid), "written": str(WRITTEN)}
    (folder / "targets.json").write_text(json.dumps(targets))
    settings = _settings(folder)
    try:
        for role in ("milter", "submit", "lmtp", "client", "spawner", "alice", "monitor"):
            account = {"client": "milterapp-pipe", "alice": "alice"}.get(role)
            drop: dict[str, Any] = {"user": account, "group": account, "extra_groups": []} if account else {}
            done = subprocess.run(
                [PYTHON, "-I", "-B", PROGRAM, role, str(folder), settings],
                check=False, capture_output=True, text=True, timeout=120, cwd="/", **drop,
            )  # fmt: skip
            assert done.returncode == 0, f"{role}: {done.stdout}{done.stderr}"
        yield {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    finally:
        host.stop_service("lmtp")
        shutil.rmtree(folder)
        shutil.rmtree(WRITTEN)
        Path("/home/bob/public").unlink()
        for place in ("/home/alice", "/home/bob", "/tmp"):
            for path in Path(place).glob("from-*"):
                path.unlink()


# What succeeds; everything else that `taken_over.py` tries must be refused.
UNIT = {"the network"}  # closed by the units: PrivateNetwork, IPAddressDeny and RestrictAddressFamilies
OPEN = {"a file in /tmp", "a file where programs may write", "what all may read of bob"}  # to every account
ORDINARY = OPEN | {"a new process", "a program", "to listen"}  # as any account
AT_HOME = {"alice's rules", "a file in alice's home", "a file where programs may write", "what all may read of bob"}
SETUID = {"/etc/shadow through a setuid program"}  # of an account that nothing of milterapp's has confined
SAME = {"kill monitor", "kill zygote", "kill resolver"}  # one account
MAY: Mapping[str, set[str]] = {
    "supervisor": UNIT | ORDINARY | {"the socket of the milter", "the socket of the milter's control", "kill milter",
                                     "kill worker", "the socket of the spawner"},
    "worker": UNIT | ORDINARY | {"the socket of the milter", "the socket of the milter's control", "kill milter",
                                 "kill worker", "the socket of the spawner"},
    "spawner": UNIT | ORDINARY | {"the socket of the spawner", "kill script"},
    "site script": set(),
    "client": UNIT | ORDINARY | SETUID | {"the socket of the monitor"},
    "lmtp": UNIT | ORDINARY | {"the socket of the monitor", "the socket of the LMTP door", "kill lmtp"},
    "submit": UNIT | ORDINARY | {"the socket of submit", "the socket of hand-back", "the socket of sending",
                                 "the socket of Postfix's queue manager", "what submit remembers", "become submit",
                                 "kill submit"},
    "monitor": UNIT | SAME | OPEN | {"a new process", "a program", "to listen", "become bob", "the socket of submit",
                              "the socket of the monitor", "the place of the monitor's socket"},
    "zygote": UNIT | SAME | OPEN | {"a new process", "a program", "to listen", "become bob", "the socket of submit",
                             "the socket of the monitor", "the place of the monitor's socket"},
    # The monitor does not take it: test_monitor.py.
    "resolver": UNIT | {"the socket of the monitor", "what all may read of bob"},
    # No process of milterapp: what else runs with alice's ids beside her agent.
    "alice": UNIT | ORDINARY | SETUID | {"alice's rules", "a file in alice's home", "kill agent"},
    "agent": {"a new process", "alice's rules", "a file in alice's home"},
    "runner": UNIT | ORDINARY | {"alice's rules", "a file in alice's home", "kill agent"},
    "program": AT_HOME | {"a new process", "a program"},
    "program with the network": AT_HOME | {"a new process", "a program", "the network"},
}  # fmt: skip
# What the kernel may let an account do, or not: Yama, unprivileged user namespaces. No process gains by it.
PERHAPS = {
    **{role: {"a user namespace by clone"}
       for role in ("supervisor", "worker", "client", "lmtp", "submit", "alice", "spawner")},
    "monitor": {"memory of zygote"}, "zygote": {"memory of zygote"}, "resolver": {"memory of resolver"},
    # What Landlock adds, where the kernel has it.
    **{role: {what for abi, what in ((1, "to listen"), (1, "a file in /tmp"), (6, "kill agent"))
              if linux.landlock_abi() < abi}
       for role in ("program", "program with the network")},
    "agent": {what for abi, what in (*((2, one) for one in OPEN), (6, "kill agent")) if linux.landlock_abi() < abi},
}  # fmt: skip
REFUSED = {"EPERM", "EACCES", "ENOSPC"}  # ENOSPC: the kernel allows no user namespaces at all


@pytest.mark.parametrize("role", MAY)
def test_taken_over(found: Mapping[str, Mapping[str, str]], role: str) -> None:
    """A process does what it may and nothing else, whoever speaks with its voice."""
    tried = {name: said for name, said in found[role].items() if name not in ("capabilities", "home", "user")}
    assert len(tried) > 50
    assert {name for name, said in tried.items() if said == "done"} - PERHAPS.get(role, set()) == MAY[role]
    assert {name: said for name, said in tried.items() if said not in REFUSED | {"done", "fork: EPERM"}} == {}
    two = "00000000000000c0"
    assert found[role]["capabilities"] == (two if role in ("monitor", "zygote") else "0" * 16)


def test_the_zygote_is_asked_for_more(found: Mapping[str, Mapping[str, str]]) -> None:
    """A monitor that was taken over gets an agent for a person from the zygote, and for nobody below the floors."""
    assert found["asked"] == {
        "alice": "SPAWNED", "root": "FAILED", "submit": "FAILED", "alice in group disk": "FAILED",
    }  # fmt: skip
