"""Our client program as the world's clients: what a message makes a client do, how long that takes, and what it keeps.

Knows programs, tasks and what they cost. Knows no clock, and computes no numbers: work is submitted, not done.
"""

from __future__ import annotations

from fedsim.client.kept import Kept, Parts
from fedsim.client.program import Finished, Order, Program, Unable
from fedsim.core.types import Seconds
from fedsim.learn.engine import Engine
from fedsim.learn.work import Result
from fedsim.sim.fleet import Fleet
from fedsim.sim.invariants import Invariants
from fedsim.sim.mail import Delivery

EVALUATIONS = 1 << 22
"""Where a client's evaluations are numbered from when a device model draws per task: apart from its training."""


_NEW = Kept()


class Programs:
    """The clients of *fleet*, their tasks submitted to *engine*."""

    def __init__(self, fleet: Fleet, engine: Engine, invariants: Invariants) -> None:
        self.fleet, self.engine, self._invariants = fleet, engine, invariants
        self._kept: dict[int, Kept] = {}
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
            kept, program = delivery.kept or self._kept[client], self.fleet.client(client)
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

    def _measured(self, delivery: Delivery) -> int | None:
        """Return how many steps a task comes to, computing it; None in a dry run, which takes the most."""
        result = None if delivery.ticket is None else self.engine.peek(delivery.ticket)
        if delivery.abandoned:  # Where it leaves something nobody but the client reads it, else nobody does.
            self.abandon(delivery)
        return None if result is None else int(result.metrics["steps"])

    def _begin(self, delivery: Delivery, order: Order, now: Seconds) -> Seconds:
        fleet, client = self.fleet, delivery.client
        training = order.job.kind == "train"
        program = fleet.client(client)
        if program.chained and (training or order.job.own_statistics):
            self._read(client)
        task, kept = program.plan(order, self.kept(client), now)
        if fleet.monitor is not None:
            task = fleet.monitor.watched(task, delivery.parcel.version)
        # A task known to be lost, that leaves nothing, is not computed; unless nobody knows how long it takes before it is.
        if training and program.leaves:
            delivery.kept = kept
            self._unread[client] = delivery
        measured = task.measured
        if delivery.wanted or measured:
            delivery.ticket = self.engine.submit(task)
        steps = self._measured(delivery) if measured else None
        taken, flops = 0 if not training else task.steps if steps is None else steps, fleet.flops.of(task, steps)
        self._keep(delivery, program, kept)
        took_s, waited_s = fleet.took(client, task, task.number if training else EVALUATIONS + task.number, flops, taken)
        delivery.plan(task, flops, taken, waited_s, task.job.batch_size if training and fleet.sizing is not None else 0)
        return took_s
