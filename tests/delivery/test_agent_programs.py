"""Programs in personal rules, by a real agent with a real uid: what runs, what is done once, and what waits."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milterapp.delivery import sandbox
from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.programs import Programs
from milterapp.settings import Program
from tests.delivery.agent_process import MESSAGE, UID, AgentProcess, Person, Start, Submit
from tests.delivery.chain import descendants, wait_gone

pytestmark = pytest.mark.root

STAMPED = MESSAGE.replace(b"From:", b"X-Original-To: info@x.org\nDelivered-To: bob@x.org\nFrom:", 1)
PIPE = "rules:\n  - name: it\n    then:\n      pipe: it\n"
FILTER = "rules:\n  - name: it\n    then:\n      - filter: it\n      - file: A\n"
COMMAND = "rules:\n  - name: it\n    if:\n      command: it\n    then:\n      file: A\n"
COUNT = "echo >>runs; "  # a line in the home for each run


def sh(script: str, **bounds: Any) -> dict[str, dict[str, Any]]:
    """Return the site's programs as settings have them: one, `it`, a shell script."""
    return {"it": dataclasses.asdict(Program(("/bin/sh", "-c", script, "it"), **({"time": 60.0} | bounds)))}


Deliver = Callable[..., Any]


@pytest.fixture
def start(person: Person, start: Start) -> Start:
    """Give what starts agents of that user with rules and a program."""

    def started(rules: str, script: str, **bounds: Any) -> AgentProcess:
        person.write(rules)
        return start(programs=sh(script, **bounds))

    return started


def runs(person: Person) -> int:
    """Return how often the program ran."""
    path = person.home / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_pipe(person: Person, start: Start) -> None:
    """`pipe` gives the message, as a mailbox would hold it, with its arguments as words; nothing else is delivered."""
    rules = (
        "rules:\n  - name: it\n    then:\n"
        "      pipe: {program: it, arguments: [news, '${subject}', 'from=${from.address}']}\n"
    )
    submit = Submit()
    agent = start(rules, 'printf "%s\\n" "$@" "$SENDER" "$RECIPIENT" "$EXTENSION" >given; cat >message')
    message = MESSAGE.replace(b"hello", b"-rf $(touch x) `id`; *")
    result = agent.deliver(submit, message, recipient="bob+news@x.org")
    assert (result.status, submit.asked) == ("ok", [])
    assert (person.home / "given").read_text().splitlines() == [
        "news", "_-rf $(touch x) `id`; *", "from=ann@example.org", "ann@example.org", "bob+news@x.org", "news",
    ]  # fmt: skip
    want = STAMPED.replace(b"hello", b"-rf $(touch x) `id`; *").replace(b"To: bob@x", b"To: bob+news@x", 1)
    assert (person.home / "message").read_bytes() == want
    assert result.event["outcomes"] == {"0": "done it"}
    assert result.event["programs"][0] | {"seconds": 0} == {"program": "it", "ended": "exit 0", "seconds": 0}


def test_a_pipe_is_done_once(person: Person, start: Start) -> None:
    """A retry of what was piped runs nothing."""
    agent = start(PIPE, COUNT)
    assert [agent.deliver(Submit()).status for _ in range(2)] == ["ok", "ok"]
    assert runs(person) == 1


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("exit 1", "pipe: it ended with status 1", id="status 1"),
        pytest.param("exit 75", "pipe: it ended with status 75", id="status 75"),
        pytest.param("exit 77", "pipe: it ended with status 77", id="what pipe(8) would bounce"),
        pytest.param("kill -9 $$", "pipe: it was ended by SIGKILL", id="a signal"),
        pytest.param("while :; do :; done", "", id="no end"),
        pytest.param("while :; do echo 5.7.1 flood; done", "pipe: it wrote too much", id="a flood"),
    ],
)
def test_a_pipe_that_fails_waits(person: Person, start: Start, script: str, why: str) -> None:
    """However a program fails, the message waits, never bounces, and is not kept as well; the next attempt tries it."""
    program = COUNT + "[ -e mended ] && exit 0; " + script
    submit = Submit()
    result = start(PIPE, program, time=60.0 if why else 2.0, output=100_000).deliver(submit)
    assert (result.status, submit.asked) == ("defer", [])
    assert result.text.startswith(why)
    (person.home / "mended").touch()
    assert start(PIPE, program).deliver(submit).status == "ok"
    assert (person.home / "runs").exists()
    assert submit.asked == []


