"""Network models: the bandwidth of each client's link, and how many seconds a message takes on it.

Pure functions of (key, client, bytes), of links of their own; whether transfers slow each other down at the server's end is decided
where they move (``sim/links``). Knows what a message weighs, not what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.errors import RunError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive, Range, Seconds
from fedsim.cost.at_once import at_once

MBIT_PER_BYTE = 8e-6


class Network(Protocol):
    """The links of all clients: equal arguments, equal answers, whatever was asked before.

    One that also has ``downs_s`` and ``ups_s`` (clients, sizes_bytes: (n,) -> (n,)) is asked for the clients of a round at once; they
    must say what ``down_s`` and ``up_s`` do, to the last bit. One whose rates go with time has ``down_piece`` and ``up_piece`` (client,
    now): the rate in Mbit/s, and until when it is that; ``down_s`` and ``up_s`` go by its means then, and what they say of no bytes is
    the latency.
    """

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return the rate from server to client, in Mbit/s. Shapes: (n,) -> (n,)."""
        ...

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return the rate from client to server, in Mbit/s. Shapes: (n,) -> (n,)."""
        ...

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return how long *size_bytes* take from the server to *client*."""
        ...

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return how long *size_bytes* take from *client* to the server."""
        ...


def downs_s(network: Network, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
    """Return what ``down_s`` says of each of *clients*, to the last bit, at once if the network has ``downs_s``. Shapes: (n,) -> (n,)."""
    return _many(network, "down", clients, sizes_bytes)


def ups_s(network: Network, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
    """Return what ``up_s`` says of each of *clients*, to the last bit, at once if the network has ``ups_s``. Shapes: (n,) -> (n,)."""
    return _many(network, "up", clients, sizes_bytes)


def _many(network: Network, way: str, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
    if (together := at_once(network, f"{way}s_s", f"{way}_s")) is not None:
        return together(clients, sizes_bytes)
    one_s: Callable[[int, int], Seconds] = getattr(network, f"{way}_s")
    pairs = zip(clients.tolist(), sizes_bytes.tolist(), strict=True)
    return np.array([one_s(client, size) for client, size in pairs], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the protocols of a link add to each message, as declared: *message_bytes*, and a *share* of its bytes.

    A share *lost* of all bytes is lost on the way. What is lost is sent again, and of that as much is lost: in the mean a share
    lost / (1 - lost) of all bytes goes more than once.
    """

    message_bytes: int = 0
    share: float = 0.0
    lost: float = 0.0

    def of(self, size_bytes: int) -> tuple[int, int]:
        """Return the bytes added to a message of *size_bytes*, and how many are sent again, rounded up.

        >>> Overhead(message_bytes=500, share=0.03, lost=0.01).of(10_000)
        (800, 110)
        """
        added = self.message_bytes + math.ceil(self.share * size_bytes)
        return added, math.ceil(self.lost / (1.0 - self.lost) * (size_bytes + added))


@dataclass(frozen=True, slots=True)
class ServerLink:
    """What the server's own link carries at most, each way, in Mbit/s, shared by all transfers in progress; None: more than is ever asked.

    *egress* is what it sends to clients, *ingress* what it takes in from them.
    """

    egress_mbps: float | None = None
    ingress_mbps: float | None = None

    @property
    def egress(self) -> float | None:
        """Return the same in bytes per second."""
        return None if self.egress_mbps is None else self.egress_mbps / MBIT_PER_BYTE

    @property
    def ingress(self) -> float | None:
        """Return the same in bytes per second."""
        return None if self.ingress_mbps is None else self.ingress_mbps / MBIT_PER_BYTE


networks: Registry[Callable[..., Network]] = Registry(
    "network", given=["key", "find"], key="clients.network", also=("edges.network",),
    gives=answers.Gives(
        "a Network", ("down_s", "up_s"),
        {
            "down_s": answers.duration, "up_s": answers.duration, "down_mbps": answers.speeds, "up_mbps": answers.speeds,
            "down_piece": answers.piece, "up_piece": answers.piece,
        },
    ),
)  # fmt: skip
"""Functions that return a Network. Given: ``key``, and ``find``, which looks up a file."""


Piece = Callable[..., tuple[float, Seconds]]
"""Called with a client and a time, or with a time where it is one client's: the rate in Mbit/s, and until when it is that."""


def pieces(network: Network) -> dict[str, Piece] | None:
    """Return what says the rates of *network* down and up by time; None where they do not go with it."""
    if not (hasattr(network, "down_piece") and hasattr(network, "up_piece")):
        return None
    return {way: getattr(network, f"{way}_piece") for way in ("down", "up")}


def way_s(network: Network, way: Literal["down", "up"], client: int, size_bytes: int, now: Seconds) -> Seconds:
    """Return how long *size_bytes*, sent *now*, take one way, all by themselves: exactly, over the pieces of a rate that goes with time.

    Raises RunError where they would never arrive.
    """
    one_s: Callable[[int, int], Seconds] = network.down_s if way == "down" else network.up_s
    varying = pieces(network)
    if varying is None:
        return one_s(client, size_bytes)
    piece, left, at = varying[way], size_bytes * MBIT_PER_BYTE, now
    while True:
        mbps, until = piece(client, at)
        if mbps * (until - at) >= left:
            return at + (left / mbps if left else 0.0) - now + one_s(client, 0)
        if math.isinf(until):
            raise RunError(
                f"clients.network: {size_bytes:,} bytes {way}, client {client}'s, never arrive: from {at:,.0f} s on its rate is 0."
            )
        left -= mbps * (until - at)
        at = until


