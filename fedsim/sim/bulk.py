"""Bulk: the messages of one push that have nothing to do with each other, worked out at once, in arrays, as processes would one by one.

A message is alone in what it does where its client works on no other, its link and its host are its own, and nothing is there that waits
for something else to happen. Its four moments are then sums of what the way down, the work and the way up take, and whatever is there in
time needs no event. What comes last of it stays a process, and so does what would come late: rows, their order and the digest are those of
processes, to the last bit. Knows durations; knows no strategy, and computes no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.cost.network import Network, downs_s, ups_s
from fedsim.sim.mail import Delivery

LEAST = 8
"""Messages of a push below which arrays cost more than processes."""


class Foresight(Protocol):
    """What clients will take for messages, known before they begin."""

    def sees(self, delivery: Delivery) -> bool:
        """Return whether what its client does with *delivery* depends on nothing that is still to happen."""
        ...

    def took_s(self, deliveries: Sequence[Delivery], received_s: FloatArray) -> FloatArray:
        """Return how long each of *deliveries* is worked on that is at its client at *received_s*; NaN where it is better tried.

        Nothing begins. Shapes: (n,) -> (n,).
        """
        ...

    def begin_all(self, deliveries: Sequence[Delivery]) -> None:
        """Let the clients begin what ``took_s`` was asked of last, of *deliveries*."""
        ...


def went(
    deliveries: Sequence[Delivery], network: Network, foresight: Foresight, now: Seconds, until_s: Seconds, first: int | None = None
) -> list[Delivery]:
    """Let those of *deliveries* arrive that do by *until_s*, all but the last, and return them; the others are untouched.

    All were sent *now*; none is of a client that another is of. Only the *first* so many do, where that is said: of one instant those that
    were sent first.
    """
    clients = np.array([delivery.client for delivery in deliveries], dtype=np.int64)
    sizes = np.array([delivery.parcel.down.total for delivery in deliveries], dtype=np.int64)
    received_s = now + downs_s(network, clients, sizes)
    computed_s = received_s + foresight.took_s(deliveries, received_s)
    up = np.array([delivery.up.total for delivery in deliveries], dtype=np.int64)
    arrived_s = computed_s + ups_s(network, clients, up)
    there = np.flatnonzero(arrived_s <= until_s)  # Not NaN.
    if first is not None and len(there) > first:
        there = np.sort(there[np.argsort(arrived_s[there], kind="stable")[:first]])
    if not len(there):
        return []
    order = np.lexsort((there, received_s[there], computed_s[there], arrived_s[there]))
    there = np.delete(there, order[-1])
    gone = [deliveries[i] for i in there.tolist()]
    foresight.begin_all(gone)
    moments = zip(gone, received_s[there].tolist(), computed_s[there].tolist(), arrived_s[there].tolist(), strict=True)
    for delivery, received, computed, arrived in moments:
        delivery.go(received, computed, arrived)
    return gone


def alone(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Return those of *deliveries* whose clients no other is for."""
    clients: IntArray = np.array([delivery.client for delivery in deliveries], dtype=np.int64)
    _, inverse, counts = np.unique(clients, return_inverse=True, return_counts=True)
    return [delivery for delivery, count in zip(deliveries, counts[inverse].tolist(), strict=True) if count == 1]
