"""The learning rate of each local step: a schedule on a clock that is named, a warm-up in front of it, the size of a batch.

Knows what the clocks are called; what they show, whoever plans a task says. Knows no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fedsim.core.types import FloatArray, IntArray, Seconds
from fedsim.learn.schedules import Schedule

Clock = Literal["local_step", "round", "version", "virtual_s"]
"""What a schedule's time is. local_step: the client's own steps so far, those of its task before the step included. round: the
server's, 0 in the first. version: how often the server had aggregated. virtual_s: when the task began."""
CLOCKS: tuple[Clock, ...] = get_args(Clock)
Rule = Literal["linear", "sqrt"]


@dataclass(frozen=True, slots=True)
class When:
    """What the clocks show where a task begins: the client's local *steps* so far, the *round*, from 1, the *version*, and *now_s*."""

    steps: int = 0
    round: int = 1
    version: int = 0
    now_s: Seconds = 0.0

    def shows(self, clock: Clock) -> float:
        """Return what *clock* shows; rounds count from 0 there."""
        return {"local_step": self.steps, "round": max(0, self.round - 1), "version": self.version, "virtual_s": self.now_s}[clock]


@dataclass(frozen=True, slots=True)
class Scaling:
    """The rate grows with a batch: as its size / *base*, or as the root of that (Goyal et al. 2017; Krizhevsky 2014)."""

    rule: Rule
    base: int

    def factor(self, sizes: IntArray) -> FloatArray:
        """Return the factor of each batch. Shapes: (steps,) -> (steps,).

        >>> Scaling("linear", 32).factor(np.array([64, 16])).tolist(), Scaling("sqrt", 32).factor(np.array([128])).tolist()
        ([2.0, 0.5], [2.0])
        """
        ratio = sizes / self.base
        return ratio if self.rule == "linear" else np.sqrt(ratio)


@dataclass(frozen=True, slots=True)
class Pace:
    """What a job's learning rate is multiplied by, step by step.

    Before the *schedule* begins its first factor is reached in a straight line of length *warmup* from *warmup_from* times it
    (``LinearLR``, then the schedule from 0, as ``SequentialLR`` has it). Both go by *clock*; with *restart* local steps count from 0
    in each task. Rates by local steps differ within a task, and so do those of ragged batches under *scaling*; clients whose rates
    differ train in one chunk all the same.
    """

    schedule: Schedule | None = None
    clock: Clock = "round"
    warmup: float = 0.0
    warmup_from: float = 1.0
    restart: bool = False
    scaling: Scaling | None = None

    def needs(self, clock: Clock) -> bool:
        """Return whether it goes by *clock*."""
        return self.schedule is not None and self.clock == clock

    def rates(self, lr: float, sizes: IntArray, when: When) -> FloatArray:
        """Return the rate of each step of a task, whose batches have *sizes*, and whose job's rate is *lr*. Shapes: -> (steps,)."""
        rates = np.full(len(sizes), lr)
        if self.schedule is not None:
            rates = rates * self._factors(self.schedule, len(sizes), when)
        return rates if self.scaling is None else rates * self.scaling.factor(sizes)

    def _factors(self, schedule: Schedule, steps: int, when: When) -> FloatArray:
        if self.clock == "local_step":
            return self._warmed(schedule, (0 if self.restart else when.steps) + np.arange(steps, dtype=np.float64))
        return np.repeat(self._warmed(schedule, np.array([when.shows(self.clock)], dtype=np.float64)), steps)

    def _warmed(self, schedule: Schedule, times: FloatArray) -> FloatArray:
        if not self.warmup:
            return schedule.factor(times)
        factors = schedule.factor(np.maximum(0.0, times - self.warmup))
        share = self.warmup_from + (1.0 - self.warmup_from) * np.minimum(1.0, times / self.warmup)
        return np.where(times < self.warmup, share * factors, factors)


def paced(lr: float, pace: Pace | None, sizes: IntArray, when: When, scale: float = 1.0) -> FloatArray | None:
    """Return the rates of a task's steps, *scale* times what *pace* makes of *lr*; None where that is *lr* throughout."""
    if pace is None:
        return None if scale == 1.0 else np.full(len(sizes), lr * scale)
    rates = pace.rates(lr, sizes, when)
    return rates if scale == 1.0 else rates * scale
