"""`milterapp test` says what would become of a message, why, and ends with the exit code that the manual promises."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Milterapp = Callable[..., "subprocess.CompletedProcess[str]"]

LETTER = b"From: dora@home.example\nTo: alice@example.org\nSubject: hello\n\nhello\n"
LIST = b"From: dora@home.example\nTo: talk@lists.example\nList-Id: <talk.lists.example>\nSubject: hi\n\nhi\n"

RULES = """
rules:
  - name: lists
    if:
      list_id: {exists: yes}
    then:
      file: Lists/${list_id}
  - name: greetings
    if:
      subject: hello
    then:
      prefix_subject: '[Greeting]'
  - name: refused
    if:
      subject: buy
    then:
      reject: "5.7.1 No"
"""
SITE = """
rules:
  - name: client
    if:
      client: 198.51.100.0/24
    then:
      reject: "5.7.1 Not from there"
  - name: closed
    if:
      recipient: staff@example.org
      authenticated: no
    then:
      reject: "5.7.1 Not to them"
  - name: tag
    if:
      subject: hello
    then:
      add_header: {X-Tag: yes}
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """The path of a file of personal rules."""
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def site(tmp_path: Path) -> str:
    """The path of a file of site rules."""
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    return str(path)


PERSONAL = {
    "kept": (LETTER, "none", [{"action": "keep", "implicit": True}]),
    "filed": (LIST, "none", [{"action": "file", "folder": "Lists/talk.lists.example", "copy": False}]),
    "rejected": (LETTER.replace(b"hello", b"buy"), "reject", []),
    "crlf": (LETTER.replace(b"\n", b"\r\n"), "none", [{"action": "keep", "implicit": True}]),
}


@pytest.mark.parametrize(("message", "verdict", "deliveries"), PERSONAL.values(), ids=PERSONAL)
def test_personal(milterapp: Milterapp, rules: str, message: bytes, verdict: str, deliveries: list[object]) -> None:
    """--json says verdict and deliveries, the implicit keep included."""
    ended = milterapp("test", "--rules", rules, "--json", message=message)
    assert (ended.returncode, ended.stderr) == (0, "")
    got = json.loads(ended.stdout)
    assert (got["verdict"], got["deliveries"]) == (verdict, deliveries)


def test_json_has_every_key(milterapp: Milterapp, rules: str) -> None:
    """The object has the keys of the manual, and a place for each rule."""
    got = json.loads(milterapp("test", "--rules", rules, "--json", message=LETTER).stdout)
    assert {"verdict", "reply", "stage", "recipients", "rules", "edits", "deliveries", "problems"} <= set(got)
    assert got["edits"] == [{"action": "prefix_subject", "prefix": "[Greeting]"}]
    assert [(one["name"], one["matched"]) for one in got["rules"]] == [
        ("lists", False),
        ("greetings", True),
        ("refused", False),
    ]
    for one in got["rules"]:
        file, line, column = one["place"].rsplit(":", 2)
        assert (file, line.isdigit(), column.isdigit(), bool(one["reason"])) == (rules, True, True, True)


STAGES = {
    "at-connect": (["--client", "198.51.100.9"], "reject", "connect", ["reject"]),
    "at-rcpt-for-one": (
        ["--recipient", "staff@example.org", "--recipient", "alice@example.org"],
        "none",
        None,
        ["reject", "none"],
    ),
    "at-rcpt-for-all": (["--recipient", "staff@example.org"], "reject", "rcpt", ["reject"]),
    "logged-in": (["--recipient", "staff@example.org", "--login", "bob"], "none", None, ["none"]),
    "submitted-here": (["--client", "local"], "none", None, ["none"]),
    "ipv6-client": (["--client", "[IPv6:2001:db8::1]"], "none", None, ["none"]),
}


@pytest.mark.parametrize(("options", "verdict", "stage", "recipients"), STAGES.values(), ids=STAGES)
def test_site(
    milterapp: Milterapp, site: str, options: list[str], verdict: str, stage: str | None, recipients: list[str]
) -> None:
    """--site asks stage by stage: the verdict falls where the session would hear it, for whom it is."""
    if "--recipient" not in options:
        options = [*options, "--recipient", "alice@example.org"]
    ended = milterapp("test", "--site", "--rules", site, "--json", *options, message=LETTER)
    got = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert (got["verdict"], got["stage"]) == (verdict, stage)
    assert [one["verdict"] for one in got["recipients"]] == recipients


