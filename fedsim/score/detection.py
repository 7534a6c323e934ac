"""Drift detection scored against the truth: how late each drift was noticed, and how often an alarm was about nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.core.types import FloatArray, Seconds


@dataclass(frozen=True, slots=True)
class Detections:
    """How one client's alarms met its true drifts. Every alarm is the first after a drift, or false.

    Shapes: delays_s (drifts,), in order of time, NaN for a drift that was missed.
    """

    delays_s: FloatArray
    false_alarms: int


def detection_scores(alarms_s: FloatArray, drifts_s: FloatArray, horizon_s: Seconds = np.inf) -> Detections:
    """Return the delays and false alarms of one client's detector.

    A drift is noticed by the first alarm at or after it, before the next drift, and no more than *horizon_s* later. All
    other alarms are false, the second one after a drift too. Shapes: alarms_s (m,), drifts_s (n,), in any order.

    >>> detection_scores(np.array([5.0, 12.0, 14.0]), np.array([10.0, 20.0]))
    Detections(delays_s=array([ 2., nan]), false_alarms=2)
    """
    alarms, drifts = np.sort(alarms_s), np.sort(drifts_s)
    first = np.searchsorted(alarms, drifts, side="left")
    noticed = np.append(alarms, np.inf)[first]
    delays = noticed - drifts
    in_time = (noticed < np.append(drifts[1:], np.inf)) & (delays <= horizon_s)
    return Detections(np.where(in_time, delays, np.nan), int(len(alarms) - in_time.sum()))
