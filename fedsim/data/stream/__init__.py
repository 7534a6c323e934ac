"""Streams: what one client has seen by a virtual time. Functions of time, not iterators.

Knows no clock and no example: a stream is times and positions, the same whenever and wherever it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds

CACHED_BYTES = 128 * 2**20
"""How much of streams is kept for clients that come back."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one client has seen by virtual time t: a function, not an iterator.

    *arrived_s* (n,) ascends. *labelled_s* (n,) is never before the arrival; infinity where the label never comes.
    *positions* (n,) are places in the client's data, as a Task names them. *concepts* (n,) are the true concepts
    that the items were drawn from, and *changes_s* (m,) the times of the client's true drifts, ascending: both are
    for scoring alone, no client may look. An item that never arrives is not in the stream.
    """

    arrived_s: FloatArray
    labelled_s: FloatArray
    positions: IntArray
    concepts: IntArray
    changes_s: FloatArray = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        """Return how many items ever arrive."""
        return len(self.arrived_s)

    def arrived(self, now: Seconds) -> int:
        """Return how many items have arrived by *now*, an arrival at *now* itself included.

        >>> nothing = np.zeros(3, dtype=np.int64)
        >>> stream = Stream(np.array([0.0, 2.0, 2.0]), np.array([0.0, 9.0, 3.0]), nothing, nothing)
        >>> [stream.arrived(now) for now in (0.0, 1.9, 2.0)]
        [1, 1, 3]
        """
        return int(np.searchsorted(self.arrived_s, now, side="right"))

    @property
    def nbytes(self) -> int:
        """Return the memory that the arrays take."""
        arrays = (self.arrived_s, self.labelled_s, self.positions, self.concepts, self.changes_s)
        return sum(array.nbytes for array in arrays)


class Streams(Protocol):
    """The streams of all clients: equal arguments, equal answers, whatever was asked before."""

    def of(self, client: int) -> Stream:
        """Return the stream of *client*."""
        ...


@dataclass(slots=True)
class Recent:
    """The streams asked for last, by client, as many as fit in *limit_bytes*; a memo that changes no answer."""

    limit_bytes: int = CACHED_BYTES
    _kept: OrderedDict[int, Stream] = field(default_factory=OrderedDict[int, Stream])
    _bytes: int = 0

    def get(self, client: int, make: Callable[[int], Stream]) -> Stream:
        """Return the stream of *client*, made by *make* unless it is still here."""
        if client in self._kept:
            self._kept.move_to_end(client)
            return self._kept[client]
        stream = make(client)
        for array in (stream.arrived_s, stream.labelled_s, stream.positions, stream.concepts, stream.changes_s):
            array.setflags(write=False)  # Handed out again: a reader that writes would change another's answer.
        self._kept[client] = stream
        self._bytes += stream.nbytes
        while self._bytes > self.limit_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return stream