def test_several_files_are_one_policy(milterapp: Milterapp, rules: str, tmp_path: Path) -> None:
    """The rules of the second file come after those of the first; a name in both is a problem."""
    more = tmp_path / "more.yaml"
    more.write_text("rules:\n  - name: more\n    then:\n      file: More\n")
    got = json.loads(milterapp("test", "--json", "--rules", rules, str(more), message=LETTER).stdout)
    assert [one["name"] for one in got["rules"]] == ["lists", "greetings", "refused", "more"]
    assert got["deliveries"] == [{"action": "file", "folder": "More", "copy": False}]
    more.write_text("rules:\n  - name: lists\n    then:\n      file: More\n")
    ended = milterapp("test", "--rules", rules, "--rules", str(more), message=LETTER)
    assert ended.returncode == os.EX_DATAERR
    assert f"{more}:2:5: a second rule 'lists'" in ended.stderr


EXPECTED = {
    "verdict": (["--expect", "none"], 0),
    "keep": (["--expect", "keep"], 0),
    "other-verdict": (["--expect", "reject"], 1),
    "other-delivery": (["--expect", "file:Lists/Python"], 1),
    "another-address": (["--expect", "forward:a@example.org"], 1),
    "no-such-word": (["--expect", "rejct"], 64),
}


@pytest.mark.parametrize(("options", "code"), EXPECTED.values(), ids=EXPECTED)
def test_expect(milterapp: Milterapp, rules: str, options: list[str], code: int) -> None:
    """--expect ends with 1 where something else becomes of the message, and says what."""
    ended = milterapp("test", "--rules", rules, *options, message=LETTER)
    assert ended.returncode == code
    assert bool(ended.stderr) == bool(code)
    if code == 1:
        assert "expected" in ended.stderr
        assert "but it came to none" in ended.stderr


def test_invalid_rules_win_over_an_expectation(milterapp: Milterapp, tmp_path: Path) -> None:
    """Rules with problems end with 65 whatever was expected; every problem is shown, and what becomes of mail."""
    path = tmp_path / "broken.yaml"
    path.write_text("rules:\n  - name: a\n    thne: keep\n  - name: b\n    then: fiel\n")
    ended = milterapp("test", "--json", "--rules", str(path), "--expect", "reject", message=LETTER)
    assert ended.returncode == os.EX_DATAERR
    assert f"{path}:3:5: unknown key 'thne', did you mean 'then'?" in ended.stderr
    assert f"{path}:5:11: " in ended.stderr
    got = json.loads(ended.stdout)
    assert got["verdict"] == "defer"
    assert len(got["problems"]) >= 2


def test_failed_test_beside_the_rules(milterapp: Milterapp, tmp_path: Path) -> None:
    """Rules whose own test fails are shown at work, and end with 1: no service would take them."""
    path = tmp_path / "rules.yaml"
    path.write_text(
        RULES + "tests:\n  - name: wrong\n    message: |\n      Subject: hello\n\n      hello\n    expect: reject\n"
    )
    ended = milterapp("test", "--rules", str(path), message=LETTER)
    assert ended.returncode == 1
    assert "the test 'wrong' expected reject" in ended.stderr
    assert "verdict: none" in ended.stdout


BAD = {
    "empty-message": (["--rules", "{rules}"], b"", 65, "the message is empty"),
    "only-line-ends": (["--rules", "{rules}"], b"\r\n\n", 65, "the message is empty"),
    "missing-rules": (["--rules", "nowhere.yaml"], LETTER, 66, "nowhere.yaml: cannot read: No such file or directory"),
    "folder-as-rules": (["--rules", "/"], LETTER, 66, "/: cannot read: Is a directory"),
    "no-rules-of-ones-own": ([], LETTER, 66, "there is no such file, so all mail is kept; name one with --rules"),
    "no-site-rules": (["--site", "--config", "{config}"], LETTER, 66, "site-rules.yaml: cannot read"),
    "missing-configuration": (["--config", "nowhere.yaml"], LETTER, 66, "nowhere.yaml: cannot read"),
    "wrong-configuration": (["--config", "{wrong}"], LETTER, 78, "wrong.yaml:1:6: found 'jsn'"),
    "unknown-user": (["--user", "no-such-user"], LETTER, 64, "there is no user 'no-such-user'"),
    "no-address": (["--rules", "{rules}", "--client", "300.1.1.1"], LETTER, 64, "is no IP address"),
    "no-time": (["--rules", "{rules}", "--now", "tomorrow"], LETTER, 64, "expected a time such as"),
    "two-recipients": (["--rules", "{rules}", "--recipient", "a", "--recipient", "b"], LETTER, 64, "one recipient"),
    "json-and-diff": (["--rules", "{rules}", "--json", "--diff"], LETTER, 64, "not allowed with"),
    "message-as-argument": (["message.eml"], LETTER, 64, "unexpected argument 'message.eml'"),
    "no-place-to-write": (["--rules", "{rules}", "--output", "/no/where"], LETTER, 73, "/no/where: cannot write"),
}


