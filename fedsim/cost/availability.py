"""Availability: which clients can be reached at a moment, as a function of (key, client, time).

Asking twice, later, or in another order gives the same answer; what is kept between calls only saves work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import BoolArray, FloatArray, IntArray, NonNegative, Positive, Seconds, Share

PERIODS = 1 << 24
"""Periods (or slots) that one client can go through before its draws would run into the next client's."""


class Availability(Protocol):
    """Who can be reached when."""

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return which of *clients* can be reached at *now*. Shapes: (n,) -> (n,)."""
        ...

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return the first moment after *now* at which one of *clients* may change; infinity when none ever will."""
        ...


availabilities: Registry[Callable[..., Availability]] = Registry("availability", given=["key"])


@dataclass(frozen=True, slots=True)
class Always:
    """Everyone, at any time."""

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return True for everyone."""
        return np.ones(len(clients), dtype=np.bool_)

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return infinity."""
        return math.inf


@dataclass(slots=True)
class _Cursor:
    """Where each client of one set stood when last asked: its period's number and end."""

    clients: IntArray
    now: Seconds
    period: IntArray
    ends: FloatArray


@dataclass(frozen=True, slots=True)
class OnOff:
    """An alternating renewal process per client: exponential times on and off, stationary from the start.

    Period 0 begins at time 0 in a state drawn with the long-run share (exponential times have no memory, so what is
    left of the period under way is exponential too). Even periods are in that state, odd ones in the other.
    """

    mean_on_s: Seconds
    mean_off_s: Seconds
    key: Key
    _cursors: list[_Cursor] = field(default_factory=list[_Cursor], compare=False, repr=False)

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return who is on."""
        return self._on(clients, self._at(clients, now).period)

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return the end of the period that ends first."""
        return float(self._at(clients, now).ends.min()) if len(clients) else math.inf

    def _on(self, clients: IntArray, period: IntArray) -> BoolArray:
        share = self.mean_on_s / (self.mean_on_s + self.mean_off_s)
        return (self.key.fold("first").uniform(clients) < share) ^ (period % 2 == 1)

    def _lengths(self, clients: IntArray, period: IntArray) -> FloatArray:
        mean = np.where(self._on(clients, period), self.mean_on_s, self.mean_off_s)
        return -mean * np.log(self.key.fold("length").uniform(clients * PERIODS + period))

    def _at(self, clients: IntArray, now: Seconds) -> _Cursor:
        cursor = next((c for c in self._cursors if c.clients is clients or np.array_equal(c.clients, clients)), None)
        if cursor is None or now < cursor.now:
            zero = np.zeros(len(clients), dtype=np.int64)
            fresh = _Cursor(clients, 0.0, zero, self._lengths(clients, zero))
            self._cursors[:] = [c for c in self._cursors if c is not cursor][-3:] + [fresh]
            cursor = fresh
        while len(over := np.flatnonzero(cursor.ends <= now)):
            # New arrays, not new values in the old ones: whoever got an answer before keeps it.
            cursor.period = cursor.period.copy()
            cursor.ends = cursor.ends.copy()
            cursor.period[over] += 1
            start = cursor.ends[over]
            ends = start + self._lengths(clients[over], cursor.period[over])
            cursor.ends[over] = np.maximum(ends, np.nextafter(start, math.inf))  # Time moves, whatever rounding does.
        cursor.now = now
        return cursor


@dataclass(frozen=True, slots=True)
class Diurnal:
    """A daily wave: in each slot a client is there with a probability that follows the hour, drawn per (client, slot)."""

    mean: float
    amplitude: float
    period_s: Seconds
    peak_s: Seconds
    slot_s: Seconds
    phase_spread_s: Seconds
    key: Key

    def available(self, clients: IntArray, now: Seconds) -> BoolArray:
        """Return who is there in the slot that *now* lies in."""
        slot = self._slot(now)
        middle = (slot + 0.5) * self.slot_s
        phase = self.phase_spread_s * (self.key.fold("phase").uniform(clients) - 0.5) if self.phase_spread_s else 0.0
        wave = np.cos(2 * np.pi * (middle - self.peak_s - phase) / self.period_s)
        return self.key.fold("slot").uniform(clients * PERIODS + slot) < self.mean * (1 + self.amplitude * wave)

    def next_change(self, clients: IntArray, now: Seconds) -> Seconds:
        """Return the start of the first slot in which one of *clients* is in another state than now."""
        before = self.available(clients, now)
        slot = self._slot(now)
        if not len(clients):
            return math.inf
        while True:  # Each later slot differs with a fixed chance per client, so this ends; the cap is for mean 0 or 1.
            slot += 1
            start = slot * self.slot_s
            if self._slot(start) < slot:  # Rounding put the boundary a hair early.
                start = math.nextafter(start, math.inf)
            if (self.available(clients, start) != before).any():
                return start
            if slot - self._slot(now) > 10 * self.period_s / self.slot_s + 100:
                return math.inf

    def _slot(self, now: Seconds) -> int:
        return int(now // self.slot_s)


@availabilities.register("always")
def always() -> Availability:
    """Every client can be reached at any time."""
    return Always()


@availabilities.register("onoff")
def onoff(key: Key, *, mean_on_s: Positive, mean_off_s: Positive) -> Availability:
    """Clients come and go: exponential times on and off around the two means, each client on its own."""
    return OnOff(mean_on_s, mean_off_s, key)


@availabilities.register("diurnal")
def diurnal(
    key: Key, *, mean: Share = 0.3, amplitude: Share = 0.6, period_s: Positive = 86_400.0, peak_s: NonNegative = 7_200.0,
    slot_s: Positive = 1_800.0, phase_spread_s: NonNegative = 0.0,
) -> Availability:  # fmt: skip
    """A daily wave around *mean*; amplitude 0.6 makes the peak four times the trough (Bonawitz et al. 2019).

    *phase_spread_s* spreads the clients' clocks, as time zones do.
    """
    if mean * (1 + amplitude) > 1:
        raise ScenarioError(
            f"clients.availability.mean = {mean}: with amplitude {amplitude} the peak would be above 1; mean must be"
            f" <= {1 / (1 + amplitude):.3g}."
        )
    return Diurnal(mean, amplitude, period_s, peak_s, slot_s, phase_spread_s, key)
