"""Rules on rates and duplicates, asked over the milter protocol: counted once a message, whoever serves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.milter import recall
from milterapp.milter.recall import Recall
from milterapp.rules.truth import Failed, Need
from milterapp.state import counting
from tests.milter.conftest import NOBODY, Serve
from tests.state.redis_server import PROGRAM, redis_server

RATE = """\
rules:
  - name: too much
    if:
      sender: {domain: example.net}
      rate: {by: sender, over: 2, within: 1 hour}
    then: {defer: "4.7.1 Slow down"}
"""
DUPLICATE = """\
rules:
  - name: again
    if: {duplicate: yes}
    then: {add_header: {X-Again: 'yes'}}
"""
FIELDS = [(b"From", b"a@example.net"), (b"Message-ID", b"<1@example.net>")]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Give a folder that is the milter's own."""
    uid = os.geteuid() or NOBODY
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    os.chown(place, uid, os.getegid() or NOBODY)
    for above in place.parents:
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    return str(place)


@pytest.fixture
def server() -> Iterator[str]:
    """Give the URL of a Redis server."""
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    with redis_server() as url:
        yield url


def codes(serve: Serve, state: str, count: int, **arguments: object) -> list[str]:
    """Return how each of some messages ended, each on a connection of its own."""
    service = serve(RATE, milter={"state": state, "workers": 2})
    return [service.peer().message(**arguments).code for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["folder", "server"])
def test_what_is_over_the_rate(serve: Serve, kind: str, request: pytest.FixtureRequest) -> None:
    """The third message within the hour is refused, whichever worker has it; another sender's is not."""
    state = str(request.getfixturevalue(kind))
    service = serve(RATE, milter={"state": state, "workers": 2})
    found = [service.peer().message().code for _ in range(4)]
    assert found == ["a", "a", "y", "y"]
    assert service.peer().message(sender=b"<b@example.net>").code == "a"
    assert service.peer().message(sender=b"<a@elsewhere.example>").code == "a"


def test_hosts_share_a_server(serve: Serve, server: str) -> None:
    """What one milter counted, the milter of another host knows."""
    one, other = (serve(RATE, milter={"state": server}) for _ in range(2))
    assert [service.peer().message().code for service in (one, other, one, other)] == ["a", "a", "y", "y"]


def test_it_outlives_the_service(serve: Serve, folder: str) -> None:
    """A milter that is started anew knows what was counted before."""
    assert codes(serve, folder, 2) == ["a", "a"]
    assert codes(serve, folder, 1) == ["y"]


def test_several_recipients_are_one_message(serve: Serve, folder: str) -> None:
    """A message counts once, however many recipients it has."""
    recipients = [b"<alice@example.org>", b"<bob@example.org>", b"<carol@example.org>"]
    assert codes(serve, folder, 3, recipients=recipients) == ["a", "a", "y"]


def test_a_second_copy_is_marked(serve: Serve, folder: str) -> None:
    """The Message-ID that was there before is known, one that was not is not."""
    service = serve(DUPLICATE, milter={"state": folder})
    marks = [service.peer().message(fields=FIELDS).edits for _ in range(2)]
    other = service.peer().message(fields=[*FIELDS[:1], (b"Message-ID", b"<2@example.net>")]).edits
    assert [bool(one) for one in (*marks, other)] == [False, True, False]


@pytest.mark.parametrize(
    ("site", "rule", "wanted"),
    [("defer", "", "y"), ("accept", "", "a"), ("accept", "defer", "y"), ("defer", "accept", "a")],
    ids=["site-defers", "site-accepts", "rule-defers", "rule-accepts"],
)
def test_a_memory_that_fails(serve: Serve, site: str, rule: str, wanted: str) -> None:
    """What cannot be counted is no match and no miss: on_error answers, the rule's before the site's."""
    rules = RATE + (f"    on_error: {rule}\n" if rule else "")
    service = serve(rules, milter={"state": "/proc/folder", "on_error": site})
    assert service.peer().message().code == wanted
    assert service.peer().message(sender=b"<a@elsewhere.example>").code == "a"
    assert any("/proc/folder" in str(one.get("fault", "")) for one in service.events("message"))


@pytest.mark.parametrize(("on_error", "wanted"), [("defer", "y"), ("accept", "a")])
def test_a_server_that_is_not_there(serve: Serve, on_error: str, wanted: str) -> None:
    """A Redis server that cannot be reached is answered by on_error too, and named in the log without its password."""
    service = serve(RATE, milter={"state": "redis://:secret@127.0.0.1:1/0", "on_error": on_error})
    assert service.peer().message().code == wanted
    assert "127.0.0.1:1" in service.message_event()["fault"]
    assert not any("secret" in str(one) for one in service.lines())


def test_a_memory_that_is_slow_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that took its time to fail is left alone for a while: it would cost as much each time."""
    tried: list[str] = []

    def opened(where: str) -> counting.Counting:
        tried.append(where)
        return real(where)

    real = counting.opened
    monkeypatch.setattr(counting, "opened", opened)
    monkeypatch.setattr(recall, "_SLOW", -1.0)
    monkeypatch.setattr(recall, "_REST", 3600.0)
    need = Need("rate", "r", ("a@example.net",), 3600.0)
    memory = Recall("/nonexistent/folder")
    found = [memory.answer(need, one) for one in ("m1", "m2", "m3")]
    assert tried == ["/nonexistent/folder"]
    assert all(isinstance(one, Failed) and "/nonexistent/folder" in one.reason for one in found)
    monkeypatch.setattr(recall, "_REST", 0.0)
    memory = Recall("/nonexistent/folder")
    assert all(isinstance(memory.answer(need, one), Failed) for one in ("m1", "m2"))
    assert len(tried) == 3


def test_a_memory_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process can count no more it says so, and forgets nothing of what it has counted."""
    monkeypatch.setattr(counting, "_MOST", 2)
    memory = Recall(counting.MEMORY)
    need = Need("rate", "r", ("a@example.net",), 3600.0)
    assert [memory.answer(need, one) for one in ("m1", "m2")] == [1, 2]
    assert isinstance(memory.answer(need, "m3"), Failed)
    assert memory.answer(need, "m2") == 2
    assert isinstance(memory.answer(need, "m4"), Failed)


def test_a_fault_of_ours_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with us goes on as it is, and a worker that leaves still lets the memory go."""
    closed: list[str] = []

    class Faulty(counting.Fleeting):
        def rate(self, *_: object, **__: object) -> int:
            raise TypeError("ours")

        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(counting, "opened", lambda _: Faulty())
    memory = Recall("/var/lib/milterapp/milter")
    with pytest.raises(TypeError, match="ours"):
        memory.answer(Need("rate", "r", ("a@example.net",), 3600.0), "m1")
    assert closed == ["closed"]  # and the next question opens it anew
    memory.leave()
    assert closed == ["closed"]
