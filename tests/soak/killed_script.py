"""The agent as what is killed while a rule's script stores, writes files, sends, answers and changes its state."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass

from milterapp.delivery import sandbox
from tests.delivery.agent_process import Person, Submit
from tests.soak.killed_agent import AgentCase

__all__ = ["SCRIPT"]

RULES = "rules:\n  - name: app\n    then:\n      script: apps/page.py\n"
SOURCE = """
from milterapp.script import *

@route("{page}@{host}")
def START(mail, page, host):
    store["count"] = store.get("count", 0) + 1
    store[mail.sender] = mail.subject
    output["a/page.html"] = "<p>" * 1000
    output["index.html"] = f"{store['count']}"
    mail.add_header("X-Mark", "seen")
    mail.send(to="carol@example.org", subject="new", text="x")
    mail.reply(text="done")
    mail.file("Pages")
    return OPEN

@route("{page}@{host}")
def OPEN(mail, page, host):
    store["count"] = store["count"] + 1
    mail.discard()
"""
STORED = {"ann@example.org": '["u","hello"]', "count": "1"}
FILES = {"a/page.html": "<p>" * 1000, "index.html": "1"}


@dataclass(frozen=True)
class ScriptCase(AgentCase):
    """One message for a script; what it changes must be there once, whole or not at all, and before anything leaves."""

    def _prepare(self, person: Person) -> None:
        sandbox.prepare()  # as the zygote does
        person.write(RULES)
        person.write(SOURCE, ".milterapp/apps/page.py")

    def _findings(self, person: Person, submit: Submit, done: bool) -> list[str]:
        findings = super()._findings(person, submit, done)
        stored, states, waiting = _memory(person)
        out = person.home / ".milterapp/output/apps/page"
        files = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.html")}
        if (stored, states) not in (({}, []), (STORED, ["OPEN"])) or not files.items() <= FILES.items():
            findings.append("corrupted")
        left = [kind for _, kind, _ in submit.sent if kind != "NOTICE"]
        if not stored and (files or left or person.mail("Maildir/.Pages")):
            findings.append("false success")  # something left that was not decided
        if done and (not stored or waiting or files != FILES or list(out.rglob(".*"))):
            findings.append("lost")
        return findings


def _memory(person: Person) -> tuple[dict[str, str], list[str], int]:
    """Return what is stored, the states, and how many files still wait."""
    path = person.home / ".milterapp/scripts.sqlite"
    if not path.exists():
        return {}, [], 0
    with closing(sqlite3.connect(path)) as found:
        if not found.execute("PRAGMA user_version").fetchone()[0]:
            return {}, [], 0  # its tables are not there yet
        return (
            dict(found.execute("SELECT key, value FROM stored").fetchall()),
            [state for (state,) in found.execute("SELECT state FROM states")],
            len(found.execute("SELECT number FROM outputs").fetchall()),
        )


SCRIPT = ScriptCase("script", RULES, ("Maildir/.Pages",), ("REPLY", "SEND"))
