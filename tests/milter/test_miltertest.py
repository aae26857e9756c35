"""The milter, spoken to by miltertest(8), which OpenDKIM tests with: another reading of the protocol than peer.py's.

packaging/prepare unpacks it (Debian's miltertest); without it these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.milter.conftest import Serve, Service

UNPACKED = Path(__file__).resolve().parents[2] / ".venv/miltertest"
PROGRAM = UNPACKED / "usr/bin/miltertest"

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="no miltertest: packaging/prepare could not get Debian's package"
)

RULES = """\
rules:
  - name: name
    if: {helo: bad.example}
    then: {reject: "5.7.1 not by that name"}
  - name: bob
    if: {recipient: bob@example.org}
    then: {reject: "5.7.2 not bob"}
  - name: offers
    if: {subject: {contains: offer}}
    then: {defer: "4.7.3 no offers today"}
  - name: marked
    if: {subject: {contains: invoice}}
    then:
      - add_header: {X-Site: outside}
      - set_header: {X-One: new}
      - prepend_header: {X-Top: first}
      - remove_header: X-Two
      - footer: The end
      - add_recipient: carol@example.org
      - remove_recipient: alice@example.org
  - name: odd
    if: {subject: {contains: odd}}
    then:
      hold: a look
  - name: void
    if: {body: {contains: void}}
    then: discard
"""

# What every script begins with. say: does a step, and the script ends where the milter answers otherwise.
COMMON = """\
mt.set_timeout(60)
function open(helo)
  local conn = mt.connect(socket, 40, 0.25)
  if conn == nil then error("no connection") end
  say("connect", mt.conninfo(conn, "mail.example.net", "192.0.2.1"), conn, SMFIR_CONTINUE)
  return conn
end
function say(what, failed, conn, want)
  if failed ~= nil then error(what .. ": " .. failed) end
  local got = mt.getreply(conn)
  if got ~= want then error(what .. ": answered " .. string.char(got) .. ", not " .. string.char(want)) end
end
function begin(conn, recipient)
  say("mail", mt.mailfrom(conn, "<a@example.net>"), conn, SMFIR_CONTINUE)
  say("rcpt", mt.rcptto(conn, recipient or "<alice@example.org>"), conn, SMFIR_CONTINUE)
  mt.macro(conn, SMFIC_RCPT, "i", "4cX")
  say("data", mt.data(conn), conn, SMFIR_CONTINUE)
end
function check(conn, op, ...)
  if not mt.eom_check(conn, op, ...) then error("not done: " .. op .. " " .. table.concat({...}, " ")) end
end
"""

SCRIPTS = {
    "refused at HELO": """
conn = open()
say("helo", mt.helo(conn, "bad.example"), conn, SMFIR_REPLYCODE)
""",
    "one recipient refused": """
conn = open()
say("helo", mt.helo(conn, "good.example"), conn, SMFIR_CONTINUE)
say("mail", mt.mailfrom(conn, "<a@example.net>"), conn, SMFIR_CONTINUE)
say("bob", mt.rcptto(conn, "<bob@example.org>"), conn, SMFIR_REPLYCODE)
say("alice", mt.rcptto(conn, "<alice@example.org>"), conn, SMFIR_CONTINUE)
""",
    "deferred by its header": """
conn = open()
begin(conn)
say("header", mt.header(conn, "Subject", "an offer"), conn, SMFIR_CONTINUE)
say("eoh", mt.eoh(conn), conn, SMFIR_REPLYCODE)
""",
    "edited": """
conn = open()
begin(conn)
for _, one in ipairs({{"Subject", "an invoice"}, {"X-One", "old"}, {"X-Two", "1"}, {"X-Two", "2"}}) do
  say("header", mt.header(conn, one[1], one[2]), conn, SMFIR_CONTINUE)
end
say("eoh", mt.eoh(conn), conn, SMFIR_CONTINUE)
say("body", mt.bodystring(conn, "hello\\r\\n"), conn, SMFIR_CONTINUE)
say("eom", mt.eom(conn), conn, SMFIR_ACCEPT)
check(conn, MT_HDRADD, "X-Site", " outside")
check(conn, MT_HDRCHANGE, "X-One", " new")
check(conn, MT_HDRINSERT, "X-Top", " first")
check(conn, MT_HDRDELETE, "X-Two")
check(conn, MT_RCPTADD, "<carol@example.org>")
check(conn, MT_RCPTDELETE, "<alice@example.org>")
check(conn, MT_BODYCHANGE)
""",
    "held, then another on the same connection": """