def test_what_it_says_is_for_the_log(start: Start) -> None:
    """Its words stand in the event; what Postfix may tell the sender has none of them."""
    result = start(PIPE, "echo secret >&2; exit 1").deliver(Submit())
    assert result.event["programs"][0]["said"] == "secret"
    assert "secret" not in result.text


def test_a_copy_to_a_program(person: Person, start: Start) -> None:
    """With `copy: true` the message is kept too; where the program fails, the retry does not keep it again."""
    rules = "rules:\n  - name: it\n    then:\n      pipe: {program: it, copy: true}\n"
    agent = start(rules, COUNT + "[ -e mended ]")
    submit = Submit()
    assert agent.deliver(submit).status == "defer"
    (person.home / "mended").touch()
    assert agent.deliver(submit).status == "ok"
    assert (runs(person), submit.kinds) == (2, ["KEEP"])


def test_filter(person: Person, start: Start) -> None:
    """What the filter writes is what is filed; it was given the message as edited, without our trace fields."""
    rules = FILTER.replace("      - filter", "      - add_header: {X-Mark: seen}\n      - filter")
    agent = start(rules, "tee given | sed 's/^Subject: .*/Subject: new/'")
    result = agent.deliver(Submit())
    assert result.status == "ok"
    edited = MESSAGE.replace(b"hello\n\n", b"hello\nX-Mark: seen\n\n")
    assert (person.home / "given").read_bytes() == edited
    (filed,) = person.mail("Maildir/.A")
    assert b"Subject: new\nX-Mark: seen\n" in filed
    assert b"Delivered-To: bob@x.org\n" in filed
    assert result.event["filters"] == ["it"]
    assert list((person.home / ".milterapp/filtered").iterdir()) == []


def test_filters_in_their_order(person: Person, start: Start) -> None:
    """Each filter gets what the one before wrote."""
    rules = FILTER.replace("- filter: it", "- filter: {program: it, arguments: [a]}\n      - filter: it")
    start(rules, 'echo "X-Passed: ${1:-b}"; cat').deliver(Submit())
    (filed,) = person.mail("Maildir/.A")
    assert filed.index(b"X-Passed: b") < filed.index(b"X-Passed: a")


def test_what_is_kept_was_filtered(start: Start) -> None:
    """A hand-back and a forward carry what the filter wrote."""
    rules = (
        "rules:\n  - name: it\n    then:\n      - filter: it\n      - forward: {to: carol@example.org, copy: true}\n"
    )
    submit = Submit()
    assert start(rules, "sed s/hello/new/").deliver(submit).status == "ok"
    assert sorted(submit.kinds) == ["FORWARD", "KEEP"]
    assert [one.message for one in submit.asked] == [MESSAGE.replace(b"hello", b"new")] * 2


def test_what_was_kept_is_not_filtered_again(person: Person, start: Start) -> None:
    """A retry of what was filtered and kept runs no filter, and asks submit nothing."""
    agent, submit = start("rules:\n  - name: it\n    then:\n      filter: it\n", COUNT + "cat"), Submit()
    assert [agent.deliver(submit).status for _ in range(2)] == ["ok", "ok"]
    assert (runs(person), submit.kinds) == (1, ["KEEP"])


def test_a_line_of_a_mailbox_is_taken_off(person: Person, start: Start) -> None:
    """A filter that writes a `From ` line before the message, as formail(1) does, files none."""
    start(FILTER, "echo From ann Mon Jan 1; cat").deliver(Submit())
    (filed,) = person.mail("Maildir/.A")
    assert filed == STAMPED


NO_MESSAGE = {
    "nothing": ("exit 0", "wrote no message"),
    "half, and a failure": ("head -c 20; exit 1", "ended with status 1"),
    "words": ("echo oh dear", "wrote no message"),
    "an empty line": ("echo; cat", "wrote no message"),
    "a flood": ("while :; do echo a: b; done", "wrote too much"),
    "a signal": ("kill -9 $$", "was ended by SIGKILL"),
    "75": ("exit 75", "ended with status 75"),
}


