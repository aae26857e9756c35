"""Scripts on a real Postfix: an application of two states that is spoken to by mail, and what a broken one leaves."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header
from tests.soak.scripted import soak

pytestmark = [pytest.mark.root, pytest.mark.postfix]

MEMORY = Path("/home/bob/.milterapp/scripts.sqlite")
PAGE = Path("/home/bob/.milterapp/output/news/news/index.html")
RULES = """\
rules:
  - name: news
    if:
      recipient: {detail: {exists: yes}}
    then:
      script: news/news.py
"""
NEWS = """
from html import escape
from milterapp.script import *

@route("bob+{action:join}@{host}")
def START(mail, action, host):
    store["members"] = store.get("members", 0) + 1
    output["index.html"] = f"<p>{store['members']} members</p>"
    mail.reply(text="Welcome, " + mail.from_[0].name + ".", subject="You have joined")
    mail.discard()
    return MEMBER

@route("bob+{action:leave}@{host}")
@route("bob+news@{host}")
def MEMBER(mail, host, action="post"):
    if action == "leave":
        store["members"] = store["members"] - 1
        mail.reply(text="Good bye.")
        mail.discard()
        return START
    store["posts"] = store.get("posts", 0) + 1
    mail.send(to="carol@example.org", subject=HeaderText("[news] ", mail.subject), text=mail.text)
    mail.file("News")
"""


def letter(subject: str, to: str, sender: str = "dora@home.example") -> bytes:
    """Return a message that can be answered."""
    return message(subject, "Some news.\n", to=to, **{"from": f"Dora <{sender}>"})


def send(site: Site, to: str, subject: str = "hello", sender: str = "dora@home.example") -> str:
    """Send one to the application; return its queue id."""
    answer = site.send(letter(subject, to, sender), [to], sender=sender)
    assert answer.code == 250, answer
    return answer.queue_id


def remembered() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return what the application stored, and its states by sender."""
    with closing(sqlite3.connect(f"file:{MEMORY}?mode=ro", uri=True)) as found:
        stored = dict(found.execute("SELECT key, value FROM stored").fetchall())
        return stored, found.execute("SELECT sender, state FROM states ORDER BY sender").fetchall()


def application(site: Site, text: str = NEWS) -> None:
    """Give bob the application."""
    site.rules("bob", RULES)
    site.script("bob", "news/news.py", text)


def test_a_conversation(site: Site) -> None:
    """Joining is answered and remembered, a post by a member goes out and is filed, one by a stranger is just kept."""
    application(site)
    send(site, "bob+news@example.org", "from a stranger")
    site.settle()
    assert [header(one, "Subject") for one in site.inbox("bob")] == [["from a stranger"]]
    send(site, "bob+join@example.org")
    site.settle()
    (answer,) = site.elsewhere()
    assert header(answer, "X-Original-To") == ["dora@home.example"]
    assert header(answer, "Return-Path") == ["<>"]
    assert header(answer, "From") == ["bob+join@example.org"]
    assert header(answer, "Subject") == ["You have joined"]
    assert b"\n\nWelcome, Dora.\n" in answer
    assert PAGE.read_text() == "<p>1 members</p>"
    send(site, "bob+news@example.org", "the news")
    site.settle()
    (posted,) = site.inbox("carol")
    assert header(posted, "Subject") == ["[news] the news"]
    assert header(posted, "Return-Path") == ["<bob+news@example.org>"]
    assert [header(one, "Subject") for one in site.folders("bob")["News"]] == [["the news"]]
    send(site, "bob+leave@example.org")
    site.settle()
    assert remembered() == ({"members": "0", "posts": "1"}, [])
    assert len(site.elsewhere()) == 2
    assert len(site.inbox("bob")) == 1  # nothing but the stranger's


