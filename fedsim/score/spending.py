"""When one may look at a growing number of pairs, and what each look may say: levels, intervals, verdicts, power. Knows no run.

Who adds seeds until a plain interval leaves zero is wrong in every second comparison of equals. Here looks are few and foretold, and each
spends its share of the 5 % once: the increments of Lan and DeMets' function of Pocock's type (Biometrika 70, 1983), turned into quantiles
of Student's t. Shares add up however the looks hang together, so that with normal differences the sum is a bound, not an approximation
(the normal recursion is one, and with five pairs too bold a one). All intervals together then cover with 95 % (repeated confidence
intervals, Jennison and Turnbull 1989), so that a verdict may be read off any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # It has none.

from fedsim.core.types import FloatArray, IntArray

LOOKS = (5, 10, 20, 40)
ALPHA = 0.05
ABOVE, BELOW, ALIKE, OPEN = 1, -1, 2, 0
"""What an interval says: the difference is above what matters, below it, within it; or it does not say."""
DRAWS = 4_000
"""Sequences that a power is counted over."""


def levels(looks: Sequence[int] = LOOKS, alpha: float = ALPHA) -> tuple[float, ...]:
    """Return what each of *looks* may spend of *alpha*.

    >>> [round(100 * level, 2) for level in levels()], round(sum(levels()), 12), levels([7])
    ([0.97, 0.81, 1.31, 1.9], 0.05, (0.05,))
    """
    spent = [alpha * math.log(1.0 + (math.e - 1.0) * n / looks[-1]) for n in (0, *looks)]
    return tuple(round(after - before, 15) for before, after in zip(spent, spent[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Rule:
    """After how many pairs it is looked, what each look spends, and from where on a difference matters."""

    looks: tuple[int, ...]
    levels: tuple[float, ...]
    matters: float = 0.0

    @classmethod
    def of(cls, looks: Sequence[int], matters: float = 0.0, comparisons: int = 1) -> Rule:
        """Return the rule for *looks*, of which several *comparisons* with one baseline share the 5 %."""
        return cls(tuple(looks), levels(looks, ALPHA / comparisons), matters)


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of means, its interval at a *level* of error, and how many runs stand on either side."""

    mean: float
    low: float
    high: float
    level: float
    n: tuple[int, int]

    def says(self, matters: float = 0.0) -> int:
        """Return ABOVE or BELOW where the interval lies beyond *matters* on one side, ALIKE where within, else OPEN."""
        if self.low > matters:
            return ABOVE
        if self.high < -matters:
            return BELOW
        return ALIKE if -matters <= self.low and self.high <= matters else OPEN


def paired(differences: FloatArray, level: float) -> Interval:
    """Return Student's interval of the mean of *differences* (n,); of one or none nothing is known.

    >>> found = paired(np.array([1.0, 2.0, 3.0]), 0.05)
    >>> round(found.low, 3), round(found.high, 3)
    (-0.484, 4.484)
    """
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    half = float(stdtrit(n - 1, 1.0 - level / 2.0)) * float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, level, (n, n))


def unpaired(ours: FloatArray, theirs: FloatArray, level: float) -> Interval:
    """Return Welch's interval of mean(*ours*) - mean(*theirs*), the two drawn apart."""
    n, m = len(ours), len(theirs)
    mean = float(np.mean(ours) - np.mean(theirs)) if n and m else math.nan
    if min(n, m) < 2:
        return Interval(mean, -math.inf, math.inf, level, (n, m))
    a, b = float(np.var(ours, ddof=1)) / n, float(np.var(theirs, ddof=1)) / m
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)) if a + b else 1.0
    half = float(stdtrit(freedom, 1.0 - level / 2.0)) * math.sqrt(a + b)
    return Interval(mean, mean - half, mean + half, level, (n, m))


def decided(differences: FloatArray, rule: Rule) -> tuple[IntArray, IntArray]:
    """Return for each row of *differences*, pairs in the order of their seeds, what *rule* says and after how many pairs.

    Shapes: (rows, pairs) -> (rows,), (rows,). OPEN after the last look that there are pairs for.
    """
    said, took = np.zeros(len(differences), dtype=np.int64), np.full(len(differences), rule.looks[-1])
    for n, level in zip(rule.looks, rule.levels, strict=True):
        seen = differences[:, :n]
        mean = seen.mean(axis=1)
        half = stdtrit(n - 1, 1.0 - level / 2.0) * seen.std(axis=1, ddof=1) / math.sqrt(n)
        low, high = mean - half, mean + half
        now = np.select(
            [low > rule.matters, high < -rule.matters, (low >= -rule.matters) & (high <= rule.matters)], [ABOVE, BELOW, ALIKE], OPEN
        )
        took = np.where((said == OPEN) & (now != OPEN), n, took)
        said = np.where(said == OPEN, now, said)
    return said, took


def power(effect: float, rule: Rule, sd: float = 1.0, seed: int = 0) -> float:
    """Return how probably *rule* finds a true difference of *effect* on its side, normal pairs deviating by *sd*; counted over DRAWS."""
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, rule.looks[-1])) * sd + abs(effect)
    return float(np.mean(decided(drawn, rule)[0] == ABOVE))


def detectable(sd: float, rule: Rule, wanted: float = 0.8) -> float:
    """Return the smallest difference that *rule* finds with the power *wanted*, to a hundredth; pairs deviate by *sd*."""
    if not sd > 0 or not math.isfinite(sd):
        return math.nan
    low, high = rule.matters, rule.matters + 20.0 * sd
    while high - low > 0.01 * (high - rule.matters):
        middle = (low + high) / 2.0
        low, high = (middle, high) if power(middle, rule, sd) < wanted else (low, middle)
    return high


def unpaired_runs(ours: FloatArray, theirs: FloatArray, level: float) -> int:
    """Return how many unpaired runs of each side would give an interval as narrow as that of the pairs, by the variances seen.

    *ours* and *theirs* are (n,), pair by pair. 0 where the differences do not vary: no number of runs would.

    >>> luck, own = np.array([1.0, 5.0, 9.0, 3.0, 7.0]), np.array([0.1, -0.1, 0.2, -0.2, 0.0])
    >>> unpaired_runs(luck + own, luck, 0.05)
    2037
    """
    pairs = paired(ours - theirs, level)
    half, each = (pairs.high - pairs.low) / 2.0, float(np.var(ours, ddof=1) + np.var(theirs, ddof=1))
    if not half > 0 or not math.isfinite(half):
        return 0

    def wide(n: int) -> bool:
        return float(stdtrit(2 * n - 2, 1.0 - level / 2.0)) * math.sqrt(each / n) > half

    low, high = 1, 2
    while wide(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return high
