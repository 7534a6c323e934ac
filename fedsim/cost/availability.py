"""Availability models: which clients can be reached at a virtual time, and when that next changes.

Functions of (key, client, time): asked twice, in any order, they answer the same. Knows no task, and interrupts none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, BoolArray, FloatArray, IntArray, NonNegative, Positive, Range, Seconds, Share

_PERIODS = 1 << 32  # Draws per client: with more periods than that, a client would share the next one's luck.
_HORIZON_SLOTS = 100_000  # 5.7 years of half hours: a change later than that is called never.


Leaving = Literal["finish", "abort", "pause"]
"""What becomes of a message whose client goes away. finish: it is seen to the end. abort: nothing is heard of it. pause: it goes on when
the client is back."""


class Availability(Protocol):
    """When each client can be reached: equal arguments, equal answers, whatever was asked before."""

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return which of *clients* can be reached at *now*. Shapes: (n,) -> (n,)."""
        ...

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return the earliest time after *now*, never *now* itself, at which one of *clients* comes or goes.

        From there on ``available`` gives the new answer, until there it gives the old one; infinity is never.
        """
        ...


def _available(given: Any, clients: Array, _now: float) -> Array:
    return answers.elements(given, "b", "truths", len(clients))


def _next(given: Any, _clients: Array, now: float) -> float:
    at = answers.one(given, endless=True)
    if at <= now:
        raise ValueError(f"{at}, expected a time after now, which is {now}")
    return at


availabilities: Registry[Callable[..., Availability]] = Registry(
    "availability", given=["key", "find"], key="clients.availability",
    gives=answers.Gives("an Availability", ("available", "next_change"), {"available": _available, "next_change": _next}),
)  # fmt: skip
"""Functions that return an Availability. Given: ``key``, and ``find``, which looks up a file."""


@dataclass(frozen=True, slots=True)
class Always:
    """Clients that can always be reached. See ``always``."""

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return true for each client. Shapes: (n,) -> (n,)."""
        return np.ones(len(clients), dtype=np.bool_)

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return infinity."""
        return math.inf


class _Periods:
    """The period in which each client was last seen: from *start* up to, and without, *end*.

    A row per client ever asked about and below. Shapes: all (capacity,).
    """

    __slots__ = ("end", "index", "on", "start")

    def __init__(self) -> None:
        self.start: FloatArray = np.empty(0)
        self.end: FloatArray = np.empty(0)
        self.index: IntArray = np.empty(0, dtype=np.int64)
        self.on: BoolArray = np.empty(0, dtype=np.bool_)

    def hold(self, count: int) -> None:
        """Make room for clients 0 to *count* - 1. The new ones start after any time: they are still to be placed."""
        held = len(self.start)
        if count <= held:
            return
        more = max(count, 2 * held) - held  # Doubled: clients that are asked about one by one cost no copy each.
        self.start = np.append(self.start, np.full(more, np.inf))
        self.end = np.append(self.end, np.full(more, np.inf))
        self.index = np.append(self.index, np.zeros(more, dtype=np.int64))
        self.on = np.append(self.on, np.zeros(more, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class OnOff:
    """Clients that come and go in exponential periods. See ``onoff``.

    Which state a client starts in, and how long its k-th period lasts, are draws of its own; the ends of periods are
    sums of them. Time mostly goes forward, so the last period seen is kept as the place to go on from. That is a memo:
    the sums are added up in one order, so the bits are the same wherever the walk was resumed.
    """

    mean_on_s: Seconds
    mean_off_s: Seconds
    first: Key
    durations: Key
    _seen: _Periods = field(default_factory=_Periods, init=False, repr=False, compare=False)

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return which of *clients* are in a period on at *now*. Shapes: (n,) -> (n,)."""
        self._walk(clients, now)
        return self._seen.on[clients]

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return when the first of the current periods of *clients* ends."""
        self._walk(clients, now)
        return float(self._seen.end[clients].min(initial=math.inf))

    def _walk(self, clients: IntArray, now: Seconds) -> None:
        """Bring the memo of *clients* to the periods that hold *now*."""
        seen = self._seen
        seen.hold(int(clients.max(initial=-1)) + 1)
        back = clients[seen.start[clients] > now]
        if len(back):  # Never asked about, or asked about an earlier time: walk from the beginning.
            # Exponential periods forget their age, so the stationary process begins with a whole one.
            on = self.first.uniform(back) < self.mean_on_s / (self.mean_on_s + self.mean_off_s)
            index = np.zeros(len(back), dtype=np.int64)
            seen.start[back], seen.index[back], seen.on[back] = -np.inf, index, on
            seen.end[back] = self._length_s(back, index, on)
        late = clients[seen.end[clients] <= now]
        while len(late):
            start, index, on = seen.end[late], seen.index[late] + 1, ~seen.on[late]
            # At least one float later: a period too short to be told apart from nothing would hide a change.
            end = np.maximum(start + self._length_s(late, index, on), np.nextafter(start, np.inf))
            seen.start[late], seen.end[late], seen.index[late], seen.on[late] = start, end, index, on
            late = late[end <= now]

    def _length_s(self, clients: IntArray, index: IntArray, on: BoolArray) -> FloatArray:
        draws = self.durations.uniform(clients * _PERIODS + index)
        return np.where(on, self.mean_on_s, self.mean_off_s) * -np.log(draws)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Clients that come and go by the time of day, drawn anew in each slot. See ``diurnal``."""

    mean: float
    amplitude: float
    period_s: Seconds
    peak_s: Seconds
    slot_s: Seconds
    phase_spread_s: Seconds
    phases: Key
    slots: Key

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return which of *clients* are available in the slot that holds *now*. Shapes: (n,) -> (n,)."""
        return self._in_slot(clients, self._slot(now))

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return when the first slot begins in which the answer for one of *clients* is another."""
        if not len(clients) or self.mean in (0.0, 1.0):  # 1 leaves no room for an amplitude.
            return math.inf
        slot = self._slot(now)
        current = self._in_slot(clients, slot)
        for later in range(slot + 1, slot + 1 + _HORIZON_SLOTS):
            if (self._in_slot(clients, later) != current).any():
                return later * self.slot_s
        return math.inf

    def share(self, clients: IntArray, at_s: Seconds) -> FloatArray:
        """Return the chance of each client to be available at *at_s*, before slots. Shapes: (n,) -> (n,)."""
        turn = 2.0 * math.pi / self.period_s
        if not self.phase_spread_s:
            chance = self.mean * (1.0 + self.amplitude * math.cos(turn * (at_s - self.peak_s)))
            return np.full(len(clients), chance)
        phases = self.phase_spread_s * (self.phases.uniform(clients) - 0.5)
        return self.mean * (1.0 + self.amplitude * np.cos(turn * (at_s - self.peak_s - phases)))

    def _in_slot(self, clients: IntArray, slot: int) -> BoolArray:
        chance = self.share(clients, (slot + 0.5) * self.slot_s)
        return self.slots.fold(slot).uniform(clients) < chance

    def _slot(self, now: Seconds) -> int:
        # The quotient may round across a slot's edge, and an edge is where next_change sends the clock: compare with
        # the very product that it returns.
        slot = math.floor(now / self.slot_s)
        if slot * self.slot_s > now:
            return slot - 1
        return slot + 1 if (slot + 1) * self.slot_s <= now else slot


