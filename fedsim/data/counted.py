"""A source of which only the numbers of examples are known: for whoever sizes a deployment. The examples say nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.keys import Key
from fedsim.core.types import Count, FloatArray, IntArray, NonNegative
from fedsim.data.source import Examples, sources

MOST = 10_000_000


@dataclass(frozen=True, slots=True)
class Counted:
    """A Generator of empty examples, all of them trained on; *untested* says that none is held out. See ``counted``."""

    median: float
    sigma: float
    key: Key
    shape: tuple[int, ...] = (1,)
    outputs: int = 2
    untested: bool = True

    def sizes(self, clients: IntArray) -> IntArray:
        """Return how many examples each of *clients* holds. Shapes: (n,) -> (n,)."""
        from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]  # It has none.

        normals: FloatArray = ndtri(self.key.fold("sizes").uniform(clients))
        return np.clip(np.rint(self.median * np.exp(self.sigma * normals)), 1, MOST).astype(np.int64)

    def client(self, client: int) -> Examples:
        """Return the examples of *client*: zeros. Shapes: x (size, 1), y (size,)."""
        size = int(self.sizes(np.array([client]))[0])
        return Examples(np.zeros((size, *self.shape), dtype=np.float32), np.zeros(size, dtype=np.int64))


@sources.register("counted")
def counted(key: Key, examples: Count, sigma: NonNegative = 0.0) -> Counted:
    """Return clients of which only is known how many examples each has: for ``fedsim check`` and ``fedsim size``.

    Numbers of examples are log-normal, with the median *examples* and the spread *sigma* (of the logarithm; 0 is all alike), rounded.

    >>> counted(Key(0), 600).sizes(np.arange(3)).tolist()
    [600, 600, 600]
    """
    return Counted(float(examples), sigma, key.fold("counted"))