@dataclass(frozen=True, slots=True)
class ConstantNetwork:
    """Links that are all alike. See ``constant``."""

    down: float
    up: float
    latency_s: Seconds

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return the one rate down, in Mbit/s. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.down, dtype=np.float64)

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return the one rate up, in Mbit/s. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.up, dtype=np.float64)

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at the one rate down."""
        return self.latency_s + size_bytes * MBIT_PER_BYTE / self.down

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at the one rate up."""
        return self.latency_s + size_bytes * MBIT_PER_BYTE / self.up

    def downs_s(self, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
        """Return ``down_s`` of each. Shapes: (n,) -> (n,)."""
        return self.latency_s + sizes_bytes.astype(np.float64) * MBIT_PER_BYTE / self.down

    def ups_s(self, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
        """Return ``up_s`` of each. Shapes: (n,) -> (n,)."""
        return self.latency_s + sizes_bytes.astype(np.float64) * MBIT_PER_BYTE / self.up


@dataclass(frozen=True, slots=True)
class LognormalNetwork:
    """Links whose rates differ from client to client, down and up correlated. See ``lognormal``.

    Two standard normals per client: *shared* moves both rates, *own* moves the rate up alone.
    """

    down: float
    up: float
    sigma: float
    latency_s: Seconds
    correlation: float
    shared: Key
    own: Key

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return each client's rate down, in Mbit/s. Shapes: (n,) -> (n,)."""
        normals: FloatArray = ndtri(self.shared.uniform(clients))
        return self.down * np.exp(self.sigma * normals)

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return each client's rate up, in Mbit/s. Shapes: (n,) -> (n,)."""
        shared: FloatArray = ndtri(self.shared.uniform(clients))
        own: FloatArray = ndtri(self.own.uniform(clients))
        return self.up * np.exp(self.sigma * (self.correlation * shared + self._rest * own))

    # Below, the same for one client, operation by operation and with numpy's exp, so that every bit is the same.
    # Drawn anew for each message: that takes 2 to 4 microseconds, less than a vector of one would by ten times.

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at this client's rate down."""
        mbps = self.down * float(np.exp(self.sigma * ndtri(self.shared.uniform_at(client))))
        return self.latency_s + size_bytes * MBIT_PER_BYTE / mbps

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return the latency and the time at this client's rate up."""
        shared, own = ndtri(self.shared.uniform_at(client)), ndtri(self.own.uniform_at(client))
        mbps = self.up * float(np.exp(self.sigma * (self.correlation * shared + self._rest * own)))
        return self.latency_s + size_bytes * MBIT_PER_BYTE / mbps

    def downs_s(self, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
        """Return ``down_s`` of each. Shapes: (n,) -> (n,)."""
        return self.latency_s + sizes_bytes * MBIT_PER_BYTE / self.down_mbps(clients)

    def ups_s(self, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
        """Return ``up_s`` of each. Shapes: (n,) -> (n,)."""
        return self.latency_s + sizes_bytes * MBIT_PER_BYTE / self.up_mbps(clients)

    @property
    def _rest(self) -> float:
        return math.sqrt(1.0 - self.correlation * self.correlation)


@dataclass(frozen=True, slots=True)
class IdealNetwork:
    """Links that take no time. See ``ideal``."""

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return infinity for each client. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), np.inf)

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return infinity for each client. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), np.inf)

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return 0."""
        return 0.0

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return 0."""
        return 0.0

    def downs_s(self, clients: IntArray, sizes_bytes: IntArray) -> FloatArray:
        """Return 0 for each. Shapes: (n,) -> (n,)."""
        return np.zeros(len(clients))

    ups_s = downs_s


@networks.register("constant")
def constant(*, down_mbps: Positive, up_mbps: Positive, latency_s: NonNegative = 0.0) -> ConstantNetwork:
    """Return links that all have the same rates in Mbit/s; each message takes *latency_s* and size / rate.

    >>> constant(down_mbps=8.0, up_mbps=2.0, latency_s=0.5).up_s(17, size_bytes=1_000_000)
    4.5
    """
    return ConstantNetwork(down_mbps, up_mbps, latency_s)


@networks.register("lognormal")
def lognormal(
    key: Key,
    *,
    down_mbps: Positive,
    up_mbps: Positive,
    sigma: Annotated[float, Range(ge=0, le=10, why="of the logarithm of both rates")] = 0.8,
    latency_s: NonNegative = 0.0,
    correlation: Annotated[float, Range(ge=-1, le=1, why="between the logarithms of the two rates")] = 0.7,
) -> LognormalNetwork:
    """Return links of LogNormal rates with medians *down_mbps* and *up_mbps*, each client's the same at every message.

    *sigma* is the standard deviation of the logarithm of either rate; *correlation* is between the two logarithms:
    who downloads fast mostly uploads fast. A cross-device population has medians of about 6 down and 2 up.
    Reference: Wang et al. 2021, arXiv:2107.06917, whose system model has 0.75 MB/s down and 0.25 MB/s up.

    >>> links = lognormal(Key(0), down_mbps=6.0, up_mbps=2.0, correlation=1.0)
    >>> bool(np.isclose(links.down_s(3, 1_000_000) * 3, links.up_s(3, 1_000_000)))
    True
    """
    return LognormalNetwork(
        down_mbps, up_mbps, sigma, latency_s, correlation, shared=key.fold("rates"), own=key.fold("up")
    )


@networks.register("ideal")
def ideal() -> IdealNetwork:
    """Return links on which every message arrives at once: communication is counted in bytes, not in seconds.

    >>> ideal().down_s(17, size_bytes=1_000_000)
    0.0
    """
    return IdealNetwork()
