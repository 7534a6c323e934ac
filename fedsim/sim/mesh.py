"""A mesh: several links, and transfers that cross one or more of them at once, max-min fairly. Knows bytes and rates, and no message.

A fluid model, as that of one link (``shares``): whoever is held back by nothing else goes at the level of the fullest link on its route.
Progressive filling (Bertsekas and Gallager 1992, section 6.5.2): all rise together, and whoever comes to its own rate, or to a link that is
full, stays there. Rates change only when a transfer begins, ends or changes its own rate; each change takes time in proportion to those on
their way, in arrays, for each link that is full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedsim.core.errors import must
from fedsim.core.types import Array, FloatArray, IntArray, Seconds

SLACK = 1e-12
"""The last bits of a sum, as a share of it: they slow nobody down, fill no link, and keep no transfer from its end."""
_MOST = 1e300
"""Of a rate without a bound what is added up: so many of them are no infinity yet."""
_FIRST = 16


class Mesh:
    """Links of *capacities* bytes per second, by their places, and the transfers on them, by their numbers. As a ``Line``, with routes."""

    def __init__(self, capacities: Sequence[float]) -> None:
        self._capacities: FloatArray = np.append(np.array(capacities, dtype=np.float64), math.inf)  # The last is that of no link.
        self._at, self._next_s = 0.0, math.inf
        self._places: dict[int, int] = {}  # By number: where in the arrays it is.
        self._numbers: IntArray = np.zeros(_FIRST, dtype=np.int64)
        self._left, self._caps, self._rates, self._ends = (np.zeros(_FIRST) for _ in range(4))
        self._slowed = np.zeros(_FIRST, dtype=np.bool_)
        self._routes: IntArray = np.zeros((_FIRST, 1), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def rate(self, number: int) -> float:
        """Return how fast transfer *number* goes, in bytes per second."""
        return float(self._rates[self._places[number]])

    def slowed(self, number: int) -> bool:
        """Return whether transfer *number*, while it is there, has ever gone slower than at its own rate because of others."""
        place = self._places.get(number)
        return place is not None and bool(self._slowed[place])

    def begin(self, number: int, size: float, cap: float, now: Seconds, route: Sequence[int] = (0,)) -> None:
        """Let transfer *number*, of *size* bytes, begin *now* over the links of *route*, no faster than *cap*, which may be infinite."""
        must(number not in self._places, f"transfer {number} began twice")
        self._go_to(now)
        place, once = len(self._places), [*dict.fromkeys(route)]
        self._fit(place + 1, len(once))
        self._places[number], self._numbers[place] = place, number
        self._left[place], self._caps[place], self._rates[place], self._slowed[place] = size, cap, 0.0, False
        self._routes[place] = len(self._capacities) - 1
        self._routes[place, : len(once)] = once
        self._fill()

    def change(self, number: int, cap: float, now: Seconds) -> None:
        """Let transfer *number* go no faster than *cap* bytes per second from *now* on."""
        self._go_to(now)
        self._caps[self._places[number]] = cap
        self._fill()

    def drop(self, number: int, now: Seconds) -> float:
        """End transfer *number* *now*, and return how many of its bytes had not come."""
        self._go_to(now)
        left = float(self._left[self._places[number]])
        self._take_out(number)
        self._fill()
        return left

    def next_s(self) -> Seconds:
        """Return when the next transfer ends if none begins before; infinity where there is none."""
        return self._next_s

    def end(self, now: Seconds) -> list[tuple[int, bool]]:
        """End all that is over by *now*: return the numbers, ascending, each with whether it was ever slowed down by others."""
        if self._next_s > now:
            return []
        self._go_to(now)
        there = len(self._places)
        over = np.flatnonzero(self._ends[:there] <= now + SLACK * max(1.0, now))
        found = sorted((int(self._numbers[place]), bool(self._slowed[place])) for place in over.tolist())
        for number, _ in found:
            self._take_out(number)
        self._fill()
        return found

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _go_to(self, now: Seconds) -> None:
        if now > self._at:
            there = len(self._places)
            self._left[:there] = np.maximum(0.0, self._left[:there] - self._rates[:there] * (now - self._at))
            self._at = now

    def _take_out(self, number: int) -> None:
        """Let the last transfer have the place of *number*."""
        place, last = self._places.pop(number), len(self._places)
        if place != last:
            for column in self._columns():
                column[place] = column[last]
            self._places[int(self._numbers[place])] = place

    def _columns(self) -> tuple[Array, ...]:
        return self._numbers, self._left, self._caps, self._rates, self._ends, self._slowed, self._routes

    def _fit(self, count: int, links: int) -> None:
        """See to it that there is room for *count* transfers over as many as *links* links."""
        if count > len(self._numbers):
            self._numbers, self._left, self._caps, self._rates, self._ends, self._slowed, self._routes = (
                np.concatenate([column, np.zeros_like(column)]) for column in self._columns()
            )
        if links > self._routes.shape[1]:
            none = np.full((len(self._routes), links - self._routes.shape[1]), len(self._capacities) - 1)
            self._routes = np.concatenate([self._routes, none], axis=1)

    def _fill(self) -> None:
        """Work out all rates, and who ends next."""
        there = len(self._places)
        caps, routes = self._caps[:there], self._routes[:there]
        rates = _filled(self._capacities, caps, routes)
        used = np.bincount(routes.ravel(), weights=np.repeat(np.minimum(rates, _MOST), routes.shape[1]), minlength=len(self._capacities))
        must(bool((used <= self._capacities * (1 + 1e-9)).all()), "the shares of a link exceed it")
        self._slowed[:there] |= rates < caps
        self._rates[:there] = rates
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.where(self._left[:there] > 0, self._at + self._left[:there] / rates, self._at)
        self._ends[:there] = ends
        self._next_s = float(ends.min()) if there else math.inf


def max_min(capacities: FloatArray, caps: FloatArray, routes: IntArray) -> FloatArray:
    """Return max-min fair rates of transfers with rates of their own, *caps*, over the links of *routes*; one named twice is crossed once.

    Shapes: capacities (links,), caps (n,), routes (n, hops) -> (n,). A transfer that nothing holds back has the rate infinity.

    >>> max_min(np.array([10.0, 4.0]), np.array([np.inf, np.inf, 1.0]), np.array([[0, 0], [0, 1], [1, 1]])).tolist()
    [7.0, 3.0, 1.0]
    """
    once = np.sort(routes, axis=1)
    once[:, 1:] = np.where(once[:, 1:] == once[:, :-1], len(capacities), once[:, 1:])
    return _filled(np.append(capacities, math.inf), caps, once)


def _filled(capacities: FloatArray, caps: FloatArray, routes: IntArray) -> FloatArray:
    """Return the same where the last link is none, which a route may name as often as it likes, and others once."""
    rates, left, links, hops = np.zeros(len(caps)), np.arange(len(caps)), len(capacities), routes.shape[1]
    used = np.zeros(links)
    while len(left):
        mine_on = routes[left]
        on = np.bincount(mine_on.ravel(), minlength=links)
        on[-1] = 0
        levels = np.maximum(capacities - used, 0.0) / np.maximum(on, 1)
        levels[-1] = math.inf
        each = levels[mine_on]
        mine = each.min(axis=1)
        # Levels only rise as others stay: who is slower than its route is so for good, and so is a link that is the fullest of all its own.
        stays = caps[left] <= mine * (1 + SLACK)
        if stays.any():
            now = caps[left[stays]]
        else:
            bound = mine_on[each <= mine[:, None] * (1 + SLACK)]
            full = np.bincount(bound, minlength=links) == on
            full[-1] = False
            stays = full[mine_on].any(axis=1)
            now = mine[stays]
        rates[left[stays]] = now
        used += np.bincount(mine_on[stays].ravel(), weights=np.repeat(np.minimum(now, _MOST), hops), minlength=links)
        left = left[~stays]
    return rates
