"""Scores of noise: how many examples, and how many clients, are worth averaging. Functions of frames and numbers; reads no folder.

The ratio of two averages is a noise scale where each is one: averages go over rounds or tasks first, and are divided then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.types import FloatArray, Frame

DECAY = 0.9
"""What an average over rounds keeps of those before with each round: it looks back some ten rounds."""
LEVEL = 0.95
"""How often the interval of a noise scale holds the true one."""
SURE = 0.95
"""How sure it must be that there is signal."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A noise scale, tr(Sigma) / |G|^2, with an interval of 95 %, from *count* estimates of each; infinite where no signal was found.

    *suggested* is the critical size that it comes to: twice as many steps as with no noise at all, and twice as many examples as with
    steps of one (McCandlish et al. 2018, equation 2.11). Below it larger batches save as many steps; far above it they save none.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def suggested(self) -> int | None:
        """Return the scale as a whole number, 1 at least; None where it is infinite or unknown."""
        return max(1, round(self.value)) if math.isfinite(self.value) else None


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """The two noise scales of a run: *within* clients, in examples of a batch; *between* them, in clients of a cohort.

    Within: of gradients of single examples, at the start of tasks. Between: of clients' updates, which several local steps and unlike
    data make differ too, so that it says how many clients to ask, whatever the reason. NaN where there were no two estimates.
    """

    within: Scale
    between: Scale


def scale_of(signals: Sequence[float], traces: Sequence[float]) -> Scale:
    """Return the noise scale, mean trace over mean signal, with Fieller's interval at LEVEL.

    It holds all ratios that Student's t over the pairs does not rule out, and has no upper end where the signal may be none. Exact where
    estimates are normal; traces as skewed as exponentials leave 92 % at six pairs, where drawing pairs again (percentiles) leaves 85 %.
    Reference: Fieller 1954, J. R. Stat. Soc. B 16.
    """
    signal, trace = np.asarray(signals, dtype=np.float64), np.asarray(traces, dtype=np.float64)
    if not len(signal):
        return Scale(math.nan, math.nan, math.nan, 0)
    value = float(_ratio(trace.mean(), signal.mean()))
    if len(signal) == 1 or math.isnan(value):
        return Scale(value, math.nan, math.nan, len(signal))
    return Scale(value, *_fieller(signal, trace), len(signal))


def _fieller(signal: FloatArray, trace: FloatArray) -> tuple[float, float]:
    """Return the least and the largest r >= 0 for which mean(trace - r signal) may be 0; infinity stands for no signal.

    They solve a r^2 - 2 b r + c = 0, where a <= 0 says that there may be no signal, and c <= 0 that there may be no noise.
    """
    from scipy import stats  # A second to import, and no run needs it that watches nothing.

    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(signal) - 1)) ** 2 / len(signal)
    spread = np.cov(signal, trace)
    a = float(signal.mean() ** 2 - reach * spread[0, 0])
    b = float(signal.mean() * trace.mean() - reach * spread[0, 1])
    c = float(trace.mean() ** 2 - reach * spread[1, 1])
    if a > 0 and signal.mean() <= 0:  # Surely below 0, which no square is.
        return math.inf, math.inf
    sum_ = b + math.sqrt(max(0.0, b * b - a * c))
    low = 0.0 if c <= 0 else c / sum_ if sum_ > 0 else math.inf
    return low, sum_ / a if a > 0 else math.inf


def summary(between: Frame, examined: Frame, since: int = 1) -> NoiseScale:
    """Return both noise scales over the rounds from *since* on."""
    within, rounds = (frame[frame["round"] >= since] for frame in (examined, between))
    return NoiseScale(*(scale_of(each.signal.to_numpy(), each.trace.to_numpy()) for each in (within, rounds)))


def frame(between: Frame, examined: Frame) -> Frame:
    """Return a row per round: signal, trace, noise scale and signal-to-noise ratio, between clients and within them (``within_``).

    A scale is that of averages over rounds so far, each with DECAY times the weight of the next. ``snr`` is |G|^2 / (tr(Sigma) / n) of
    the round's own update, n being ``counted``; ``within_snr`` is of a mini-batch.
    """
    import pandas as pd

    tasks: Any = examined.groupby("round")
    inner = pd.DataFrame({
        "tasks": tasks.size(), "within_signal": tasks.signal.mean(), "within_trace": tasks.trace.mean(), "within_batch": tasks.batch.mean(),
    })  # fmt: skip
    latest = between.drop_duplicates("round", keep="last").set_index("round")
    found = latest.join(inner, how="outer").sort_index()
    found["tasks"] = found.tasks.fillna(0).astype(int)
    for prefix, size in (("", found.counted), ("within_", found.within_batch)):
        signal, trace = found[f"{prefix}signal"], found[f"{prefix}trace"]
        found[f"{prefix}snr"] = _ratio(signal.to_numpy(), trace.to_numpy() / size.to_numpy())
        found[f"{prefix}scale"] = _ratio(_smooth(trace.to_numpy()), _smooth(signal.to_numpy()))
    return found.rename(columns={"scale": "cohort", "within_scale": "batch"}).drop(columns=["within_batch"]).reset_index()


def lost(signals: Sequence[float], rounds: int) -> bool:
    """Return whether the last *rounds* estimates of |G|^2 leave it open that there is no signal: Student's t, one-sided, at SURE.

    >>> lost([1.0, 1.1, 0.9], 3), lost([1.0, -1.1, 0.3], 3), lost([0.1], 3)
    (False, True, False)
    """
    if len(signals) < rounds:
        return False
    latest = np.asarray(signals[-rounds:], dtype=np.float64)
    from scipy import stats

    reach = stats.t.ppf(SURE, rounds - 1) * latest.std(ddof=1) / math.sqrt(rounds)
    return bool(latest.mean() - reach <= 0)


def _ratio(trace: Any, signal: Any) -> Any:
    """Return trace / signal, infinite where the signal is not above 0; NaN stays."""
    trace, signal = (np.asarray(each, dtype=np.float64) for each in (trace, signal))
    with np.errstate(all="ignore"):
        return np.where(np.isnan(signal) | np.isnan(trace), np.nan, np.where(signal > 0, trace / signal, np.inf))


def _smooth(values: FloatArray) -> FloatArray:
    """Return the average over what came so far, later ones with more weight; a NaN is skipped."""
    found, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for i, value in enumerate(np.asarray(values, dtype=np.float64).tolist()):
        total, weight = total * DECAY, weight * DECAY
        if not math.isnan(value):
            total, weight = total + value, weight + 1.0
        found[i] = total / weight if weight else math.nan
    return found
