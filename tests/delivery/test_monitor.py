"""The monitor as a process among processes: what it hands on, what it refuses, and who answers when something dies."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.delivery import monitor, sealed, wire, zygote
from milterapp.delivery.requests import ANSWER
from tests.delivery.chain import LMTP, MESSAGE, MONITOR, PIPE, STRANGER, Chain, Submit, wait_gone, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def chain() -> Iterator[Chain]:
    """Run a monitor with two agents at most, which has time for whatever is late."""
    chain = Chain(deadline=60.0, wait=60.0, agents=2, idle=60.0)
    try:
        yield chain
    finally:
        chain.close()


@pytest.fixture
def hasty() -> Iterator[Chain]:
    """Run the same monitor with a short deadline, for what is to meet it."""
    chain = Chain(deadline=6.0, wait=60.0, agents=2, idle=60.0)
    try:
        yield chain
    finally:
        chain.close()


def test_the_agent_has_the_recipients_ids_and_the_whole_message(chain: Chain) -> None:
    """A message reaches an agent that has the recipient's uid, and `ok` is silence and status 0."""
    assert chain.deliver("u20001+x@example.org") == (0, b"")
    decided = chain.decided()
    assert (decided["uid"], decided["size"]) == (20001, len(MESSAGE))


def test_a_warm_agent_takes_the_next_message(chain: Chain) -> None:
    """The second message of a user is served by the process that served the first."""
    assert [chain.deliver(queue_id=one) for one in ("A", "B")] == [(0, b"")] * 2
    assert chain.decided(queue_id="A")["pid"] == chain.decided(queue_id="B")["pid"]
    assert [one["warm"] for one in chain.log("delivery")] == [False, True]


def test_a_warm_agent_stays_for_its_time() -> None:
    """After the configured idle time an agent has left, and not before; the next message finds another."""
    chain = Chain(idle=2.0)
    try:
        begun = time.monotonic()
        assert chain.deliver(queue_id="A") == (0, b"")
        pid = chain.decided(queue_id="A")["pid"]
        assert wait_gone(pid, 60)
        assert time.monotonic() - begun > 2.0
        assert chain.deliver(queue_id="B") == (0, b"")
        assert chain.wait("delivery", 2)["warm"] is False
    finally:
        chain.close()


@pytest.mark.parametrize(
    ("recipient", "queue_id", "want"),
    [
        pytest.param("u20001@x", "REJECT", (69, b"5.7.1 not for me really\n"), id="a reject is one line, status 69"),
        pytest.param("u20001@x", "CRASH", (75, b"4.3.0 the agent ended"), id="an agent that crashes"),
        pytest.param("u20001@x", "GARBAGE", (75, b"4.3.0 the agent did not answer"), id="an agent that talks nonsense"),
        pytest.param("nss@x", "A", (75, b"4.3.0 getpwnam: Connection refused"), id="NSS that fails"),
        pytest.param("die@x", "A", (75, b"4.3.0 the resolver ended"), id="a recipient that kills the resolver"),
    ],
)
def test_every_fault_is_a_deferral(chain: Chain, recipient: str, queue_id: str, want: tuple[int, bytes]) -> None:
    """Whatever an agent or the resolver does, pipe(8) is told to try again, and the next message arrives."""
    check_fault(chain, recipient, queue_id, want)


@pytest.mark.parametrize("queue_id", [pytest.param("HANG", id="hangs"), pytest.param("STOP", id="is stopped")])
def test_an_agent_that_does_not_end_is_a_deferral(hasty: Chain, queue_id: str) -> None:
    """What an agent does not answer in time is tried again, and the next message arrives."""
    check_fault(hasty, "u20001@x", queue_id, (75, b"4.3.0 the delivery took too long"))


def check_fault(chain: Chain, recipient: str, queue_id: str, want: tuple[int, bytes]) -> None:
    """Assert that a delivery is deferred in one line that begins so, and that the next one is none."""
    status, output = chain.deliver(recipient, queue_id)
    assert (status, output[: len(want[1])]) == want
    assert output.count(b"\n") == 1
    assert chain.deliver(queue_id="NEXT") == (0, b"")


def test_another_agent_takes_what_one_gives_back(chain: Chain) -> None:
    """What a warm agent has not begun goes to a new one at once, is answered once, and is in the log once."""
    assert chain.deliver(queue_id="A") == (0, b"")
    assert chain.deliver(queue_id="AGAIN") == (0, b"")
    assert chain.decided(queue_id="A")["pid"] != chain.decided(queue_id="AGAIN")["pid"]
    assert [(one["queue_id"], one["warm"]) for one in chain.log("delivery")] == [("A", False), ("AGAIN", False)]


