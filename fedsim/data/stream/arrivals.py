"""Arrivals: when the items of a client's stream come, on virtual time.

Functions of (key, client): each client's process is its own, and asking for more items only appends. Knows no items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from scipy.special import gammaincinv, ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.errors import ScenarioError, choices
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import Array, FloatArray, NonNegative, Positive, Range, Seconds, Share

Rates = Literal["lognormal", "gamma"]
_BISECTIONS = 64  # Halvings of a bracket of at most a few periods: below the last bit of any time.
_IDLE_TURNS = 10_000  # Turns of an mmpp per item, above which its bursts could be told from nothing.
_MAX_STAYS = 1 << 22  # What comes after so many stays in a state is called never.


class Arrivals(Protocol):
    """When each client's items arrive: equal arguments, equal answers, whatever was asked before."""

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* arrivals of *client* from time 0 on, ascending; fewer where no more ever come."""
        ...


class Stamps(Protocol):
    """The source's own time stamps, where it has any."""

    def of(self, client: int) -> FloatArray:
        """Return the stamps of the items of *client*, in the stream's order, in seconds from the data's first."""
        ...


def _arrivals(given: Any, _client: int, count: int) -> Array:
    times = answers.ascending(answers.numbers(given, least=0.0))
    if len(times) > count:
        raise ValueError(f"{len(times)} times, expected {count} at most")
    return times


arrivals: Registry[Callable[..., Arrivals]] = Registry(
    "arrivals", given=["key", "find", "stamps"], key="stream.arrivals", gives=answers.Gives("Arrivals", ("times",), {"times": _arrivals})
)
"""Functions that return Arrivals. Given: ``key``, ``find`` (Find), ``stamps`` (Stamps, or None)."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate that differs from client to client: *per_s* times a factor of the client's own."""

    per_s: float
    rates: Rates
    sigma: float
    key: Key

    def factor(self, client: int) -> float:
        """Return the factor of *client*: log-normal with median 1, or gamma with mean 1; 1 when sigma is 0."""
        if not self.sigma:
            return 1.0
        draw = self.key.fold("rates").uniform_at(client)
        if self.rates == "lognormal":
            return float(np.exp(self.sigma * ndtri(draw)))
        shape = self.sigma**-2.0  # A gamma of this shape has mean 1 and standard deviation sigma.
        return max(float(gammaincinv(shape, draw)) / shape, 1e-12)  # Never 0: a client without a rate has no times.

    def of(self, client: int) -> float:
        """Return the rate of *client*, in items per second."""
        return self.per_s * self.factor(client)


def _rate(per_s: float, rates: Rates, sigma: float, key: Key) -> Rate:
    if rates not in ("lognormal", "gamma"):
        raise ScenarioError(f"stream.arrivals.rates = {rates!r}: no such spread. {choices(rates, ['lognormal', 'gamma'])}")
    return Rate(per_s, rates, sigma, key)


def _exponentials(key: Key, client: int, count: int) -> FloatArray:
    """Return the sums of 1, 2, ... unit exponentials: a Poisson process on a clock that runs at its rate."""
    return np.cumsum(key.fold("client", client).numpy().standard_exponential(count))


@dataclass(frozen=True, slots=True)
class AtStart:
    """Items that are all there at time 0. See ``at_start``."""

    def times(self, client: int, count: int) -> FloatArray:
        """Return zeros. Shapes: (count,)."""
        return np.zeros(count)


@dataclass(frozen=True, slots=True)
class Constant:
    """Items at equal distances. See ``constant``."""

    rate: Rate

    def times(self, client: int, count: int) -> FloatArray:
        """Return 1, 2, ... intervals. Shapes: (count,)."""
        return np.arange(1, count + 1) / self.rate.of(client)