@pytest.mark.parametrize(("options", "message", "code", "said"), BAD.values(), ids=BAD)
def test_bad_input(
    milterapp: Milterapp, rules: str, tmp_path: Path, options: list[str], message: bytes, code: int, said: str
) -> None:
    """Each wrong thing has its exit code and a sentence on standard error; nothing stands on standard output."""
    config, wrong = tmp_path / "config.yaml", tmp_path / "wrong.yaml"
    config.write_text(f"milter:\n  rules: {tmp_path}/site-rules.yaml\n")
    wrong.write_text("log: jsn\n")
    config.chmod(0o644)
    wrong.chmod(0o644)
    ended = milterapp(
        "test", *(one.format(rules=rules, config=config, wrong=wrong) for one in options), message=message
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


ODD = {
    "rubbish": random.Random(7).randbytes(200_000),
    "nul": LETTER.replace(b"hello", b"he\0llo"),
    "no-header-end": b"Subject: hello",
    "body-only": b"\nhello\n",
    "bare-cr": LETTER.replace(b"\n", b"\r"),
    "eight-bit-header": LETTER.replace(b"hello", b"h\xe9llo"),
    "ten-thousand-fields": b"X: y\n" * 10_000 + LETTER,
    "escapes": LETTER.replace(b"hello", b"\x1b]0;owned\x07\x1b[31mhello"),
    "bidi": LETTER.replace(b"hello", "\u202eolleh".encode()),
}
HEADERLESS = (
    "milterapp: line 1 of the message is no header field, so all of it is body; expected one such as `Subject: hello`\n"
)


@pytest.mark.parametrize("form", ["--json", "--diff"])
@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
def test_odd_messages(milterapp: Milterapp, rules: str, site: str, message: bytes, form: str) -> None:
    """Whatever a message holds, it is decided about, and nothing of it reaches the terminal but what can be read."""
    for options in (["--rules", rules], ["--site", "--rules", site]):
        ended = milterapp("test", *options, form, message=message)
        assert ended.returncode == 0
        assert ended.stderr == (HEADERLESS if message in (ODD["rubbish"], ODD["body-only"]) else "")
        assert not {char for char in ended.stdout if char != "\n" and (ord(char) < 32 or char in "\x7f\u202e")}
        if form == "--json":
            json.loads(ended.stdout)


def test_limit(milterapp: Milterapp, rules: str, site: str, tmp_path: Path) -> None:
    """A limit of ours is no verdict of the rules: the dry run does what the edges do, and says why."""
    config = tmp_path / "config.yaml"
    config.write_text("limits:\n  header_fields: 2\n")
    config.chmod(0o644)
    for form, word in ((["--rules", rules], "keep"), (["--site", "--rules", site], "accept")):
        got = json.loads(milterapp("test", "--config", str(config), *form, "--json", message=LETTER).stdout)
        assert (got["verdict"], bool(got["could_not_tell"])) == ("defer", True)
        open_config = tmp_path / "open.yaml"
        open_config.write_text(
            "limits: {header_fields: 2}\nmilter: {on_error: accept}\ndelivery: {broken_rules: keep}\n"
        )
        open_config.chmod(0o644)
        got = json.loads(milterapp("test", "--config", str(open_config), *form, "--json", message=LETTER).stdout)
        assert word in (got["verdict"], *(one["action"] for one in got["deliveries"]))


def test_message_over_the_limit(milterapp: Milterapp, rules: str, tmp_path: Path) -> None:
    """A message larger than the configuration allows is not read."""
    config = tmp_path / "config.yaml"
    config.write_text("limits:\n  message_bytes: 10\n")
    config.chmod(0o644)
    ended = milterapp("test", "--config", str(config), "--rules", rules, message=LETTER)
    assert ended.returncode == os.EX_DATAERR
    assert "larger than limits.message_bytes, 10 bytes" in ended.stderr


def test_output_and_diff(milterapp: Milterapp, rules: str, tmp_path: Path) -> None:
    """--output writes the message as edited, every other byte as it came; --diff shows the edit."""
    out = tmp_path / "out.eml"
    message = LETTER.replace(b"\n", b"\r\n") + b"\xff\0 tail without end"
    out.write_bytes(b"x" * 1000)
    ended = milterapp("test", "--rules", rules, "--diff", "--output", str(out), message=message)
    assert ended.returncode == 0
    assert out.read_bytes() == message.replace(b"Subject: hello", b"Subject: [Greeting] hello")
    assert "-Subject: hello\n+Subject: [Greeting] hello\n" in ended.stdout


def test_output_is_untouched_where_nothing_was_decided(milterapp: Milterapp, tmp_path: Path) -> None:
    """A command that fails leaves the file to write as it was."""
    out = tmp_path / "out.eml"
    out.write_bytes(b"before")
    assert milterapp("test", "--rules", "nowhere.yaml", "--output", str(out), message=LETTER).returncode == 66
    assert out.read_bytes() == b"before"


def test_colour(milterapp: Milterapp, rules: str) -> None:
    """A pipe is not coloured, whatever the terminal."""
    assert "\x1b" not in milterapp("test", "--rules", rules, message=LETTER, TERM="xterm").stdout


def test_reply_guards(milterapp: Milterapp, tmp_path: Path) -> None:
    """A reply that the guards would not let out says why; one that may go says nothing."""
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - name: answer\n    then:\n      reply: hello\n")
    arguments = ["test", "--rules", str(path), "--json", "--recipient", "alice@example.org"]
    for message, refused in ((LETTER, None), (LIST, "List-Id marks a mailing list")):
        got = json.loads(milterapp(*arguments, message=message).stdout)["deliveries"][0]
        assert (got["action"], got["refused"]) == ("reply", refused)


def test_vacation_guards(milterapp: Milterapp, tmp_path: Path) -> None:
    """A vacation is said to be refused as submit would: by a guard, or since another answers; its addresses count."""
    path = tmp_path / "rules.yaml"
    rule = "  - name: r{0}\n    then:\n      vacation: {{text: x{0}, addresses: [alice@example.org]}}\n"
    path.write_text("rules:\n" + rule.format(1) + rule.format(2))
    arguments = ["test", "--rules", str(path), "--json", "--recipient", "al@else.example"]
    for message, refused in ((LETTER, None), (LIST, "List-Id marks a mailing list")):
        first, second = json.loads(milterapp(*arguments, message=message).stdout)["deliveries"][:2]
        assert (first["action"], first["refused"]) == ("vacation", refused)
        assert second["refused"] == "another vacation answers this message"


OWN = {
    "good": (0o600, 0o700, 0, "verdict: none"),
    "others-write": (0o606, 0o700, 65, "can be written by others, expected: chmod go-w"),
    "folder-others-write": (0o600, 0o707, 65, "can be written by others"),
}


@pytest.mark.parametrize(("mode", "folder_mode", "code", "said"), OWN.values(), ids=OWN)
def test_own_rules(milterapp: Milterapp, tmp_path: Path, mode: int, folder_mode: int, code: int, said: str) -> None:
    """Without --rules they are one's own, and only a file that delivery would take."""
    folder = tmp_path / "home/.milterapp"
    folder.mkdir(mode=0o700)
    (folder / "rules.yaml").write_text(RULES)
    (folder / "rules.yaml").chmod(mode)
    folder.chmod(folder_mode)
    ended = milterapp("test", message=LETTER)
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr


def test_own_rules_with_a_failed_test(milterapp: Milterapp, tmp_path: Path) -> None:
    """A failed test beside one's own rules is 1, as it is beside any other."""
    folder = tmp_path / "home/.milterapp"
    folder.mkdir(mode=0o700)
    (folder / "rules.yaml").write_text(
        RULES + "tests:\n  - name: wrong\n    message: |\n      Subject: hello\n\n      hello\n    expect: reject\n"
    )
    assert milterapp("test", message=LETTER).returncode == 1


def test_now(milterapp: Milterapp, tmp_path: Path) -> None:
    """--now is the time that rules see."""
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - name: by year\n    then:\n      file: 'Mail/${now.year}'\n")
    ended = milterapp("test", "--rules", str(path), "--now", "1999-12-31", "--expect", "file:Mail/1999", message=LETTER)
    assert ended.returncode == 0


@pytest.mark.root
def test_root_reads_somebodys_rules_as_that_person(milterapp: Milterapp, own: Path) -> None:
    """`--user` called by root: what a person wrote is not parsed with root's rights."""
    path = own / "rules.yaml"
    path.write_text("lists:\n  secret: {file: secret.txt}\nrules:\n  - name: a\n    then: keep\n")
    subprocess.run(["chown", "-R", "alice:", path.parent], check=True)
    secret = path.with_name("secret.txt")
    secret.write_text("root@example.org\n")
    for mode, code in ((0o644, 0), (0o600, os.EX_DATAERR)):  # root could read it either way
        secret.chmod(mode)
        ended = milterapp("test", "--user", "alice", "--expect", "keep", message=LETTER)
        assert ended.returncode == code, ended.stderr
    assert "the list 'secret.txt' cannot be read: Permission denied" in ended.stderr
