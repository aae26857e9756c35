"""Programs, as an agent sees them: asked of its runner, one at a time, and how each of them ended in words.

Must never: take a program's failure for anything but a value, or an argument for more than one word.

| how it ended | `pipe` | `filter` | `command` |
|---|---|---|---|
| status 0 | done | what it wrote, where that is a message | that status |
| status 75 (EX_TEMPFAIL) | tried again later | failed | could not tell |
| another status | tried again later | failed | that status |
| signal, time, output, not started, runner lost | tried again later | failed | could not tell |

A run that goes on when the time for the message is over has taken too long; after that none is begun.
"""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milterapp.delivery import runner, sealed, wire
from milterapp.delivery.requests import printable
from milterapp.mail.envelope import Envelope, split_address, split_detail
from milterapp.rules.truth import Failed, Value

__all__ = ["Programs", "Ran", "environment"]

_LONGEST_READ = 1 << 30  # bytes; the site's bound on what a program writes is lower
_UNSAFE = re.compile(r"[^0-9A-Za-z!@%_=+:,./-]")  # as local(8) has it: what a shell could take for more than a word
_MOST = 1000  # characters of one value in the environment


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended. how: exit, signal, time, late, output, start or lost; output: what it wrote, where wanted."""

    program: str
    how: str
    status: int = 0
    said: str = ""
    output: bytes = b""

    @property
    def done(self) -> bool:
        """Tell whether it ended by itself with status 0."""
        return self.how == "exit" and self.status == 0

    @property
    def told(self) -> bool:
        """Tell whether its status says something of the message."""
        return self.how == "exit" and self.status != os.EX_TEMPFAIL

    def __str__(self) -> str:
        if self.how == "signal":
            return f"{self.program} was ended by {_signal(self.status)}"
        if self.how == "start":
            return f"{self.program} cannot be started: {self.said}"
        return f"{self.program} {_WORDS[self.how].format(status=self.status)}"


_WORDS = {
    "exit": "ended with status {status}",
    "time": "took too long",
    "late": "was not run, as the time for the message is over",
    "output": "wrote too much",
    "lost": "was lost with the process that runs it",
}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(envelope: Envelope, delimiter: str) -> dict[str, str]:
    """Return what a program finds in its environment of a message, as local(8) gives it to commands."""
    recipient = envelope.recipients[0] if envelope.recipients else ""
    given = {
        "SENDER": envelope.sender,
        "RECIPIENT": recipient,
        "ORIGINAL_RECIPIENT": envelope.original_recipient,
        "EXTENSION": split_detail(split_address(recipient)[0], delimiter)[1],
        "CLIENT_ADDRESS": envelope.client,
    }
    return {name: _UNSAFE.sub("_", value[:_MOST]) for name, value in given.items()}


@dataclass(slots=True)
class Programs:
    """The connection to a runner, None where the site allows no programs. runs: of the present message, for its event.

    lost: the runner has ended; nothing can be run any more, and the agent should end too. until: when the time for the
    present message is over, by time.monotonic().
    """

    connection: socket.socket | None = None
    lost: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    until: float = math.inf

    def begin(self, until: float) -> None:
        """Begin with a message."""
        self.runs.clear()
        self.until = until

    def run(
        self, program: str, arguments: Sequence[str], message: bytes, variables: Mapping[str, str], *, wanted: bool
    ) -> Ran:
        """Run one, the message on its standard input. wanted: what it writes to standard output is."""
        start = time.monotonic()
        ran = self._ran(program, arguments, message, variables, wanted=wanted)
        how = f"{ran.how} {ran.status}" if ran.how in ("exit", "signal") else ran.how
        took = {"program": program, "ended": how, "seconds": round(time.monotonic() - start, 3)}
        self.runs.append(took | ({"said": ran.said} if ran.said else {}))
        return ran

    def command(self, key: Sequence[str], message: bytes, envelope: Envelope, delimiter: str) -> Value:
        """Answer a Need of that kind: the exit status, where it tells something. key: the program and its arguments."""
        program, *arguments = key
        ran = self.run(program, arguments, message, environment(envelope, delimiter), wanted=False)
        return ran.status if ran.told else Failed(str(ran))

    def _ran(
        self, program: str, arguments: Sequence[str], message: bytes, variables: Mapping[str, str], *, wanted: bool
    ) -> Ran:
        if self.connection is None or self.lost:
            return Ran(program, "lost")
        left = self.until - time.monotonic()
        if left <= 0:
            return Ran(program, "late")
        fields = {
            "program": program,
            "arguments": "".join(f"{one}\0" for one in arguments),
            "environment": "".join(f"{name}={value}\0" for name, value in variables.items()),
            **({"milliseconds": f"{math.ceil(left * 1000)}"} if left < math.inf else {}),
        }
        try:
            given = sealed.seal([message])
            try:
                wire.send(self.connection, "RUN", fields | ({"wanted": "1"} if wanted else {}), (given,))
            except wire.WireError:  # nothing was sent
                return Ran(program, "start", said="its arguments are too long together")
            finally:
                os.close(given)
            answer = wire.receive(self.connection, runner.ENDED, descriptors=(0, 1))
            if answer is None:
                raise ConnectionError("it ended")
            return self._heard(program, answer)
        except (wire.WireError, OSError, sealed.SealError):
            self.lost = True
            return Ran(program, "lost")

    def _heard(self, program: str, answer: wire.Datagram) -> Ran:
        try:
            output = b""
            for descriptor in answer.descriptors:
                sealed.measure(descriptor, _LONGEST_READ)
                output = sealed.read(descriptor)
            how = answer.text("how")
            if how not in (*_WORDS, "signal", "start"):
                raise wire.WireError("an end of no known kind")
            return Ran(program, how, answer.number("status"), printable(answer.text("said"), 200), output)
        finally:
            answer.close()
