"""The memories that a site's rates may have answer alike; one that cannot be reached says so."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milterapp.state import counting
from milterapp.state.counting import Counting, Fleeting, Shared, opened
from milterapp.state.database import StateError
from milterapp.state.rates import Rates
from tests.state.redis_server import PROGRAM, redis_server

HOUR = 3600.0
KEY = ("bob@example.org",)
NEEDS_REDIS = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
KINDS = ["file", "memory", pytest.param("redis", marks=NEEDS_REDIS)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Give the URL of a Redis server."""
    with redis_server() as url:
        yield url


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_PATIENCE", 30.0)  # others may be kept from ending what we wait for


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path, _patient: None) -> str:
    """Give what the setting says, for each kind of memory."""
    tmp_path.chmod(0o700)
    if request.param == "redis":
        return str(request.getfixturevalue("server"))
    return str(tmp_path) if request.param == "file" else "memory"


@pytest.fixture
def memory(where: str) -> Iterator[Counting]:
    """Give an empty memory of each kind."""
    found = opened(where)
    if isinstance(found, Shared):
        found._client.flushdb()
    yield found
    found.close()


def test_what_a_setting_names(where: str) -> None:
    """A folder is a file in it, a Redis URL the server, `memory` the process."""
    wanted = {"/": Rates, "m": Fleeting, "u": Shared}[where[0]]
    found = opened(where)
    assert type(found) is wanted
    found.close()


def test_messages_are_counted_once(memory: Counting) -> None:
    """Each message counts once, itself included, and one that is asked about again has its first answer."""
    now = time.time()
    counts = [memory.rate("r", KEY, one, now=now, within=HOUR) for one in ("m1", "m2", "m1", "m3", "m2")]
    assert counts == [1, 2, 1, 3, 2]


def test_old_messages_count_no_more(memory: Counting) -> None:
    """What is older than the time asked about is not counted."""
    now = time.time()
    assert memory.rate("r", KEY, "m1", now=now - 1, within=0.2) == 1
    time.sleep(0.3)
    assert memory.rate("r", KEY, "m2", now=now + 0.3, within=0.2) == 1


def test_each_rule_and_key_for_itself(memory: Counting) -> None:
    """What one rule counts by one key is nobody else's, and a duplicate is no rate."""
    now = time.time()
    for rule, key in (("r", KEY), ("s", KEY), ("r", ("b", "ob@example.org"))):
        assert memory.rate(rule, key, "m1", now=now, within=HOUR) == 1
    assert not memory.duplicate("r", KEY, "m1", now=now, within=HOUR)
    assert memory.duplicate("r", KEY, "m2", now=now, within=HOUR)
    assert not memory.duplicate("r", KEY, "m1", now=now, within=HOUR)


def test_none_is_lost_between_threads(memory: Counting) -> None:
    """Many at once get every number once."""
    found: list[int] = []

    def count(thread: int) -> None:
        found.extend(memory.rate("r", KEY, f"{thread}.{at}", now=time.time(), within=HOUR) for at in range(25))

    threads = [threading.Thread(target=count, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(found) == list(range(1, 101))


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("where", ["file", pytest.param("redis", marks=NEEDS_REDIS)])
def test_processes_share_it(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What one process counts, the others know: the workers of a milter, the hosts of a site."""
    tmp_path.chmod(0o700)
    named = str(request.getfixturevalue("server")) if where == "redis" else str(tmp_path)
    opened(named).close()
    rule = f"of {os.getpid()}"
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours = opened(named)
                for at in range(20):
                    ours.rate(rule, KEY, f"{child}.{at}", now=time.time(), within=HOUR)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    last = opened(named)
    assert last.rate(rule, KEY, "last", now=time.time(), within=HOUR) == 61
    last.close()


@pytest.mark.parametrize("where", ["/nonexistent/folder", "unix:///nonexistent/socket", "redis://127.0.0.1:1/0"])
def test_one_that_cannot_be_reached(where: str) -> None:
    """A memory that is not there is a StateError, at once or when it is asked, and never an empty one."""
    with pytest.raises(StateError, match=r"nonexistent|127\.0\.0\.1"):
        opened(where).rate("r", KEY, "m1", now=time.time(), within=HOUR)


def test_a_password_is_not_told() -> None:
    """What is logged of a server has no password in it."""
    with pytest.raises(StateError) as told:
        opened("redis://user:secret@127.0.0.1:1/0").rate("r", KEY, "m1", now=0.0, within=HOUR)
    assert "secret" not in str(told.value)


def test_a_server_that_says_nothing() -> None:
    """One that takes connections and never answers is given up on in the time that a step has."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        found = opened(f"redis://127.0.0.1:{mute.getsockname()[1]}/0")
        with pytest.raises(StateError, match=r"[Tt]imeout"):
            found.rate("r", KEY, "m1", now=0.0, within=HOUR)
        mute.settimeout(0)
        tries = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                mute.accept()[0].close()
                tries += 1
        assert tries == 1  # each costs two seconds


def test_what_is_over_is_forgotten(tmp_path: Path) -> None:
    """A sweep lets go of what counts no more, in a file and in memory."""
    tmp_path.chmod(0o700)
    for one in (opened(str(tmp_path)), opened("memory")):
        for at in range(5):
            one.rate("r", (str(at),), "m", now=1000.0 + at, within=10.0)
        assert one.expire(1012.5) == 3
        assert one.expire(1012.5) == 0
        one.close()
