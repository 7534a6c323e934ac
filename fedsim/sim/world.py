"""The clients' world: how one message travels to a device, waits there, is worked on, and travels back.

Knows durations and their order. Knows no strategy and computes no numbers: work is submitted, not done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import simpy
from flwr.app import Message, RecordDict

from fedsim.client import Client, Memory, Order
from fedsim.core.keys import Key
from fedsim.core.types import Seconds
from fedsim.cost.availability import Availability
from fedsim.cost.compute import Compute
from fedsim.cost.network import Network
from fedsim.data.federation import Federation
from fedsim.flower.records import Size
from fedsim.learn.engine import Engine
from fedsim.learn.flops import Flops
from fedsim.learn.work import Job, Task
from fedsim.sim.rows import Outcome, TaskRow

NEVER = -1.0
EVALUATIONS = 1 << 22
"""Where a client's evaluations are numbered from when a device model draws per task: apart from its training."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything about the clients that has to do with cost; functions of (key, client), so nothing is stored.

    *job* is the scenario's training job, which a message may change; *forms* are the type and shape of each array that a trained client sends back, by name.
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
        task, job = self.task, self.task.job if self.task else None
        examples = len(task.positions) if task else 0
        down = self.parcel.down if self.reached else _NOTHING
        up = self.parcel.up if self.computed_s != NEVER else _NOTHING  # What was never sent weighs nothing.
        return TaskRow(
            message=self.id, client=self.client, number=task.number if task else -1,
            kind=self.kind, round=self.parcel.round, version=self.parcel.version, outcome=outcome,
            sent_s=self.sent_s, received_s=self.received_s, started_s=self.started_s, computed_s=self.computed_s,
            arrived_s=self.arrived_s, examples=examples,
            steps=job.batches(examples) if job and job.kind == "train" else 0, flops=self.flops,
            down_bytes=down.payload, down_framing_bytes=down.framing,
            up_bytes=up.payload, up_framing_bytes=up.framing, loss=loss, result=result, failure=self.failure,
        )  # fmt: skip


_NOTHING = Size(0, 0)


class World:
    """Runs deliveries on the virtual clock. ``arrive`` is called, in virtual order, for each one that has ended."""

    def __init__(self, fleet: Fleet, engine: Engine, arrive: Callable[[Delivery], None]) -> None:
        self.env = simpy.Environment()
        self.fleet, self.engine, self._arrive = fleet, engine, arrive
        self._busy: dict[int, deque[simpy.Event]] = {}
        self._memories: dict[int, Memory] = {}

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
        delivery.started_s = env.now
        order = delivery.parcel.order
        if order is None:
            delivery.failure = delivery.parcel.failure
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

    def _begin(self, delivery: Delivery, order: Order) -> Seconds:
        """Fix what the task depends on, submit it, and return how long it takes: time before numbers."""
        fleet, client = self.fleet, delivery.client
        program = Client(client, fleet.federation, fleet.key)
        task, self._memories[client] = program.plan(order, self._memories.get(client, Memory()))
        delivery.task = task
        delivery.flops = fleet.flops.of(order.job, len(task.positions))
        if not delivery.abandoned:  # A task known to be lost, that leaves nothing behind, is not computed.
            delivery.ticket = self.engine.submit(task)
        number = task.number if order.job.kind == "train" else EVALUATIONS + task.number
        return fleet.compute.seconds(client, number, delivery.flops)
