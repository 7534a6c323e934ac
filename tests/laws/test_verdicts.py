"""Verdicts are wrong as rarely as they say, and find as much as they foretell: simulated, thousands of comparisons at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import nct, ttest_1samp
from scipy.stats import t as student

from fedsim.score.resampled import bootstrapped
from fedsim.score.spending import (
    ABOVE,
    ALIKE,
    ALPHA,
    LOOKS,
    OPEN,
    Rule,
    decided,
    detectable,
    levels,
    paired,
    power,
    unpaired,
    unpaired_runs,
)  # fmt: skip

ROWS = 20_000
NOISE = 4 * math.sqrt(ALPHA * (1 - ALPHA) / ROWS)
"""Four standard errors of a share of 5 % that is counted over so many."""
SEQUENCE = Rule.of(LOOKS)
Draw = Callable[[np.random.Generator], np.ndarray]
EQUALS: dict[str, Draw] = {
    "normal": lambda luck: luck.standard_normal((ROWS, 40)),
    "skewed by 0.5": lambda luck: luck.gamma(16.0, size=(ROWS, 40)) - 16.0,
    "heavy tails": lambda luck: luck.standard_t(5, size=(ROWS, 40)),
    "counts of few examples": lambda luck: np.round(0.7 * luck.standard_normal((ROWS, 40))),
    "two lognormal runs": lambda luck: luck.lognormal(size=(ROWS, 40)) - luck.lognormal(size=(ROWS, 40)),
}


def false(says: np.ndarray) -> float:
    return float(np.mean((says != OPEN) & (says != ALIKE)))


@pytest.mark.parametrize("equals", EQUALS)
def test_equals_seldom_get_a_verdict(equals: str) -> None:
    """Of equal scenarios at most 5 % get better or worse, whatever differences are like, at one look and at four."""
    drawn = EQUALS[equals](np.random.default_rng(3))

    assert false(decided(drawn, SEQUENCE)[0]) <= ALPHA + NOISE
    assert false(decided(drawn, Rule.of([20]))[0]) <= ALPHA + NOISE
    assert false(decided(drawn, Rule.of(LOOKS, comparisons=4))[0]) <= ALPHA / 4 + NOISE


def test_looking_after_each_seed_is_wrong_in_every_third_comparison() -> None:
    """The rule that people follow, a plain interval looked at after each further seed, is rejected by that law."""
    eager = Rule(tuple(range(2, 41)), (ALPHA,) * 39)
    wrong = false(decided(EQUALS["normal"](np.random.default_rng(3)), eager)[0])
    longer = Rule(tuple(range(2, 201)), (ALPHA,) * 199)
    worse = false(decided(np.random.default_rng(3).standard_normal((4000, 200)), longer)[0])
    four = false(decided(EQUALS["normal"](np.random.default_rng(3)), Rule(LOOKS, (ALPHA,) * 4))[0])

    assert 0.28 < wrong < 0.36 and 0.36 < worse < 0.5
    assert ALPHA + NOISE < four < 0.2


def test_the_levels_spend_five_percent() -> None:
    """Shares add up to 5 %, each look has some, and one look has all: Pocock's type, alpha ln(1 + (e - 1) t)."""
    assert sum(levels()) == pytest.approx(0.05) and levels([17]) == (0.05,)
    assert np.cumsum(levels()) == pytest.approx([0.05 * math.log(1 + (math.e - 1) * n / 40) for n in LOOKS])
    assert sum(levels(alpha=0.01)) == pytest.approx(0.01)


def test_one_look_is_students_test() -> None:
    """Interval and verdict of one look are scipy's paired t test, and the power is that of the noncentral t."""
    luck = np.random.default_rng(4)
    differences = luck.standard_normal(10) + 0.6
    found, told = paired(differences, 0.05), ttest_1samp(differences, 0.0).confidence_interval(0.95)

    assert (found.low, found.high) == pytest.approx((told.low, told.high))
    rule, bound = Rule.of([10]), student.isf(0.025, 9)
    assert power(0.9, rule) == pytest.approx(float(nct.sf(bound, 9, 0.9 * math.sqrt(10))), abs=4 * math.sqrt(0.25 / 4000))


