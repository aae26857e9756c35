"""What the monitor does with each message: receive, resolve, wait for room, agent or hand back, answer.

Must never: read a message, open a file under a home, parse what a user or an agent wrote, answer `ok` for what nobody
has confirmed. A delivery ends with exactly one answer, or none, which is a deferral too. A client that comes again and
again (the LMTP door) keeps its connection: one message after the other, each when the one before is answered.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from milterapp.delivery import kinds, linux, wire
from milterapp.delivery.agents import Agents, Room, User, Verdict
from milterapp.delivery.children import Child, Loop
from milterapp.delivery.event import Log
from milterapp.delivery.requests import printable
from milterapp.delivery.to_submit import ToSubmit

__all__ = ["Deliveries", "Phase"]

_RECEIVE, _RESOLVE = 10.0, 30.0  # seconds for the client's datagram, and for NSS
_FRESH, _MOST_FOUND = 5.0, 1000  # seconds for which a user found stands, and how many recipients are remembered
_NO_ID = 2**32 - 2
_MOST_IDLE = 64  # connections that wait for their clients' next message
_KNOWN = ("sender", "recipient", "original", "queue_id")  # what submit and agent are both told


class Phase(Enum):
    """How far a delivery is; what is said where it gets no further in time."""

    RECEIVING = "the message did not come"
    RESOLVING = "the recipient could not be looked up in time"
    WAITING = "too many deliveries at once"
    WORKING = "the delivery took too long"
    HANDING_BACK = "milterapp submit did not answer in time"
    DONE = "done"


_BEGUN = (Phase.WORKING, Phase.HANDING_BACK)  # goes on without its client; the journals know it when Postfix retries


@dataclass(slots=True, eq=False)
class _Client:
    """A connection. stays: whether another message may come over it; delivery: of the present one, None for none."""

    connection: socket.socket
    stays: bool
    delivery: _Delivery | None = None


@dataclass(slots=True, eq=False)
class _Delivery:
    """One message for one recipient. message: the sealed memfd, -1 before it came; user: None to hand back.

    ends: when what has begun is over; kept: of an agent's that only kept it, so that it is to be handed back.
    """

    number: int
    client: _Client | None
    since: float
    until: float
    phase: Phase = Phase.RECEIVING
    envelope: Mapping[str, bytes] = field(default_factory=dict)
    message: int = -1
    asked: bool = False
    virtual: bool = False
    user: User | None = None
    extension: str = ""
    ends: float = 0.0
    kept: Verdict | None = None
    obstacle: str = Phase.WAITING.value

    @property
    def owner(self) -> Hashable:
        """Return whose mailbox it is for, as far as that is known."""
        return self.envelope["recipient"] if self.user is None else (self.user.uid, self.user.home)


class Deliveries:
    """All of them. settings: as in `dataclasses.asdict(Settings())`."""

    def __init__(
        self, settings: Mapping[str, Any], loop: Loop, resolver: Child, agents: Agents, log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._own = settings["delivery"]
        self._keeps_here = self._own["keep"] == "maildir"
        self._loop, self._resolver, self._agents, self._log, self._clock = loop, resolver, agents, log, clock
        self._all: dict[int, _Delivery] = {}
        self._found: dict[bytes, tuple[User, str, float]] = {}  # of late: recipient to user, extension, when to ask
        self._idle: set[_Client] = set()
        self._submit = ToSubmit(loop, settings["submit"]["socket"])
        self._stopping = False
        self._last = 0

    def __len__(self) -> int:
        return len(self._all)

    # the client

    def accept(self, connection: socket.socket, *, stays: bool) -> None:
        """Begin with a connection whose peer may deliver. stays: one message after the other."""
        client = _Client(connection, stays)
        self._expect(client)
        self._loop.watch(connection, lambda: self._hear(client), lambda why: self._drop(client, why))

    def _expect(self, client: _Client) -> _Delivery:
        """Begin a delivery, whose message is still to come."""
        self._last += 1
        now = self._clock()
        delivery = client.delivery = self._all[self._last] = _Delivery(self._last, client, now, now + _RECEIVE)
        return delivery

    def _hear(self, client: _Client) -> None:
        """Take the datagram that a client sends for each message, or its leaving. Raises WireError, OSError."""
        datagram = wire.receive(client.connection, kinds.DELIVER, descriptors=(1,))
        if datagram is None and client.delivery is None:
            self._hang_up(client)
            return
        if datagram is None:
            self._drop(client, "the client left")
            return
        delivery = client.delivery
        if delivery is None:
            self._idle.discard(client)
            delivery = self._expect(client)
        fd = datagram.descriptors[0]
        complete = set(datagram.fields) == set(kinds.DELIVER[datagram.kind])
        if delivery.phase is not Phase.RECEIVING or not complete or not linux.is_sealed(fd) or not os.fstat(fd).st_size:
            datagram.close()
            raise wire.WireError("no whole sealed message with its envelope")
        delivery.message, delivery.envelope = fd, datagram.fields
        delivery.virtual = datagram.kind == "VIRTUAL"
        user, extension, until = self._found.get(delivery.envelope["recipient"], (None, "", 0.0))
        if user is not None and self._clock() < until and not delivery.virtual:
            delivery.user, delivery.extension = user, extension
            self._enter(delivery, Phase.WAITING, self._own["wait"])
        else:
            self._enter(delivery, Phase.RESOLVING, _RESOLVE)
            self._ask(delivery)

    def _drop(self, client: _Client, why: str) -> None:
        """Answer no more, which defers; end what has not begun."""
        delivery = client.delivery
        self._log("warning", "dropped", queue_id=delivery.envelope.get("queue_id") if delivery else None, error=why)
        self._hang_up(client)
        if delivery is not None and delivery.phase not in _BEGUN:
            self._forget(delivery)

    # the recipient

    def _ask(self, delivery: _Delivery) -> None:
        """Ask the resolver, as soon as there is one."""
        if self._resolver.control is not None:
            kind = "VIRTUAL" if delivery.virtual else "RESOLVE"
            self._resolver.send(kind, {"id": delivery.number, "recipient": delivery.envelope["recipient"]})
            delivery.asked = True

    def from_resolver(self, datagram: wire.Datagram) -> None:
        """Take what the resolver says of a recipient. Raises WireError."""
        delivery = self._all.get(datagram.number("id"))
        if delivery is None or delivery.phase is not Phase.RESOLVING:
            return
        if datagram.kind == "FAILED":
            self._finish(delivery, Verdict("defer", datagram.text("text")))
            return
        if datagram.kind == "USER":
            user = User(
                datagram.text("name"), datagram.number("uid"), datagram.number("gid"), datagram.text("home"),
                confined=delivery.virtual,
            )  # fmt: skip
            if self._above_floors(user):
                delivery.user, delivery.extension = user, datagram.text("extension")
                if not delivery.virtual:  # the file of those is asked for each message: a change counts at once
                    self._remember(delivery, user)
        self._enter(delivery, Phase.WAITING, self._own["wait"])

    def _remember(self, delivery: _Delivery, user: User) -> None:
        if len(self._found) >= _MOST_FOUND:
            self._found.clear()
        self._found[delivery.envelope["recipient"]] = (user, delivery.extension, self._clock() + _FRESH)

    def resolver_lost(self) -> None:
        """Defer what waited for it: the recipient may be what killed it."""
        for delivery in list(self._all.values()):
            if delivery.phase is Phase.RESOLVING and delivery.asked:
                self._defer(delivery, "the resolver ended")

    def _above_floors(self, user: User) -> bool:
        low_uid, low_gid = max(self._own["min_uid"], 1), max(self._own["min_gid"], 1)
        gids = set(self._own["gids"]) - {0}
        return low_uid <= user.uid < _NO_ID and (low_gid <= user.gid < _NO_ID or user.gid in gids)

    # the work

    def dispatch(self) -> None:
        """Begin what can be begun, in the order in which it came."""
        full = 0
        for delivery in list(self._all.values()):
            if delivery.phase is Phase.RESOLVING and not delivery.asked:
                self._ask(delivery)
            if delivery.phase is not Phase.WAITING:
                continue
            room = self._room(delivery)
            full += room is Room.FULL
            delivery.obstacle = Phase.WAITING.value
            if room is Room.NOW:
                self._begin(delivery)
        self._agents.make_room(full)

    def _room(self, delivery: _Delivery) -> Room:
        """Return whether a delivery could begin now: its agent's work, or its hand-back.

        Somebody's second hand-back begins only while half of the places are free: a slow mailbox leaves them to others.
        """
        if delivery.user is not None and delivery.kept is None:
            return self._agents.room(delivery.user)
        under_way, most = len(self._submit), self._own["agents"]
        full = under_way >= most or (2 * under_way >= most and self._submit.of(delivery.owner))
        return Room.BUSY if full else Room.NOW

    def _begin(self, delivery: _Delivery) -> None:
        """Hand over to the agent, or hand back; where the agent or submit is missing, go on waiting."""
        user = delivery.user if delivery.kept is None else None
        try:
            if user is None or not self._keeps_here:
                delivery.obstacle = "milterapp submit does not answer"
                self._submit.reach()
            if user is None:
                self._hand_back(delivery)
            else:
                delivery.obstacle = "no agent can be started"
                self._give(delivery, user)
        except (OSError, wire.WireError) as error:
            delivery.obstacle += f": {error}"

    def _vouched(self, delivery: _Delivery) -> tuple[str, Mapping[str, bytes | str]]:
        """Return what submit is told of a delivery: a kind, and the fields of its envelope."""
        name = delivery.user.name if delivery.user else ""
        known: dict[str, bytes | str] = {tag: delivery.envelope[tag] for tag in _KNOWN}
        return "VIRTUAL" if delivery.virtual else "ENVELOPE", {**known, "user": name}

    def _hand_back(self, delivery: _Delivery) -> None:
        """Ask submit to keep it, as edited if it was. Raises OSError or WireError."""
        before = delivery.kept
        messages = (delivery.message, *((before.edited,) if before is not None and before.edited >= 0 else ()))
        kind, envelope = self._vouched(delivery)
        done = lambda kept, text: self._kept(delivery, text, kept=kept)  # noqa: E731 - a name for one argument
        self._submit.keep(delivery.number, kind, envelope, messages, delivery.owner, done)
        self._enter(delivery, Phase.HANDING_BACK, delivery.ends - self._clock() if before else self._own["deadline"])

    def _give(self, delivery: _Delivery, user: User) -> None:
        """Give the agent the message; submit hears of it when the agent asks. Raises OSError or WireError."""
        job: dict[str, bytes | str | int] = {tag: delivery.envelope[tag] for tag in (*_KNOWN, "client")}
        job["extension"] = delivery.extension
        self._agents.give(
            user, job, delivery.message,
            lambda line: self._asked(delivery, line), lambda verdict: self._heard(delivery, verdict),
        )  # fmt: skip
        delivery.ends = self._clock() + self._own["deadline"]
        self._enter(delivery, Phase.WORKING, float("inf"))  # the pool keeps that deadline

    def _heard(self, delivery: _Delivery, verdict: Verdict) -> None:
        """Take what became of a job; one that has not begun waits for another agent, one to be kept for submit."""
        self._submit.end_line(delivery.number)
        if verdict.again and not self._stopping:
            self._enter(delivery, Phase.WAITING, self._own["wait"])
        elif verdict.status == "keep":
            delivery.kept = verdict
            self._enter(delivery, Phase.WAITING, min(self._own["wait"], delivery.ends - self._clock()))
            if self._room(delivery) is Room.NOW:
                self._begin(delivery)
        else:
            self._finish(delivery, verdict)

    def _asked(self, delivery: _Delivery, line: socket.socket) -> None:
        """Give submit the line that the agent has just asked over; the agent sees the end of it where not."""
        try:
            self._submit.vouch(delivery.number, *self._vouched(delivery), delivery.message, line)
        except (OSError, wire.WireError) as error:
            self._log("warning", "submit does not answer", queue_id=delivery.envelope["queue_id"], error=str(error))

    def _kept(self, delivery: _Delivery, text: str, *, kept: bool) -> None:
        """Take what became of a hand-back. text: Postfix's queue id, or why it has not taken the message."""
        before = delivery.kept or Verdict("", "")
        status, said = ("ok", f"handed back as {text}") if kept else ("defer", text)
        self._finish(delivery, Verdict(status, said, before.decided, before.warm))

    # the end

    def tick(self) -> bool:
        """Keep the deadlines. Return False where the resolver did not answer in time."""
        now, well = self._clock(), True
        for delivery in list(self._all.values()):
            if delivery.until > now:
                continue
            well = well and delivery.phase is not Phase.RESOLVING
            if delivery.phase is Phase.RECEIVING and delivery.client is not None:
                self._drop(delivery.client, delivery.phase.value)
            else:
                waits = delivery.phase is Phase.WAITING
                self._defer(delivery, delivery.obstacle if waits else delivery.phase.value)
        return well

    def stop(self) -> None:
        """Defer what has not begun, and hear of nothing more."""
        self._stopping = True
        for client in list(self._idle):
            self._hang_up(client)
        for delivery in list(self._all.values()):
            if delivery.phase not in _BEGUN:
                self._defer(delivery, "milterapp is stopping")

    def _enter(self, delivery: _Delivery, phase: Phase, seconds: float) -> None:
        if delivery.phase is not Phase.DONE:
            delivery.phase, delivery.until = phase, self._clock() + seconds

    def _defer(self, delivery: _Delivery, why: str) -> None:
        self._finish(delivery, Verdict("defer", why))

    def _finish(self, delivery: _Delivery, verdict: Verdict) -> None:
        """Answer the client, log it in one line, and forget it."""
        text = printable(verdict.text, 600)
        if verdict.status == "reject" and not text.startswith("5."):
            text = f"5.7.1 {text}"
        client, answered = delivery.client, False
        if client is not None:
            try:
                wire.send(client.connection, "ANSWER", {"status": verdict.status, "text": text})
                answered = True
            except (OSError, wire.WireError):
                pass  # the client is gone; Postfix asks again, and the journals know
        envelope, original = delivery.envelope, delivery.envelope.get("original")
        self._log(
            "warning" if verdict.status == "defer" else "info", "delivery",
            queue_id=envelope.get("queue_id"), sender=envelope.get("sender"), recipient=envelope.get("recipient"),
            original=original if original != envelope.get("recipient") else None,
            user=delivery.user.name if delivery.user else None, status=verdict.status, text=text or None,
            seconds=round(self._clock() - delivery.since, 3), answered=None if answered else False,
            warm=verdict.warm, decided=verdict.decided,
        )  # fmt: skip
        if client is not None:
            self._release(client, answered=answered)
        self._forget(delivery)

    def _release(self, client: _Client, *, answered: bool) -> None:
        """Wait for a client's next message, where it stays and there is room for it."""
        if answered and client.stays and not self._stopping and len(self._idle) < _MOST_IDLE:
            client.delivery = None
            self._idle.add(client)
        else:
            self._hang_up(client)

    def _hang_up(self, client: _Client) -> None:
        self._loop.unwatch(client.connection)
        client.connection.close()
        self._idle.discard(client)
        if client.delivery is not None:
            client.delivery.client = None
            client.delivery = None

    def _forget(self, delivery: _Delivery) -> None:
        self._all.pop(delivery.number, None)
        delivery.phase = Phase.DONE
        self._submit.forget(delivery.number)
        if delivery.kept is not None and delivery.kept.edited >= 0:
            os.close(delivery.kept.edited)
            delivery.kept = None
        if delivery.message >= 0:
            os.close(delivery.message)
            delivery.message = -1