def test_a_script_that_fails(site: Site) -> None:
    """The message waits, bob is told once with a command that shows it; with the script mended it is handled."""
    application(site, NEWS.replace("mail.from_[0].name", "mail.from_[7].name"))
    queue_id = send(site, "bob+join@example.org")
    assert "IndexError" in site.deferred(queue_id, times=2).text
    # The notice is mail of its own, whole once it has left the queue; Postfix may take its time.
    site.wait(
        lambda: bool(site.inbox("bob")) and [one["queue_id"] for one in site.queue()] == [queue_id],
        "the notice to arrive", 30,
    )  # fmt: skip
    (notice,) = site.inbox("bob")
    assert header(notice, "Subject") == ["Your script news/news.py failed"]
    assert header(notice, "Auto-Submitted") == ["auto-generated"]
    text = re.sub(rb"=\n", b"", notice).replace(b"=3D", b"=").decode()
    assert "IndexError: tuple index out of range" in text
    found = re.search(r"milterapp test (--sender=\S+) (--recipient=\S+) < ~/(\S+)", text)
    assert found
    saved = Path("/home/bob", found[3]).read_bytes()
    again = site.milterapp("test", found[1], found[2], user="bob", message=saved)
    assert b"IndexError: tuple index out of range" in again.stderr
    assert b"verdict: defer" in again.stdout
    assert site.elsewhere() == []
    site.script("bob", "news/news.py", NEWS)
    rules = ("--rules", "/home/bob/.milterapp/rules.yaml")  # without what is remembered: Postfix may have tried again
    again = site.milterapp("test", *rules, found[1], found[2], user="bob", message=saved)
    assert b"next state MEMBER" in again.stdout
    site.settle()
    assert remembered() == ({"members": "1"}, [("dora@home.example", "MEMBER")])
    assert len(site.inbox("bob")) == 1
    assert len(site.elsewhere()) == 1


def test_many_at_once(site: Site) -> None:
    """Twenty senders at once: each is counted, and answered once, though agents are killed between."""
    application(site)
    senders = [f"s{number}@home.example" for number in range(20)]
    for number, sender in enumerate(senders):
        send(site, "bob+join@example.org", sender=sender)
        if number % 4 == 3:
            for pid in site.pids("agent"):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it had ended
    site.settle(120)
    stored, states = remembered()
    assert stored["members"] == "20"
    assert states == sorted((sender, "MEMBER") for sender in senders)
    assert PAGE.read_text() == "<p>20 members</p>"
    answered = sorted(header(one, "X-Original-To")[0] for one in site.elsewhere())
    assert answered == sorted(senders)


# What a script tries that has found its way round the list of imports. Each must fail.
ESCAPE = """
from milterapp.script import *
import typing
os = typing.sys.modules["os"]
load = __builtins__["__import__"].__globals__["builtins"].__import__

def attempts():
    socket, ctypes, threading = load("socket"), load("ctypes"), load("threading")
    libc = ctypes.CDLL(None, use_errno=True)
    yield "write beside", lambda: open("new", "w")
    yield "write home", lambda: open("/home/bob/new", "w")
    yield "write tmp", lambda: open("/tmp/new", "w")
    yield "change itself", lambda: open("news.py", "a")
    yield "its memory", lambda: open("../scripts.sqlite", "rb")
    yield "the journal", lambda: open("../journal.sqlite", "rb")
    yield "own mailbox", lambda: open("/var/mail/bob")
    yield "own folders", lambda: os.listdir("/home/bob/Maildir")
    yield "another home", lambda: os.listdir("/home/alice")
    yield "passwd", lambda: open("/etc/passwd")
    yield "proc", lambda: open("/proc/self/environ", "rb")
    yield "the agent's memory", lambda: open(f"/proc/{os.getppid()}/mem", "rb")
    yield "unlink", lambda: os.unlink("news.py")
    yield "chmod", lambda: os.chmod("news.py", 0o777)
    for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
        for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW", "SOCK_SEQPACKET"):
            yield f"{family} {kind}", lambda f=family, k=kind: socket.socket(getattr(socket, f), getattr(socket, k))
    yield "socket pair", socket.socketpair
    yield "connect", lambda: socket.create_connection(("127.0.0.1", 25), timeout=1)
    yield "resolve", lambda: socket.getaddrinfo("example.org", 25)
    yield "fork", os.fork
    yield "thread", lambda: threading.Thread(target=print).start()
    yield "exec", lambda: os.execv("/bin/true", ["true"])
    yield "spawn", lambda: os.posix_spawn("/bin/true", ["true"], {})
    yield "kill the agent", lambda: os.kill(os.getppid(), 9)
    yield "kill all", lambda: os.kill(-1, 9)
    yield "become root", lambda: os.setresuid(0, 0, 0)
    yield "chroot", lambda: os.chroot(".")
    yield "nice", lambda: os.nice(-5)
    yield "more memory", lambda: load("resource").setrlimit(load("resource").RLIMIT_AS, (-1, -1))

    def call(*numbers):
        if libc.syscall(*map(ctypes.c_long, numbers)) < 0:
            raise OSError(ctypes.get_errno(), "")

    for name, numbers in SYSCALLS:
        yield name, lambda numbers=numbers: call(*numbers)

SYSCALLS = [
    ("ptrace", (101, 16, 1, 0, 0)), ("process_vm_readv", (310, 1, 0, 0, 0, 0, 0)), ("unshare", (272, 0x10000000)),
    ("mount", (165, 0, 0, 0, 0, 0)), ("bpf", (321, 0, 0, 0)), ("keyctl", (250, 0, -3, 1)),
    ("io_uring_setup", (425, 1, 0)), ("userfaultfd", (323, 0)), ("memfd_create", (319, 0, 0)),
    ("clone", (56, 0x4111, 0, 0, 0, 0)), ("perf_event_open", (298, 0, 0, 0, 0, 0)),
]

def main(mail):
    out = []
    for name, act in attempts():
        try:
            act()
        except (OSError, RuntimeError, ValueError):
            continue
        out.append(name)
    store["escaped"] = out
    mail.discard()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are x86-64's")
def test_escapes(site: Site) -> None:
    """A hostile script run by the real agent tries everything at once, and nothing of it works."""
    application(site, ESCAPE)
    send(site, "bob+news@example.org")
    site.settle()
    stored, _ = remembered()
    assert stored == {"escaped": '["l"]'}, site.service_log("monitor")[-1000:]


BOUNDS: dict[str, tuple[str, str]] = {
    "memory": ("kept = []\n    while True: kept.append(bytearray(1 << 20))", "MemoryError"),
    "recursion": ("def again(): again()\n    again()", "RecursionError"),
    "a huge plan": ("for n in range(500): mail.reply(text='x' * 250_000)", "more text than"),
    "a fork bomb": ("import typing\n    os = typing.sys.modules['os']\n    while True: os.fork()", "PermissionError"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(site: Site, name: str) -> None:
    """A script that takes too much defers its own message; the next one, of alice, is not disturbed."""
    body, said = BOUNDS[name]
    application(site, f"from milterapp.script import *\ndef main(mail):\n    {body}\n")
    queue_id = send(site, "bob+news@example.org")
    assert said in site.deferred(queue_id).text
    site.send(letter("for alice", "alice@example.org"), ["alice@example.org"])
    site.wait(lambda: len(site.inbox("alice")) == 1, "alice's mail", 60)


def test_a_model_knows_what_happened(site: Site) -> None:
    """Eighty messages of twenty senders while everything is killed: each is handled, remembered and answered once."""
    model, blows = soak(site, messages=80, blows=20, seed=3)
    assert blows.total() >= 20
    assert model.seen >= 80
    assert model.defects == []


SORRY = """
from milterapp.script import *

