"""The configuration file becomes settings, or problems with their places, and never a setting that was misread."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from milterapp.commands import configuration, handover, site_file
from milterapp.commands.failure import Failure
from milterapp.settings import Program, Settings

SET: dict[str, tuple[str, str, Any]] = {
    "word": ("log: json", "log", "json"),
    "path": ("milter:\n  rules: /srv/rules.yaml", "milter.rules", "/srv/rules.yaml"),
    "time": ("delivery: {deadline: 2 minutes}", "delivery.deadline", 120.0),
    "size": ("limits:\n  message_bytes: 10 MB", "limits.message_bytes", 10_000_000),
    "one-for-a-list": ("delivery:\n  gids: 100", "delivery.gids", (100,)),
    "list": ("delivery:\n  gids: [100, 50]", "delivery.gids", (100, 50)),
    "no-delimiter": ("delivery:\n  recipient_delimiter: ''", "delivery.recipient_delimiter", ""),
    "keep": ("delivery:\n  keep: maildir", "delivery.keep", "maildir"),
    "keep-lmtp": ("delivery:\n  keep: lmtp:unix:/x y", "delivery.keep", "lmtp:unix:/x y"),
    "keep-lmtp-inet": ("delivery:\n  keep: 'lmtp:inet:[::1]:24'", "delivery.keep", "lmtp:inet:[::1]:24"),
    "client": ("delivery:\n  client: /usr/libexec/c", "delivery.client", "/usr/libexec/c"),
    "empty-file": ("", "log", "logfmt"),
    "clients": (
        "milter:\n  results_from: [milters, '2001:db8::/32']",
        "milter.results_from",
        ("milters", "2001:db8::/32"),
    ),
    "transports": ("milter:\n  transports: ['smtp:[a.example]:25']", "milter.transports", ("smtp:[a.example]:25",)),
    "comments-only": ("# log: json\n", "log", "logfmt"),
    "program": (
        "programs:\n  scan: {run: [/bin/scan, -q], time: 5 seconds, memory: 100 MiB, write: /tmp, options: yes}",
        "programs",
        {"scan": Program(("/bin/scan", "-q"), options=True, time=5.0, memory=100 << 20, write=("/tmp",))},
    ),
}


@pytest.mark.parametrize(("source", "name", "want"), SET.values(), ids=SET)
def test_what_is_set(source: str, name: str, want: object) -> None:
    """A setting has the value that the file gives it, all others their defaults."""
    settings = configuration.parse_settings(source.encode(), "milterapp.yaml")
    got: Any = settings
    for key in name.split("."):
        got = getattr(got, key)
    assert got == want
    assert settings.submit == Settings().submit


WRONG = {
    "unknown-key": ("milter:\n  on_eror: accept", "m.yaml:2:3: unknown key 'on_eror', did you mean 'on_error'?"),
    "unknown-word": ("log: jsn", "m.yaml:1:6: found 'jsn', expected logfmt or json, did you mean 'json'?"),
    "no-number": ("milter:\n  workers: many", "m.yaml:2:12: "),
    "out-of-bounds": ("milter:\n  workers: 999", "m.yaml:2:12: found 999, expected 0 to 256"),
    "root-floor": ("delivery:\n  min_uid: 0", "m.yaml:2:12: found 0, expected 1 to"),
    "root-group": ("delivery:\n  gids: [100, 0]", "m.yaml:2:9: found 0, expected 1 to"),
    "no-id": ("delivery:\n  gids: [4294967295]", "m.yaml:2:9: found 4294967295"),
    "relative-client": ("delivery:\n  client: bin/c", "m.yaml:2:11: found 'bin/c', expected a path from `/`"),
    "relative-path": ("milter:\n  rules: rules.yaml", "m.yaml:2:10: found 'rules.yaml', expected a path from `/`"),
    "root-account": ("accounts:\n  monitor: root", "m.yaml:2:12: found 'root', expected the account of a service"),
    "empty-account": ("accounts:\n  monitor: ''", "m.yaml:2:12: found '', expected the account of a service"),
    "empty-value": ("log:", "m.yaml:1:5: 'log' has no value"),
    "keep-word": ("delivery:\n  keep: mailbox", "m.yaml:2:9: found 'mailbox', expected postfix or maildir, lmtp:unix:"),
    "keep-near": (
        "delivery:\n  keep: maildr",
        "m.yaml:2:9: found 'maildr', expected postfix or maildir, lmtp:unix:/PATH",
    ),
    "keep-relative": ("delivery:\n  keep: lmtp:unix:x", "m.yaml:2:9: found 'lmtp:unix:x', expected lmtp:unix:/PATH or"),
    "keep-no-port": (
        "delivery:\n  keep: lmtp:inet:mx",
        "m.yaml:2:9: found 'lmtp:inet:mx', expected lmtp:unix:/PATH or",
    ),
    "no-client": (
        "milter:\n  results_from: [relay.example]",
        "m.yaml:2:17: found 'relay.example', expected `milters`, or the address",
    ),
    "no-transport": ("milter:\n  transports: [slow]", "m.yaml:2:15: found 'slow', expected TRANSPORT:NEXTHOP"),
    "syntax-in-transport": ("milter:\n  transports: ['slow:{$x}']", "m.yaml:2:15: found 'slow:{$x}', expected"),
    "program-name": ("programs:\n  a/b: {run: /x}", "m.yaml:2:3: found 'a/b', expected a name of letters, digits"),
    "program-nothing": ("programs:\n  a: {time: 5}", "m.yaml:2:6: the key 'run' is missing"),
    "program-relative": (
        "programs:\n  a: {run: [cat, x]}",
        "m.yaml:2:12: found 'cat', expected the program's path from",
    ),
    "program-above": ("programs:\n  a: {run: /x/../y}", "m.yaml:2:12: found '/x/../y', expected the program's path"),
    "program-long": (f"programs:\n  a: {{run: [/x, {'y' * 4096}]}}", "m.yaml:2:12: more than 4096 bytes"),
    "program-folder": ("programs:\n  a: {run: /x, write: [tmp]}", "m.yaml:2:23: found 'tmp', expected a path from `/`"),
    "program-time": ("programs:\n  a: {run: /x, time: 0}", "m.yaml:2:22: found 0.0, expected 1 to 3600"),
    "program-deadline": (
        "programs:\n  a: {run: /x, time: 90}\ndelivery:\n  deadline: 80",
        "m.yaml:2:22: 90 seconds, expected less than `delivery.deadline`",
    ),
    "program-memory": ("programs:\n  a: {run: /x, memory: 1 MB}", "m.yaml:2:24: found 1000000, expected 67108864 to"),
    "program-key": ("programs:\n  a: {run: /x, tme: 5}", "m.yaml:2:16: unknown key 'tme', did you mean 'time'?"),
    "reject-word": ("delivery:\n  reject: maybe", "m.yaml:2:11: found 'maybe', expected always or likely or proven or"),
    "no-mapping": ("- log", "m.yaml:1:1: found a list, expected a mapping"),
    "no-yaml": ("log: 'json", "m.yaml:1:"),
    "not-text": ("log: \udcff", "m.yaml:1:6: byte 0xff, expected UTF-8 text"),
    "all-at-once": ("log: jsn\nmilter:\n  workers: 999", "m.yaml:3:12: found 999"),
}


@pytest.mark.parametrize(("source", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong(source: str, said: str) -> None:
    """A setting that is no such value is a problem with its place, exit 78, whatever else the file holds."""
    with pytest.raises(Failure) as caught:
        configuration.parse_settings(source.encode("utf-8", "surrogateescape"), "m.yaml")
    assert caught.value.code == os.EX_CONFIG
    assert any(str(line).startswith(said) for line in caught.value.lines), caught.value.lines


def test_every_number_has_bounds_and_every_word_its_choice() -> None:
    """A setting that is added is bounded, or named here with the reason why not."""
    rooms = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    numbers = {
        f"{room}.{field.name}"
        for room, values in rooms.items()
        if dataclasses.is_dataclass(values)
        for field in dataclasses.fields(values)
        if field.type not in ("str", "tuple[str, ...]")
    }
    assert numbers == set(configuration.BOUNDS)
    bounded = {field.name for field in dataclasses.fields(Program) if field.type in ("int", "float")}
    assert bounded == set(configuration.PROGRAM_BOUNDS)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file that only its owner may write."""
    path = tmp_path / "milterapp.yaml"
    path.write_text("log: json\n")
    path.chmod(0o644)
    return path