def test_a_new_agent_must_know(chain: Chain) -> None:
    """An agent that gives back its first message talks nonsense; so no message goes round in circles."""
    assert chain.deliver(queue_id="A") == (0, b"")
    status, output = chain.deliver(queue_id="ALWAYS AGAIN")
    assert (status, output[:35]) == (75, b"4.3.0 the agent did not answer prop")
    assert chain.deliver(queue_id="B") == (0, b"")


def test_a_deadline_kills_the_agent_and_what_it_forked() -> None:
    """An agent past its deadline is dead, stopped or not, and so are its children, whatever session they tried for."""
    trees = {"HANG": 1, "STOP": 1, "FORK": 2, "STOPPED TREE": 4}  # and how many processes each has
    chain = Chain(deadline=10.0)  # in which all of them are there
    try:
        clients = [chain.begin(f"u{20001 + at}@x", queue_id) for at, queue_id in enumerate(trees)]
        chain.wait("started", child="resolver")
        agents: list[int] = []
        while len(agents) < sum(trees.values()) and clients[0].poll() is None:
            agents = chain.children()[2:]
        assert len(agents) == sum(trees.values())
        assert [chain.end(client)[0] for client in clients] == [75] * len(trees)
        assert all(wait_gone(pid) for pid in agents)
        assert chain.deliver(queue_id="NEXT") == (0, b"")
    finally:
        chain.close()


def test_what_an_agent_leaves_behind_is_killed(chain: Chain) -> None:
    """A process that an agent forked before it ended does not outlive it."""
    client = chain.begin(queue_id="ORPHAN")
    below: set[int] = set()
    while client.poll() is None:
        below |= set(chain.children())
    assert chain.end(client)[0] == 75
    assert chain.deliver(queue_id="NEXT") == (0, b"")
    kept = {chain.decided(queue_id="NEXT")["pid"], child(chain, "zygote"), child(chain, "resolver")}
    wait_until(lambda: set(chain.children()) == kept, "the others to be gone")
    assert all(wait_gone(pid) for pid in below - kept)


@pytest.mark.parametrize("recipient", ["nosuch@x", "root@x", "low@x", "disk@x"])
def test_who_is_no_user_is_handed_back(chain: Chain, recipient: str) -> None:
    """Unknown users and ids below the floors go back to Postfix unchanged, without an agent."""
    assert chain.deliver(recipient) == (0, b"")
    assert chain.submit.kept == [(recipient, "", MESSAGE)]
    assert len(chain.children()) == 2


def test_a_hand_back_that_submit_refuses_is_deferred(chain: Chain) -> None:
    """What Postfix does not take back stays in its queue."""
    chain.submit.answer = ("FAILED", {"text": "552 too large"})
    assert chain.deliver("nosuch@x") == (75, b"4.3.0 552 too large\n")


def test_without_submit_everything_waits_and_is_deferred() -> None:
    """No submit is a deferral after the wait, with its name."""
    chain = Chain(wait=3.0)
    try:
        chain.submit.stop()
        status, output = chain.deliver()
        assert (status, output[:40]) == (75, b"4.3.0 milterapp submit does not answer: ")
    finally:
        chain.close()


def test_a_submit_that_was_started_anew_has_the_next_message(chain: Chain) -> None:
    """The one connection to submit is kept from message to message, and made anew where it has ended."""
    assert [chain.deliver(queue_id=one) for one in ("KEEP", "ASK", "ASK")] == [(0, b"")] * 3
    assert len(chain.submit.connections) == 1
    chain.submit.stop()
    path = f"{chain.folder}/submit/socket"
    os.unlink(path)
    chain.submit = Submit(path)
    assert [chain.deliver(queue_id=one) for one in ("ASK", "KEEP", "ASK")] == [(0, b"")] * 3
    assert (len(chain.submit.connections), len(chain.submit.requests), len(chain.submit.kept)) == (1, 2, 1)


def test_the_agent_speaks_to_submit_over_the_connection_it_was_given(chain: Chain) -> None:
    """submit knows the envelope from the monitor; the agent only asks."""
    assert chain.deliver(queue_id="ASK") == (0, b"")
    assert chain.submit.requests == [("KEEP", "u20001@example.org", "u20001", MESSAGE)]


