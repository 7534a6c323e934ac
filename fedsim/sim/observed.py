"""A world whose moments are given: messages travel, and clients act, when those of another run were observed to.

What clients make of a message is theirs, as in any world; when they do is no matter of a device or a link. Computes no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import simpy

from fedsim.client.program import Unable
from fedsim.core.errors import RunError
from fedsim.core.types import Seconds
from fedsim.sim.crew import Clients
from fedsim.sim.mail import Delivery
from fedsim.sim.rows import TaskRow


@dataclass(frozen=True, slots=True)
class Observed:
    """What is to be repeated of another run: what came of each message, and when each wait of its server's was over.

    *tasks* are by the number of the message, in the order of sending; *ends* by round, kind, and the moment at which the wait began.
    """

    tasks: Mapping[int, TaskRow]
    ends: Mapping[tuple[int, str, Seconds], Seconds]

    def task(self, number: int) -> TaskRow:
        """Return what came of the *number*-th message. Raises RunError where none was sent."""
        if number not in self.tasks:
            raise RunError(f"message {number}: {len(self.tasks)} were observed, and here another one is sent.")
        return self.tasks[number]

    def sent_s(self, number: int, now: Seconds) -> Seconds:
        """Return when the *number*-th message was sent. Raises RunError where none was, or *now* that is over."""
        sent_s = self.task(number).sent_s
        if now > sent_s:
            raise RunError(f"message {number}: is sent at {now:.3f} s; observed was {sent_s:.3f} s.")
        return sent_s

    def of(self, delivery: Delivery) -> TaskRow:
        """Return what came of *delivery* there. Raises RunError where that was another message."""
        seen = self.task(delivery.number)
        here, there = (f"{row.kind} in round {row.round}, to client {row.client}" for row in (delivery, seen))
        if here != there:
            raise RunError(f"message {delivery.number}: is {here}; observed was {there}.")
        return seen

    def end_s(self, delivery: Delivery) -> Seconds:
        """Return when the wait that began with *delivery* was over. Raises RunError where none was observed to begin with it."""
        wait = delivery.round, delivery.kind, delivery.sent_s
        if wait not in self.ends:
            raise RunError(f"message {delivery.number}: no wait was observed that begins with it, at {delivery.sent_s:.3f} s.")
        return self.ends[wait]


class Repeating:
    """Carries deliveries on the virtual clock at the moments *observed*; ``arrive`` is called for each one that has ended.

    As ``World``, but for the reasons why anything takes its time. Moments are those observed to the last bit.
    """

    def __init__(self, clients: Clients, observed: Observed, arrive: Callable[[Delivery], None]) -> None:
        self.env = simpy.Environment()
        self._clients, self._observed, self._arrive = clients, observed, arrive
        self._under_way: dict[int, Generator[simpy.Event, None, None]] = {}  # By message.

    def send(self, delivery: Delivery) -> None:
        """Put *delivery* on its way. Raises RunError where another message was observed in its place."""
        seen = self._observed.of(delivery)
        self._clients.sent(delivery)
        self._under_way[delivery.number] = carried = self._carry(delivery, seen)
        self.env.process(carried)

    def send_all(self, deliveries: Sequence[Delivery], until_s: Seconds, first: int | None = None) -> list[Delivery]:
        """Put *deliveries* on their way, one by one; return those that need no event: none."""
        for delivery in deliveries:
            self.send(delivery)
        return []

    def close(self) -> None:
        """Let go of deliveries that are still under way, and of who hears of arrivals: nothing more is going to happen."""
        for carried in self._under_way.values():
            carried.close()
        self._under_way.clear()
        del self._arrive

    def _carry(self, delivery: Delivery, seen: TaskRow) -> Generator[simpy.Event, None, None]:
        env = self.env
        if seen.started_s >= 0:
            yield from self._at(seen.received_s)
            delivery.receive(env.now)
            yield from self._at(seen.started_s)
            delivery.start(env.now)
            try:
                self._clients.begin(delivery, env.now)
            except Unable as error:
                delivery.fail(str(error))
            else:
                _check(delivery, seen)
                yield from self._at(seen.computed_s)
                delivery.answer(env.now)
        if seen.arrived_s >= 0:  # Else it never did.
            yield from self._at(seen.arrived_s)
            if seen.started_s < 0:
                delivery.fail(seen.failure)
            delivery.arrive(env.now)
            del self._under_way[delivery.number]
            self._arrive(delivery)

    def _at(self, moment_s: Seconds) -> Generator[simpy.Event, None, None]:
        while self.env.now < moment_s:
            yield self.env.timeout(delay(self.env.now, moment_s))


def delay(now: Seconds, moment_s: Seconds) -> Seconds:
    """Return a delay from *now* towards *moment_s*: the last of them, one after the other, ends there to the last bit; 0 when it is over.

    From *now* on that is no less than half of *moment_s* their difference is exact (Sterbenz 1974), and so is what it adds up to.
    From before, there need not be any float that gives *moment_s*; the first delay therefore ends on the way.

    >>> 0.2 + (0.9 - 0.2) == 0.9, delay(2.0, 1.0)
    (False, 0.0)
    >>> there = 0.2 + delay(0.2, 0.9)
    >>> 0.45 < there < 0.9, there + delay(there, 0.9) == 0.9
    (True, True)
    """
    if now >= moment_s:
        return 0.0
    return moment_s - now if not now or 2 * now >= moment_s else 0.75 * moment_s - now


def _check(delivery: Delivery, seen: TaskRow) -> None:
    """Raise RunError where the task that a message makes is not the one that was observed: by then they have gone different ways."""
    for what, here, there in (("number", delivery.nth, seen.number), ("examples", delivery.examples, seen.examples)):
        if here != there:
            raise RunError(
                f"message {delivery.number}: the task that client {delivery.client} makes of it at {seen.started_s:.3f} s has {what}"
                f" {here}; observed was {there}."
            )
