"""The counts as Prometheus reads them, over HTTP on loopback, from the supervisor.

Must never: listen on anything but loopback, start a thread (the supervisor forks), or wait long for a client.

prometheus-client writes the text; its own server is not used, as it serves from threads. The workers' counts are added
up by the supervisor (counters.py), so the library's files for several processes are not needed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from milterapp.milter.counters import BUCKETS, Counts

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Metrics", "render"]

_LOOPBACK = "127.0.0.1"
_PATIENCE = 0.5  # seconds for a whole request
_REQUEST = 4096  # bytes

# By the word of counters: the metric's name, its labels, what it counts.
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "messages": ("milterapp_messages", ("verdict", "stage"), "Messages, by their verdict and where it fell."),
    "rules": ("milterapp_rule_matches", ("rule",), "Messages that a rule matched."),
    "would_have": ("milterapp_rule_would_have", ("rule",), "Messages that a rule matched which only observes."),
    "faults": ("milterapp_faults", ("step",), "Messages that could not be decided, by the step."),
}
_SECONDS = ("milterapp_message_seconds", "Time spent on a message, in all its steps together.")


def render(counts: Counts, gauges: Mapping[str, tuple[float, str]]) -> str:
    """Return the text exposition format 0.0.4. gauges: value and help by name."""
    from prometheus_client import CollectorRegistry, generate_latest  # not in a supervisor without metrics

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(counts, gauges))
    return generate_latest(registry).decode()


class _Collected:
    """The counts, as the library collects them."""

    def __init__(self, counts: Counts, gauges: Mapping[str, tuple[float, str]]) -> None:
        self._counts, self._gauges = counts, gauges

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its values."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for word, (name, labels, what) in _COUNTERS.items():
            family = CounterMetricFamily(name, what, labels=labels)
            for key, number in sorted(self._counts.items()):
                if key[0] == word and len(key) == len(labels) + 1:
                    family.add_metric(key[1:], number)
            yield family
        seconds, total = HistogramMetricFamily(*_SECONDS), 0
        buckets = []
        for bucket in (*(f"{most:g}" for most in BUCKETS), "+Inf"):
            total += self._counts["seconds", bucket]
            buckets.append((bucket, float(total)))
        seconds.add_metric((), buckets, sum_value=self._counts["microseconds",] / 1e6)
        yield seconds
        for name, (value, what) in self._gauges.items():
            yield GaugeMetricFamily(name, what, value=value)


class Metrics:
    """The listening socket. Raises OSError where the port is taken."""

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_server((_LOOPBACK, port), backlog=4)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"milter.metrics: {_LOOPBACK}:{port}") from None
        self._socket.setblocking(False)  # noqa: FBT003 - the name of the method says it

    @property
    def port(self) -> int:
        """The port, where 0 was asked for."""
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop; in a worker after the fork: it is the supervisor's."""
        self._socket.close()

    def answer(self, text: str) -> None:
        """Answer one client."""
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        with peer:
            try:
                line = _request(peer)
                if line[:1] == ["GET"] and line[1:2] in (["/metrics"], ["/"]):
                    head, body = "200 OK", text.encode()
                else:
                    head, body = "404 Not Found", b""
                peer.sendall(
                    f"HTTP/1.0 {head}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
            except OSError:
                pass  # it did not wait


def _request(peer: socket.socket) -> list[str]:
    """Return the words of the request line. Raises OSError where it does not come."""
    deadline = time.monotonic() + _PATIENCE
    data = b""
    while True:
        peer.settimeout(max(0.01, deadline - time.monotonic()))
        piece = peer.recv(_REQUEST)
        data += piece
        if not piece or b"\r\n\r\n" in data or len(data) >= _REQUEST:
            break
        if time.monotonic() > deadline:  # what is whole is answered, also where it was us who were slow
            raise TimeoutError
    return data.partition(b"\r\n")[0].decode("latin-1").split()
