"""Compute models: how fast each client's device is, and how many seconds a task takes on it.

Pure functions of (key, client, task, FLOPs, steps). Nothing is stored, so a million devices cost nothing until they are asked
about. Knows no clock, neither the host's nor the virtual one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Protocol

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, NonNegative, Positive, Range, Seconds
from fedsim.cost.at_once import at_once

_GIGA = 1e9
_TASKS = 1 << 32  # Draws per client: with more tasks than that, a client would share the next one's luck.


class Compute(Protocol):
    """The devices of all clients: equal arguments, equal answers, whatever was asked before."""

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the effective speed of each client's device, in GFLOP/s. Shapes: (n,) -> (n,)."""
        ...

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> Seconds:
        """Return how long *client*'s own *task*-th task takes that needs *flops* floating-point operations, in *steps* local steps."""
        ...


def step_s(compute: Compute, client: int) -> Seconds:
    """Return what a local step takes on *client*'s device besides its operations: what one of none takes.

    >>> step_s(constant(gflops=5.0, step_s=0.25), 3)
    0.25
    """
    return compute.seconds(client, 0, 0.0, 1) - compute.seconds(client, 0, 0.0, 0)


def many_s(compute: Compute, clients: IntArray, tasks: IntArray, flops: FloatArray, steps: IntArray) -> FloatArray:
    """Return what ``seconds`` says for each of *clients*, to the last bit; at once where it has ``many_s``. Shapes: (n,) -> (n,)."""
    if (together := at_once(compute, "many_s", "seconds")) is not None:
        return together(clients, tasks, flops, steps)
    each = zip(clients.tolist(), tasks.tolist(), flops.tolist(), steps.tolist(), strict=True)
    return np.array([compute.seconds(*one) for one in each], dtype=np.float64)


computes: Registry[Callable[..., Compute]] = Registry(
    "compute", given=["key", "find", "volumes"], key="clients.compute",
    gives=answers.Gives("a Compute", ("gflops", "seconds"), {"gflops": answers.speeds, "seconds": answers.duration}),
)  # fmt: skip
"""Functions that return a Compute. Given: ``key``; ``find``, which looks up a file; ``volumes``, which says who holds much data."""


Volumes = Callable[[IntArray], FloatArray]
"""Says of clients how much data each holds, as the normal score of its rank among all: 0 is the median. Shapes: (n,) -> (n,)."""
Correlation = Annotated[float, Range(ge=-1, le=1, why="between speed and volume of data")]


@dataclass(frozen=True, slots=True)
class Luck:
    """Normal scores of clients' devices: draws of *key* alone, or such as go with *volumes* by a *correlation*. See ``luck``."""

    key: Key
    volumes: Volumes | None
    correlation: float

    def __call__(self, clients: IntArray) -> FloatArray:
        """Return the score of each client's device. Shapes: (n,) -> (n,)."""
        own: FloatArray = ndtri(self.key.uniform(clients))
        if self.volumes is None or not self.correlation:
            return own
        return self.correlation * self.volumes(clients) + math.sqrt(1.0 - self.correlation**2) * own


def luck(key: Key, volumes: Volumes | None, correlation: float) -> Luck:
    """Return standard normal scores, of that *correlation* with *volumes*. Raises ScenarioError where nobody knows these."""
    if correlation and volumes is None:
        raise ScenarioError(
            f"clients.compute.speed_data_correlation = {correlation:g}: nobody knows how much data clients hold here. Leave it out of a"
            f" fleet; scenarios take it."
        )
    return Luck(key, volumes, correlation)


@dataclass(frozen=True, slots=True)
class SteadyCompute:
    """Devices whose *speeds*, in GFLOP/s by client, no task changes; those that were read from *files* name these with their SHA-256."""

    speeds: Callable[[IntArray], FloatArray]
    overhead_s: Seconds
    step_s: Seconds = 0.0
    files: Mapping[str, str] = field(default_factory=dict[str, str])

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the speed of each client's device, in GFLOP/s. Shapes: (n,) -> (n,)."""
        return self.speeds(clients)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> Seconds:
        """Return the overhead, the steps' own, and the time at this client's speed."""
        return self.overhead_s + flops / (float(self.speeds(np.array([client]))[0]) * _GIGA) + steps * self.step_s

    def many_s(self, clients: IntArray, tasks: IntArray, flops: FloatArray, steps: IntArray) -> FloatArray:
        """Return ``seconds`` of each. Shapes: (n,) -> (n,)."""
        return self.overhead_s + flops / (self.speeds(clients) * _GIGA) + steps * self.step_s


@dataclass(frozen=True, slots=True)
class ConstantCompute:
    """Devices that are all alike. See ``constant``."""

    speed: float
    overhead_s: Seconds
    step_s: Seconds = 0.0

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the one speed, in GFLOP/s, for each of *clients*. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.speed, dtype=np.float64)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> Seconds:
        """Return the overhead, the steps' own, and the time at the one speed."""
        return self.overhead_s + flops / (self.speed * _GIGA) + steps * self.step_s

    def many_s(self, clients: IntArray, tasks: IntArray, flops: FloatArray, steps: IntArray) -> FloatArray:
        """Return ``seconds`` of each. Shapes: (n,) -> (n,)."""
        return self.overhead_s + flops / (self.speed * _GIGA) + steps * self.step_s


