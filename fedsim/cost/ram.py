"""How much memory each client's device has for training. Pure functions of (key, client); knows no model and no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

from fedsim.core import answers
from fedsim.core.keys import Key
from fedsim.core.registry import Registry
from fedsim.core.types import FloatArray, IntArray, Positive, Range

MIB = 2**20


class Ram(Protocol):
    """The memory of all devices: equal arguments, equal answers, whatever was asked before."""

    def mib(self, clients: IntArray) -> FloatArray:
        """Return what each client's device has for training, in MiB. Shapes: (n,) -> (n,)."""
        ...


rams: Registry[Callable[..., Ram]] = Registry(
    "ram", given=["key"], key="clients.ram", gives=answers.Gives("a Ram", ("mib",), {"mib": answers.speeds})
)
"""Functions that return a Ram. Given: ``key``."""


@dataclass(frozen=True, slots=True)
class ConstantRam:
    """Devices that are all alike. See ``constant``."""

    size: float

    def mib(self, clients: IntArray) -> FloatArray:
        """Return the one size for each of *clients*. Shapes: (n,) -> (n,)."""
        return np.full(len(clients), self.size, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LognormalRam:
    """Devices that differ, and never change. See ``lognormal``."""

    median: float
    sigma: float
    key: Key

    def mib(self, clients: IntArray) -> FloatArray:
        """Return the size of each client's memory. Shapes: (n,) -> (n,)."""
        normals: FloatArray = ndtri(self.key.uniform(clients))
        return self.median * np.exp(self.sigma * normals)


@rams.register("constant")
def constant(*, mib: Positive) -> ConstantRam:
    """Return devices that all have *mib* MiB free for training.

    >>> constant(mib=512.0).mib(np.array([0, 17])).tolist()
    [512.0, 512.0]
    """
    return ConstantRam(mib)


@rams.register("lognormal")
def lognormal(
    key: Key, *, mib: Positive, sigma: Annotated[float, Range(ge=0, le=10, why="of the logarithm of the size")] = 0.5
) -> LognormalRam:
    """Return devices of LogNormal memory with median *mib*: the same for a client at every task.

    >>> lognormal(Key(0), mib=512.0, sigma=0.0).mib(np.array([3])).tolist()
    [512.0]
    """
    return LognormalRam(mib, sigma, key.fold("size"))