@pytest.mark.parametrize(
    ("queue_id", "message"),
    [pytest.param("KEEP", MESSAGE, id="as it came"), pytest.param("EDITED", b"edited", id="edited")],
)
def test_what_is_only_kept_the_monitor_hands_back(chain: Chain, queue_id: str, message: bytes) -> None:
    """An agent that has nothing to do but keep says so; the monitor has submit do it, and logs what both say."""
    assert [chain.deliver(queue_id=queue_id) for _ in range(2)] == [(0, b"")] * 2
    assert chain.submit.kept == [("u20001@example.org", "u20001", message)] * 2
    assert (chain.submit.requests, chain.submit.heard) == ([], [])
    said = chain.wait("delivery", 2)
    assert (said["text"], said["warm"], said["status"]) == ("handed back as NEW", True, "ok")
    assert chain.decided(2)["rules"] == [queue_id]


def test_nothing_of_a_hand_back_stays_open(chain: Chain) -> None:
    """Messages handed back, edited or not, or that could not be, leave the monitor as many descriptors as before."""
    acts = ("EDITED", "UNSEALED", "KEEP", "ASK")
    for queue_id in acts:
        chain.deliver(queue_id=queue_id)
    before = len(os.listdir(f"/proc/{chain.monitor.pid}/fd"))
    for queue_id in acts * 3:
        chain.deliver(queue_id=queue_id)
    until = time.monotonic() + 20
    while len(os.listdir(f"/proc/{chain.monitor.pid}/fd")) > before and time.monotonic() < until:
        time.sleep(0.01)  # an agent that talked nonsense is yet to be reaped
    assert len(os.listdir(f"/proc/{chain.monitor.pid}/fd")) <= before


def test_an_edited_message_that_is_not_sealed_is_none(chain: Chain) -> None:
    """What an agent could still change is not passed on: that agent talks nonsense, and the message waits."""
    status, output = chain.deliver(queue_id="UNSEALED")
    assert (status, output[:33]) == (75, b"4.3.0 the agent did not answer pr")
    assert chain.submit.kept == []
    assert chain.deliver(queue_id="KEEP") == (0, b"")


def test_what_submit_does_not_keep_waits(chain: Chain) -> None:
    """Why Postfix does not take it is said in its queue, beside what the agent decided."""
    chain.submit.answer = ("FAILED", {"text": "4.3.1 keep: DATA: 452 4.3.1 no room"})
    assert chain.deliver(queue_id="KEEP") == (75, b"4.3.1 keep: DATA: 452 4.3.1 no room\n")
    assert chain.decided(status="defer")["rules"] == ["KEEP"]


def test_a_submit_that_ends_is_waited_for_no_longer(chain: Chain) -> None:
    """What it was asked to keep is deferred at once, not at the deadline, and the next message goes on."""
    chain.submit.deaf = True
    asked = chain.begin(queue_id="KEEP")
    wait_until(lambda: chain.submit.kept, "something to keep")
    chain.submit.stop()
    path = f"{chain.folder}/submit/socket"
    os.unlink(path)
    chain.submit = Submit(path)
    assert chain.end(asked) == (75, b"4.3.0 milterapp submit gave up\n")
    assert chain.deliver(queue_id="KEEP") == (0, b"")


def test_a_submit_that_says_nothing_is_given_the_rest_of_the_deadline(hasty: Chain) -> None:
    """A hand-back ends with the deadline of its delivery; that agent has long had the next message."""
    hasty.submit.deaf = True
    begun = time.monotonic()
    asked = hasty.begin(queue_id="KEEP")
    wait_until(lambda: hasty.submit.kept, "something to keep")
    assert hasty.deliver(queue_id="A") == (0, b"")
    assert hasty.end(asked) == (75, b"4.3.0 milterapp submit did not answer in time\n")
    assert time.monotonic() - begun < 30


def test_hand_backs_take_turns() -> None:
    """Of three messages that submit is slow with it is asked for as many at once as there may be agents."""
    chain = Chain(wait=3.0, agents=2)
    try:
        chain.submit.deaf = True
        clients = [chain.begin(f"u{uid}@x", "KEEP") for uid in range(20001, 20004)]
        wait_until(lambda: len(chain.submit.kept) == 2, "two to be kept")
        assert chain.wait("delivery")["text"] == "too many deliveries at once"
        assert len(chain.submit.kept) == 2
        chain.submit.stop()  # which no place becomes free before: the third would have it
        assert [chain.end(client)[0] for client in clients] == [75] * 3
        assert len(chain.submit.kept) == 2
    finally:
        chain.close()


