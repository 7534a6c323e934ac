"""Freshness: how old the newest example is that a serving model has learned from, and how soon an example counts.

Pure functions of arrays on virtual time. A *version* is a global model, numbered from 0 (the start, which holds nothing);
version v is made from version v - 1 and the training results merged into it, so it holds all that v - 1 held. How much
weight an example still has is not asked: only whether it ever had any.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds


def newest_in_versions(merged: IntArray, newest_s: FloatArray, versions: int) -> FloatArray:
    """Return the arrival time of the newest example in each global version; NaN while it holds none.

    Shapes: merged (tasks,), the version that a task's result was first merged into, -1 for never (late, lost, cut off);
    newest_s (tasks,), when the newest example the task trained on arrived, NaN for none; -> (versions,).

    >>> newest_in_versions(np.array([1, 1, -1, 3]), np.array([5.0, 4.0, 9.0, 7.0]), 4).tolist()
    [nan, 5.0, 5.0, 7.0]
    """
    newest = np.full(versions, -np.inf)
    counts = (merged >= 0) & ~np.isnan(newest_s)
    np.maximum.at(newest, merged[counts], newest_s[counts])
    newest = np.maximum.accumulate(newest)
    return np.where(np.isfinite(newest), newest, np.nan)


def age_of_newest(at_s: FloatArray, served_s: FloatArray, newest_s: FloatArray) -> FloatArray:
    """Return the age, at each time *at_s*, of the newest example in the model that then serves a client.

    Model j serves from served_s[j] (in order) until the next one does, and its newest example arrived at newest_s[j], NaN
    for none. For a client that serves what the server sent: when it received each version, and
    ``newest_in_versions(...)`` of these. For one that serves what it trained itself, the newer of that and its own.
    NaN before the first model, and while the model holds nothing. Shapes: at_s (n,), served_s and newest_s (m,) -> (n,).

    >>> age_of_newest(np.array([1.0, 4.0, 6.0]), np.array([2.0, 5.0]), np.array([1.5, 4.5])).tolist()
    [nan, 2.5, 1.5]
    """
    serving = np.searchsorted(served_s, at_s, side="right")
    return at_s - np.append(np.nan, newest_s)[serving]


def mean_age_s(served_s: FloatArray, newest_s: FloatArray, from_s: Seconds, to_s: Seconds) -> Seconds:
    """Return the time average of ``age_of_newest`` over [from_s, to_s], without the time before any example served.

    The age grows with time and falls when a model is replaced, so the average is exact, not sampled (the "age of
    information": Kaul, Yates & Gruteser 2012). NaN when no example served in that time.

    >>> mean_age_s(np.array([0.0, 4.0]), np.array([0.0, 4.0]), 0.0, 8.0)
    2.0
    """
    cuts = np.concatenate([[from_s], served_s[(served_s > from_s) & (served_s < to_s)], [to_s]])
    begins, ends = cuts[:-1], cuts[1:]
    ages = age_of_newest(begins, served_s, newest_s) + (ends - begins) / 2
    known = ~np.isnan(ages)
    lasted = (ends - begins)[known]
    return float((ages[known] * lasted).sum() / lasted.sum()) if lasted.sum() > 0 else float("nan")


def time_to_influence(item: IntArray, arrived_s: FloatArray, task: IntArray, merged_s: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return, for each example, the time from its arrival at a client to the first global version that learned from it.

    One row per example and task that trained on it: item (n,) names the example, arrived_s (n,) when it arrived, task (n,)
    which task; merged_s (tasks,) is when the version was made that the task was first merged into, NaN for never. An example
    that is replayed counts once, for the first. Returns the items, sorted, and their seconds, NaN if never. Examples that
    no task trained on are not here: count them apart.

    >>> item, arrived_s, task = np.array([7, 7, 8]), np.array([1.0, 1.0, 2.0]), np.array([0, 1, 2])
    >>> items, seconds = time_to_influence(item, arrived_s, task, np.array([9.0, 4.0, np.nan]))
    >>> items.tolist(), seconds.tolist()
    ([7, 8], [3.0, nan])
    """
    items, place = np.unique(item, return_inverse=True)
    first = np.full(len(items), np.inf)
    lasted = merged_s[task] - arrived_s
    np.fmin.at(first, place, lasted)
    return items, np.where(np.isfinite(first), first, np.nan)
