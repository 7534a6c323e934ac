"""The clients' world: how one message travels to a device, waits there, is worked on, and travels back.

Knows durations and their order. Knows no strategy and computes no numbers: work is submitted, not done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import cast

import simpy
from flwr.app import Message, RecordDict

from fedsim.client.kept import Kept
from fedsim.client.offline import Offline
from fedsim.client.program import Finished, Order, Program
from fedsim.client.stream import Online, OnStream
from fedsim.core.errors import must
from fedsim.core.keys import Key
from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability
from fedsim.cost.compute import Compute
from fedsim.cost.network import Network
from fedsim.data.federation import Federation
from fedsim.flower.records import Size
from fedsim.learn.engine import Engine
from fedsim.learn.flops import Flops
from fedsim.learn.work import Job, Result, Task
from fedsim.sim.invariants import Invariants
from fedsim.sim.rows import STREAM_ENDED, Outcome, TaskRow

NEVER = -1.0
EVALUATIONS = 1 << 22
"""Where a client's evaluations are numbered from when a device model draws per task: apart from its training."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything about the clients that has to do with cost; functions of (key, client), so nothing is stored.

    *online* says how they act on streams, where there are any. *job* is the scenario's training job, which a message may change;
    *forms* are the type and shape of each array that a trained client sends back, by name.
    """

    federation: Federation
    job: Job
    compute: Compute
    network: Network
    availability: Availability
    flops: Flops
    forms: dict[str, tuple[str, tuple[int, ...]]]
    scores: tuple[str, ...]
    extra_metrics: tuple[str, ...]
    key: Key
    online: Online | None = None

    def client(self, number: int) -> Program:
        """Return the program of client *number*."""
        if self.online is None:
            return Offline(number, self.federation, self.key, self.job.keeping)
        return OnStream(number, self.federation, self.key, self.online, self.job.keeping)


@dataclass(frozen=True, slots=True)
class Parcel:
    """What the messages of one push carry: read once, however many clients it goes to.

    *order* is None when our client cannot read it; *failure* then says why. *up* is the size of an answer.
    """

    content: RecordDict
    round: int
    version: int
    down: Size
    up: Size
    order: Order | None
    failure: str


@dataclass(slots=True)
class Delivery:
    """One message on its way: a plain record, so that a process could be started again from where it is.

    *abandoned* says that nobody waits for the reply any more.
    """

    id: str
    client: int
    message: Message
    parcel: Parcel
    sent_s: Seconds
    reached: bool = True
    received_s: Seconds = NEVER
    started_s: Seconds = NEVER
    computed_s: Seconds = NEVER
    arrived_s: Seconds = NEVER
    task: Task | None = None
    ticket: int | None = None
    flops: float = 0.0
    failure: str = ""
    abandoned: bool = False
    kept: Kept | None = None
    """What the client kept once the task had begun; None unless that leaves more behind than its reply."""
    finished: Finished | None = None

    @property
    def round(self) -> int:
        """Return the server's round that sent it."""
        return self.parcel.round

    @property
    def kind(self) -> str:
        """Return Flower's message type."""
        return self.message.metadata.message_type

    def row(self, outcome: Outcome, loss: float | None = None, result: str = "") -> TaskRow:
        """Return the row that tells this delivery's fate."""
        task = self.task
        down = self.parcel.down if self.reached else _NOTHING
        up = self.parcel.up if self.computed_s != NEVER else _NOTHING  # What was never sent weighs nothing.
        return TaskRow(
            message=self.id, client=self.client, number=task.number if task else -1,
            kind=self.kind, round=self.parcel.round, version=self.parcel.version, outcome=outcome,
            sent_s=self.sent_s, received_s=self.received_s, started_s=self.started_s, computed_s=self.computed_s,
            arrived_s=self.arrived_s, examples=task.examples if task else 0,
            steps=task.steps if task and task.job.kind == "train" else 0, flops=self.flops,
            down_bytes=down.payload, down_framing_bytes=down.framing,
            up_bytes=up.payload, up_framing_bytes=up.framing, loss=loss, result=result, failure=self.failure,
        )  # fmt: skip


_NOTHING = Size(0, 0)
_NEW = Kept()


