"""The clients' world: how one message travels to a device, waits there, is worked on, and travels back.

Knows durations and their order. Knows no strategy and computes no numbers: work is submitted, not done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator

import simpy

from fedsim.client.kept import Kept, Parts
from fedsim.client.program import Finished, Order, Program, Unable
from fedsim.core.types import Seconds
from fedsim.learn.engine import Engine
from fedsim.learn.work import Result
from fedsim.sim.fleet import Fleet
from fedsim.sim.invariants import Invariants
from fedsim.sim.links import Lay, Unshared
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import STREAM_ENDED

EVALUATIONS = 1 << 22
"""Where a client's evaluations are numbered from when a device model draws per task: apart from its training."""


_NEW = Kept()


class World:
    """Runs deliveries on the virtual clock. ``arrive`` is called, in virtual order, for each one that has ended; *lay* makes the links."""

    def __init__(
        self, fleet: Fleet, engine: Engine, arrive: Callable[[Delivery], None], invariants: Invariants, lay: Lay = Unshared
    ) -> None:
        self.env = simpy.Environment()
        self._links = lay(self.env, fleet.network)
        self.fleet, self.engine, self._arrive, self._invariants = fleet, engine, arrive, invariants
        self._busy: dict[int, deque[simpy.Event]] = {}
        self._kept: dict[int, Kept] = {}
        self._unread: dict[int, Delivery] = {}  # By client: its last training task, until its numbers are known.
        self._under_way: dict[int, Generator[simpy.Event, None, None]] = {}  # By message.

    def send(self, delivery: Delivery) -> None:
        """Put *delivery* on its way."""
        self._under_way[delivery.number] = carried = self._carry(delivery)
        self.env.process(carried)

    def close(self) -> None:
        """Let go of deliveries that are still under way, and of who hears of arrivals: nothing more is going to happen."""
        for carried in self._under_way.values():
            carried.close()  # The clock, which is a circle of its own, would keep each, and with it the world.
        self._under_way.clear()
        self._busy.clear()
        del self._arrive

    def _carry(self, delivery: Delivery) -> Generator[simpy.Event, None, None]:
        env, client = self.env, delivery.client
        yield self._links.down(client, delivery.parcel.down.total)
        delivery.receive(env.now)
        if client in self._busy:  # One message at a time per client, as on a real SuperNode.
            turn = env.event()
            self._busy[client].append(turn)
            yield turn
        else:
            self._busy[client] = deque()
        order = delivery.parcel.order
        if order is not None and self.fleet.online is not None:
            yield from self._until_ready(delivery, order)
        delivery.start(env.now)
        if order is None:
            delivery.fail(delivery.parcel.failure)
        elif not delivery.failure:
            try:
                took = self._begin(delivery, order)
            except Unable as error:
                delivery.fail(str(error))
            else:
                yield env.timeout(took)
                delivery.answer(env.now)
                yield self._links.up(client, delivery.parcel.up.total)
        delivery.arrive(env.now)
        if waiting := self._busy[client]:
            waiting.popleft().succeed()
        else:
            del self._busy[client]
        del self._under_way[delivery.number]
        self._arrive(delivery)

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

    def ended(self, client: int) -> bool:
        """Return whether *client* has trained on all that its stream will ever bring."""
        return self.fleet.client(client).ended(self.kept(client), self.env.now)

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

    def _until_ready(self, delivery: Delivery, order: Order) -> Generator[simpy.Event, None, None]:
        """Hold a message until its client's trigger does; say so when that will never be."""
        client, now = delivery.client, self.env.now
        ready_s = self.fleet.client(client).ready_s(order, self.kept(client), now)
        if math.isinf(ready_s):
            delivery.fail(STREAM_ENDED)
        elif ready_s > now:
            yield self.env.timeout(ready_s - now)

    def _measured(self, delivery: Delivery) -> int | None:
        """Return how many steps a task comes to, computing it; None in a dry run, which takes the most."""
        result = None if delivery.ticket is None else self.engine.peek(delivery.ticket)
        if delivery.abandoned:  # Where it leaves something nobody but the client reads it, else nobody does.
            self.abandon(delivery)
        return None if result is None else int(result.metrics["steps"])

    def _begin(self, delivery: Delivery, order: Order) -> Seconds:
        """Fix what the task depends on, submit it, and return how long it takes: time before numbers."""
        fleet, client = self.fleet, delivery.client
        training = order.job.kind == "train"
        program = fleet.client(client)
        if program.chained and (training or order.job.own_statistics):
            self._read(client)
        task, kept = program.plan(order, self.kept(client), self.env.now)
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
