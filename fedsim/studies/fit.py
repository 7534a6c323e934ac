"""The critical batch size: steps and examples to a target, as a hyperbola in the size of batches. Knows no run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # It has none.

from fedsim.core.types import FloatArray


@dataclass(frozen=True, slots=True)
class Fit:
    """(S / *steps* - 1) (E / *examples* - 1) = 1: the fewest steps, and the fewest examples, that reach a target.

    *error* is the root mean square of the relative errors of S. Reference: McCandlish et al. 2018, arXiv:1812.06162, equation 2.11.
    """

    steps: float
    examples: float
    error: float

    @property
    def critical(self) -> float:
        """Return the critical batch size: below it twice the batch takes half the steps, above it as many."""
        return self.examples / self.steps if self.steps > 0 else math.inf

    def at(self, size: float) -> float:
        """Return the steps to the target with batches of *size*."""
        return self.steps + self.examples / size


def fit(sizes: Sequence[float], steps: Sequence[float]) -> Fit | None:
    """Return the hyperbola nearest to *steps* at batch *sizes*, by relative errors; None for fewer than three sizes.

    Sizes are those that updates had on average, examples over steps: with ragged batches the nominal ones would make E too large.
    With E = B S it is the straight line S = S_min + E_min / B, whose ends are not below 0.

    >>> found = fit([1, 10, 100], [1010.0, 110.0, 20.0])
    >>> round(found.steps, 6), round(found.examples, 6), round(found.critical, 6)
    (10.0, 1000.0, 100.0)
    """
    size, taken = np.asarray(sizes, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    if len(np.unique(size)) < 3 or not (taken > 0).all():
        return None
    lines = np.stack([1 / taken, 1 / (size * taken)], axis=1)
    scale = np.abs(lines).max(axis=0)
    found: FloatArray = nnls(lines / scale, np.ones(len(taken)))[0] / scale
    error = math.sqrt(float(np.mean((lines @ found - 1) ** 2)))
    return Fit(float(found[0]), float(found[1]), error)
