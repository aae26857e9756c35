"""A script in its process, as an agent runs it: the whole way from source to plan, and what it meets on the way out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from milterapp.delivery.sandbox import Bounds
from milterapp.script import memory
from milterapp.script.actions import File, Reply, Store
from milterapp.script.memory import Remembered
from milterapp.script.plan import Failure, Plan, decode
from milterapp.script.run import work
from tests.delivery.agent_like import UID, Run, as_agent
from tests.script.sample import job

pytestmark = pytest.mark.root

STORED = Remembered({("dev",): "POSTING"}, {"count": (False, "41")})


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Make a home of uid 20001 with a mailbox, and a folder for scripts with a file beside them."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "scripts").mkdir()
        (top / "scripts/words.txt").write_text("beside")
        (top / "mailbox").write_text("private")
        for path in (top / "scripts", *top.rglob("*")):
            os.chown(path, UID, UID)
        yield top


def ran(home: Path, source: str, to: str = "page@example.com", **bounds: int) -> Plan | Failure | str:
    """Return what an agent gets of a script, or the reason why it gets nothing."""
    run = Run(work(job(source, to=to)), str(home / "scripts"), Bounds(**bounds), partial(memory.answer, STORED))
    how, text = as_agent(run)
    return decode(text.encode()) if how == "answer" else str(how)


def test_a_plain_script(home: Path) -> None:
    """It reads the message, its memory and the file beside it, and its plan arrives."""
    source = """
        from milterapp.script import Mailbox, store

        def main(mail):
            store["count"] = store["count"] + 1
            mail.file(Mailbox("Pages", mail.subject))
            mail.reply(text=open("words.txt").read() + mail.text)
    """
    store, file = Store("count", False, "42"), File(("Pages", "Grüße"))
    assert ran(home, source) == Plan((store, file, Reply("besidehello\nworld\n")))


def test_an_application(home: Path) -> None:
    """States are asked for with their captures, and the next one comes with the plan."""
    source = """
        from milterapp.script import route

        @route("{list}-subscribe@{host}", per="list")
        def START(mail, list, host): return POSTING

        @route("{list}@{host}", per="list")
        def POSTING(mail, list, host):
            mail.reply(text=list)
            return START
    """
    assert ran(home, source, "dev@h") == Plan((Reply("dev"),), "START", ("dev",))
    assert ran(home, source, "new-subscribe@h") == Plan((), "POSTING", ("new",))
    assert ran(home, source, "new@h") == Plan(routed=False)


# A script that has found its way round the list of imports: only the walls of the sandbox are left.
WAY_ROUND = """
import typing
os = typing.sys.modules["os"]
def main(mail):
    {}
"""
ESCAPES = {
    "open-mailbox": "open('../mailbox')",
    "write": "open('words.txt', 'w')",
    "list-home": "os.listdir('..')",
    "proc": "open('/proc/self/maps')",
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "kill": "os.kill(os.getppid(), 9)",
    "system": "assert os.system('true') == 0, PermissionError",
    "socket": "__builtins__['__import__'].__globals__['builtins'].__import__('socket').socket()",
    "new-import": "__builtins__['__import__'].__globals__['builtins'].__import__('sqlite3').connect('a.db')",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_past_the_list_of_imports(name: str, home: Path) -> None:
    """A script that gets hold of what it cannot import still gets nowhere, and its author reads why."""
    found = ran(home, WAY_ROUND.format(ESCAPES[name]))
    assert isinstance(found, Failure)
    assert found.kind in ("PermissionError", "OperationalError", "AssertionError"), found


BOUNDS = {
    "endless": ("while True: pass", "cpu"),
    "a huge plan": ("for n in range(400): mail.reply(text='x' * 250_000)", "memory output Failure"),
    "a huge text": ("mail.reply(text='x' * 10**9)", "Failure memory"),
    "leaves": ("__import__('typing').sys.modules['os']._exit(0)", "crashed"),
    "forges an answer": ("__import__('typing').sys.modules['os'].write(3, b'=\\x04\\0\\0\\0ok\\n\\n')", "protocol"),
    "asks without end": ("while True: store.get('a')", "output"),
    "a pattern that backtracks": ("__import__('re').match('(a*)*b', 'a' * 40)", "cpu"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str, home: Path) -> None:
    """A script that takes too much, or speaks for its process, gives no plan."""
    body, want = BOUNDS[name]
    source = f"from milterapp.script import store\ndef main(mail):\n    {body}\n"
    found = ran(home, source, cpu=1, memory=100 << 20, questions=100)
    assert isinstance(found, (str, Failure))
    assert (found if isinstance(found, str) else "Failure") in want.split(), found