@availabilities.register("always")
def always() -> Always:
    """Return clients that can be reached at any time.

    >>> always().next_change(np.arange(3), now=0.0)
    inf
    """
    return Always()


@availabilities.register("onoff")
def onoff(
    key: Key,
    *,
    mean_on_s: Annotated[float, Range(ge=0.001, why="every period is drawn, so shorter ones take for ever")],
    mean_off_s: Annotated[float, Range(ge=0.001, why="every period is drawn, so shorter ones take for ever")],
) -> OnOff:
    """Return clients that are on and off in turn, for exponential times with means *mean_on_s* and *mean_off_s*.

    Stationary from time 0 on: at any time a share mean_on_s / (mean_on_s + mean_off_s) is on. Costs a step per period
    that passes, and a restart from time 0 for a client asked about an earlier time than the last one.

    >>> clients = onoff(Key(0), mean_on_s=600.0, mean_off_s=1800.0)
    >>> change = clients.next_change(np.array([5]), now=0.0)
    >>> bool(clients.available(np.array([5]), 0.0)[0] != clients.available(np.array([5]), change)[0])
    True
    """
    return OnOff(mean_on_s, mean_off_s, first=key.fold("first"), durations=key.fold("durations"))


@availabilities.register("diurnal")
def diurnal(
    key: Key,
    *,
    mean: Share = 0.3,
    amplitude: Share = 0.6,
    period_s: Positive = 86400.0,
    peak_s: NonNegative = 7200.0,
    slot_s: Annotated[float, Range(ge=0.001, why="seconds, for which who is there stays the same")] = 1800.0,
    phase_spread_s: NonNegative = 0.0,
) -> Diurnal:
    """Return clients that are available by the time of day: mean * (1 + amplitude * cos) of them, most at *peak_s*.

    Each client is drawn anew in each slot of *slot_s* seconds, with the chance of the slot's middle. Peak over trough
    is (1 + amplitude) / (1 - amplitude): 4 by default. Each client's own peak lies within *phase_spread_s* around
    *peak_s*, evenly (time zones). A change more than 100,000 slots away counts as never.
    Raises ScenarioError when the chance would exceed 1, or when a slot is longer than half a period.
    Reference: Bonawitz et al. 2019, arXiv:1902.01046: four times as many devices by night as by day.

    >>> clients = diurnal(Key(0))
    >>> [round(float(clients.share(np.array([0]), hour * 3600)[0]), 2) for hour in (2, 8, 14)]
    [0.48, 0.3, 0.12]
    """
    if mean * (1.0 + amplitude) > 1.0:
        raise ScenarioError(
            f"clients.availability.mean = {mean:g}: with amplitude = {amplitude:g} more than all clients would be"
            f" available at the peak. Must be <= 1 / (1 + amplitude) = {1.0 / (1.0 + amplitude):.4g}."
        )
    if slot_s > period_s / 2.0:
        raise ScenarioError(
            f"clients.availability.slot_s = {slot_s:g}: must be <= period_s / 2 = {period_s / 2.0:g},"
            f" or the slots do not see the period."
        )
    return Diurnal(
        mean, amplitude, period_s, peak_s, slot_s, phase_spread_s, phases=key.fold("phases"), slots=key.fold("slots")
    )
