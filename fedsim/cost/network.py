"""Links: how long a client's download and upload take, given their bytes. Each client has a link of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np
from scipy.special import ndtri

from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive, Range, Seconds


class Network(Protocol):
    """Link rates, each a function of (key, client)."""

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return each client's download rate in megabits (10^6) a second. Shapes: (n,) -> (n,)."""
        ...

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return each client's upload rate in megabits a second. Shapes: (n,) -> (n,)."""
        ...

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return how long *client* takes to receive *size_bytes*."""
        ...

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return how long *client* takes to send *size_bytes*."""
        ...


networks: Registry[Callable[..., Network]] = Registry("network", given=["key"])


@dataclass(frozen=True, slots=True)
class Links:
    """Log-normal rates around two medians; sigma 0 makes every link alike, an infinite median an instant one."""

    down_median: float
    up_median: float
    sigma: float
    correlation: float
    latency_s: Seconds
    key: Key
    _rates: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]], compare=False, repr=False)

    def down_mbps(self, clients: IntArray) -> FloatArray:
        """Return the download rates."""
        return self.down_median * np.exp(self.sigma * self._normal("down", clients))

    def up_mbps(self, clients: IntArray) -> FloatArray:
        """Return the upload rates, correlated with the same client's download rate."""
        rho = self.correlation
        mixed = rho * self._normal("down", clients) + math.sqrt(1 - rho * rho) * self._normal("up", clients)
        return self.up_median * np.exp(self.sigma * mixed)

    def down_s(self, client: int, size_bytes: int) -> Seconds:
        """Return latency plus bits over the download rate."""
        return self.latency_s + size_bytes * 8 / (self._of(client)[0] * 1e6)

    def up_s(self, client: int, size_bytes: int) -> Seconds:
        """Return latency plus bits over the upload rate."""
        return self.latency_s + size_bytes * 8 / (self._of(client)[1] * 1e6)

    def _of(self, client: int) -> tuple[float, float]:
        if client not in self._rates:
            one = np.array([client])
            self._rates[client] = (float(self.down_mbps(one)[0]), float(self.up_mbps(one)[0]))
        return self._rates[client]

    def _normal(self, direction: str, clients: IntArray) -> FloatArray:
        if not self.sigma:
            return np.zeros(len(clients))
        return ndtri(self.key.fold(direction).uniform(clients))


@networks.register("ideal")
def ideal() -> Network:
    """No time passes on the way; bytes are counted all the same."""
    return Links(math.inf, math.inf, 0.0, 0.0, 0.0, Key(0))


@networks.register("constant")
def constant(*, down_mbps: Positive, up_mbps: Positive, latency_s: NonNegative = 0.0) -> Network:
    """Every link alike: *latency_s* seconds, then bytes at *down_mbps* or *up_mbps*."""
    return Links(down_mbps, up_mbps, 0.0, 0.0, latency_s, Key(0))


@networks.register("lognormal")
def lognormal(
    key: Key, *, down_mbps: Positive, up_mbps: Positive, sigma: NonNegative = 0.8, latency_s: NonNegative = 0.0,
    correlation: Annotated[float, Range(ge=-1, le=1)] = 0.7,
) -> Network:  # fmt: skip
    """Log-normal rates with medians *down_mbps* and *up_mbps*; *correlation* ties a client's two log rates."""
    return Links(down_mbps, up_mbps, sigma, correlation, latency_s, key)