class World:
    """Runs deliveries on the virtual clock. ``arrive`` is called, in virtual order, for each one that has ended."""

    def __init__(
        self, fleet: Fleet, engine: Engine, arrive: Callable[[Delivery], None], invariants: Invariants
    ) -> None:
        self.env = simpy.Environment()
        self.fleet, self.engine, self._arrive, self._invariants = fleet, engine, arrive, invariants
        self._busy: dict[int, deque[simpy.Event]] = {}
        self._kept: dict[int, Kept] = {}
        self._unread: dict[int, Delivery] = {}  # By client: its last training task, until its numbers are known.

    def send(self, delivery: Delivery) -> None:
        """Put *delivery* on its way."""
        self.env.process(self._carry(delivery))

    def _carry(self, delivery: Delivery) -> Generator[simpy.Event, None, None]:
        env, network, client = self.env, self.fleet.network, delivery.client
        yield env.timeout(network.down_s(client, delivery.parcel.down.total))
        delivery.received_s = env.now
        if client in self._busy:  # One message at a time per client, as on a real SuperNode.
            turn = env.event()
            self._busy[client].append(turn)
            yield turn
        else:
            self._busy[client] = deque()
        order = delivery.parcel.order
        if order is not None and self.fleet.online is not None:
            yield from self._until_ready(delivery, order)
        delivery.started_s = env.now
        if order is None or delivery.failure:
            delivery.failure = delivery.failure or delivery.parcel.failure
        else:
            yield env.timeout(self._begin(delivery, order))
            delivery.computed_s = env.now
            yield env.timeout(network.up_s(client, delivery.parcel.up.total))
        delivery.arrived_s = env.now
        if waiting := self._busy[client]:
            waiting.popleft().succeed()
        else:
            del self._busy[client]
        self._arrive(delivery)

    def finish(self, delivery: Delivery, result: Result) -> Finished:
        """Let the client take in the numbers of a task, once, and return what that ends with."""
        client, task = delivery.client, delivery.task
        if delivery.finished is None:
            must(task is not None, "what is finished has begun")
            kept = delivery.kept or self._kept[client]
            delivery.finished = self.fleet.client(client).finish(cast(Task, task), result, kept)
            if self._unread.get(client) is delivery:  # Otherwise the client is further on, and reads nothing of this one.
                del self._unread[client]
                self._keep(delivery, self._kept[client].having(delivery.finished.parts))
        return delivery.finished

    def ended(self, client: int) -> bool:
        """Return whether *client* has trained on all that its stream will ever bring."""
        return self.fleet.client(client).ended(self.kept(client), self.env.now)

    def forget(self, delivery: Delivery) -> None:
        """Drop the numbers of a delivery that nobody waits for, unless they leave something behind."""
        if delivery.ticket is not None and not self._leaves(delivery):
            self.engine.discard(delivery.ticket)

    def kept(self, client: int) -> Kept:
        """Return what *client* keeps now."""
        return self._kept.get(client, _NEW)

    def _leaves(self, delivery: Delivery) -> bool:
        """Return whether a task leaves more behind than its reply."""
        return delivery.kind == "train" and self.fleet.client(delivery.client).leaves

    def _keep(self, delivery: Delivery, kept: Kept) -> None:
        held, capacity = self.fleet.client(delivery.client).held(kept)
        if held:
            self._invariants.remembered(f"message {delivery.id} to client {delivery.client}", held, capacity)
        self._kept[delivery.client] = kept

    def _read(self, client: int) -> None:
        """Take in the numbers of the client's last task, computing them where nobody has asked for them yet."""
        last = self._unread.get(client)
        if last is not None and last.ticket is not None:
            result = self.engine.peek(last.ticket)
            if result is not None:
                self.finish(last, result)

    def _until_ready(self, delivery: Delivery, order: Order) -> Generator[simpy.Event, None, None]:
        """Hold a message until its client's trigger does; say so when that will never be."""
        client, now = delivery.client, self.env.now
        ready_s = self.fleet.client(client).ready_s(order, self.kept(client), now)
        if math.isinf(ready_s):
            delivery.failure = STREAM_ENDED
        elif ready_s > now:
            yield self.env.timeout(ready_s - now)

    def _begin(self, delivery: Delivery, order: Order) -> Seconds:
        """Fix what the task depends on, submit it, and return how long it takes: time before numbers."""
        fleet, client = self.fleet, delivery.client
        training = order.job.kind == "train"
        program = fleet.client(client)
        if training and program.chained:
            self._read(client)
        task, kept = program.plan(order, self.kept(client), self.env.now)
        delivery.task = task
        delivery.flops = fleet.flops.of(task)
        if self._leaves(delivery) or not delivery.abandoned:  # A task known to be lost, that leaves nothing, is not computed.
            delivery.ticket = self.engine.submit(task)
        if self._leaves(delivery):
            delivery.kept = kept
            self._unread[client] = delivery
        self._keep(delivery, kept)
        number = task.number if training else EVALUATIONS + task.number
        return fleet.compute.seconds(client, number, delivery.flops)
