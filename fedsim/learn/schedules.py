"""Learning-rate schedules: by which factor a rate is multiplied at a time. Pure functions of time; which clock it is on, others say.

Each is that of ``torch.optim.lr_scheduler``, without its state. A factor is found in Python's own arithmetic, one time after the
other: numpy's takes another routine for many numbers than for one, and a bit would know how many steps a task has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from fedsim.core import answers
from fedsim.core.errors import ScenarioError
from fedsim.core.registry import Registry
from fedsim.core.types import Count, FloatArray, Positive, Range, Share

Left = Annotated[float, Range(gt=0, le=1, why="what is left of the rate: 1 keeps it")]
Part = Annotated[float, Range(gt=0, lt=1, why="a share of the whole")]


class Schedule(Protocol):
    """How a learning rate goes with time."""

    def factor(self, times: FloatArray) -> FloatArray:
        """Return the factor on the learning rate at each of *times*, all >= 0, in any order. Shapes: (n,) -> (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class Curve:
    """A schedule that is *at* of each time by itself."""

    at: Callable[[float], float]

    def factor(self, times: FloatArray) -> FloatArray:
        """Return the factor at each of *times*."""
        return np.array([self.at(time) for time in times.tolist()], dtype=np.float64)


def _factors(given: Any, times: FloatArray) -> FloatArray:
    return answers.numbers(given, len(times), least=0.0)


def _tried(made: Schedule, _given: object) -> None:
    made.factor(np.array([0.0, 1.0, 2.5]))


lr_schedules: Registry[Callable[..., Schedule]] = Registry(
    "lr_schedule", key="training.schedule", gives=answers.Gives("a Schedule", ("factor",), {"factor": _factors}, looked=_tried)
)


@lr_schedules.register("constant")
def constant() -> Curve:
    """The rate as it is: for a warm-up with nothing after it."""
    return Curve(partial(_smooth, 1.0, 1.0))


@lr_schedules.register("step")
def step(*, size: Positive, gamma: Left = 0.1) -> Curve:
    """The rate times *gamma* after every *size* (``StepLR``)."""
    return Curve(partial(_stairs, gamma, size))


@lr_schedules.register("multistep")
def multistep(*, milestones: Sequence[Positive], gamma: Left = 0.1) -> Curve:
    """The rate times *gamma* at each of *milestones* (``MultiStepLR``)."""
    if list(milestones) != sorted(milestones):
        given, sorted_ = (", ".join(f"{each:g}" for each in some) for some in (milestones, sorted(milestones)))
        raise ScenarioError(f"training.schedule.milestones = [{given}]: must ascend, like [{sorted_}].")
    return Curve(partial(_passed, gamma, tuple(milestones)))


@lr_schedules.register("exponential")
def exponential(*, rate: Left, per: Positive = 1.0, staircase: bool = False) -> Curve:
    """The rate times *rate* to the power of t / *per*, or with *staircase* of its whole part (``ExponentialLR``).

    >>> exponential(rate=0.96, per=10000, staircase=True).factor(np.array([9999.0, 10000.0, 25000.0])).tolist()
    [1.0, 0.96, 0.9216]
    """
    return Curve(partial(_stairs if staircase else _smooth, rate, per))


@lr_schedules.register("cosine")
def cosine(*, over: Positive, floor: Share = 0.0) -> Curve:
    """Half a cosine from the rate to *floor* times it, which then stays (``CosineAnnealingLR``, whose rate would rise again).

    Reference: Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return Curve(partial(_cosine, over, floor))


@lr_schedules.register("cosine_restarts")
def cosine_restarts(*, first: Positive, times: Count = 1, floor: Share = 0.0) -> Curve:
    """Cosines one after the other, each *times* as long as the one before (``CosineAnnealingWarmRestarts``).

    Reference: Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    return Curve(partial(_restarting, first, times, floor))


@lr_schedules.register("polynomial")
def polynomial(*, over: Positive, power: Positive = 1.0, floor: Share = 0.0) -> Curve:
    """From the rate to *floor* times it as (1 - t / *over*) to the *power*; that then stays (``PolynomialLR``)."""
    return Curve(partial(_polynomial, over, power, floor))


@lr_schedules.register("one_cycle")
def one_cycle(
    *, over: Positive, rise: Part = 0.3, start: Part = 0.04, end: Share = 4e-6, anneal: Literal["cosine", "linear"] = "cosine"
) -> Curve:
    """Up from *start* times the rate to the rate, and down to *end* times it, which then stays (``OneCycleLR``, of the rate alone).

    As there the peak is at *rise* times *over*, less 1, and the end at *over*, less 1. Reference: Smith & Topin 2018, arXiv:1708.07120.
    """
    if rise * over <= 1:
        raise ScenarioError(f"training.schedule.over = {over:g}: leaves no time to rise, {rise:g} of it less 1. It must be > {1 / rise:g}.")
    return Curve(partial(_cycle, over, rise, start, end, anneal))


def _smooth(rate: float, per: float, time: float) -> float:
    return rate ** (time / per)


def _stairs(gamma: float, size: float, time: float) -> float:
    return gamma ** (time // size)


def _passed(gamma: float, milestones: tuple[float, ...], time: float) -> float:
    return gamma ** sum(milestone <= time for milestone in milestones)


def _cosine(over: float, floor: float, time: float) -> float:
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * min(1.0, time / over))) / 2.0


def _restarting(first: float, times: int, floor: float, time: float) -> float:
    if times == 1:
        return _cosine(first, floor, math.fmod(time, first))
    while time >= first:
        time, first = time - first, first * times
    return _cosine(first, floor, time)


def _polynomial(over: float, power: float, floor: float, time: float) -> float:
    return floor + (1.0 - floor) * (1.0 - min(1.0, time / over)) ** power


def _cycle(over: float, rise: float, start: float, end: float, anneal: str, time: float) -> float:
    peak, last = rise * over - 1.0, over - 1.0
    low, high, done = (start, 1.0, time / peak) if time <= peak else (1.0, end, min(1.0, (time - peak) / (last - peak)))
    return low + (high - low) * (done if anneal == "linear" else (1.0 - math.cos(math.pi * done)) / 2.0)
