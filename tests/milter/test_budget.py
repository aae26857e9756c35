"""Tests of milterapp.milter.budget."""

from __future__ import annotations

import pytest

from milterapp.milter.budget import Budget, Ticker


@pytest.mark.parametrize(
    ("step", "spent", "late"),
    [
        ("mail", 5.0, False),
        ("mail", 5.1, True),
        ("eom", 19.0, False),
        ("eom", 20.5, True),
        ("header", 99.0, False),
        ("close", 99.0, False),
    ],
)
def test_budget(step: str, spent: float, *, late: bool) -> None:
    """A step that is answered has its time, the end of a message more, and what nobody waits for any."""
    assert bool(Budget(5, 20).exceeded(step, spent)) is late


class Server:
    """Counts what it is told."""

    def __init__(self, *, gone: bool = False) -> None:
        self.told = 0
        self.gone = gone

    def progress(self) -> None:
        """Take it."""
        self.told += 1
        if self.gone:
            raise OSError("gone")


def test_ticker() -> None:
    """Whoever waits is told, whoever has its answer is not, and one that is gone keeps nobody from being told."""
    ticker = Ticker(0)
    gone, waits, done = Server(gone=True), Server(), Server()
    with ticker.watching(gone), ticker.watching(waits):
        with ticker.watching(done):
            pass
        ticker.tick()
    ticker.tick()
    assert (gone.told, waits.told, done.told) == (1, 1, 0)


def test_ticker_that_is_early() -> None:
    """Who has not waited long is told nothing."""
    ticker, server = Ticker(3600), Server()
    with ticker.watching(server):
        ticker.tick()
    assert server.told == 0