@pytest.mark.parametrize(("script", "why"), NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_a_filter_that_fails(person: Person, start: Start, script: str, why: str) -> None:
    """The message waits, and nothing is delivered; the next attempt filters again."""
    agent = start(FILTER, COUNT + "[ -e mended ] && exec cat; " + script, output=100_000)
    result = agent.deliver(Submit())
    assert result.status == "defer"
    assert result.text.startswith("file: filter: it ")
    assert why in result.text
    assert person.mail("Maildir/.A") == []
    (person.home / "mended").touch()
    assert agent.deliver(Submit()).status == "ok"
    assert (person.mail("Maildir/.A"), runs(person)) == ([STAMPED], 2)


@pytest.mark.parametrize(("script", "why"), NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_a_filter_that_may_fail(person: Person, start: Start, script: str, why: str) -> None:
    """With `on_error: keep` the message is delivered as it was; the event says how the filter ended."""
    agent = start(FILTER.replace("filter: it", "filter: {program: it, on_error: keep}"), script, output=100_000)
    result = agent.deliver(Submit())
    assert (result.status, person.mail("Maildir/.A")) == ("ok", [STAMPED])
    assert len(result.event["programs"]) == 1
    assert why


def test_a_filter_that_failed_fails_once_an_attempt(person: Person, start: Start) -> None:
    """Two deliveries wait for one run."""
    rules = "rules:\n  - name: it\n    then:\n      - filter: it\n      - file: {folder: A, copy: true}\n"
    submit = Submit()
    assert start(rules, COUNT + "exit 1").deliver(submit).status == "defer"
    assert (runs(person), submit.asked) == (1, [])


def test_a_retry_delivers_what_the_first_attempt_did(person: Person, start: Start) -> None:
    """A filter whose output is new each time runs once: what waits for a second attempt is what others got."""
    rules = "rules:\n  - name: it\n    then:\n      - filter: it\n      - file: {folder: A, copy: true}\n"
    script = COUNT + 'echo "X-Run: $(wc -l <runs)"; cat'
    submit = Submit({"KEEP": ("FAILED", "not now")})
    first = start(rules, script)
    assert first.deliver(submit).status == "defer"
    (kept,) = (person.home / ".milterapp/filtered").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    submit.answers.clear()
    assert start(rules, script).deliver(submit).status == "ok"  # another agent
    assert runs(person) == 1
    assert [one.message for one in submit.asked] == [b"X-Run: 1\n" + MESSAGE] * 2
    assert not kept.exists()
    assert first.deliver(submit).status == "ok"
    assert (runs(person), len(submit.asked)) == (1, 2)


def test_a_filtered_message_that_somebody_removed(person: Person, start: Start) -> None:
    """Where the kept output is gone, the filter runs again, and no mail is lost."""
    agent = start("rules:\n  - name: it\n    then:\n      filter: it\n", COUNT + "cat")
    submit = Submit({"KEEP": ("FAILED", "not now")})
    assert agent.deliver(submit).status == "defer"
    for path in (person.home / ".milterapp/filtered").iterdir():
        path.unlink()
    submit.answers.clear()
    assert agent.deliver(submit).status == "ok"
    assert (runs(person), submit.asked[-1].message) == (2, MESSAGE)


@pytest.mark.parametrize("swap", ["link", "folder", "fifo"])
def test_a_filtered_message_that_somebody_swapped(person: Person, start: Start, swap: str) -> None:
    """Nothing but a plain file of that user's is taken for what a filter wrote; the message waits, nobody hangs."""
    agent = start("rules:\n  - name: it\n    then:\n      filter: it\n", COUNT + "cat")
    submit = Submit({"KEEP": ("FAILED", "not now")})
    assert agent.deliver(submit).status == "defer"
    (path,) = (person.home / ".milterapp/filtered").iterdir()
    path.unlink()
    made: dict[str, Callable[[Path], None]] = {
        "link": lambda at: at.symlink_to("/etc/passwd"),
        "folder": lambda at: at.mkdir(),
        "fifo": lambda at: os.mkfifo(at),
    }
    made[swap](path)
    if swap != "link":
        os.chown(path, UID, UID)
    submit.answers.clear()
    submit.asked.clear()
    assert agent.deliver(submit).status == "defer"
    assert submit.asked == []


@pytest.mark.parametrize(
    ("script", "status", "folder"),
    [
        pytest.param("exit 0", "ok", 1, id="0"),
        pytest.param("exit 1", "ok", 0, id="1"),
        pytest.param("exit 127", "ok", 0, id="127"),
        pytest.param("grep -q '^Subject: hello'", "ok", 1, id="it reads"),
        pytest.param("exit 75", "defer", 0, id="75"),
        pytest.param("kill -9 $$", "defer", 0, id="a signal"),
        pytest.param("while :; do echo flood; done", "defer", 0, id="a flood"),
    ],
)
def test_command(person: Person, start: Start, script: str, status: str, folder: int) -> None:
    """The condition holds with the status that was asked for; what could not be told is not "no"."""
    submit = Submit()
    result = start(COMMAND, script, output=100_000).deliver(submit)
    assert (result.status, len(person.mail("Maildir/.A"))) == (status, folder)
    assert submit.kinds == (["KEEP"] if status == "ok" and not folder else [])


def test_a_command_with_a_status(person: Person, start: Start) -> None:
    """A rule may ask for another status, and give arguments."""
    rules = COMMAND.replace("command: it", "command: {run: it, arguments: ['3'], status: 3}")
    assert start(rules, 'exit "$1"').deliver(Submit()).status == "ok"
    assert len(person.mail("Maildir/.A")) == 1


def test_a_command_is_asked_last_and_once(person: Person, start: Start) -> None:
    """It runs where all else in the rule holds, and a retry decides nothing anew."""
    rules = COMMAND.replace("      command: it", "      command: it\n      subject: hello")
    agent = start(rules + "  - name: rest\n    then:\n      forward: carol@example.org\n", COUNT + "exit 1")
    agent.deliver(Submit(), MESSAGE.replace(b"hello", b"other"))
    assert runs(person) == 0
    submit = Submit({"FORWARD": ("FAILED", "not now")})
    assert agent.deliver(submit, queue_id="4B").status == "defer"
    assert agent.deliver(submit, queue_id="4B").status == "defer"
    assert runs(person) == 1


@pytest.mark.parametrize(("on_error", "status"), [("keep", "ok"), ("defer", "defer")])
def test_commands_that_hang_share_the_deadline(
    person: Person, monkeypatch: pytest.MonkeyPatch, on_error: str, status: str
) -> None:
    """Several that never end, each within its own time, leave the agent time to do what `on_error` says."""
    rule = "  - name: r{}\n    on_error: {}\n    if:\n      command: it\n    then:\n      score: 1\n"
    person.write("rules:\n" + "".join(rule.format(number, on_error) for number in range(4)))
    monkeypatch.setattr(AgentSettings, "working", 4.0)  # of the deadline: what is left of it is for a slow machine
    agent, submit = AgentProcess(person, programs=sh(COUNT + "sleep 1000", time=1.5), deadline=60.0), Submit()
    result = agent.deliver(submit)
    assert (result.status, submit.kinds) == (status, ["KEEP"] if status == "ok" else [])
    assert result.event["seconds"] < 60
    ended = [one["ended"] for one in result.event["programs"]]
    assert (ended[0], ended[-1], len(ended)) == ("time", "late", 4)
    assert runs(person) < 4
    assert agent.close() == 0


def test_what_is_delivered_has_the_time_that_is_left(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe after a command that took all the time waits for the next attempt, which decides nothing and has all."""
    person.write(
        "rules:\n  - name: r\n    on_error: keep\n    if:\n      command: it\n    then:\n"
        "      pipe: {program: it, copy: true}\n"
    )
    script = COUNT + '[ "$(wc -l <runs)" = 2 ] && exec sleep 1000; [ -e slept ] || sleep 1.5; touch slept'
    monkeypatch.setattr(AgentSettings, "working", 10.0)
    agent, submit = AgentProcess(person, programs=sh(script), deadline=60.0), Submit()
    result = agent.deliver(submit)
    assert (result.status, result.text) == ("defer", "pipe: it took too long")
    assert result.event["seconds"] < 60
    assert agent.deliver(submit).status == "ok"
    assert (runs(person), submit.kinds) == (3, ["KEEP"])
    assert agent.close() == 0


def test_a_script_after_programs_that_hang(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has what they left of the time; that it could not end is nothing that its author is told."""
    person.write("def main(mail):\n    while True: pass\n", ".milterapp/page.py")
    hanging = "  - name: r{}\n    if:\n      command: it\n    then:\n      score: 1\n"
    script = "  - name: s\n    then:\n      script: page.py\n"
    rules = [hanging.format(0), script]
    person.write("rules:\n" + "".join(rules))
    submit = Submit()
    with monkeypatch.context() as patched:
        patched.setattr(AgentSettings, "working", 8.0)  # less than a script may take: a third of the deadline
        agent = AgentProcess(person, programs=sh("sleep 1; exit 1"), deadline=60.0)
    result = agent.deliver(submit)
    assert (result.status, result.text) == (
        "defer", "rule 's': could not tell: page.py: the time for the message is over",
    )  # fmt: skip
    assert (submit.kinds, result.event["seconds"] < 60) == ([], True)
    assert agent.close() == 0
    person.write("rules:\n" + script)
    monkeypatch.setattr(sandbox, "Bounds", partial(sandbox.Bounds, wall=1.0))
    agent = AgentProcess(person, programs=sh("exit 1"))
    assert "took more than 1 seconds" in agent.deliver(submit).text
    assert submit.kinds == ["NOTICE"]
    assert agent.close() == 0


def test_a_program_that_the_site_allows_no_more(person: Person, start: Start) -> None:
    """A rule with such a program is refused at load, with its place, and says what is allowed."""
    agent = start(PIPE.replace("pipe: it", "pipe: other"), "exit 0")
    result = agent.deliver(Submit())
    assert result.status == "defer"
    assert "rules.yaml:4:13: the site does not allow the program 'other'; it allows it" in result.text


def test_many_long_values(person: Person, start: Start) -> None:
    """However long the values are that a message gives its arguments, it reaches the program."""
    values = ", ".join(f"'${{header.X-{number}}}'" for number in range(20))
    agent = start(
        PIPE.replace("pipe: it", f"pipe: {{program: it, arguments: [{values}]}}"), 'echo "$#" "${#20}" >given'
    )
    message = b"".join(b"X-%d: %s\n" % (number, ("\u4f60" * 1400).encode()) for number in range(20)) + MESSAGE
    assert agent.deliver(Submit(), message).status == "ok"
    count, size = (person.home / "given").read_text().split()
    assert (count, int(size) > 500) == ("20", True)


def test_what_is_too_long_to_be_given() -> None:
    """A run that cannot even be asked for has failed as any other, and the next message finds its runner there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        programs = Programs(ours)
        ran = programs.run("it", ["x" * 4000] * 20, MESSAGE, {}, wanted=False)
    assert (ran.how, str(ran)) == ("start", "it cannot be started: its arguments are too long together")
    assert not programs.lost


def test_an_option_that_the_site_does_not_allow(start: Start) -> None:
    """Where the site lets rules give no options, an argument that begins with `-` is an error of the rules."""
    rules = PIPE.replace("pipe: it", "pipe: {program: it, arguments: ['-x']}")
    assert "rules may give 'it' no options" in start(rules, "exit 0").deliver(Submit()).text
    allowed = start(rules, '[ "$1" = -x ]', options=True)
    assert allowed.deliver(Submit()).status == "ok"


def test_an_agent_without_its_runner_ends(person: Person) -> None:
    """Where the runner was killed the message waits and the agent ends; a new one has a new runner."""
    person.write(PIPE)
    agent = AgentProcess(person, programs=sh("exit 0"))
    assert agent.deliver(Submit()).status == "ok"
    (runner,) = descendants(agent.pid)
    os.kill(runner, signal.SIGKILL)
    result = agent.deliver(Submit(), queue_id="4B")
    assert (result.status, result.text) == ("defer", "pipe: it was lost with the process that runs it")
    assert agent.close() == 0
    again = AgentProcess(person, programs=sh("exit 0"))
    assert again.deliver(Submit(), queue_id="4B").status == "ok"
    assert again.close() == 0


def test_an_agent_that_is_killed_takes_its_program_along(person: Person) -> None:
    """The program of an agent at its deadline is killed, with what it forked; the retry runs it again."""
    person.write(PIPE)
    agent = AgentProcess(person, programs=sh("[ -e again ] && exit 0; : >again; sleep 1000; exit 1"))
    running: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and len(running) < 3:
            running[:] = descendants(agent.pid)  # its runner, the program, and what that started
            time.sleep(0.01)
        os.kill(agent.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert agent.deliver(Submit()).status is None
    killer.join()
    agent.close()
    assert [wait_gone(pid, 30) for pid in running] == [True] * 3
    again = AgentProcess(person, programs=sh("[ -e again ] && exit 0; exit 1"))
    assert again.deliver(Submit()).status == "ok"
    assert again.close() == 0