def test_a_slow_mailbox_leaves_room_for_others() -> None:
    """Of what submit is slow with for one user half of the places are taken, and the rest waits no longer than it may.

    Another user's mail goes on meanwhile.
    """
    chain = Chain(agents=4, wait=5.0, deadline=12.0)
    try:
        assert [chain.deliver(f"u{uid}@x", "A") for uid in (20001, 20002)] == [(0, b"")] * 2  # both agents are warm
        chain.submit.deaf_to = "u20001"
        begun = time.monotonic()
        clients = [chain.begin("u20001@x", "KEEP") for _ in range(4)]
        assert chain.deliver("u20002@x", "KEEP") == (0, b"")
        waited = chain.wait("delivery", 2, user="u20001", queue_id="KEEP")
        assert (waited["text"], time.monotonic() - begun < 12) == ("too many deliveries at once", True)
        assert chain.deliver("u20002@x", "KEEP") == (0, b"")
        assert [user for _, user, _ in chain.submit.kept].count("u20001") == 2
        assert [chain.end(client)[0] for client in clients] == [75] * 4
        chain.wait("delivery", 4, user="u20001", queue_id="KEEP")
        said = [one["text"] for one in chain.log("delivery") if (one["user"], one["queue_id"]) == ("u20001", "KEEP")]
        assert said == ["too many deliveries at once"] * 2 + ["milterapp submit did not answer in time"] * 2
        chain.submit.deaf_to = None
        assert chain.deliver("u20001@x", "KEEP") == (0, b"")
    finally:
        chain.close()


def lines_end(chain: Chain) -> bool:
    """Return whether every line that agents had to submit ends in time."""
    for line in chain.submit.lines:
        line.join(10)
    return bool(chain.submit.lines) and not any(line.is_alive() for line in chain.submit.lines)


def test_a_line_to_submit_ends_with_its_job(chain: Chain) -> None:
    """An agent that does not let go of its line asks nothing over it once it has answered; the next job has its own."""
    assert [chain.deliver(queue_id="HOARD") for _ in range(3)] == [(0, b"")] * 3
    assert lines_end(chain)
    assert chain.deliver(queue_id="ASK") == (0, b"")
    assert [kind for kind, *_ in chain.submit.requests] == ["KEEP"] * 4


def test_a_line_to_submit_ends_with_its_agent(hasty: Chain) -> None:
    """Where an agent is killed at its deadline submit sees the end of its line; until then it has one."""
    hasty.submit.deaf = True
    asked = hasty.begin(queue_id="HOARD")
    wait_until(lambda: hasty.submit.requests, "a request")
    assert hasty.submit.lines[0].is_alive()
    assert hasty.end(asked) == (75, b"4.3.0 the delivery took too long\n")
    assert lines_end(hasty)


def test_an_agent_waits_for_a_submit_that_ends_no_longer(chain: Chain) -> None:
    """What it asks over its line ends with submit, though the monitor has that line as well."""
    chain.submit.deaf = True
    asked = chain.begin(queue_id="ASK")
    wait_until(lambda: chain.submit.requests, "a request")
    chain.submit.stop()
    status, output = chain.end(asked)
    assert (status, b"too long" in output) == (75, False)


@pytest.fixture
def keeper() -> Iterator[Chain]:
    """The same monitor where mail is kept in the Maildir."""
    chain = Chain(deadline=60.0, wait=60.0, agents=2, idle=60.0, keep="maildir")
    try:
        yield chain
    finally:
        chain.close()


def test_submit_hears_of_a_message_when_the_agent_asks(keeper: Chain) -> None:
    """With `keep: maildir` submit is told of those messages alone that need it, and then knows the envelope."""
    assert [keeper.deliver(queue_id=one) for one in ("A", "ASK", "B")] == [(0, b"")] * 3
    assert keeper.submit.heard == ["u20001@example.org"]
    assert keeper.submit.requests == [("KEEP", "u20001@example.org", "u20001", MESSAGE)]
    assert keeper.deliver("nosuch@x", "C") == (0, b"")  # handed back by the monitor itself
    assert keeper.submit.kept == [("nosuch@x", "", MESSAGE)]


