"""The delivery agents that ours is measured beside, each with the same twenty rules for each user, in its own language.

Must never: measure a peer worse than it can do: rules in its own best form, one process where it has one, folders that
are there already.

No rule matches the mail that is measured: the dear case, every rule is looked at. One message with MATCHING as its
subject does, so that it shows whether they are.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.delivery.clients import build
from tests.postfix.host import PYTHON, Host

__all__ = [
    "FOLDER",
    "MATCHING",
    "USERS",
    "Candidate",
    "make_users",
    "plan",
    "start_dovecot",
    "start_nowhere",
    "start_ours",
]

USERS = tuple(f"user{number:02}" for number in range(20))
FOLDER, MATCHING = "Box19", "invoice 19 of the benchmark"
_SUBJECTS = tuple(f"invoice {number} of the benchmark" for number in range(13, 20))
_DOMAINS = tuple(f"shop{number}.benchmark.example" for number in range(7))
_MAILERS = tuple(f"Bulk Mailer {number}" for number in range(6))
_PATIENCE = 60.0  # seconds
_DOVECOT = Path("/run/dovecot-benchmark")
_SINK = "/tmp/benchmark-sink"
_CLIENT = Path("/opt/libexec/milterapp-client")
_SIEVE = Path("/usr/lib/dovecot/modules/lib90_sieve_plugin.so")


@dataclass
class Candidate:
    """One way to a mailbox. options: of its local(8), as master.cf has them; program: what must be there.

    passes: how often a message goes through Postfix's queue; share: of the messages, one in so many is enough.
    kept: False where it throws away what it gets, to show what the way there costs.
    """

    name: str
    options: Mapping[str, str]
    program: str = ""
    passes: int = 1
    share: int = 1
    kept: bool = True
    roots: list[int] = field(default_factory=list)  # process trees beside Postfix's
    cpu: list[float] = field(default_factory=list)  # milliseconds a message
    rate: list[float] = field(default_factory=list)  # messages a second
    delays: list[float] = field(default_factory=list)  # seconds
    parts: dict[str, float] = field(default_factory=dict)  # CPU seconds by process

    @property
    def word(self) -> str:
        """Return the name as one word, for domains and services."""
        return "".join(one if one.isalnum() else "-" for one in self.name.lower()).strip("-")

    @property
    def domain(self) -> str:
        """Return whose mail takes this way."""
        return f"{self.word}.example"


def plan() -> list[Candidate]:
    """Return all of them, the floor first."""
    postfix_lmtp = {"mailbox_transport": "ours-postfix-lmtp:unix:milterapp-postfix/socket"}
    lda, direct = "/usr/lib/dovecot/dovecot-lda", f"{PYTHON} -I -m milterapp.commands.direct --direct"
    return [
        Candidate("Postfix, its own Maildir", {}),
        Candidate("nowhere, by lmtp(8)", {"mailbox_transport": f"lmtp:unix:{_SINK}"}, "smtp-sink", kept=False),
        Candidate("nowhere, by pipe(8) and Python", {"mailbox_transport": "idle-python:"}, kept=False),
        Candidate("procmail", {"mailbox_command": "/usr/bin/procmail"}, "procmail"),
        Candidate("maildrop", {"mailbox_command": "/usr/bin/maildrop"}, "maildrop"),
        Candidate("Dovecot LMTP", {"mailbox_transport": f"lmtp:unix:{_DOVECOT}/lmtp"}, "dovecot"),
        Candidate("fdm", {"mailbox_command": "/usr/bin/fdm -m -a stdin fetch"}, "fdm"),
        Candidate("dovecot-lda", {"mailbox_command": f"{lda} -c {_DOVECOT}/dovecot.conf"}, lda),
        Candidate("ours: LMTP door", {"mailbox_transport": "ours-maildir-lmtp:unix:milterapp-maildir/socket"}),
        Candidate("ours: pipe door", {"mailbox_transport": "ours-maildir-pipe:"}),
        Candidate("ours: pipe door, Python client", {"mailbox_transport": "ours-maildir-python:"}),
        Candidate("ours: --direct", {"mailbox_command": f"{direct} --config /etc/milterapp/maildir.yaml"}, share=10),
        Candidate("ours: LMTP door, hand-back", postfix_lmtp, passes=2),
        Candidate("ours: pipe door, hand-back", {"mailbox_transport": "ours-postfix-pipe:"}, passes=2),
    ]  # fmt: skip


# -- the users and their rules -----------------------------------------------------------------------------------------


def _procmail() -> str:
    tests = [f"^Subject:.*{one}" for one in _SUBJECTS]
    tests += [f"^From:.*@{one.replace('.', '[.]')}" for one in _DOMAINS] + [f"^X-Mailer:.*{one}" for one in _MAILERS]
    head = "MAILDIR=$HOME/Maildir\nDEFAULT=$HOME/Maildir/\n"
    return head + "".join(f":0\n* {one}\n.{FOLDER}/\n\n" for one in reversed(tests))


def _maildrop() -> str:
    tests = [f"/^Subject:.*{one}/:h" for one in _SUBJECTS]
    tests += [f"/^From:.*@{one.replace('.', '[.]')}/:h" for one in _DOMAINS]
    tests += [f"/^X-Mailer:.*{one}/:h" for one in _MAILERS]
    filing = f'to "$HOME/Maildir/.{FOLDER}/"'
    head = 'DEFAULT="$HOME/Maildir/"\n'
    return head + "".join(f"if ({one})\n{{\n  {filing}\n}}\n" for one in reversed(tests))


def _fdm() -> str:
    tests = [f"^Subject:.*{one}" for one in _SUBJECTS]
    tests += [f"^From:.*@{one.replace('.', '[.]')}" for one in _DOMAINS] + [f"^X-Mailer:.*{one}" for one in _MAILERS]
    head = f'set lock-wait\naccount "stdin" stdin\naction "box" maildir "%h/Maildir/.{FOLDER}"\n'
    head += 'action "keep" maildir "%h/Maildir"\n'
    rules = "".join(f'match "{one}" in headers action "box"\n' for one in reversed(tests))
    return head + rules + 'match all action "keep"\n'


def _sieve() -> str:
    tests = [f'header :contains "subject" "{one}"' for one in _SUBJECTS]
    tests += [f'address :domain :is "from" "{one}"' for one in _DOMAINS]
    tests += [f'header :contains "x-mailer" "{one}"' for one in _MAILERS]
    return 'require "fileinto";\n' + "".join(f'if {one} {{ fileinto "{FOLDER}"; stop; }}\n' for one in reversed(tests))


def _ours() -> str:
    tests: list[object] = [{"subject": {"contains": one}} for one in _SUBJECTS]
    tests += [{"from": {"domain": one}} for one in _DOMAINS]
    tests += [{"header": {"X-Mailer": {"contains": one}}} for one in _MAILERS]
    rules = [{"name": f"rule {n}", "if": one, "then": {"file": FOLDER}} for n, one in enumerate(reversed(tests))]
    return yaml.safe_dump({"rules": rules}, sort_keys=False, width=10_000)


def make_users() -> None:
    """Make the users, each with a Maildir and everybody's rules in it."""
    rules = {
        ".procmailrc": _procmail(), ".mailfilter": _maildrop(), ".fdm.conf": _fdm(), ".dovecot.sieve": _sieve(),
        ".milterapp/rules.yaml": _ours(),
    }  # fmt: skip
    for name in USERS:
        subprocess.run(["useradd", "--create-home", "--user-group", "--shell", "/bin/sh", name], check=True)
        home, ids = Path(f"/home/{name}"), pwd.getpwnam(name)
        os.chmod(home, 0o755)
        for folder in ("Maildir", f"Maildir/.{FOLDER}"):
            for part in ("tmp", "new", "cur"):
                (home / folder / part).mkdir(parents=True)
        (home / f"Maildir/.{FOLDER}/maildirfolder").touch()
        (home / ".milterapp").mkdir(mode=0o700)
        for file, text in rules.items():
            (home / file).write_text(text)
            (home / file).chmod(0o600)
        for place in (home, *home.rglob("*")):
            os.chown(place, ids.pw_uid, ids.pw_gid)


