"""Our client program as the world's clients: what a message makes a client do, how long that takes, and what it keeps.

Knows programs, tasks and what they cost. Knows no clock, and computes no numbers: work is submitted, not done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from fedsim.client.kept import Kept, Parts
from fedsim.client.program import Finished, Order, Program, Unable
from fedsim.core.types import FloatArray, Seconds
from fedsim.cost.compute import many_s
from fedsim.cost.failures import Fault
from fedsim.learn.engine import Engine
from fedsim.learn.work import Result, Task
from fedsim.sim.fleet import Fleet
from fedsim.sim.invariants import Invariants
from fedsim.sim.mail import Delivery

EVALUATIONS = 1 << 22
"""Where a client's evaluations are numbered from when a device model draws per task: apart from its training."""


_NEW = Kept()


@dataclass(slots=True)
class _Planned:
    """What a client will do with a message, and how much that is."""

    program: Program
    task: Task
    kept: Kept
    number: int
    flops: float
    steps: int
    waited_s: Seconds = 0.0


class Programs:
    """The clients of *fleet*, their tasks submitted to *engine*."""

    def __init__(self, fleet: Fleet, engine: Engine, invariants: Invariants) -> None:
        self.fleet, self.engine, self._invariants = fleet, engine, invariants
        self._kept: dict[int, Kept] = {}
        self._ahead: dict[int, _Planned] = {}  # By message: what was foreseen last.
        self._lives: dict[int, int] = {}  # By client: how often it has lost all that it kept.
        self._unread: dict[int, Delivery] = {}  # By client: its last training task, until its numbers are known.

    def sent(self, delivery: Delivery) -> None:
        """Take that *delivery* is on its way: nothing is known of it before its client acts."""

    def ready_s(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Return when the client acts on *delivery*, which is there *now*: its trigger may hold it; infinity for never."""
        order, client = delivery.parcel.order, delivery.client
        if order is None or self.fleet.online is None:
            return now
        return self.fleet.client(client).ready_s(order, self.kept(client), now)

    def begin(self, delivery: Delivery, now: Seconds) -> Seconds:
        """Fix what the task depends on, submit it, and return how long it takes: time before numbers. Raises Unable."""
        if delivery.parcel.order is None:
            raise Unable(delivery.parcel.failure)
        return self._begin(delivery, delivery.parcel.order, now)

    def finish(self, delivery: Delivery, result: Result) -> Finished:
        """Let the client take in the numbers of a task, once, and return what that ends with."""
        client = delivery.client
        if delivery.finished is None:
            kept, program = delivery.kept or self._kept[client], delivery.program or self.fleet.client(client)
            delivery.finished = program.finish(delivery.planned, result, kept)
            if self._unread.get(client) is delivery:  # Otherwise the client is further on, and reads nothing of this one.
                del self._unread[client]
                self._keep(delivery, program, self._kept[client].having(delivery.finished.parts))
        return delivery.finished

    def ended(self, client: int, now: Seconds) -> bool:
        """Return whether *client* has trained on all that its stream will ever bring."""
        return self.fleet.client(client).ended(self.kept(client), now)

    def abandon(self, delivery: Delivery) -> None:
        """Wait for a delivery no more, and drop its numbers, unless they leave something behind."""
        delivery.abandon()
        if delivery.ticket is not None and delivery.kept is None:
            self.engine.discard(delivery.ticket)

    def kept(self, client: int) -> Kept:
        """Return what *client* keeps now."""
        return self._kept.get(client, _NEW)

    def keep(self, client: int, parts: Parts) -> None:
        """Let *client* keep *parts* in the place of those of the same names."""
        self._kept[client] = self.kept(client).having(parts)

    def _keep(self, delivery: Delivery, program: Program, kept: Kept) -> None:
        held, capacity = program.held(kept)
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

    # -- beforehand -------------------------------------------------------------------------------------------------

    @property
    def foresight(self) -> Programs | None:
        """Return itself: what a client takes is known before it begins; None on streams, where moments decide what there is to do."""
        return self if self.fleet.online is None else None

    def sees(self, delivery: Delivery) -> bool:
        """Return whether what its client does with *delivery* depends on nothing that is still to happen, nor on numbers not computed."""
        order = delivery.parcel.order
        return order is not None and order.job.stopping is None and delivery.client not in self._unread

    def took_s(self, deliveries: Sequence[Delivery], received_s: FloatArray) -> FloatArray:
        """Return how long each of *deliveries* is worked on; NaN where the client cannot do it, or fails. Nothing begins.

        Shapes: (n,) -> (n,).
        """
        self._ahead.clear()
        planned: list[_Planned | None] = []
        known: dict[tuple[int, int], tuple[int, float]] = {}  # Steps and operations by job and number of examples.
        for delivery, now in zip(deliveries, received_s.tolist(), strict=True):
            try:
                planned.append(self._planned(delivery, cast(Order, delivery.parcel.order), now, known))
            except Unable:
                planned.append(None)
        took_s, able = np.full(len(planned), np.nan), [i for i, each in enumerate(planned) if each is not None]
        each = [cast(_Planned, planned[i]) for i in able]
        if self.fleet.loader is None and each:
            numbers = np.array([plan.number for plan in each])
            flops, steps = np.array([plan.flops for plan in each]), np.array([plan.steps for plan in each])
            clients = np.array([deliveries[i].client for i in able])
            took_s[able] = many_s(self.fleet.compute, clients, numbers, flops, steps)
        failures = self.fleet.failures
        for i, plan in zip(able, each, strict=True):
            if self.fleet.loader is not None:
                took_s[i], plan.waited_s = self.fleet.took(deliveries[i].client, plan.task, plan.number, plan.flops, plan.steps)
            if failures is not None and failures.fails(deliveries[i].client, plan.number, float(took_s[i])) is not None:
                took_s[i] = np.nan
            self._ahead[deliveries[i].number] = plan
        return took_s

    def begin_all(self, deliveries: Sequence[Delivery]) -> None:
        """Let the clients begin what ``took_s`` was asked of last."""
        for delivery in deliveries:
            plan = self._ahead[delivery.number]
            delivery.program, delivery.life = plan.program, self._lives.get(delivery.client, 0)
            self._begun(delivery, plan.program, plan.task, plan.kept)
            delivery.ticket = self.engine.submit(plan.task)
            self._keep(delivery, plan.program, plan.kept)
            delivery.plan(plan.task, plan.flops, plan.steps, plan.waited_s, self._chosen(plan.task))
        self._ahead.clear()

    def _planned(self, delivery: Delivery, order: Order, now: Seconds, known: dict[tuple[int, int], tuple[int, float]]) -> _Planned:
        program = self.fleet.client(delivery.client)
        task, kept = self._plan(delivery, program, order, now)
        training = task.job.kind == "train"
        like = (id(task.job), len(task.positions)) if task.by_count else None
        found = None if like is None else known.get(like)
        if found is None:
            found = task.steps if training else 0, self.fleet.flops.of(task)
            if like is not None:
                known[like] = found
        steps, flops = found
        return _Planned(program, task, kept, task.number if training else EVALUATIONS + task.number, flops, steps)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _plan(self, delivery: Delivery, program: Program, order: Order, now: Seconds) -> tuple[Task, Kept]:
        task, kept = program.plan(order, self.kept(delivery.client), now)
        if self.fleet.monitor is not None:
            task = self.fleet.monitor.watched(task, delivery.parcel.version)
        return task, kept

    def _begun(self, delivery: Delivery, program: Program, task: Task, kept: Kept) -> None:
        """Take that a client has begun *task*, and what it leaves more than its reply: then it is computed though that is lost."""
        if task.job.kind == "train" and program.leaves:
            delivery.kept = kept
            self._unread[delivery.client] = delivery

    def _chosen(self, task: Task) -> int:
        """Return the size of batches that a policy chose; 0 where none does."""
        return task.job.batch_size if task.job.kind == "train" and self.fleet.sizing is not None else 0

    def _begin(self, delivery: Delivery, order: Order, now: Seconds) -> Seconds:
        fleet, client = self.fleet, delivery.client
        delivery.life = self._lives.get(client, 0)
        training = order.job.kind == "train"
        program = fleet.client(client)
        if program.chained and (training or order.job.own_statistics):
            self._read(client)
        task, kept = self._plan(delivery, program, order, now)
        steps = None
        if task.measured:  # Nobody knows how long it takes before it is computed.
            delivery.ticket = self.engine.submit(task)
            result = self.engine.peek(delivery.ticket)  # None in a dry run, which takes the most.
            steps = None if result is None else int(result.metrics["steps"])
        taken, flops = 0 if not training else task.steps if steps is None else steps, fleet.flops.of(task, steps)
        number = task.number if training else EVALUATIONS + task.number
        took_s, waited_s = fleet.took(client, task, number, flops, taken)
        delivery.plan(task, flops, taken, waited_s, self._chosen(task))
        delivery.fault = self._fault(delivery, number, now, took_s)
        if delivery.fault is not None and delivery.fault.breaks:  # All that it leaves is that it was begun: the next is another.
            kept = dataclasses.replace(self.kept(client), trained=kept.trained, evaluated=kept.evaluated)
            if delivery.fault.loses:
                kept = self._lost(client, kept)
        else:
            self._begun(delivery, program, task, kept)
        self._keep(delivery, program, kept)
        if delivery.wanted:  # A task known to be lost, that leaves nothing, is not computed.
            delivery.ticket = self.engine.submit(task) if delivery.ticket is None else delivery.ticket
        elif delivery.ticket is not None:
            self.engine.discard(delivery.ticket)
            delivery.ticket = None
        return took_s

    def _lost(self, client: int, kept: Kept) -> Kept:
        """Let *client* lose all that it keeps, and return what is left of *kept*: how often it began, and where its stream is.

        What it did before leaves nothing, though its numbers come later.
        """
        self._lives[client] = self._lives.get(client, 0) + 1
        self._unread.pop(client, None)
        return Kept(kept.trained, kept.evaluated, kept.until_s, kept.until_s)

    def _fault(self, delivery: Delivery, number: int, now: Seconds, works_s: Seconds) -> Fault | None:
        """Return what goes wrong with a task of *works_s*, begun *now*: by the failures, or since its client leaves before."""
        failures, leaves_s = self.fleet.failures, delivery.leaves_s
        fault = None if failures is None else failures.fails(delivery.client, number, works_s)
        if now + (works_s if fault is None else fault.after_s) > leaves_s:
            return Fault("left while working", max(0.0, leaves_s - now), breaks=True)
        return fault
