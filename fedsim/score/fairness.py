"""How even things are among clients: what they score, and how often they are heard. Functions of arrays; knows no run.

References: Jain, Chiu and Hawe 1984, "A quantitative measure of fairness and discrimination" (DEC TR-301); Li et al. 2020, "Fair resource
allocation in federated learning" (q-FFL, arXiv:1905.10497: variance, worst and best 10 % of clients); Gini 1912, "Variabilita e
mutabilita"; Spearman 1904, "The proof and measurement of association between two things".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.core.types import FloatArray, IntArray
from fedsim.score.online import gini

TENTH = 10
"""A tenth of clients are one in so many, rounded up: at least one."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How one score lies over *clients*, each counting the same. Worst is low, or, of what should be low, high.

    *variance* is that of the population, in the score's unit squared. *jain* and *gini* say how equal the scores are, not how good;
    they are NaN where some score is negative or all are 0.
    """

    clients: int
    mean: float
    variance: float
    worst_tenth: float
    best_tenth: float
    jain: float
    gini: float


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation over *clients* of which both values are known, and its two-sided *p*; NaN where one does not vary."""

    rho: float
    p: float
    clients: int


@dataclass(frozen=True, slots=True)
class Participation:
    """How evenly replies are spread over *clients*, those who never sent one included: *never* is their share.

    *with_speed* and *with_volume* hold how often a client was heard against how fast its device is, and how much data it has.
    """

    clients: int
    never: float
    jain: float
    gini: float
    with_speed: Correlation
    with_volume: Correlation


def jain(values: FloatArray | IntArray) -> float:
    """Return Jain's index, (sum x)^2 / (n sum x^2): 1 when all have the same, k / n when k of n share everything equally.

    Shapes: (n,). NaN where nobody has anything, or somebody less than nothing.

    >>> jain(np.array([1.0, 1.0, 0.0, 0.0])), jain(np.array([4, 4, 4, 4, 4]))
    (0.5, 1.0)
    """
    scaled = np.asarray(values, dtype=np.float64)
    if not scaled.size or scaled.min() < 0 or not scaled.max():
        return math.nan
    scaled = scaled / scaled.max()  # Squares of counts of any size stay finite.
    return float(scaled.sum() ** 2 / (scaled.size * (scaled**2).sum()))


def tenths(values: FloatArray, *, upwards: bool) -> tuple[float, float]:
    """Return the means over the worst and over the best tenth of *values*; more is better if *upwards*. Shapes: (n,), n > 0.

    >>> tenths(np.arange(20.0), upwards=True), tenths(np.array([0.25, 4.0]), upwards=False)
    ((0.5, 18.5), (4.0, 0.25))
    """
    ranked, size = np.sort(values), -(-len(values) // TENTH)
    low, high = float(ranked[:size].mean()), float(ranked[-size:].mean())
    return (low, high) if upwards else (high, low)


def spread(values: FloatArray, *, upwards: bool) -> Spread:
    """Return how *values*, one per client, are spread; more is better if *upwards*. Shapes: (n,), n > 0, finite."""
    even = jain(values)
    return Spread(
        len(values), float(values.mean()), float(values.var()), *tenths(values, upwards=upwards), even,
        gini(values) if even == even else math.nan,
    )  # fmt: skip


def correlation(ours: FloatArray | IntArray, theirs: FloatArray | IntArray) -> Correlation:
    """Return Spearman's correlation of two columns, ties at their mean rank, over the clients of which both are known. Shapes: (n,).

    As ``scipy.stats.spearmanr``, whose module takes half a second to import, and every report would wait for it.
    """
    from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]  # It has none.

    a, b = (np.asarray(each, dtype=np.float64) for each in (ours, theirs))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return Correlation(math.nan, math.nan, len(a))
    found = float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])
    free = len(a) - 2
    far = math.inf if abs(found) >= 1.0 else abs(found) * math.sqrt(free / ((1.0 + found) * (1.0 - found)))
    return Correlation(found, float(2.0 * stdtr(free, -far)), len(a))


def _ranks(values: FloatArray) -> FloatArray:
    """Return the place of each of *values* in their order, those that are alike at the mean of theirs. Shapes: (n,) -> (n,)."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[which]


def participation(counts: IntArray, gflops: FloatArray, examples: FloatArray) -> Participation:
    """Return how evenly *counts* of replies are spread over all clients, by the speed of devices and the volume of data too.

    Shapes: all (n,), an entry per client there is; NaN is what is not known of one.
    """
    never = float(np.mean(counts == 0)) if len(counts) else math.nan
    return Participation(len(counts), never, jain(counts), gini(counts), correlation(counts, gflops), correlation(counts, examples))
