"""Loaders: how fast each client's device reads its examples, and what that makes of the time that training steps take.

A loader brings mini-batches, the step consumes them, and so many may lie ready. Pure functions of (key, client) and of durations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, Positive, Range, Seconds


class Loader(Protocol):
    """The loaders of all clients: equal arguments, equal answers, whatever was asked before."""

    @property
    def depth(self) -> int:
        """Return how many mini-batches may be loaded ahead of the step at work; 0: loading and steps take turns."""
        ...

    def examples_per_s(self, clients: IntArray) -> FloatArray:
        """Return how many examples a second each client's device reads. Shapes: (n,) -> (n,)."""
        ...


loaders: Registry[Callable[..., Loader]] = Registry(
    "loader", given=["key"], key="clients.loading",
    gives=answers.Gives("a Loader", ("depth", "examples_per_s"), {"depth": answers.count(0), "examples_per_s": answers.speeds}),
)  # fmt: skip
"""Functions that return a Loader. Given: ``key``."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Loaders whose rates differ from client to client, and never change. See ``prefetch``."""

    median: float
    sigma: float
    depth: int
    key: Key

    def examples_per_s(self, clients: IntArray) -> FloatArray:
        """Return the rate of each client's loader. Shapes: (n,) -> (n,)."""
        if not self.sigma:
            return np.full(len(clients), self.median, dtype=np.float64)
        normals: FloatArray = ndtri(self.key.uniform(clients))
        return self.median * np.exp(self.sigma * normals)


@loaders.register("prefetch")
def prefetch(
    key: Key,
    *,
    examples_per_s: Positive,
    sigma: Annotated[float, Range(ge=0, le=10, why="of the logarithm of the rate")] = 0.0,
    depth: Annotated[int, Range(ge=0, le=1_000_000)] = 2,
) -> Prefetch:
    """Return loaders of a median *examples_per_s*, LogNormal where *sigma* is not 0, that are *depth* mini-batches ahead at most.

    As with a DataLoader of one worker and that ``prefetch_factor``; at 0 the device loads, then steps, and so on, as without a worker.

    >>> prefetch(Key(0), examples_per_s=2000.0).examples_per_s(np.array([0, 17])).tolist()
    [2000.0, 2000.0]
    """
    return Prefetch(examples_per_s, sigma, depth, key.fold("rate"))


def makespan(loads_s: FloatArray, steps_s: FloatArray, depth: int) -> Seconds:
    """Return how long a line of two takes: mini-batch k takes loads_s[k] to load, then steps_s[k] to train on. Shapes: (n,), (n,).

    The loader begins with mini-batch k once it has brought the one before, and step k - *depth* has begun: so many lie ready or are
    on their way at most, besides that at work. With a depth of 0 it begins once step k - 1 is done. In the words of queueing
    theory a depth d >= 1 is a line of two with d - 1 places between, blocking after service.

    >>> load, step = np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0])
    >>> makespan(load, step, 0), makespan(load, step, 1)
    (9.0, 7.0)
    """
    loads, steps = loads_s.tolist(), steps_s.tolist()
    if not depth:
        return float(sum(loads) + sum(steps))
    began = [0.0] * len(steps)
    loaded = done = 0.0
    for k, (load, step) in enumerate(zip(loads, steps, strict=True)):
        loaded = max(loaded, began[k - depth] if k >= depth else 0.0) + load
        began[k] = max(loaded, done)
        done = began[k] + step
    return done


def waited(sizes: IntArray, per_s: float, steps_s: FloatArray, depth: int) -> Seconds:
    """Return how long steps of *steps_s* wait for mini-batches of *sizes*, all in all, from a loader of *per_s* examples a second.

    Shapes: (n,), (n,). It is 0 at the least: the first is always waited for.
    """
    return max(0.0, makespan(sizes / per_s, steps_s, depth) - float(sum(steps_s.tolist())))
