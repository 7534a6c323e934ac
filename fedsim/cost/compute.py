"""Devices: how long a client's task takes, given its floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.special import ndtri

from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive, Seconds

TASKS = 1 << 24
"""Tasks a client can have before its per-task draws would run into the next client's."""


class Compute(Protocol):
    """Device speeds, each a function of (key, client): a million devices cost nothing until one is asked about."""

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the effective speed of each client's device in GFLOP/s. Shapes: (n,) -> (n,)."""
        ...

    def seconds(self, client: int, task: int, flops: float) -> Seconds:
        """Return how long the *task*-th task of *client* takes, at *flops* operations."""
        ...


computes: Registry[Callable[..., Compute]] = Registry("compute", given=["key"])


@dataclass(frozen=True, slots=True)
class Constant:
    """Every device alike."""

    speed: float
    overhead_s: Seconds

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the one speed, once per client."""
        return np.full(len(clients), self.speed)

    def seconds(self, client: int, task: int, flops: float) -> Seconds:
        """Return overhead plus operations over speed."""
        return self.overhead_s + flops / (self.speed * 1e9)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Speeds spread log-normally around a median; a device keeps its speed."""

    median: float
    sigma: float
    overhead_s: Seconds
    key: Key
    _speeds: dict[int, float] = field(default_factory=dict[int, float], compare=False, repr=False)  # A cache.

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return each client's own speed."""
        return self.median * np.exp(self.sigma * ndtri(self.key.uniform(clients)))

    def seconds(self, client: int, task: int, flops: float) -> Seconds:
        """Return overhead plus operations over the client's speed."""
        if client not in self._speeds:
            self._speeds[client] = float(self.gflops(np.array([client]))[0])
        return self.overhead_s + flops / (self._speeds[client] * 1e9)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Devices alike on average; the time of each task beyond the overhead is exponential, drawn per task."""

    speed: float
    overhead_s: Seconds
    key: Key

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the mean speed, once per client."""
        return np.full(len(clients), self.speed)

    def seconds(self, client: int, task: int, flops: float) -> Seconds:
        """Return overhead plus an Exp(1) draw, keyed by (client, task), times operations over speed."""
        draw = -math.log(self.key.uniform_at(client * TASKS + task))
        return self.overhead_s + draw * flops / (self.speed * 1e9)


@computes.register("constant")
def constant(*, gflops: Positive, overhead_s: NonNegative = 0.0) -> Compute:
    """Every device computes *gflops* GFLOP/s, after *overhead_s* seconds per task."""
    return Constant(gflops, overhead_s)


@computes.register("lognormal")
def lognormal(key: Key, *, gflops: Positive, sigma: NonNegative = 0.6, overhead_s: NonNegative = 0.0) -> Compute:
    """Device speeds are log-normal with median *gflops*; sigma 0.6 is FedScale's spread."""
    return Lognormal(gflops, sigma, overhead_s, key)


@computes.register("exponential")
def exponential(key: Key, *, gflops: Positive, overhead_s: NonNegative = 0.0) -> Compute:
    """Task times beyond the overhead are exponential around what *gflops* gives, drawn for each task anew."""
    return Exponential(gflops, overhead_s, key)