@dataclass(frozen=True, slots=True)
class Poisson:
    """Items at random, at one rate. See ``poisson``."""

    rate: Rate
    key: Key

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* arrivals. Shapes: (count,)."""
        return _exponentials(self.key, client, count) / self.rate.of(client)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Items at random, at a rate that follows the time of day. See ``diurnal``."""

    rate: Rate
    amplitude: float
    period_s: Seconds
    peak_s: Seconds
    phase_spread_s: Seconds
    key: Key

    def peak_of(self, client: int) -> Seconds:
        """Return the time of day at which *client* is busiest."""
        return self.peak_s + self.phase_spread_s * (self.key.fold("phases").uniform_at(client) - 0.5)

    def expected(self, client: int, at_s: FloatArray) -> FloatArray:
        """Return how many items *client* is expected to have by *at_s*: the integral of its rate. Shapes: (n,) -> (n,)."""
        turn, peak = 2.0 * math.pi / self.period_s, self.peak_of(client)
        swing = self.amplitude / turn * (np.sin(turn * (at_s - peak)) + math.sin(turn * peak))
        return self.rate.of(client) * (at_s + swing)

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* arrivals: where the integrated rate passes those of a unit process."""
        due = _exponentials(self.key, client, count)
        # The swing adds less than amplitude * period / pi to the time: a bracket for the root of a rising function.
        even, reach = due / self.rate.of(client), self.amplitude * self.period_s / math.pi
        low, high = np.maximum(even - reach, 0.0), even + reach
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            early = self.expected(client, middle) < due
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return np.maximum.accumulate(high)  # Two arrivals closer than a rounding must not change places.


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Items in bursts: a Poisson process whose rate turns between two states. See ``mmpp``."""

    low: float
    high: float
    mean_low_s: Seconds
    mean_high_s: Seconds
    rate: Rate
    key: Key

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* arrivals. Shapes: (count,)."""
        due = _exponentials(self.key, client, count)
        if not count:
            return due
        states = self.key.fold("states", client).numpy()
        factor = self.rate.factor(client)
        # Exponential stays forget their age, so the stationary process begins with a whole one.
        busy = bool(states.random() < self.mean_high_s / (self.mean_low_s + self.mean_high_s))
        means = np.array([self.mean_high_s, self.mean_low_s] if busy else [self.mean_low_s, self.mean_high_s])
        speeds = factor * np.array([self.high, self.low] if busy else [self.low, self.high])
        ends_s, sums = np.zeros(1), np.zeros(1)  # Of the stays so far: when each ended, and the items due by then.
        while sums[-1] <= due[-1] and len(ends_s) < _MAX_STAYS:
            stays = states.standard_exponential((max(64, len(ends_s)), 2)) * means  # Doubled; two stays a turn.
            # From the last end on, not from 0: sums that are added up in one order have the same bits for any count.
            ends_s = np.append(ends_s[:-1], np.cumsum(np.append(ends_s[-1], stays)))
            sums = np.append(sums[:-1], np.cumsum(np.append(sums[-1], stays * speeds)))
        due = due[due <= sums[-1]]
        stay = np.searchsorted(sums, due, side="left") - 1  # A silent stay adds nothing, and is never the one.
        return ends_s[stay] + (due - sums[stay]) / speeds[stay % 2]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Items when they came in the data. See ``stamps``."""

    stamps: Stamps
    speed: float

    def times(self, client: int, count: int) -> FloatArray:
        """Return the first *count* stamps of *client*, at *speed* times the pace of the data."""
        return self.stamps.of(client)[:count] / self.speed


@arrivals.register("at_start")
def at_start() -> AtStart:
    """Return items that are all there at time 0: federated learning as usual.

    >>> at_start().times(3, 2).tolist()
    [0.0, 0.0]
    """
    return AtStart()


@arrivals.register("constant")
def constant(key: Key, *, per_s: Positive, rates: Rates = "lognormal", rate_sigma: NonNegative = 0.0) -> Constant:
    """Return an item every 1 / *per_s* seconds, the first after one such interval.

    Clients' rates differ with *rate_sigma*: *rates* 'lognormal' multiplies *per_s* by LogNormal(0, rate_sigma), of
    median 1; 'gamma' by a gamma of mean 1 and standard deviation rate_sigma (1: exponential).

    >>> constant(Key(0), per_s=0.5).times(3, 3).tolist()
    [2.0, 4.0, 6.0]
    """
    return Constant(_rate(per_s, rates, rate_sigma, key))