conn = open()
begin(conn)
say("header", mt.header(conn, "Subject", "odd"), conn, SMFIR_CONTINUE)
say("eoh", mt.eoh(conn), conn, SMFIR_CONTINUE)
say("body", mt.bodystring(conn, "hello\\r\\n"), conn, SMFIR_SKIP)
say("eom", mt.eom(conn), conn, SMFIR_ACCEPT)
check(conn, MT_QUARANTINE, "a look")
mt.abort(conn)
begin(conn)
say("header", mt.header(conn, "Subject", "plain"), conn, SMFIR_CONTINUE)
say("eoh", mt.eoh(conn), conn, SMFIR_CONTINUE)
say("body", mt.bodystring(conn, "into the void\\r\\n"), conn, SMFIR_CONTINUE)
say("eom", mt.eom(conn), conn, SMFIR_DISCARD)
""",
}

# Steps in any order, with any values, ended in any way.
GARBAGE = """\
mt.set_timeout(1)
math.randomseed(seed)
words = {"", "<>", "<bob@example.org>", "x", string.rep("y", 300), "\\255\\254", "%", "a\\r\\nb", "Subject", "offer"}
function word() return words[math.random(#words)] end
steps = {
  function(c) return mt.conninfo(c, word(), "192.0.2.7") end,
  function(c) return mt.conninfo(c, "mail.example.net", "unspec") end,
  function(c) return mt.helo(c, word()) end,
  function(c) return mt.macro(c, SMFIC_MAIL, "{auth_authen}", word()) end,
  function(c) return mt.mailfrom(c, word()) end,
  function(c) return mt.rcptto(c, word()) end,
  function(c) return mt.data(c) end,
  function(c) return mt.header(c, word(), word()) end,
  function(c) return mt.eoh(c) end,
  function(c) return mt.bodystring(c, word()) end,
  function(c) return mt.bodyrandom(c, 70000) end,
  function(c) return mt.eom(c) end,
  function(c) return mt.abort(c) end,
  function(c) return mt.unknown(c, word()) end,
}
for number = 1, 30 do
  local conn = mt.connect(socket, 40, 0.25)
  if conn == nil then error("no connection") end
  pcall(mt.negotiate, conn, math.random(2, 6), nil, nil)
  for _ = 1, math.random(12) do
    local good, failed = pcall(steps[math.random(#steps)], conn)
    if not good or failed ~= nil then break end
  end
  pcall(mt.disconnect, conn, math.random(2) == 1)
end
"""


def run(service: Service, script: str, folder: Path, **values: str) -> subprocess.CompletedProcess[str]:
    """Run a script against the service. values: its global variables."""
    file = folder / "script.lua"
    file.write_text(script, encoding="latin-1")
    given = {"socket": f"unix:{service.socket}", **values}
    return subprocess.run(
        [str(PROGRAM), *(part for item in given.items() for part in ("-D", "=".join(item))), "-s", str(file)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
        restore_signals=False,  # SIGPIPE stays ignored: where the milter has hung up, its write fails and no more
        env={"LD_LIBRARY_PATH": str(UNPACKED / "usr/lib/x86_64-linux-gnu"), "PATH": os.defpath},
    )


def test_conversations(serve: Serve, tmp_path: Path) -> None:
    """Every answer and every edit is what the rules say, as miltertest reads them; a script that errs is told apart."""
    service = serve(RULES)
    for name, script in SCRIPTS.items():
        ended = run(service, COMMON + script, tmp_path)
        assert (ended.returncode, ended.stderr) == (0, ""), name
    wrong = SCRIPTS["refused at HELO"].replace("SMFIR_REPLYCODE", "SMFIR_CONTINUE")
    assert run(service, COMMON + wrong, tmp_path).returncode != 0


def test_garbage(serve: Serve, tmp_path: Path) -> None:
    """After steps in any order, with any values, the same worker is there, holds nothing, and still refuses."""
    service = serve(RULES)
    (worker,) = service.status()["workers"]
    before = len(os.listdir(f"/proc/{worker}/fd"))
    assert run(service, GARBAGE, tmp_path, seed="1").returncode == 0
    assert service.status()["workers"] == [worker]
    service.wait(lambda: len(os.listdir(f"/proc/{worker}/fd")) <= before + 4, "the connections to be closed", 60)
    peer = service.peer()
    peer.connect()
    assert peer.helo(b"bad.example").text == "550 5.7.1 not by that name"
