"""Continual-learning scores: what a model still knows, and how soon it knows anew. Reads accuracies; trains nothing.

The accuracy matrix *a* has shape (tasks, tasks): a[t, i] is the accuracy on task i after training on tasks 0 to t, NaN
where it was not measured. A task may be a set of classes, a concept of a drifting stream, a domain. Scores are means over
what was measured, and NaN where nothing was.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.types import BoolArray, FloatArray, Seconds

RECOVERED = 0.02
"""How near the level before the drift counts as back."""
RECOVERY_WINDOW, RECOVERY_EPS = 200, 0.05
"""The same for tested examples, of which a mean over so many is noisy: by 0.035 at most."""


def average_accuracy(a: FloatArray) -> float:
    """Return the mean accuracy over all tasks after the last one (Lopez-Paz & Ranzato 2017, arXiv:1706.08840).

    >>> average_accuracy(np.array([[0.8, 0.1], [0.6, 0.9]]))
    0.75
    """
    return _mean(_square(a)[-1])


def backward_transfer(a: FloatArray) -> float:
    """Return how much later tasks raised the accuracy on earlier ones: the mean of a[T, i] - a[i, i] over i < T.

    Negative is forgetting. Reference: Lopez-Paz & Ranzato 2017, equation 3.

    >>> round(backward_transfer(np.array([[0.8, 0.1], [0.6, 0.9]])), 6)
    -0.2
    """
    a = _square(a)
    return _mean((a[-1] - np.diag(a))[:-1])


def forgetting(a: FloatArray) -> float:
    """Return how far the accuracy on earlier tasks lies below the best it ever was: the mean of max_t a[t, i] - a[T, i].

    The maximum is over t < T, so a task that is known best at the end has negative forgetting. With the maximum on the
    diagonal this is minus backward transfer. Reference: Chaudhry et al. 2018, arXiv:1801.10112, equation 3.

    >>> round(forgetting(np.array([[0.8, 0.1], [0.6, 0.9]])), 6)
    0.2
    """
    a = _square(a)
    before = np.where(np.isnan(a[:-1, :-1]), -np.inf, a[:-1, :-1]).max(axis=0, initial=-np.inf)
    return _mean(np.where(np.isfinite(before), before, np.nan) - a[-1, :-1])


def forward_transfer(a: FloatArray, untrained: FloatArray) -> float:
    """Return what earlier tasks taught about those to come: the mean of a[i - 1, i] - untrained[i] over i > 0.

    *untrained* is the accuracy of the model at the start, or of chance. Shapes: a (tasks, tasks), untrained (tasks,).
    Reference: Lopez-Paz & Ranzato 2017, equation 4.

    >>> round(forward_transfer(np.array([[0.8, 0.3], [0.6, 0.9]]), np.array([0.1, 0.1])), 6)
    0.2
    """
    return _mean(np.diag(_square(a), k=1) - untrained[1:])


def any_time_accuracy(a: FloatArray, seen: BoolArray | None = None) -> float:
    """Return the mean over time of the mean accuracy on what had been seen by then (Caccia et al. 2020).

    *seen* says what counts in each row, for matrices with a row per evaluation; without it row t has seen tasks 0 to t.
    Shapes: a (times, tasks), seen the same.

    >>> round(any_time_accuracy(np.array([[0.8, 0.1], [0.6, 1.0]])), 6)
    0.8
    """
    if seen is None:
        seen = np.tri(len(_square(a)), dtype=np.bool_)
    return _mean(np.array([_mean(row[known]) for row, known in zip(a, seen, strict=True)]))


def recovery_s(
    times_s: FloatArray, accuracy: FloatArray, drift_s: Seconds, *,
    eps: float = RECOVERED, window: int = 1, until_s: Seconds = np.inf,
) -> Seconds:  # fmt: skip
    """Return the time from a drift until the accuracy is back within *eps* of its level before; NaN if it never is.

    *times_s* (n,), in order, and *accuracy* (n,) are evaluations, or tested examples as 0 and 1. The level before is the
    mean of the last *window* values before *drift_s*; from then on the means of *window* values that all came after the
    drift are compared with it, at the time of their last. Choose a window whose noise is small beside *eps*. A drift
    that does no harm is recovered from with the first window. What comes at or after *until_s* (the next drift) is not
    looked at.

    >>> recovery_s(np.arange(6.0), np.array([0.9, 0.9, 0.4, 0.6, 0.89, 0.95]), 2.0)
    2.0
    """
    before = accuracy[times_s < drift_s][-window:]
    after = (times_s >= drift_s) & (times_s < until_s)
    if len(before) < window or after.sum() < window:
        return float("nan")
    means = np.lib.stride_tricks.sliding_window_view(accuracy[after], window).mean(axis=1)
    back = np.flatnonzero(means >= before.mean() - eps)
    return float(times_s[after][back[0] + window - 1] - drift_s) if len(back) else float("nan")


def _square(a: FloatArray) -> FloatArray:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not len(a):
        raise ValueError(f"an accuracy matrix has a row and a column per task, not shape {a.shape}")
    return a


def _mean(values: FloatArray) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else float("nan")