def test_an_agent_that_asks_a_submit_that_is_gone_sees_the_end(keeper: Chain) -> None:
    """Without submit, mail that is kept in the Maildir goes on; who asks for more is deferred at once."""
    keeper.submit.stop()
    assert keeper.deliver(queue_id="A") == (0, b"")
    assert keeper.deliver(queue_id="ASK")[0] == 75
    assert keeper.wait("submit does not answer")["queue_id"] == "ASK"
    assert keeper.deliver(queue_id="B") == (0, b"")


def test_a_user_found_of_late_is_not_looked_up_again(chain: Chain) -> None:
    """Within seconds the second message of a recipient asks no resolver, one to another recipient does."""
    begun = time.monotonic()
    assert chain.deliver(queue_id="A") == (0, b"")
    resolver = child(chain, "resolver")
    os.kill(resolver, signal.SIGSTOP)
    try:
        first = chain.begin(queue_id="B")
        other = chain.begin("u20002@example.org", "C")
        try:
            first.wait(max(0.1, 4.0 - time.monotonic() + begun))
        except subprocess.TimeoutExpired:
            pytest.skip("this machine is too busy to tell")
        assert chain.end(first) == (0, b"")
        assert other.poll() is None
    finally:
        os.kill(resolver, signal.SIGCONT)
    assert chain.end(other) == (0, b"")


def test_more_users_than_agents_take_turns(chain: Chain) -> None:
    """With two agents at most, warm ones make room for five users, and nobody is deferred."""
    clients = [chain.begin(f"u{uid}@x", "SLOW" if uid < 20003 else "A") for uid in range(20001, 20006)]
    assert [chain.end(client) for client in clients] == [(0, b"")] * 5


def test_a_deadline_frees_the_place_for_who_waits(hasty: Chain) -> None:
    """Where all agents hang, the next delivery waits for their deadline and is not deferred with them."""
    busy = [hasty.begin(f"u{uid}@x", "HANG") for uid in (20001, 20002)]
    hasty.asleep(2)
    assert hasty.deliver("u20003@x", "A") == (0, b"")
    assert [hasty.end(client)[0] for client in busy] == [75, 75]


def test_who_waits_too_long_for_an_agent_is_deferred() -> None:
    """Where no agent is free in time, the delivery is deferred; what has one goes on."""
    chain = Chain(wait=0.5, agents=1)
    try:
        busy = chain.begin("u20001@x", "STOP")
        agents = stopped(chain)
        assert chain.deliver("u20003@x", "A") == (75, b"4.3.0 too many deliveries at once\n")
        go_on(agents)
        assert chain.end(busy) == (0, b"")
    finally:
        chain.close()


def test_one_user_never_has_two_agents(chain: Chain) -> None:
    """Three messages at once for one user are delivered one after the other, by one process."""
    clients = [chain.begin(queue_id=one) for one in ("A", "B", "C")]
    assert [chain.end(client) for client in clients] == [(0, b"")] * 3
    assert len({chain.decided(queue_id=one)["pid"] for one in "ABC"}) == 1


def test_another_uid_is_refused(chain: Chain) -> None:
    """A peer that is not the pipe client's account gets no answer, and defers."""
    os.chmod(f"{chain.folder}/monitor", 0o755)
    client = chain.client("a@x", "u20001@x", "u20001@x", "A", "", uid=STRANGER)
    assert chain.end(client)[0] == 75
    chain.wait("refused", uid=STRANGER)
    assert chain.deliver() == (0, b"")


def datagram(**changes: bytes) -> bytes:
    """Return a good DELIVER with some fields changed."""
    fields = {"sender": b"", "recipient": b"u20001@x", "original": b"", "queue_id": b"A", "client": b""} | changes
    return wire.encode("DELIVER", fields)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"NONSENSE\n", [MESSAGE], id="unknown kind"),
        pytest.param(datagram()[:-5], [MESSAGE], id="cut short"),
        pytest.param(datagram(uid=b"0"), [MESSAGE], id="unknown field"),
        pytest.param(b"DELIVER\nsender:0:\n", [MESSAGE], id="missing fields"),
        pytest.param(datagram(), [], id="no message"),
        pytest.param(datagram(), [MESSAGE, MESSAGE], id="two messages"),
        pytest.param(datagram(), [b""], id="empty message"),
        pytest.param(datagram(), [None], id="message not sealed"),
        pytest.param(b"A" * 100_000, [MESSAGE], id="too long"),
    ],
)
def test_a_malformed_datagram_closes_its_connection_only(
    chain: Chain, data: bytes, message: list[bytes | None]
) -> None:
    """What is not exactly one DELIVER with one sealed message is hung up on; others are served meanwhile."""
    slow = chain.begin(queue_id="SLOW")
    fds = [os.memfd_create("loose") if one is None else sealed.seal([one]) for one in message]
    with chain.connect() as connection:
        socket.send_fds(connection, [data], fds)
        assert connection.recv(100) == b""
    for fd in fds:
        os.close(fd)
    assert chain.end(slow) == (0, b"")
    assert not chain.submit.requests


