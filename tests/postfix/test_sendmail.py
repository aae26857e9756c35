"""The milter behind Sendmail, Debian's, unpacked and not installed (packaging/unpack): it cannot stand beside Postfix.

Sendmail speaks the milter protocol unlike Postfix in places: it puts the blank after a header's colon itself, ends a
body within its last packet, and gives its own queue ids.
"""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postfix.harness import PYTHON, in_world, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

UNPACKED = Path("/opt/milterapp/.venv/sendmail")
PROGRAM = UNPACKED / "usr/libexec/sendmail/sendmail"
MACROS = UNPACKED / "usr/share/sendmail/cf"
PLACE = Path("/home/sendmail")  # below no directory that others may write to: Sendmail would not trust the socket
PORT = 2525
ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"

RULES = """\
rules:
  - name: bad name
    if: {helo: bad.example}
    then: {reject: "5.7.1 Not by that name"}
  - name: bob
    if: {recipient: bob@example.org}
    then: {reject: "5.7.2 100% not Bob"}
  - name: offers
    if: {subject: {contains: offer}}
    then: {reject: "554 5.7.3 No offers, and no others"}
  - name: marked
    if: {subject: {contains: invoice}}
    then:
      - prefix_subject: "[External]"
      - add_header: {X-Site: caf\u00e9}
      - remove_header: X-Tracking
      - footer: The end
      - add_recipient: carol@example.org
  - name: exchanged
    if: {subject: {contains: exchange}}
    then:
      - set_sender: other@home.example
      - remove_recipient: alice@example.org
      - add_recipient: carol@example.org
  - name: silence
    if: {body: {contains: into the void}}
    then: discard
"""
CONFIGURATION = """\
divert(0)dnl
OSTYPE(`linux')dnl
FEATURE(`nouucp', `reject')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
define(`confDOMAIN_NAME', `mx.example.org')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confQUEUE_LA', `10000')dnl
define(`confREFUSE_LA', `10000')dnl
define(`QUEUE_DIR', `%PLACE%/queue')dnl
define(`confPID_FILE', `%PLACE%/pid')dnl
define(`STATUS_FILE', `%PLACE%/status')dnl
define(`ALIAS_FILE', `')dnl
define(`LOCAL_MAILER_PATH', `%PLACE%/deliver')dnl
define(`LOCAL_MAILER_ARGS', `deliver $u')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-A')dnl
DAEMON_OPTIONS(`Name=MTA, Family=inet, Addr=127.0.0.1, Port=%PORT%')dnl
INPUT_MAIL_FILTER(`milterapp', `S=local:%PLACE%/milter/socket, F=T, T=S:60s;R:60s;E:120s')dnl
LOCAL_DOMAIN(`example.org')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""
DELIVER = f"""\
#!/bin/sh
umask 022
for person; do :; done # the last argument
cat > {PLACE}/mail/.$person.$$ && mv {PLACE}/mail/.$person.$$ {PLACE}/mail/$person.$$
"""
SETTINGS = f"""\
milter:
  socket: {PLACE}/milter/socket
  socket_group: mail
  rules: {PLACE}/rules.yaml
"""


def wait(done: Callable[[], object], what: str, deadline: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + deadline
    while not done():
        if time.monotonic() > end:
            files = [*PLACE.glob("*.log"), *PLACE.glob("queue/qf*"), *PLACE.glob("mail/*"), *PLACE.glob("mail/.*")]
            logs = "\n".join(f"-- {one}\n{one.read_text(errors='replace')[-3000:]}" for one in files)
            raise AssertionError(f"waited {deadline} s for {what}\n{logs}")
        time.sleep(0.05)


def listens() -> bool:
    """Tell whether Sendmail takes connections."""
    try:
        socket.create_connection(("127.0.0.1", PORT), 5).close()
    except OSError:
        return False
    return True


def filters() -> bool:
    """Tell whether the milter takes connections; its socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(PLACE / "milter/socket")) == 0


@pytest.fixture(scope="module")
def sendmail() -> Iterator[Path]:
    """A Sendmail with the milter attached; where it puts mail."""
    if not in_world():
        pytest.fail("these tests run a mail server: run them through packaging/test", pytrace=False)
    if not PROGRAM.exists():
        pytest.skip("no Sendmail: packaging/prepare could not get Debian's sendmail-bin")
    for name in ("queue", "mail"):
        (PLACE / name).mkdir(parents=True)
    (PLACE / "queue").chmod(0o700)
    (PLACE / "mail").chmod(0o1777)
    (PLACE / "deliver").write_text(DELIVER)
    (PLACE / "deliver").chmod(0o755)
    (PLACE / "rules.yaml").write_text(RULES)
    (PLACE / "milterapp.yaml").write_text(SETTINGS)
    source = CONFIGURATION.replace("%PLACE%", str(PLACE)).replace("%PORT%", str(PORT))
    (PLACE / "sendmail.mc").write_text(source)
    m4 = shutil.which("m4", path=f"{UNPACKED}/usr/bin:{os.defpath}:/usr/bin")
    made = subprocess.run(
        [str(m4), f"-D_CF_DIR_={MACROS}/", str(MACROS / "m4/cf.m4"), str(PLACE / "sendmail.mc")],
        check=True,
        capture_output=True,
    )
    (PLACE / "sendmail.cf").write_bytes(made.stdout)
    libraries = {"LD_LIBRARY_PATH": f"{UNPACKED}/usr/lib/x86_64-linux-gnu", "PATH": "/usr/bin:/bin"}
    commands: tuple[tuple[str, list[str], dict[str, str]], ...] = (
        ("milterapp", [PYTHON, "-I", "-m", "milterapp", "milter", "--config", str(PLACE / "milterapp.yaml")], {}),
        ("sendmail", [str(PROGRAM), "-C", str(PLACE / "sendmail.cf"), "-bD"], libraries),
    )
    running = []
    try:
        for name, command, environment in commands:
            with (PLACE / f"{name}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/",
                        start_new_session=True,
                    )
                )  # fmt: skip
            ready = listens if name == "sendmail" else filters
            wait(ready, f"{name} to take connections")
        yield PLACE / "mail"
    finally:
        for one in reversed(running):
            os.killpg(one.pid, signal.SIGTERM)
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()