def test_default_file_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no file everything has its default; a file that is named must be there."""
    monkeypatch.setattr(site_file, "DEFAULT", str(tmp_path / "none.yaml"))
    assert configuration.load(None) == Settings()
    with pytest.raises(Failure) as caught:
        configuration.load(str(tmp_path / "none.yaml"))
    assert caught.value.code == os.EX_NOINPUT


@pytest.mark.parametrize("mode", [0o664, 0o646], ids=["group", "others"])
def test_file_others_can_write(config: Path, mode: int) -> None:
    """A configuration that others can write is refused, as it sets the floors of privilege."""
    config.chmod(mode)
    with pytest.raises(Failure, match="chmod go-w") as caught:
        configuration.load(str(config))
    assert caught.value.code == os.EX_CONFIG


def test_folder_for_a_file(tmp_path: Path) -> None:
    """A folder in the place of the file cannot be read, 66."""
    with pytest.raises(Failure) as caught:
        configuration.load(str(tmp_path))
    assert caught.value.code == os.EX_NOINPUT


def test_handed_over_whole(config: Path) -> None:
    """A service is handed the settings as the file has them, as one JSON object."""
    got = json.loads(handover.settings_as_json(str(config)))
    assert got == json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(Settings(), log="json"))))


def test_problems_end_a_service(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A service with a wrong setting does not start: 78, and the problem on standard error."""
    config.write_text("log: jsn\n")
    with pytest.raises(Failure) as caught:
        handover.settings_as_json(str(config))
    assert caught.value.code == os.EX_CONFIG
    assert f"{config}:1:6: found 'jsn'" in capfd.readouterr().err


def test_starting_process_never_imports_yaml(config: Path) -> None:
    """What starts the monitor has not imported the YAML reader when it hands over."""
    source = (
        "import sys; from milterapp.commands import handover, monitor, submit;"
        f"handover.settings_as_json({str(config)!r}); assert 'yaml' not in sys.modules, 'yaml'"
    )
    subprocess.run([sys.executable, "-I", "-c", source], check=True)


@pytest.mark.root
def test_parsed_without_privileges(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """What parses the configuration for a service is nobody, without a capability."""
    seen = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), open('/proc/self/status').read())"

    def spy(*_: object) -> Settings:
        out = subprocess.run([sys.executable, "-I", "-c", seen], capture_output=True, text=True, check=True).stdout
        return dataclasses.replace(Settings(), log=out)

    monkeypatch.setattr(configuration, "parse_settings", spy)
    out = json.loads(handover.settings_as_json(str(config)))["log"]
    assert out.startswith("(65534, 65534, 65534) (65534, 65534, 65534) [] ")
    assert "CapEff:\t0000000000000000" in out
    assert "NoNewPrivs:\t1" in out