def test_a_second_datagram_does_not_end_what_has_begun(chain: Chain) -> None:
    """Noise after the message costs its sender the answer, not the user the delivery."""
    fd = sealed.seal([MESSAGE])
    with chain.connect() as connection:
        socket.send_fds(connection, [datagram(queue_id=b"STOP")], [fd])
        agents = stopped(chain)
        socket.send_fds(connection, [datagram()], [fd])
        assert connection.recv(100) == b""
    os.close(fd)
    go_on(agents)
    assert chain.wait("delivery", queue_id="STOP")["status"] == "ok"


@pytest.mark.parametrize(("uid", "stays"), [pytest.param(LMTP, True, id="door"), pytest.param(PIPE, False, id="pipe")])
def test_the_door_keeps_its_connection(chain: Chain, uid: int, stays: bool) -> None:
    """Over the LMTP door's connection one message follows the other, each with its answer; the pipe client has one."""
    fd = sealed.seal([MESSAGE])
    with chain.connect(uid) as connection:
        for queue_id in ("4A", "REJECT", "4B") if stays else ("4A",):
            socket.send_fds(connection, [datagram(queue_id=queue_id.encode())], [fd])
            answer = wire.receive(connection, ANSWER)
            assert answer is not None
            assert answer.text("status") == ("reject" if queue_id == "REJECT" else "ok")
        if stays:  # and what makes no sense ends it, as ever
            connection.send(b"DELIVER\n")
        assert connection.recv(100) == b""
    os.close(fd)
    assert chain.deliver() == (0, b"")


def test_a_monitor_that_stops_waits_for_no_kept_connection(chain: Chain) -> None:
    """A connection between two messages is ended by SIGTERM, at once."""
    fd = sealed.seal([MESSAGE])
    with chain.connect(LMTP) as connection:
        socket.send_fds(connection, [datagram()], [fd])
        assert wire.receive(connection, ANSWER) is not None
        slow = chain.begin(queue_id="STOP")
        agents = stopped(chain)
        chain.monitor.terminate()
        assert connection.recv(100) == b""
        go_on(agents)
        assert chain.end(slow) == (0, b"")
        assert chain.monitor.wait(20) == 0
    os.close(fd)


def child(chain: Chain, name: str, count: int = 1) -> int:
    """Return the pid of a child of the monitor, as it was started for the count-th time."""
    pid: int = chain.wait("started", count, child=name)["pid"]
    return pid


def stopped(chain: Chain, count: int = 1) -> list[int]:
    """Return the pids of the agents that have stopped themselves, once there are so many; they stay until told."""
    found: list[int] = []

    def are() -> bool:
        found[:] = [pid for pid in chain.children()[2:] if status_of(pid).get("State", "").startswith("T")]
        return len(found) >= count

    wait_until(are, "agents to stop")
    return found


def go_on(agents: list[int]) -> None:
    """Let agents that have stopped themselves do the rest of their work."""
    for pid in agents:
        os.kill(pid, signal.SIGCONT)


def test_a_zygote_that_dies_at_a_spawn_leaves_nobody(chain: Chain) -> None:
    """Whenever the zygote dies, also between the fork and the word of it, no agent is left and nothing is lost."""
    for count in range(1, 6):
        client = chain.begin(queue_id="STOP")
        zygote = child(chain, "zygote", count)
        while len(chain.children()) < 3 and client.poll() is None:
            pass  # as near to the fork as can be
        os.kill(zygote, signal.SIGKILL)
        assert chain.end(client)[0] == 75
        child(chain, "zygote", count + 1)
        wait_until(lambda: len(chain.children()) == 2, "its agent to be gone")  # else it is taken for the next one
    assert chain.deliver(queue_id="NEXT") == (0, b"")
    wait_until(lambda: len(chain.children()) == 3, "the rest to be gone")


@pytest.mark.parametrize("name", ["zygote", "resolver"])
def test_a_child_that_dies_is_started_again(chain: Chain, name: str) -> None:
    """Kill the zygote or the resolver: the next message is delivered."""
    assert chain.deliver() == (0, b"")
    os.kill(child(chain, name), signal.SIGKILL)
    child(chain, name, 2)
    assert chain.deliver(queue_id="NEXT") == (0, b"")