@pytest.mark.parametrize("effect", [0.3, 0.5, 1.0])
def test_a_planted_difference_is_found_with_the_power_foretold(effect: float) -> None:
    """What is planted is found as often as foretold, and a rule of other levels, or of fewer pairs, is not mistaken for it."""
    drawn = np.random.default_rng(5).standard_normal((ROWS, 40)) + effect
    says, took = decided(drawn, SEQUENCE)
    share, foretold = float(np.mean(says == ABOVE)), power(effect, SEQUENCE)

    assert share == pytest.approx(foretold, abs=4 * math.sqrt(0.25 / 4000))
    assert set(took.tolist()) <= set(LOOKS)
    fewer = float(np.mean(decided(drawn, Rule.of([5]))[0] == ABOVE))
    assert foretold - fewer > 0.1


def test_what_is_detectable_has_the_power_wanted() -> None:
    """The difference that a rule is said to find with 80 % is found with 80 %, with what matters taken off."""
    for rule in (SEQUENCE, Rule.of([5]), Rule.of(LOOKS, matters=0.3)):
        drawn = np.random.default_rng(6).standard_normal((ROWS, 40)) * 2.0 + detectable(2.0, rule)

        assert float(np.mean(decided(drawn, rule)[0] == ABOVE)) == pytest.approx(0.8, abs=0.05)


def test_a_difference_that_matters_is_another_question() -> None:
    """With --matters equals are found alike, a difference just as large gets no verdict in 95 %, and a larger one does."""
    rule, luck = Rule.of(LOOKS, matters=1.0), np.random.default_rng(7).standard_normal((ROWS, 40))

    assert np.mean(decided(luck, rule)[0] == ALIKE) > 0.9
    assert np.mean(decided(luck + 1.0, rule)[0] == ABOVE) <= ALPHA / 2 + NOISE
    assert np.mean(decided(luck + 1.0, rule)[0] == ALIKE) <= ALPHA / 2 + NOISE
    assert np.mean(decided(luck + 2.0, rule)[0] == ABOVE) > 0.9


def test_five_bootstrapped_pairs_would_be_wrong_oftener() -> None:
    """Why verdicts go by t: of five equal pairs the percentile bootstrap excludes zero three times as often as it says."""
    luck = np.random.default_rng(8).standard_normal((400, 5))
    wrong = np.mean([not low <= 0.0 <= high for low, high in (bootstrapped(row, np.zeros(5), pairs=True) for row in luck)])

    assert 0.10 < wrong < 0.25


def test_one_point_is_decided_with_half_the_runs_that_unpaired_seeds_need() -> None:
    """Shared luck of two points, own of one half, one point between the two: pairs need at most half the runs, counted and foretold."""
    luck, rows = np.random.default_rng(9), 300
    shared = 2.0 * luck.standard_normal((rows, 400))
    ours, theirs = (shared[:, :40] + 0.5 * luck.standard_normal((rows, 40)) for _ in range(2))
    says, took = decided(ours + 1.0 - theirs, SEQUENCE)
    alone = 2.0 * luck.standard_normal((rows, 400)) + 0.5 * luck.standard_normal((rows, 400)) + 1.0
    other = shared + 0.5 * luck.standard_normal((rows, 400))

    def needs(a: np.ndarray, b: np.ndarray) -> int:
        """Return how many runs of each the same kind of rule takes unpaired, at looks that go on as far as 400."""
        looks = (5, 10, 20, 40, 80, 160, 320)
        for n, level in zip(looks, levels(looks), strict=True):
            if unpaired(a[:n], b[:n], level).low > 0:
                return n
        return 400

    apart = np.array([needs(a, b) for a, b in zip(alone, other, strict=True)])
    foretold = [unpaired_runs(a[:n] + 1.0, b[:n], 0.05) for a, b, n in zip(ours, theirs, took, strict=True)]

    assert np.mean(says == ABOVE) > 0.99
    assert took.mean() <= 0.5 * apart.mean() and np.median(took) <= 0.5 * np.median(apart)
    assert np.median(foretold) >= 2 * np.median(took)
    assert np.mean([unpaired_runs(a, b, 0.05) for a, b in zip(alone[:, :20], other[:, :20], strict=True)]) < 30  # No luck shared, no gain.
