"""What is on its way and what is there for the server, and letting the clock run until enough of it is. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence

import simpy

from fedsim.core.errors import RunError
from fedsim.core.types import Seconds
from fedsim.sim.invariants import Invariants
from fedsim.sim.mail import Delivery


class Inbox:
    """The server's deliveries by message id: those *flying*, and those that are there and were not taken."""

    def __init__(self, env: simpy.Environment, invariants: Invariants) -> None:
        self._env, self._invariants = env, invariants
        self.flying: dict[str, Delivery] = {}
        self._there: dict[str, Delivery] = {}
        self._waiters: dict[str, _Waiter] = {}

    def expect(self, delivery: Delivery) -> None:
        """Take that *delivery* is on its way."""
        self.flying[delivery.id] = delivery

    def put(self, delivery: Delivery) -> None:
        """Take that *delivery* is there."""
        self._there[delivery.id] = delivery
        if waiter := self._waiters.pop(delivery.id, None):
            waiter.arrived(usable=not delivery.failure)

    def take(self, message_ids: Iterable[str]) -> list[Delivery]:
        """Return those of *message_ids* that are there, which then are not."""
        return [self._there.pop(message_id) for message_id in message_ids if message_id in self._there]

    def usable(self, message_ids: Iterable[str]) -> int:
        """Return how many of *message_ids* are there, errors apart."""
        return sum(message_id in self._there and not self._there[message_id].failure for message_id in message_ids)

    def wait(
        self, message_ids: Sequence[str], timeout: Seconds | None = None, *, enough: int | None = None, usable: int | None = None
    ) -> None:  # fmt: skip
        """Let time pass until all of *message_ids* are there that were sent, or *enough* of them, or *timeout* is over.

        Or until *usable* of them are there that are no errors.

        Raises RunError where there is no *timeout*, and what is missing will never come.
        """
        ids = [message_id for message_id in message_ids if message_id in self.flying]
        left = len(ids) if enough is None else min(len(ids), enough - sum(map(self._there.__contains__, message_ids)))
        wanted = math.inf if usable is None else usable - self.usable(message_ids)
        if left <= 0 or wanted <= 0:
            return
        waiter = _Waiter(self._env, left, wanted)
        self._waiters = dict.fromkeys(ids, waiter)
        self._run(waiter.done, timeout, ids)
        self._waiters = {}
        self._invariants.at(float(self._env.now), "the end of a wait")

    def run(self, done: simpy.Event, timeout: Seconds | None) -> None:
        """Let time pass until *done* happens, or *timeout* is over. Raises RunError as ``wait`` does."""
        self._run(done, timeout, None)
        self._invariants.at(float(self._env.now), "the end of a wait")

    def whole(self, message_ids: Iterable[str]) -> simpy.Event:
        """Return what happens when those of *message_ids* that are on their way are there; for who waits while ``run`` goes on."""
        ids = [message_id for message_id in message_ids if message_id in self.flying]
        waiter = _Waiter(self._env, len(ids))
        self._waiters |= dict.fromkeys(ids, waiter)
        if not ids:
            waiter.done.succeed()
        return waiter.done

    def forget(self, message_ids: Iterable[str]) -> None:
        """Wait no more for *message_ids*."""
        for message_id in message_ids:
            self._waiters.pop(message_id, None)

    def deadline(self, timeout: Seconds) -> simpy.Event:
        """Return the end of *timeout* from now on, after whatever else happens at its last instant."""
        return self._env.process(_deadline(self._env, timeout))

    def _run(self, done: simpy.Event, timeout: Seconds | None, among: Sequence[str] | None) -> None:
        """Let time pass until *done* happens; where nothing is left to happen, say who of those *among* the flying is lost."""
        env = self._env
        try:
            env.run(until=done if timeout is None else env.any_of([done, self.deadline(timeout)]))
        except RuntimeError as error:
            ids = list(self.flying) if among is None else among
            lost = [delivery for delivery in map(self.flying.get, ids) if delivery is not None and delivery.lost]
            if env.peek() < math.inf or not lost:  # It is not that nothing is left to happen.
                raise
            raise RunError(
                f"server.strategy: waits without a timeout, at {float(env.now):,.1f} s, for replies that never come: {len(lost)} of"
                f" {len(ids)} messages, the first to client {lost[0].client} ({lost[0].cause}). Give the wait a timeout, or"
                f" clients.failures and clients.leaving settings under which everybody answers."
            ) from error

    def sleep(self, duration_s: Seconds) -> None:
        """Let *duration_s* pass, and whatever happens in it, its last instant included."""
        self._env.run(until=self._env.process(_deadline(self._env, duration_s)))
        self._invariants.at(float(self._env.now), "a sleep")


class _Waiter:
    """Counts arrivals down to the one that ends a wait: so many in all, or so many that are no errors."""

    def __init__(self, env: simpy.Environment, left: int, wanted: float = math.inf) -> None:
        self.done, self._left, self._wanted = env.event(), left, wanted

    def arrived(self, *, usable: bool) -> None:
        self._left, self._wanted = self._left - 1, self._wanted - usable
        if not self.done.triggered and (self._left == 0 or self._wanted == 0):
            self.done.succeed()


def _deadline(env: simpy.Environment, timeout: Seconds) -> Generator[simpy.Event, None, None]:
    yield env.timeout(timeout)
    yield env.timeout(0)  # After whatever else happens at this instant: a reply at the deadline is in time.