@route("bob+news@{host}")
def START(mail, host):
    store["half"] = 1
    if "open" in mail.subject:
        mail.reply(text="Here you are.")
        mail.discard()
    else:
        raise ValueError("shut")

@route("bob+news@{host}")
def ERROR(mail, host):
    mail.reply(text="Sorry, it is broken.")
    mail.discard()
    if "open" in mail.subject:
        return START
"""


def test_error_answers_whoever_met_a_failure(site: Site) -> None:
    """The sender reads an apology, the author one letter, nothing waits, and another sender notices nothing."""
    application(site, SORRY)
    for subject, sender in (("shut", "dora"), ("shut", "dora"), ("open", "ann"), ("open", "dora"), ("open", "dora")):
        send(site, "bob+news@example.org", subject, f"{sender}@home.example")
        site.settle()
    heard = sorted((header(one, "To")[0], b"Sorry" in one) for one in site.elsewhere())
    assert heard == [("ann@home.example", False), *[("dora@home.example", False)], *[("dora@home.example", True)] * 3]
    (told,) = site.inbox("bob")
    assert b"ERROR answered then" in told
    assert b"ValueError: shut" in told
    assert remembered() == ({"half": "1"}, [])


def test_lists_of_the_site(site: Site) -> None:
    """A script asks a list of the site's, and a change of it counts from the next message on."""
    before = Path("/etc/milterapp/before.yaml")
    listed = "lists:\n  partners: [{}]\nrules:\n  - name: none\n    if: {{subject: never}}\n    then: stop\n"
    application(site, "def main(mail):\n    mail.file('In' if mail.sender in site['partners'] else 'Out')\n")
    script = Path("/home/bob/.milterapp/news/news.py")
    script.write_text("from milterapp.script import site\n" + script.read_text())
    with site.configured(f"delivery:\n  rules_before: {before}\n", "monitor"):
        for change in (".home.example", "ann@home.example, somebody@home.example"):
            before.write_text(listed.format(change))
            send(site, "bob+news@example.org", change)
            site.settle()
    before.unlink()
    found = {name: [header(one, "Subject")[0] for one in mails] for name, mails in site.folders("bob").items()}
    assert found == {"In": [".home.example"], "Out": ["ann@home.example, somebody@home.example"]}