@arrivals.register("poisson")
def poisson(key: Key, *, per_s: Positive, rates: Rates = "lognormal", rate_sigma: NonNegative = 0.0) -> Poisson:
    """Return a Poisson process of *per_s* items per second per client; rates differ with *rate_sigma* (see constant).

    >>> clients = poisson(Key(0), per_s=0.1)
    >>> bool((clients.times(3, 5) == clients.times(3, 9)[:5]).all())
    True
    """
    return Poisson(_rate(per_s, rates, rate_sigma, key), key.fold("poisson"))


@arrivals.register("diurnal")
def diurnal(
    key: Key,
    *,
    per_s: Positive,
    amplitude: Share = 0.6,
    period_s: Positive = 86400.0,
    peak_s: NonNegative = 0.0,
    phase_spread_s: NonNegative = 0.0,
    rates: Rates = "lognormal",
    rate_sigma: NonNegative = 0.0,
) -> Diurnal:
    """Return an inhomogeneous Poisson process: per_s * (1 + amplitude * cos), busiest at *peak_s* of each period.

    *per_s* is the mean over a period. Each client's own peak lies within *phase_spread_s* around *peak_s*, evenly
    (time zones); rates differ with *rate_sigma* (see constant). Exact: a unit Poisson process through the inverse of
    the integrated rate, so no candidate is drawn and thrown away.
    Reference: Lewis and Shedler 1979, 'Simulation of nonhomogeneous Poisson processes by thinning', section 2.

    >>> day = diurnal(Key(0), per_s=0.01)
    >>> round(float(day.expected(0, np.array([86400.0]))[0]), 6)
    864.0
    """
    rate = _rate(per_s, rates, rate_sigma, key)
    return Diurnal(rate, amplitude, period_s, peak_s, phase_spread_s, key.fold("diurnal"))


@arrivals.register("mmpp")
def mmpp(
    key: Key,
    *,
    low_per_s: NonNegative,
    high_per_s: Positive,
    mean_low_s: Annotated[float, Range(gt=0, why="how long a quiet state lasts, on average")],
    mean_high_s: Annotated[float, Range(gt=0, why="how long a burst lasts, on average")],
    rates: Rates = "lognormal",
    rate_sigma: NonNegative = 0.0,
) -> Mmpp:
    """Return bursts: a Poisson process of *low_per_s* and *high_per_s* in turn, for exponential times (MMPP-2).

    Stationary from time 0 on, with mean rate (low_per_s mean_low_s + high_per_s mean_high_s) / (mean_low_s +
    mean_high_s). Both rates of a client carry its factor under *rate_sigma* (see constant), the states do not.
    What comes after two million turns counts as never. Raises ScenarioError when the states turn so often per item
    that no burst could be seen.
    Reference: Fischer and Meier-Hellstern 1993, 'The Markov-modulated Poisson process (MMPP) cookbook'.

    >>> bursts = mmpp(Key(0), low_per_s=0.0, high_per_s=1.0, mean_low_s=600.0, mean_high_s=60.0)
    >>> bool((np.diff(bursts.times(3, 50)) > 0).all())
    True
    """
    items_per_turn = low_per_s * mean_low_s + high_per_s * mean_high_s
    if items_per_turn * _IDLE_TURNS < 1.0:
        raise ScenarioError(
            f"stream.arrivals.mean_high_s = {mean_high_s:g}: the states turn {1.0 / items_per_turn:.3g} times per item, so"
            f" nobody could tell the bursts from 'poisson'. At most {_IDLE_TURNS:,} times works."
        )
    rate = _rate(high_per_s, rates, rate_sigma, key)
    return Mmpp(low_per_s, high_per_s, mean_low_s, mean_high_s, rate, key.fold("mmpp"))


@arrivals.register("stamps")
def stamps(stamps: Stamps | None, *, speed: Positive = 1.0) -> Replayed:
    """Return the time stamps of the data themselves, counted from the first, at *speed* times their pace.

    >>> class Hourly:
    ...     def of(self, client): return np.arange(3) * 3600.0
    >>> stamps(Hourly(), speed=60.0).times(0, 2).tolist()
    [0.0, 60.0]
    """
    if stamps is None:
        raise ScenarioError(
            "stream.arrivals.kind = 'stamps': this source has no time stamps. Name its column:"
            " data.source = { kind = 'csv_stream', time = '...' }, or take another kind of arrivals."
        )
    return Replayed(stamps, speed)