# -- the services ------------------------------------------------------------------------------------------------------


def _wait(ready: Callable[[], bool], what: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


def start_ours(host: Host, keep: str) -> list[subprocess.Popen[bytes]]:
    """Start monitor, submit and LMTP door with that `delivery.keep`, and give Postfix its doors to them.

    pipe(8) has the compiled client, and once more the one that Python runs.
    """
    if not _CLIENT.exists():
        build(_CLIENT)
    run = f"/run/milterapp-{keep}"
    sockets = {
        "submit": f"{run}/submit/socket",
        "monitor": f"{run}/monitor/socket",
        "lmtp": f"/var/spool/postfix/milterapp-{keep}/socket",
    }
    given = {
        "delivery": {"keep": keep, "socket": sockets["monitor"], "idle": 600, "client": str(_CLIENT)},
        "submit": {"socket": sockets["submit"], "state": f"/var/lib/milterapp/submit-{keep}"},
        "lmtp": {"socket": sockets["lmtp"]},
    }
    file, log = Path(f"/etc/milterapp/{keep}.yaml"), Path(f"/var/log/milterapp-{keep}.log")
    file.write_text(yaml.safe_dump(given))
    found = []
    for name, path in sockets.items():
        with log.open("ab") as out:
            command = [PYTHON, "-I", "-m", "milterapp", name, "--config", str(file)]
            found.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"))
        _wait(Path(path).exists, f"milterapp {name}", log)
    python = file.with_name(f"{keep}-python.yaml")
    python.write_text(yaml.safe_dump({"delivery": {"socket": sockets["monitor"]}}))
    for word, door, config in (("pipe", "pipe", file), ("python", "pipe", python), ("lmtp", "lmtp", file)):
        host.milterapp("setup", "--apply", "--door", door, "--config", str(config), check=True)
        service = host.run("postconf", "-M", "milterapp/unix").strip().split(maxsplit=1)[1]
        if (str(_CLIENT) in service) != (word == "pipe"):
            raise RuntimeError(f"{word}: {service}")
        name = f"ours-{keep}-{word}"
        host.run("postconf", "-M", f"{name}/unix={name} {service}")
        host.postconf(**{f"{name}_destination_recipient_limit": "1"})
    return found


def start_dovecot(folder: Path = _DOVECOT) -> subprocess.Popen[bytes] | None:
    """Start Dovecot with LMTP and, where it is there, Sieve; None where there is no Dovecot."""
    if shutil.which("dovecot") is None:
        return None
    for account in ("dovecot", "dovenull"):
        subprocess.run(["useradd", "--system", "--user-group", account], check=False, capture_output=True)
    folder.mkdir()
    plugins = "mail_plugins = sieve" if _SIEVE.exists() else ""
    (folder / "dovecot.conf").write_text(f"""\
base_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
ssl = no
mail_location = maildir:~/Maildir
userdb {{
  driver = passwd
}}
passdb {{
  driver = static
  args = nopassword=y
}}
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
protocol lmtp {{
  auth_username_format = %Ln
  {plugins}
}}
protocol lda {{
  auth_username_format = %Ln
  {plugins}
}}
plugin {{
  sieve = ~/.dovecot.sieve
}}
""")
    log = folder / "log"
    log.touch(mode=0o666)
    log.chmod(0o666)
    process = subprocess.Popen(["dovecot", "-F", "-c", str(folder / "dovecot.conf")])
    _wait((folder / "lmtp").exists, "Dovecot", log)
    return process


def start_nowhere(host: Host) -> list[subprocess.Popen[bytes]]:
    """Start what takes mail and does nothing with it: an LMTP server of Postfix's, and a pipe service with a Python."""
    python = os.path.realpath("/usr/bin/python3")
    command = f"pipe flags=Rq user=nobody argv={python} -I -S -c pass"
    host.run("postconf", "-M", f"idle-python/unix=idle-python unix - n n - 20 {command}")
    host.postconf(**{"idle-python_destination_recipient_limit": "1"})
    if shutil.which("smtp-sink") is None:
        return []
    sink = subprocess.Popen(["smtp-sink", "-u", "nobody", "-L", f"unix:{_SINK}", "128"])
    _wait(Path(_SINK).exists, "smtp-sink", Path(os.devnull))
    os.chmod(_SINK, 0o777)
    return [sink]