def test_a_zygote_that_dies_defers_what_is_under_way(chain: Chain) -> None:
    """Its agents are lost with it: their deliveries are deferred, and they do not go on for ever."""
    client = chain.begin(queue_id="STOP")
    zygote, (agent,) = child(chain, "zygote"), stopped(chain)
    os.kill(zygote, signal.SIGKILL)
    assert chain.end(client) == (75, b"4.3.0 the zygote ended\n")
    assert wait_gone(agent)
    assert chain.deliver(queue_id="NEXT") == (0, b"")


def test_an_agent_whose_zygote_died_is_gone_before_the_next(chain: Chain) -> None:
    """What still works for a user when its zygote dies has ended before another agent works for the same user."""
    client = chain.begin(queue_id="STOP")
    zygote, (agent,) = child(chain, "zygote"), stopped(chain)
    os.kill(zygote, signal.SIGKILL)
    assert chain.end(client)[0] == 75
    assert chain.deliver() == (0, b"")
    assert not os.path.exists(f"/proc/{agent}")


def test_a_client_that_leaves_before_the_work_begins_is_forgotten(chain: Chain) -> None:
    """Nobody is delivered to on behalf of a client that is gone before an agent had its message."""
    busy = [chain.begin(f"u{uid}@x", "STOP") for uid in (20001, 20002)]
    agents = stopped(chain, 2)
    gone = chain.begin("u20003@x", "GONE")
    chain.answerless(gone)
    gone.kill()
    assert chain.wait("dropped", queue_id="GONE")["error"] == "the client left"
    go_on(agents)
    assert [chain.end(client)[0] for client in busy] == [0, 0]
    assert not [one for one in chain.log("delivery") if one["queue_id"] == "GONE"]


def test_sigterm_lets_what_has_begun_end(chain: Chain) -> None:
    """The monitor answers what is under way before it goes, and leaves no process."""
    client = chain.begin(queue_id="STOP")
    agents = stopped(chain)
    below = chain.children()
    chain.monitor.terminate()
    chain.wait("stopping")
    go_on(agents)
    assert chain.end(client) == (0, b"")
    assert chain.monitor.wait(20) == 0
    assert all(wait_gone(pid) for pid in below)
    assert chain.end(chain.begin())[0] == 75


def test_a_killed_monitor_leaves_no_process_behind(chain: Chain) -> None:
    """SIGKILL to the monitor ends its children, and an agent that is stopped as well."""
    client = chain.begin(queue_id="STOP")
    stopped(chain)
    below = chain.children()
    chain.monitor.kill()
    assert chain.end(client)[0] == 75
    assert all(wait_gone(pid) for pid in below)


WANT_INSIDE = {
    "root": "EPERM", "root group": "EPERM", "disk": "EPERM", "groups again": "EPERM", "another user": "EPERM",
    "shadow": "EACCES", "user namespace": "EPERM", "clone user namespace": "EPERM", "clone3": "ENOSYS",
    "ptrace": "EPERM", "kill parent": "EPERM", "execute": "EPERM", "socket": "EPERM", "memory": "EACCES",
    "fork": "done", "session of its own": "EPERM", "group of its own": "EPERM",
}  # fmt: skip


def test_what_an_agent_holds_and_never_may(chain: Chain) -> None:
    """From inside an agent: its ids and nothing else, no way to others, no descriptor but its own."""
    assert chain.deliver(queue_id="PROBE") == (0, b"")
    inside = chain.decided()
    assert inside["uid"] == inside["gid"] == [20001] * 3
    assert (inside["groups"], inside["capabilities"], inside["ambient"]) == ([], [0, 0, 0], 0)
    assert (inside["no_new_privs"], inside["seccomp"], inside["dumpable"]) == ("1", "2", 0)
    assert (inside["session"], inside["cwd"]) == (True, "/")
    assert set(inside["environment"]) <= {"LANG", "LC_CTYPE", "PATH", "TZ"}
    assert inside["descriptors"] == [0, 1, 2, 3, 4, 5]  # 4 and 5 came with the job
    assert {key: inside[key] for key in WANT_INSIDE} == WANT_INSIDE


