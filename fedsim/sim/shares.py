"""Shares of a link: how fast each transfer on it goes, max-min fairly, and when the next one ends. Knows bytes and rates, and no message.

A fluid model: whoever is there goes at the same rate, the *level*, but for those whose own rates are less, who go at these; what they
leave is the others'. Rates change only when a transfer begins, ends or changes its own rate, so nothing happens in between.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from fedsim.core.errors import must
from fedsim.core.types import Seconds

_UNITS = 2.0**40
"""Units of a rate in a byte per second: who goes at whose rate is decided in whole numbers, and so never by a rounding."""


@dataclass(slots=True, eq=False)
class _Transfer:
    """One transfer; *stamp* says which entries of the heaps are of now. *ends* is a time where it goes at its *own* rate, else an A.

    At its own rate, *left* bytes were left when it was *since*.
    """

    number: int
    cap: float
    units: int
    ends: float = 0.0
    left: float = 0.0
    since: float = 0.0
    own: bool = False
    slowed: bool = False
    stamp: int = 0


_Entry = tuple[float, int, int, _Transfer]
"""What a heap goes by, the number of a transfer, its stamp when it came there, and the transfer."""


class Line:
    """A link of *capacity* bytes per second, and the transfers on it, by their numbers.

    With A(t) the bytes that each transfer at the level has had since there were any, one of s bytes that begins at A ends when A has
    grown by s, however often the level changes meanwhile: a heap of those ends, and one of the others' times, take O(log n) per change.
    A transfer goes over from one heap to the other when the level passes its own rate.
    """

    def __init__(self, capacity: float) -> None:
        self._units = int(capacity * _UNITS)
        self._at, self._had = 0.0, 0.0  # The time, and A.
        self._on: dict[int, _Transfer] = {}
        self._taken, self._sharing = 0, 0  # What those at their own rates take, in units; how many go at the level.
        self._own_ends: list[_Entry] = []
        self._own_caps: list[_Entry] = []  # The fastest first.
        self._ends: list[_Entry] = []
        self._caps: list[_Entry] = []  # The slowest first.
        self.level = self._units / _UNITS
        """The rate of those who go at none of their own, in bytes per second; where there is none, what is left for one."""

    def __len__(self) -> int:
        return len(self._on)

    def __contains__(self, number: int) -> bool:
        return number in self._on

    def rate(self, number: int) -> float:
        """Return how fast transfer *number* goes, in bytes per second."""
        transfer = self._on[number]
        return transfer.cap if transfer.own else self.level

    def slowed(self, number: int) -> bool:
        """Return whether transfer *number*, while it is there, has ever gone slower than at its own rate because of others."""
        transfer = self._on.get(number)
        return transfer is not None and transfer.slowed

    def begin(self, number: int, size: float, cap: float, now: Seconds) -> None:
        """Let transfer *number*, of *size* bytes, begin *now*, no faster than *cap* bytes per second, which may be infinite."""
        self._go_to(now)
        must(number not in self._on, f"transfer {number} began twice")
        self._on[number] = transfer = _Transfer(number, cap, _in_units(cap))
        self._share(transfer, size)
        self._balance(transfer)

    def change(self, number: int, cap: float, now: Seconds) -> None:
        """Let transfer *number* go no faster than *cap* bytes per second from *now* on."""
        self._go_to(now)
        transfer = self._on[number]
        left = self._leave(transfer)
        transfer.cap, transfer.units = cap, _in_units(cap)
        self._share(transfer, left)
        self._balance(transfer)

    def drop(self, number: int, now: Seconds) -> float:
        """End transfer *number* *now*, and return how many of its bytes had not come."""
        self._go_to(now)
        left = self._leave(self._on.pop(number))
        self._balance()
        return left

    def next_s(self) -> Seconds:
        """Return when the next transfer ends if none begins before; infinity where there is none."""
        own = _top(self._own_ends)
        due = self._due(_top(self._ends))
        return due if own is None or due < own[0] else own[0]

    def end(self, now: Seconds) -> list[tuple[int, bool]]:
        """End all that is over by *now*: return the numbers, ascending, each with whether it was ever slowed down by others."""
        own, shared = _top(self._own_ends), _top(self._ends)
        due = self._due(shared)
        if due > now and (own is None or own[0] > now):
            return []
        self._go_to(now)
        if shared is not None and now >= due:
            self._had = max(self._had, shared[0])  # The last bits of a sum must not keep it from its end.
        over: list[_Transfer] = []
        while (entry := _top(self._own_ends)) is not None and entry[0] <= now:
            self._leave(entry[3])
            over.append(entry[3])
        while (entry := _top(self._ends)) is not None and entry[0] <= self._had:
            self._leave(entry[3])
            over.append(entry[3])
        for transfer in over:
            del self._on[transfer.number]
        self._balance()
        self._tidy()
        return sorted((transfer.number, transfer.slowed) for transfer in over)

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _due(self, shared: _Entry | None) -> Seconds:
        return math.inf if shared is None else self._at + max(0.0, shared[0] - self._had) / self.level

    def _go_to(self, now: Seconds) -> None:
        if now > self._at:
            if self._sharing:
                self._had += (now - self._at) * self.level
            self._at = now

    def _leave(self, transfer: _Transfer) -> float:
        """Take *transfer* out of its group, and return how many bytes of it are left."""
        transfer.stamp += 1
        if transfer.own:
            self._taken -= transfer.units
            return max(0.0, transfer.left - (self._at - transfer.since) * transfer.cap)
        self._sharing -= 1
        left = max(0.0, transfer.ends - self._had)
        if not self._sharing:
            self._had = 0.0  # Amounts stay small, and so exact.
        return left

    def _share(self, transfer: _Transfer, left: float) -> None:
        """Let *transfer*, with so many bytes *left*, go at the level."""
        transfer.own, transfer.ends = False, self._had + left
        self._sharing += 1
        heapq.heappush(self._ends, (transfer.ends, transfer.number, transfer.stamp, transfer))
        if transfer.cap < math.inf:
            heapq.heappush(self._caps, (transfer.cap, transfer.number, transfer.stamp, transfer))

    def _alone(self, transfer: _Transfer, left: float) -> None:
        """Let *transfer*, with so many bytes *left*, go at its own rate."""
        transfer.own, transfer.ends = True, self._at + left / transfer.cap if transfer.cap else math.inf
        transfer.left, transfer.since = left, self._at
        self._taken += transfer.units
        heapq.heappush(self._own_ends, (transfer.ends, transfer.number, transfer.stamp, transfer))
        heapq.heappush(self._own_caps, (-transfer.cap, transfer.number, transfer.stamp, transfer))

    def _balance(self, new: _Transfer | None = None) -> None:
        """Let each go at its own rate or at the level, whichever is less; who is slowed down by others from now on is marked."""
        entered = [] if new is None else [new]
        while True:
            slowest = _top(self._caps)
            if slowest is not None and slowest[3].units * self._sharing <= self._units - self._taken:
                self._alone(slowest[3], self._leave(slowest[3]))
                continue
            fastest = _top(self._own_caps)
            if fastest is None or self._fits(fastest[3]):
                break
            self._share(fastest[3], self._leave(fastest[3]))
            entered.append(fastest[3])
        must(self._taken <= self._units, "the shares of a link exceed it")
        for transfer in entered:
            transfer.slowed = transfer.slowed or not transfer.own
        self.level = (self._units - self._taken) / max(1, self._sharing) / _UNITS

    def _fits(self, fastest: _Transfer) -> bool:
        """Return whether the *fastest* of those at their own rates is no faster than the level; whether all fit, where nobody is at it."""
        if not self._sharing:
            return self._taken <= self._units
        return fastest.units * self._sharing <= self._units - self._taken

    def _tidy(self) -> None:
        """Let go of entries of transfers that are over, where these have become the most: rates of some never come to the top."""
        for heap in (self._caps, self._own_caps, self._ends, self._own_ends):
            if len(heap) > 2 * len(self._on) + 64:
                heap[:] = [entry for entry in heap if entry[3].stamp == entry[2]]
                heapq.heapify(heap)


def _in_units(cap: float) -> int:
    return int(min(cap, 2.0**900) * _UNITS)


def _top(heap: list[_Entry]) -> _Entry | None:
    """Return the first entry of *heap* that holds now, letting go of those before it."""
    while heap:
        entry = heap[0]
        if entry[3].stamp == entry[2]:
            return entry
        heapq.heappop(heap)
    return None
