"""Radios: how long a transfer was on the air, and how much of it had gone by some moment, where a link's rate goes with time.

Exact over the pieces of the rate. Knows links, sizes and moments; knows no message.
"""

from __future__ import annotations

from typing import Literal

from fedsim.core.types import Seconds
from fedsim.cost.network import MBIT_PER_BYTE, Network, pieces

Way = Literal["down", "up"]


def went(network: Network, way: Way, client: int, size_bytes: int, begin_s: Seconds, end_s: Seconds) -> tuple[Seconds, float]:
    """Return how long *size_bytes*, sent at *begin_s* and cut off at *end_s*, were on the air, and which share of them had gone by then."""
    left = needed = size_bytes * MBIT_PER_BYTE
    for since, until, mbps in _rates(network, way, client, begin_s, end_s):
        if mbps * (until - since) >= left:
            return min(end_s, since + (left / mbps if left else 0.0) + _latency_s(network, way, client)) - begin_s, 1.0
        left -= mbps * (until - since)
    return max(0.0, end_s - begin_s), 1.0 - left / needed if needed else 1.0


def took_s(network: Network, way: Way, client: int, size_bytes: int, begin_s: Seconds, end_s: Seconds) -> Seconds:
    """Return how long *size_bytes* that were there at *end_s*, and not sent before *begin_s*, were on the air on a client's own link."""
    left, there_s = size_bytes * MBIT_PER_BYTE, end_s - _latency_s(network, way, client)
    for since, until, mbps in reversed(_rates(network, way, client, begin_s, there_s)):
        if mbps * (until - since) >= left:
            return end_s - (until - (left / mbps if left else 0.0))
        left -= mbps * (until - since)
    return end_s - begin_s


def _rates(network: Network, way: Way, client: int, begin_s: Seconds, end_s: Seconds) -> list[tuple[Seconds, Seconds, float]]:
    """Return from when until when the rate is which, in Mbit/s, between two moments."""
    varying, found, now = pieces(network), list[tuple[Seconds, Seconds, float]](), begin_s
    while varying is not None and now < end_s:
        mbps, until = varying[way](client, now)
        found.append((now, min(until, end_s), mbps))
        now = until
    return found


def _latency_s(network: Network, way: Way, client: int) -> Seconds:
    return network.down_s(client, 0) if way == "down" else network.up_s(client, 0)