def send(data: bytes, recipients: list[str], helo: str = "client.example") -> tuple[int, bytes]:
    """Send a message; return the reply to DATA, or the one that ended it before."""
    with smtplib.SMTP("127.0.0.1", PORT, helo, timeout=120) as smtp:
        smtp.ehlo()
        code, text = smtp.mail("dora@home.example", [])
        if code != 250:
            return code, text
        refused = [answer for one in recipients if (answer := smtp.rcpt(one))[0] != 250]
        if len(refused) == len(recipients):
            return refused[0]
        return smtp.data(data)


def arrived(mail: Path, person: str, token: str) -> list[bytes]:
    """Return what arrived for somebody that holds a text."""
    found = [one.read_bytes() for one in mail.glob(f"{person}.*")]
    return [one for one in found if token.encode() in one]


def test_refused_by_its_header(sendmail: Path) -> None:
    """The client hears the rule's own code, status and text."""
    assert send(message("an offer"), [ALICE]) == (554, b"5.7.3 No offers, and no others")
    assert arrived(sendmail, "alice", "an offer") == []


def test_refused_by_name(sendmail: Path) -> None:
    """A refusal at HELO is what the client hears at HELO or MAIL, whichever Sendmail makes of it."""
    assert send(message("x"), [ALICE], helo="bad.example") == (550, b"5.7.1 Not by that name")


def test_one_recipient_refused(sendmail: Path) -> None:
    """One recipient is refused, with one per cent sign, and the message goes to the other; Sendmail names whom."""
    with smtplib.SMTP("127.0.0.1", PORT, "client.example", timeout=120) as smtp:
        smtp.ehlo()
        smtp.mail("dora@home.example")
        assert smtp.rcpt(BOB) == (550, b"5.7.2 <bob@example.org>... 100% not Bob")
        assert smtp.rcpt(ALICE)[0] == 250
        assert smtp.data(message("only one"))[0] == 250
    wait(lambda: arrived(sendmail, "alice", "only one"), "the message")
    assert arrived(sendmail, "bob", "only one") == []


def test_edited_and_delivered(sendmail: Path) -> None:
    """Subject, headers, body and recipients are edited, and the message is delivered."""
    data = message("an invoice", "Please pay.\n", x_tracking="1", x_other="kept")
    assert send(data, [ALICE])[0] == 250
    wait(lambda: arrived(sendmail, "alice", "an invoice") and arrived(sendmail, "carol", "an invoice"), "two copies")
    (found,) = arrived(sendmail, "alice", "an invoice")
    assert header(found, "Subject") == ["[External] an invoice"]
    assert b"\nSubject: [External]" in found  # one blank, not two and not none
    assert [one.lower() for one in header(found, "X-Site")] == ["=?utf-8?b?y2fmw6k=?="]
    assert (header(found, "X-Tracking"), header(found, "X-Other")) == ([], ["kept"])
    body = found.partition(b"\n\n")[2]
    assert body.startswith(b"Please pay.")
    assert body.rstrip().endswith(b"The end")


def test_envelope(sendmail: Path) -> None:
    """Sender and recipients are exchanged."""
    assert send(message("an exchange"), [ALICE])[0] == 250
    wait(lambda: arrived(sendmail, "carol", "an exchange"), "the message")
    (found,) = arrived(sendmail, "carol", "an exchange")
    assert header(found, "Return-Path") == ["<other@home.example>"]
    assert arrived(sendmail, "alice", "an exchange") == []


@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "of several packets"])
def test_the_whole_body_is_read(sendmail: Path, size: int) -> None:
    """What stands at the very end of the body decides; the next message on the connection is another."""
    filler = "line\n" * (size // 5)
    with smtplib.SMTP("127.0.0.1", PORT, "client.example", timeout=120) as smtp:
        smtp.ehlo()
        smtp.sendmail("dora@home.example", [ALICE], message(f"gone {size}", f"{filler}into the void\n"))
        smtp.sendmail("dora@home.example", [ALICE], message(f"stays {size}", f"{filler}the end\n"))
    wait(lambda: arrived(sendmail, "alice", f"stays {size}"), "the message that stays")
    assert arrived(sendmail, "alice", f"gone {size}") == []
