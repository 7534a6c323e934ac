"""Continual-learning scores on matrices worked out by hand, the laws between them, and wrong versions that these reject."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.core.keys import Key
from fedsim.core.types import FloatArray
from fedsim.score.continual import (
    any_time_accuracy,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    recovery_s,
)  # fmt: skip

A = np.array(
    [
        [0.9, 0.2, 0.1],
        [0.5, 0.8, 0.4],
        [0.6, 0.9, 0.7],
    ]
)
"""Task 0 is half forgotten and partly found again; task 1 goes on improving without being trained on."""
BORN = np.array([0.1, 0.1, 0.2])


def random_matrices(best_on_diagonal: bool) -> list[FloatArray]:
    matrices = [Key(seed).numpy().random((6, 6)) for seed in range(20)]
    for a in matrices:
        if best_on_diagonal:
            np.fill_diagonal(a, a.max(axis=0))
    return matrices


def test_by_hand() -> None:
    """Each score of the matrix above, worked out on paper."""
    assert (0.6 + 0.9 + 0.7) / 3 == pytest.approx(average_accuracy(A))
    assert ((0.6 - 0.9) + (0.9 - 0.8)) / 2 == pytest.approx(backward_transfer(A))
    assert ((0.9 - 0.6) + (0.8 - 0.9)) / 2 == pytest.approx(forgetting(A))
    assert ((0.2 - 0.1) + (0.4 - 0.2)) / 2 == pytest.approx(forward_transfer(A, BORN))
    assert (0.9 + (0.5 + 0.8) / 2 + (0.6 + 0.9 + 0.7) / 3) / 3 == pytest.approx(any_time_accuracy(A))


def test_forgetting_counts_from_the_best_there_ever_was() -> None:
    """A task known best between its own training and the end is forgotten from there: 0.9 - 0.3, not 0.5 - 0.3."""
    a = np.array([[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [0.3, 0.6, 0.8]])

    assert (0.6 + 0.0) / 2 == pytest.approx(forgetting(a))
    assert (-0.2 + 0.0) / 2 == pytest.approx(backward_transfer(a))


def counts_the_end(a: FloatArray) -> float:
    """A wrong forgetting: the maximum is over all of time, the end included, so it is never negative."""
    return float((a.max(axis=0) - a[-1])[:-1].mean())


def counts_the_last_task(a: FloatArray) -> float:
    """A wrong forgetting: the last task, which had no time to be forgotten, counts too."""
    return float((np.diag(a) - a[-1]).mean())


def law_holds(score: object) -> bool:
    """Forgetting is minus backward transfer where every task is known best right after its training."""
    assert callable(score)
    return all(score(a) == pytest.approx(-backward_transfer(a)) for a in random_matrices(best_on_diagonal=True))


def test_forgetting_is_minus_backward_transfer_with_the_best_on_the_diagonal() -> None:
    """The law of Chaudhry's and Lopez-Paz' scores holds there, and forgetting is the larger of the two elsewhere."""
    assert law_holds(forgetting)
    assert not law_holds(counts_the_last_task)
    assert all(forgetting(a) >= -backward_transfer(a) - 1e-12 for a in random_matrices(best_on_diagonal=False))
    assert forgetting(A[:2, :2] + np.array([[0.0, 0.0], [0.5, 0.0]])) < 0 == counts_the_end(A[:2, :2] + np.array([[0, 0], [0.5, 0]]))


def test_what_was_not_measured_does_not_count() -> None:
    """NaN leaves the means over the rest; scores of which nothing was measured are NaN, as for a single task."""
    a = A.copy()
    a[2, 1] = np.nan

    assert (0.6 + 0.7) / 2 == pytest.approx(average_accuracy(a))
    assert 0.6 - 0.9 == pytest.approx(backward_transfer(a)) == -forgetting(a)
    assert all(np.isnan(score(np.array([[0.5]]))) for score in (backward_transfer, forgetting))
    assert np.isnan(average_accuracy(np.full((2, 2), np.nan)))


def test_any_time_accuracy_takes_more_evaluations_than_tasks() -> None:
    """With a row per evaluation, *seen* says what counts: only what had been seen then."""
    a = np.array([[0.5, 0.0], [0.7, 0.0], [0.7, 0.9]])
    seen = np.array([[True, False], [True, False], [True, True]])

    assert (0.5 + 0.7 + 0.8) / 3 == pytest.approx(any_time_accuracy(a, seen))
    with pytest.raises(ValueError, match="row and a column per task"):
        any_time_accuracy(a)


def test_recovery_by_hand() -> None:
    """Accuracy 0.9, a drift at 100 s, then 0.4 rising by 0.1 every 10 s: within 0.02 of 0.9 after 50 s."""
    times_s = np.arange(0.0, 200.0, 10.0)
    accuracy = np.where(times_s < 100, 0.9, np.minimum(0.9, 0.4 + 0.01 * (times_s - 100)))

    assert 50.0 == recovery_s(times_s, accuracy, 100.0)
    assert 40.0 == recovery_s(times_s, accuracy, 100.0, eps=0.1 + 1e-9)
    assert np.isnan(recovery_s(times_s, accuracy, 100.0, until_s=150.0))
    assert np.isnan(recovery_s(times_s, accuracy - 0.3 * (times_s >= 100), 100.0))
    assert np.isnan(recovery_s(times_s, accuracy, 0.0))  # Nothing to come back to.


def test_recovery_is_not_seen_in_what_came_before_the_drift() -> None:
    """With windows of ten, no window that reaches back before the drift counts: 0.9 before, 0.1 for ever after is NaN."""
    times_s = np.arange(200.0)

    assert np.isnan(recovery_s(times_s, np.where(times_s < 100, 0.9, 0.1), 100.0, window=10))
    assert 9.0 == recovery_s(times_s, np.full(200, 0.9), 100.0, window=10)
    assert 29.0 == recovery_s(times_s, np.where((times_s < 100) | (times_s >= 120), 0.9, 0.1), 100.0, window=10)
