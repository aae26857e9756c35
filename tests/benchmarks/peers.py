"""The milters that ours is measured beside, each set up to ask the same of a message, as its own manual has it.

Must never: measure a peer worse than it can do: two processes where it has processes, no network, no disk beyond its
own working folder, its patterns compiled before the first message.

`Rules` are patterns; each peer gets them in its own language. None of them matches a message of the corpus: the dear
case, every rule is looked at.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.benchmarks.decide import patterns
from tests.postfix.host import PYTHON

__all__ = ["PEERS", "Rules", "Running", "body_rules", "header_rules", "start"]

SOCKETS = Path("/var/spool/postfix/peers")  # Postfix may enter it, also where it runs in its chroot
WORKERS = 2
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Rules:
    """Patterns by what they look at: (field, pattern) of the header, of the body's text, and endings of file names."""

    header: Sequence[tuple[str, str]] = ()
    text: Sequence[str] = ()
    names: Sequence[str] = ()


def header_rules(count: int) -> Rules:
    """Return so many rules on Subject, From and X-Mailer."""
    return Rules(header=patterns(count))


def body_rules(count: int) -> Rules:
    """Return so many rules, three fifths of them on the body's text and the others on the names of attachments."""
    texts = tuple(rf"\bunpaid (bill|item) no\. ?{n}[0-9]{{3}}x\b" for n in range(count * 3 // 5))
    return Rules(text=texts, names=tuple(f".q{n}x" for n in range(count - len(texts))))


@dataclass(slots=True)
class Running:
    """A peer that serves. socket: as Postfix is told; processes: the roots of its process trees."""

    name: str
    socket: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def stop(self) -> None:
        """End it."""
        for one in reversed(self.processes):
            one.terminate()
        for one in self.processes:
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


Start = Callable[[str, Path, Rules], Running]


def start(kind: str, name: str, rules: Rules) -> Running | None:
    """Start a peer of a kind under a name; None where it is not on this machine. Raises RuntimeError with its log."""
    program, begin = PEERS[kind]
    if shutil.which(program) is None:
        return None
    folder = Path("/tmp/peers") / name
    folder.mkdir(parents=True)
    SOCKETS.mkdir(exist_ok=True)
    SOCKETS.chmod(0o1777)
    folder.chmod(0o777)
    running = begin(name, folder, rules)
    path = running.socket.removeprefix("unix:")
    path = path if path.startswith("/") else f"/var/spool/postfix/{path}"
    end = time.monotonic() + _PATIENCE
    while not _serves(path):
        log = folder / "log"
        if time.monotonic() > end or any(one.poll() is not None for one in running.processes):
            running.stop()
            raise RuntimeError(f"{name} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)
    return running


def _serves(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    os.chmod(path, 0o666)
    return True


def _run(folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(environment or {})},
        )


def _account(name: str) -> None:
    subprocess.run(["useradd", "--system", "--user-group", name], check=False, capture_output=True)


# -- ours --------------------------------------------------------------------------------------------------------------


def _milterapp(name: str, folder: Path, rules: Rules) -> Running:
    conditions: list[Mapping[str, object]] = []
    for what, pattern in rules.header:
        if what == "subject":
            conditions.append({"subject": {"contains": pattern}})
        elif what == "from":
            conditions.append({"from": {"domain": pattern}})
        else:
            conditions.append({"header": {"X-Mailer": {"regex": pattern}}})
    conditions += [{"body": {"regex": one}} for one in rules.text]
    conditions += [{"attachment": {"name": {"ends": one}}} for one in rules.names]
    listed = [
        {"name": f"rule {number}", "if": condition, "then": {"reject": "5.7.1 no"}}
        for number, condition in enumerate(conditions)
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": listed}, width=10_000, sort_keys=False))
    where = f"milterapp-{name}/milter"
    given = {
        "milter": {
            "socket": f"/var/spool/postfix/{where}",
            "rules": str(folder / "rules.yaml"),
            "workers": WORKERS,
        }
    }
    (folder / "milterapp.yaml").write_text(yaml.safe_dump(given))
    folder.chmod(0o755)
    command = (PYTHON, "-I", "-m", "milterapp", "milter", "--config", str(folder / "milterapp.yaml"))
    return Running(name, f"unix:{where}", [_run(folder, *command)])


# -- pymilter ----------------------------------------------------------------------------------------------------------

_NOTHING = """\
import sys
import Milter
class Nothing(Milter.Base):
    pass
Milter.factory = Nothing
Milter.set_flags(0)
Milter.runmilter("nothing", "unix:" + sys.argv[1], 240)
"""
_EVERYTHING = """\
import sys
import Milter
class Everything(Milter.Base):
    def connect(self, name, family, address): return Milter.CONTINUE
    def hello(self, name): return Milter.CONTINUE
    def envfrom(self, sender, *parameters): return Milter.CONTINUE
    def envrcpt(self, recipient, *parameters): return Milter.CONTINUE
    def data(self): return Milter.CONTINUE
    def header(self, name, value): return Milter.CONTINUE
    def eoh(self): return Milter.CONTINUE
    def body(self, chunk): return Milter.CONTINUE
    def eom(self): return Milter.CONTINUE
Milter.factory = Everything
Milter.set_flags(0)
Milter.runmilter("everything", "unix:" + sys.argv[1], 240)
"""


def _pymilter(script: str) -> Start:
    def begin(name: str, folder: Path, _rules: Rules) -> Running:
        (folder / "milter.py").write_text(script)
        path = str(SOCKETS / name)
        return Running(name, f"unix:peers/{name}", [_run(folder, PYTHON, "-I", str(folder / "milter.py"), path)])

    return begin


# -- rspamd ------------------------------------------------------------------------------------------------------------

_RSPAMD = """\
options {{
    pidfile = "{folder}/pid"; tempdir = "{folder}"; filters = "regexp"; dns {{ nameserver = ["127.0.0.1"]; }}
    url_tld = "/usr/share/rspamd/effective_tld_names.dat"; hs_cache_dir = "{folder}";
    rrd = ""; history_file = ""; stats_file = "{folder}/stats";
}}
logging {{ type = "file"; filename = "{folder}/rspamd.log"; level = "warning"; }}
metric {{ name = "default"; actions {{ reject = 1000; }} }}
lua = "{folder}/rules.lua";
regexp {{ }}
worker {{
    type = "rspamd_proxy"; bind_socket = "{socket} mode=0666"; count = {workers}; milter = yes;
    upstream "local" {{ default = yes; self_scan = yes; }}
}}
worker {{ type = "hs_helper"; count = 1; cache_dir = "{folder}"; }}
"""
_FIELDS = {"subject": "Subject", "from": "From", "x-mailer": "X-Mailer"}


def _slashed(pattern: str) -> str:
    return pattern.replace("/", r"\/")


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in r".^$*+?()[]{}|\/" else one for one in text)


def _header_pattern(what: str, pattern: str) -> str:
    if what == "x-mailer":
        return pattern
    return rf"@{_escaped(pattern)}>?$" if what == "from" else _escaped(pattern)


def _rspamd(name: str, folder: Path, rules: Rules) -> Running:
    _account("_rspamd")
    expressions = [f"{_FIELDS[what]}=/{_slashed(_header_pattern(what, one))}/i{{header}}" for what, one in rules.header]
    expressions += [f"/{_slashed(one)}/i{{mime}}" for one in rules.text]
    expressions += [f'Content-Disposition=/{_escaped(one)}"?$/i{{mimeheader}}' for one in rules.names]
    lines = [
        f"config['regexp']['RULE{number}'] = {{re = [=[{one}]=], score = 1.0}}"
        for number, one in enumerate(expressions)
    ]
    (folder / "rules.lua").write_text("\n".join(["config['regexp'] = config['regexp'] or {}", *lines, ""]))
    path = str(SOCKETS / name)
    (folder / "rspamd.conf").write_text(_RSPAMD.format(folder=folder, socket=path, workers=WORKERS))
    command = ("rspamd", "-f", "-u", "_rspamd", "-g", "_rspamd", "-c", str(folder / "rspamd.conf"))
    return Running(name, f"unix:peers/{name}", [_run(folder, *command)])


# -- MIMEDefang --------------------------------------------------------------------------------------------------------

_MIMEDEFANG = r"""
$AdminAddress = 'postmaster@localhost'; $AdminName = 'x'; $DaemonAddress = 'mimedefang@localhost';
$AddWarningsInline = 0; $Stupidity{'flatten'} = 0;
my %header = (%HEADER%);
my @text = (%TEXT%);
my @names = (%NAMES%);
sub filter_begin {
    my ($entity) = @_;
    return unless %header;
    my $head = $entity->head;
    for my $field (keys %header) {
        my $value = $head->get($field, 0);
        next unless defined $value;
        for my $pattern (@{$header{$field}}) { action_bounce('no') if $value =~ $pattern; }
    }
}
sub filter {
    my ($entity, $fname, $ext, $type) = @_;
    for my $pattern (@names) { action_bounce('no') if $fname =~ $pattern; }
    if (@text && $type =~ m{^text/}) {
        my $text = $entity->bodyhandle->as_string;
        for my $pattern (@text) { action_bounce('no') if $text =~ $pattern; }
    }
    return action_accept();
}
sub filter_end { }
1;
"""


def _mimedefang(name: str, folder: Path, rules: Rules) -> Running:
    _account("defang")
    by_field: dict[str, list[str]] = {}
    for what, one in rules.header:
        by_field.setdefault(_FIELDS[what], []).append(f"qr/{_slashed(_header_pattern(what, one))}/i")
    header = ", ".join(f"'{each}' => [{', '.join(found)}]" for each, found in by_field.items())
    text = ", ".join(f"qr/{_slashed(one)}/i" for one in rules.text)
    names = ", ".join(f"qr/{_escaped(one)}$/i" for one in rules.names)
    script = _MIMEDEFANG.replace("%HEADER%", header).replace("%TEXT%", text).replace("%NAMES%", names)
    (folder / "filter").write_text(script)
    spool = Path("/var/spool/MIMEDefang")
    spool.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(spool, "defang", "defang")
    shutil.chown(folder, "defang", "defang")
    multiplexor, path = str(spool / f"{name}.mx"), str(SOCKETS / name)
    pool = _run(
        folder,
        *("mimedefang-multiplexor", "-D", "-s", multiplexor, "-m", str(WORKERS), "-x", str(WORKERS)),
        *("-q", "50", "-Q", "100", "-r", "100000", "-U", "defang", "-F", str(folder / "filter")),
    )
    end = time.monotonic() + _PATIENCE
    while not os.path.exists(multiplexor) and time.monotonic() < end and pool.poll() is None:
        time.sleep(0.05)
    door = _run(folder, "mimedefang", "-D", "-q", "-G", "-m", multiplexor, "-p", path, "-U", "defang")
    return Running(name, f"unix:peers/{name}", [pool, door])


# -- OpenDKIM ----------------------------------------------------------------------------------------------------------


def _opendkim(name: str, folder: Path, _rules: Rules) -> Running:
    key, path = folder / "key", str(SOCKETS / name)
    subprocess.run(["openssl", "genrsa", "-traditional", "-out", str(key), "2048"], check=True, capture_output=True)
    key.chmod(0o600)
    (folder / "signers").write_text("* key\n")
    (folder / "keys").write_text(f"key example.org:s:{key}\n")
    (folder / "hosts").write_text("0.0.0.0/0\n")
    (folder / "opendkim.conf").write_text(
        f"Mode s\nSocket local:{path}\nSigningTable refile:{folder}/signers\nKeyTable file:{folder}/keys\n"
        f"InternalHosts {folder}/hosts\nCanonicalization relaxed/relaxed\nSyslog no\nBackground no\nUMask 000\n"
        "RequireSafeKeys no\n"
    )
    return Running(name, f"unix:peers/{name}", [_run(folder, "opendkim", "-f", "-x", str(folder / "opendkim.conf"))])


# By kind: the program that must be there, and how it is started.
PEERS: Mapping[str, tuple[str, Start]] = {
    "milterapp": (PYTHON, _milterapp),
    "pymilter, nothing": (PYTHON, _pymilter(_NOTHING)),
    "pymilter, all callbacks": (PYTHON, _pymilter(_EVERYTHING)),
    "rspamd": ("rspamd", _rspamd),
    "MIMEDefang": ("mimedefang-multiplexor", _mimedefang),
    "OpenDKIM": ("opendkim", _opendkim),
}