def test_an_agents_limits(chain: Chain) -> None:
    """Memory, files, processes, descriptors and core files of an agent are bounded, soft and hard."""
    names = {
        resource.RLIMIT_CORE: "Max core file size", resource.RLIMIT_AS: "Max address space",
        resource.RLIMIT_FSIZE: "Max file size", resource.RLIMIT_NOFILE: "Max open files",
        resource.RLIMIT_NPROC: "Max processes", resource.RLIMIT_MEMLOCK: "Max locked memory",
        resource.RLIMIT_MSGQUEUE: "Max msgqueue size",
    }  # fmt: skip
    assert chain.deliver() == (0, b"")
    lines = Path(f"/proc/{chain.decided()['pid']}/limits").read_text().splitlines()
    for which, most in {**zygote.LIMITS, resource.RLIMIT_NPROC: 2 * zygote.ROOM}.items():
        (line,) = [one for one in lines if one.startswith(names[which])]
        soft, hard = line.removeprefix(names[which]).split()[:2]
        assert soft == hard
        assert int(soft) <= most


def status_of(pid: int) -> dict[str, str]:
    """Return what the kernel says of a process, nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def check_what_each_holds(chain: Chain) -> None:
    """Assert that monitor, zygote and resolver hold what they are to hold, and no more."""
    want = {"monitor": "00000000000000c0", "zygote": "00000000000000c0", "resolver": "0000000000000000"}
    pids = {"monitor": chain.monitor.pid, "zygote": child(chain, "zygote"), "resolver": child(chain, "resolver")}
    for name, pid in pids.items():
        status = status_of(pid)
        assert [status[key] for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [want[name]] * 4, name
        assert status["CapBnd"] == "00000000000000c0", name
        assert status["Uid"].split() == [str(MONITOR)] * 4, name
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", ""), name
    assert status_of(pids["resolver"])["Gid"].split() == ["65534"] * 4  # and so not in the group that reaches submit


def test_what_monitor_zygote_and_resolver_hold(chain: Chain) -> None:
    """Two capabilities for monitor and zygote, none for the resolver, all of them under the filter, nobody root."""
    assert chain.deliver() == (0, b"")
    check_what_each_holds(chain)


def test_started_as_its_account_with_two_capabilities_it_works_as_well() -> None:
    """systemd's way: the account already, CAP_SETUID and CAP_SETGID ambient, its group among the supplementary ones."""
    two = "-all,+setuid,+setgid"
    chain = Chain(
        prefix=[
            "setpriv", f"--reuid={MONITOR}", f"--regid={MONITOR}", f"--groups={MONITOR}",
            f"--bounding-set={two}", f"--inh-caps={two}", f"--ambient-caps={two}", "--",
        ]
    )  # fmt: skip
    try:
        assert chain.deliver(queue_id="PROBE") == (0, b"")
        inside = chain.decided()
        assert (inside["uid"], inside["capabilities"]) == ([20001] * 3, [0, 0, 0])
        assert {key: inside[key] for key in WANT_INSIDE} == WANT_INSIDE
        check_what_each_holds(chain)
    finally:
        chain.close()


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        pytest.param([f"--reuid={MONITOR}"], "lacks CAP_SETUID and CAP_SETGID", id="its account without capabilities"),
        pytest.param([f"--reuid={STRANGER}"], f"started with uid {STRANGER}, expected root", id="another account"),
    ],
)
def test_started_without_its_privileges_it_says_so(prefix: list[str], why: str) -> None:
    """What is missing stands in one log line."""
    with pytest.raises(AssertionError, match="cannot start") as caught:
        Chain(prefix=["setpriv", *prefix, f"--regid={MONITOR}", "--clear-groups", "--"])
    assert why in str(caught.value)


def socket_in(folder: Path) -> str:
    """Return a place for a socket."""
    return str(folder / "socket")


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    """After a crash the monitor takes its place again."""
    with monitor.listen(socket_in(tmp_path)):
        pass
    with monitor.listen(socket_in(tmp_path)) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(socket_in(tmp_path))
        listener.accept()[0].close()


def test_a_socket_that_is_served_is_left_alone(tmp_path: Path) -> None:
    """A second monitor does not take the first one's place."""
    with monitor.listen(socket_in(tmp_path)), pytest.raises(monitor.BusyError, match="another monitor serves"):
        monitor.listen(socket_in(tmp_path))


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file in the socket's place is not removed."""
    (tmp_path / "socket").write_text("mine")
    with pytest.raises(OSError, match="in use"):
        monitor.listen(socket_in(tmp_path))
    assert (tmp_path / "socket").read_text() == "mine"
