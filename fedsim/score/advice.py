"""Advice from a run that was watched: which batch size, how many clients and which learning rate to try next. Reads a run, runs nothing.

By the noise scales (McCandlish et al. 2018, arXiv:1812.06162): with batches of B steps to a target go as 1 + N / B and examples as
1 + B / N, N being the noise scale; the best rate for a step goes as 1 / (1 + N / B). Clients of a cohort are counted alike. A rule of
thumb each time, for what to try, and no forecast: what holds is what the next run shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.core.errors import RunError
from fedsim.core.types import Frame
from fedsim.score.noise import Scale, scale_of
from fedsim.score.run import Run

Sure = Literal["clear", "weak", "unknown"]
"""clear: the interval leaves no other advice. weak: it leaves some. unknown: nothing tells."""
NEAR = 2.0
"""By which factor a size may miss the noise scale and be left as it is: at half or twice it, steps change by a half at the most."""
FELL, ROSE = 0.8, 0.5
"""The share of tasks in which the loss fell from which on a rate may be raised, and up to which it is too high."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What to try for one setting: *now* → *next*, equal where it is to stay.

    *rests* is the number that it rests on, a noise scale or the share of tasks whose loss fell, *low* to *high* its interval of 95 %.
    """

    setting: str
    now: float
    next: float
    rests: float
    low: float
    high: float
    sure: Sure
    why: str


def advice(run: Run) -> list[Hint]:
    """Return a hint each for batch size, clients in a round, and learning rate, from the later half of a watched run's rounds.

    Raises RunError where the run was not watched.
    """
    steps: Frame = run.steps
    if not len(steps):
        raise RunError(
            f"{run.path}: was not watched, so that nothing can be advised. Give it a [monitor] (if only [monitor] with nothing in it), or"
            f" give 'advise' the scenario file, which runs it so."
        )
    since = int(steps["round"].to_numpy().max()) // 2 + 1
    late = steps[steps["round"] >= since]
    between, examined = run.noises
    batch = _batch(run, late, examined, since)
    return [batch, _cohort(run, between, since), _rate(late, batch)]


def _batch(run: Run, late: Frame, examined: Frame, since: int) -> Hint:
    """Return what to try for the batch size, bounded by what half of the clients hold."""
    now, held = float(late.batch.median()), float(run.tasks[run.tasks["kind"] == "train"].examples.median())
    scale = _scale(examined, since)
    early = _scale(examined[examined["round"] < since], 0)
    what = f"the noise within clients comes to {_size(scale)} examples in rounds from {since} on"
    if math.isfinite(early.value):
        what += f", and to {early.value:,.0f} before"
    return _hint("training.batch_size", now, scale, max(1.0, held), what, "steps", "examples")


def _cohort(run: Run, between: Frame, since: int) -> Hint:
    """Return what to try for the number of clients in a round, bounded by how many there are."""
    late = between[between["round"] >= since]
    if not len(late):
        tasks: Frame = run.tasks
        came = tasks[(tasks["kind"] == "train") & (tasks["outcome"] == "arrived") & (tasks["round"] >= since)]
        now = float(came.groupby("round").size().median()) if len(came) else 0.0
        why = f"in rounds from {since} on no two clients' updates of one model were handed over together, so that nothing lies between them"
        return Hint("clients in a round", now, now, math.nan, math.nan, math.nan, "unknown", why)
    now = float(late.clients.median())
    scale = _scale(between, since)
    most = float(run.manifest["scenario"]["clients"]["count"])
    what = f"the noise between clients' updates comes to {_size(scale)} clients in rounds from {since} on"
    return _hint("clients in a round", now, scale, most, what, "rounds", "clients' work")


def _hint(setting: str, now: float, scale: Scale, most: float, what: str, steps: str, work: str) -> Hint:
    if scale.count < 2 or math.isnan(scale.value):
        return Hint(setting, now, now, scale.value, scale.low, scale.high, "unknown", "too few estimates of noise were taken to say")
    if math.isinf(scale.value):
        return Hint(setting, now, min(NEAR * now, most), scale.value, scale.low, scale.high, "weak", f"{what}: no signal was found in it")
    near = now / NEAR <= scale.value <= now * NEAR
    suggested = now if near else min(most, max(1.0, _power(scale.value)))
    apart = scale.low > now * NEAR or scale.high < now / NEAR
    sure: Sure = "clear" if (apart if not near else now / NEAR**2 <= scale.low and scale.high <= now * NEAR**2) else "weak"
    if suggested == now:
        told = "which is about what it is" if near else "and it is as large or as small as it can be"
        return Hint(setting, now, now, scale.value, scale.low, scale.high, sure, f"{what}, {told}")
    fewer, more = (1 + scale.value / suggested) / (1 + scale.value / now), (1 + suggested / scale.value) / (1 + now / scale.value)
    gain = f"{what}: {steps} to a target would be {fewer:.2g} times as many, {work} {more:.2g} times"
    return Hint(setting, now, suggested, scale.value, scale.low, scale.high, sure, gain)


def _rate(late: Frame, batch: Hint) -> Hint:
    """Return what to try for the learning rate: by the loss within tasks, and along with another batch size."""
    rate, tasks = float(late.lr.median()), late.groupby("message")
    several = tasks.loss.size() > 1
    fell = (tasks.loss.last() < tasks.loss.first())[several]
    count, good = len(fell), int(fell.sum())
    if not count:
        return Hint("learning rate", rate, rate, math.nan, math.nan, math.nan, "unknown", "no task had two steps watched")
    rests, (low, high) = good / count, _share(good, count)
    said = f"the loss fell from the first to the last step watched in {good} of {count} tasks"
    if high < ROSE:
        return Hint("learning rate", rate, rate / 2, rests, low, high, "clear", f"{said}: steps are too long")
    if batch.next != batch.now and math.isfinite(batch.rests):
        factor = (1 + batch.rests / batch.now) / (1 + batch.rests / batch.next)
        why = f"it goes with the batch size as 1 / (1 + N / B); {said}"
        return Hint("learning rate", rate, rate * factor, rests, low, high, "weak", why)
    if low > FELL:
        return Hint("learning rate", rate, 2 * rate, rests, low, high, "weak", f"{said}: nothing speaks against a larger one")
    return Hint("learning rate", rate, rate, rests, low, high, "weak", said)


def _share(good: int, count: int) -> tuple[float, float]:
    """Return the interval of 95 % of a share (Clopper & Pearson 1934)."""
    from scipy import stats  # Half a second to import, and no run needs it that is not advised on.

    found: Any = stats.binomtest(good, count).proportion_ci(0.95)
    return float(found.low), float(found.high)


def _scale(frame: Frame, since: int) -> Scale:
    late = frame[frame["round"] >= since]
    signals: Sequence[float] = late.signal.to_numpy()
    return scale_of(signals, late.trace.to_numpy())


def _size(scale: Scale) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else "no end of"

    return f"{number(scale.value)} ({number(scale.low)} to {number(scale.high)})"


def _power(value: float) -> float:
    """Return the power of two next to *value*, by its logarithm."""
    return float(2 ** round(np.log2(max(value, 1.0))))
