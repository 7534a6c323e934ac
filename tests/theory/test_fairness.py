"""Fairness: hand numbers, other formulas of the same, and what a run's figures must follow from."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import fedsim
from fedsim.score import fairness
from fedsim.score.online import gini

RECORDED = Path(__file__).parents[1] / "recorded"


def test_jain_by_hand_and_by_its_other_formula() -> None:
    """k of n with equal shares have k / n (Jain 1984); always 1 / (1 + CV^2), whatever the unit, and between 1 / n and 1."""
    draws = np.random.default_rng(3).gamma(0.7, size=(20, 11))
    for values in draws:
        cv = values.std() / values.mean()

        assert math.isclose(1 / (1 + cv**2), fairness.jain(values), rel_tol=1e-12)
        assert math.isclose(fairness.jain(values), fairness.jain(values * 1e200), rel_tol=1e-12)
        assert 1 / 11 <= fairness.jain(values) <= 1
    assert [k / 7 for k in range(1, 8)] == pytest.approx([fairness.jain(np.r_[np.full(k, 3), np.zeros(7 - k)]) for k in range(1, 8)])
    assert math.isnan(fairness.jain(np.zeros(4))) and math.isnan(fairness.jain(np.array([1.0, -1.0])))


def test_gini_is_half_the_mean_difference() -> None:
    """The Gini coefficient is the mean of |x - y| over all pairs, over twice the mean."""
    values = np.random.default_rng(5).integers(0, 9, 13)
    pairs = np.mean([abs(int(x) - int(y)) for x, y in itertools.product(values, values)])

    assert math.isclose(pairs / (2 * values.mean()), gini(values), rel_tol=1e-12)


def test_spread_by_hand() -> None:
    """Of twelve clients the worst tenth are two: the lowest accuracies, the highest losses; the variance is that of all there are."""
    values = np.array([5.0, 1, 7, 11, 3, 12, 2, 9, 4, 10, 6, 8])
    up, down = fairness.spread(values, upwards=True), fairness.spread(values, upwards=False)

    assert (1.5, 11.5) == (up.worst_tenth, up.best_tenth) and (11.5, 1.5) == (down.worst_tenth, down.best_tenth)
    assert (12, 6.5) == (up.clients, up.mean) and math.isclose(143 / 12, up.variance)
    assert math.isclose(78**2 / (12 * 650), up.jain) and math.isclose(143 / 12 / 39, up.gini)


def test_spearman_is_pearson_of_ranks() -> None:
    """With ties: 1 - 6 sum d^2 / (n^3 - n) does not hold then, Pearson's correlation of mean ranks does. Unknown ones do not count."""
    ours, theirs = np.array([1.0, 2, 2, 4, 9, 9]), np.array([2.0, 1, 5, 5, 8, math.nan])
    ranks = np.array([1, 2.5, 2.5, 4, 5]), np.array([2, 1, 3.5, 3.5, 5])
    found = fairness.correlation(ours, theirs)

    scipys = spearmanr(ours[:5], theirs[:5])

    assert 5 == found.clients and math.isclose(np.corrcoef(*ranks)[0, 1], found.rho, rel_tol=1e-12)
    assert math.isclose(scipys.statistic, found.rho, rel_tol=1e-12) and math.isclose(scipys.pvalue, found.p, rel_tol=1e-9)
    assert (1.0, 0.0) == (fairness.correlation(ours[2:], ours[2:]).rho, fairness.correlation(ours[2:], ours[2:]).p)
    assert math.isnan(fairness.correlation(np.ones(5), np.arange(5)).rho) and math.isnan(fairness.correlation(ours[:2], theirs[:2]).rho)


def test_those_never_heard_count() -> None:
    """Participation is over every client there is: two of eight that share all replies have Jain 1/4, Gini 3/4, and 3/4 are never heard."""
    found = fairness.participation(np.r_[5, 5, np.zeros(6, dtype=int)], np.arange(8.0)[::-1].copy(), np.full(8, math.nan))

    assert (8, 0.75, 0.25, 0.75) == (found.clients, found.never, found.jain, found.gini)
    assert found.with_speed.rho > 0.7 and (0, True) == (found.with_volume.clients, math.isnan(found.with_volume.rho))


def test_slow_devices_are_left_out_by_a_deadline() -> None:
    """In a run whose deadline only fast devices meet, participation goes by speed; its counts are those of the tasks."""
    table = {
        "name": "deadline", "seed": 3, "data": {"source": {"kind": "digits"}, "partition": {"kind": "iid"}, "test_fraction": 0.9},
        "clients": {"count": 10, "compute": {"kind": "lognormal", "gflops": 0.0001, "sigma": 1.0, "overhead_s": 1.0}},
        "model": {"kind": "logreg"}, "training": {"epochs": 1, "batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        "server": {"strategy": {"kind": "FedAvg"}, "rounds": 4, "round_timeout_s": 1.5},
    }  # fmt: skip
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = fedsim.run(table, out=Path(folder) / "run")
        found, tasks = run.fairness(), run.tasks
    heard = tasks[tasks.outcome == "arrived"].groupby("client").size()

    assert 0 < found.participation.never == 1 - len(heard) / 10
    assert found.participation.with_speed.rho > 0.8 and found.participation.with_speed.p < 0.01
    assert math.isclose(heard.sum() ** 2 / (10 * (heard**2).sum()), found.participation.jain)
    assert "train_loss" == found.measure


def test_on_streams_the_scores_are_the_prequential_ones() -> None:
    """Without a federated evaluation clients are held by what they predicted: mean and worst tenth are those of ``prequential``."""
    run = fedsim.load(RECORDED / "split-digits")
    found, table = run.fairness(), run.prequential().set_index("scope").accuracy

    assert "prequential accuracy" == found.measure and found.scores is not None
    assert (table["mean"], table["worst tenth"]) == pytest.approx((found.scores.mean, found.scores.worst_tenth), rel=1e-12)