@dataclass(frozen=True, slots=True)
class LognormalCompute:
    """Devices whose speeds differ from client to client, and never change. See ``lognormal``."""

    median: float
    sigma: float
    overhead_s: Seconds
    key: Key
    step_s: Seconds = 0.0

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the speed of each client's device, in GFLOP/s. Shapes: (n,) -> (n,)."""
        normals: FloatArray = ndtri(self.key.uniform(clients))
        return self.median * np.exp(self.sigma * normals)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> Seconds:
        """Return the overhead, the steps' own, and the time at this client's speed, which no task changes."""
        # numpy's exp here too: Python's may differ from it in the last bit. Drawn anew each time, in 2 microseconds.
        speed = self.median * float(np.exp(self.sigma * ndtri(self.key.uniform_at(client))))
        return self.overhead_s + flops / (speed * _GIGA) + steps * self.step_s

    def many_s(self, clients: IntArray, tasks: IntArray, flops: FloatArray, steps: IntArray) -> FloatArray:
        """Return ``seconds`` of each. Shapes: (n,) -> (n,)."""
        return self.overhead_s + flops / (self.gflops(clients) * _GIGA) + steps * self.step_s


@dataclass(frozen=True, slots=True)
class ExponentialCompute:
    """Devices that are alike on average, and take their own exponential time for each task. See ``exponential``."""

    speed: float
    overhead_s: Seconds
    key: Key
    step_s: Seconds = 0.0

    def gflops(self, clients: IntArray) -> FloatArray:
        """Return the one speed, in GFLOP/s, at which the mean task runs. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.speed, dtype=np.float64)

    def seconds(self, client: int, task: int, flops: float, steps: int = 0) -> Seconds:
        """Return the overhead, the steps' own, and the mean time multiplied by a draw that this task has to itself."""
        draw = self.key.uniform_at(client * _TASKS + task)
        return self.overhead_s - math.log(draw) * flops / (self.speed * _GIGA) + steps * self.step_s


@computes.register("constant")
def constant(*, gflops: Positive, overhead_s: NonNegative = 0.0, step_s: NonNegative = 0.0) -> ConstantCompute:
    """Return devices that all do *gflops* GFLOP/s, and need *overhead_s* seconds for any task and *step_s* for each of its local steps.

    *gflops* is the effective speed, what training reaches, and not the peak of a data sheet. Small models reach little of any: what
    their steps take is starting operations, not doing them. That is *step_s*, some 50 to 100 microseconds of torch on a processor.

    >>> constant(gflops=5.0, overhead_s=1.0).seconds(17, task=0, flops=1e10)
    3.0
    """
    return ConstantCompute(gflops, overhead_s, step_s)


@computes.register("lognormal")
def lognormal(
    key: Key,
    volumes: Volumes | None = None,
    *,
    gflops: Positive,
    sigma: Annotated[float, Range(ge=0, le=10, why="of the logarithm of the speed")] = 0.6,
    overhead_s: NonNegative = 0.0,
    step_s: NonNegative = 0.0,
    speed_data_correlation: Correlation = 0.0,
) -> LognormalCompute | SteadyCompute:
    """Return devices of LogNormal speed with median *gflops*: fast and slow clients, each the same at every task.

    *sigma* is the standard deviation of the logarithm: at 0.6 the ninth decile is 4.7 times the first, and
    the mean speed of the fastest tenth is 8.3 times that of the slowest. *step_s* is what each local step takes besides, on all alike.
    *speed_data_correlation* is between the logarithm of a client's speed and the normal score of its rank by examples: above 0 who holds
    more data has the faster device. Then speeds depend on who else is there.
    References: Lai et al. 2022 (FedScale), arXiv:2105.11367, whose simulator spreads devices with the same 0.6; Huba et al. 2022 (Papaya),
    arXiv:2111.04877, whose clients' times go with how much data they hold.

    >>> devices = lognormal(Key(0), gflops=5.0)
    >>> devices.seconds(3, task=0, flops=1e9) == devices.seconds(3, task=8, flops=1e9)
    True
    """
    if not speed_data_correlation:
        return LognormalCompute(gflops, sigma, overhead_s, key.fold("speed"), step_s)
    scores = luck(key.fold("speed"), volumes, speed_data_correlation)
    return SteadyCompute(partial(_spread, gflops, sigma, scores), overhead_s, step_s)


def _spread(median: float, sigma: float, scores: Luck, clients: IntArray) -> FloatArray:
    return median * np.exp(sigma * scores(clients))


@computes.register("exponential")
def exponential(key: Key, *, gflops: Positive, overhead_s: NonNegative = 0.0, step_s: NonNegative = 0.0) -> ExponentialCompute:
    """Return devices of mean time FLOPs / *gflops*, where each task is longer or shorter by its own Exp(1) factor.

    The model of queueing theory, under which much is known exactly: a synchronous round of n such clients takes
    H_n = 1 + 1/2 + ... + 1/n mean task times. *overhead_s*, and *step_s* for each local step, are added as they are.

    >>> devices = exponential(Key(0), gflops=5.0)
    >>> devices.seconds(3, task=0, flops=1e9) == devices.seconds(3, task=1, flops=1e9)
    False
    """
    return ExponentialCompute(gflops, overhead_s, key.fold("tasks"), step_s)
