"""What a sweep came to: variants with their runs' figures, means over seeds, the best, the Pareto front. Values; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import BoolArray, FloatArray
from fedsim.score.run import Run
from fedsim.score.spending import ALPHA, paired
from fedsim.score.taken import TO_TARGET, Figure, Taken, better_upwards, taken
from fedsim.score.target import Target
from fedsim.sweeping.points import Point

SENT = ("bytes_down", "bytes_up")
"""What was sent, by direction: beside ``bytes``, which is both."""
DONE, PRUNED, FAILED, REFUSED, UNFINISHED = "done", "pruned", "failed", "refused", "unfinished"


def figures(run: Run, target: Target | None) -> dict[str, Figure]:
    """Return the figures of *run*: those of ``taken``, and what was sent by direction."""
    return taken(run, target) | {name: Figure(float(run.manifest[name])) for name in SENT}


def upwards(measure: str) -> bool:
    """Return whether more of *measure* is better."""
    return better_upwards(measure) and measure not in SENT


def named(word: str, known: Sequence[str], at: str) -> str:
    """Return the measure that *word*, said at *at*, means: its own name, or a score's, which is that of its end. Raises ScenarioError.

    >>> named("accuracy", ["best accuracy", "final accuracy", "bytes"], "measure"), named("bytes", ["bytes"], "measure")
    ('final accuracy', 'bytes')
    """
    if word in known:
        return word
    if f"final {word}" in known:
        return f"final {word}"
    if word in TO_TARGET:
        raise ScenarioError(f"{at} = {word!r}: to which target? target = 'accuracy=0.9' says it, in the sweep's file or with --target.")
    scores = [name.removeprefix("final ") for name in known if name.startswith("final ")]
    raise ScenarioError(f"{at} = {word!r}: is no measure of these runs. {choices(word, [*known, *scores])}")


@dataclass(frozen=True, slots=True)
class Goal:
    """A measure that the sweep goes by, and whether it is to be maximised."""

    measure: str
    up: bool

    @property
    def direction(self) -> str:
        """Return optuna's word for the way."""
        return "maximize" if self.up else "minimize"


@dataclass(frozen=True, slots=True)
class Mean:
    """A measure's mean over *n* seeds with Student's interval of 95 %, infinite for one; *reached* of them got to their target."""

    mean: float
    low: float
    high: float
    n: int
    reached: int

    @classmethod
    def of(cls, given: Sequence[Figure]) -> Mean:
        """Return the mean of *given*, one per seed."""
        found = paired(np.array([figure.value for figure in given]), ALPHA)
        return cls(found.mean, found.low, found.high, len(given), sum(figure.reached for figure in given))

    @property
    def half(self) -> float:
        """Return half the interval's width."""
        return (self.high - self.low) / 2.0


@dataclass
class Variant:
    """A variant while the sweep goes, and after it: *taken* and *runs* by seed, what broke by seed with its reason; *refused* says why."""

    point: Point
    seeds: tuple[int, ...]
    runs: dict[int, Run] = field(default_factory=dict[int, Run])
    taken: dict[int, Taken] = field(default_factory=dict[int, Taken])
    broken: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    refused: str = ""
    pruned: str = ""
    seen: Mapping[int, float] = field(default_factory=dict[int, float])
    twin: int | None = None
    """The number of an earlier variant that is the same scenario, and whose runs these are."""

    @property
    def status(self) -> str:
        """Return done where every seed is, and otherwise what keeps it from that."""
        if self.refused:
            return REFUSED
        if self.pruned:
            return PRUNED
        if self.broken:
            return REFUSED if all(status == REFUSED for status, _ in self.broken.values()) else FAILED
        return DONE if len(self.taken) == len(self.seeds) else UNFINISHED

    @property
    def why(self) -> str:
        """Return why it is not done, in one line; empty where it is, or was not come to."""
        if self.refused or self.pruned:
            return self.refused or self.pruned
        lines = list(dict.fromkeys(error for _, error in self.broken.values()))
        if lines and self.status == REFUSED:
            return lines[0]
        return f"{len(self.broken)} of {len(self.seeds)} seeds broke: {lines[0]}" if lines else ""

    def mean(self, measure: str) -> Mean | None:
        """Return the mean of *measure* over the seeds that have it; None where none has."""
        given = [self.taken[seed][measure] for seed in self.seeds if measure in self.taken.get(seed, {})]
        return Mean.of(given) if given else None

    def value(self, measure: str) -> float:
        """Return the mean of *measure* to be ranked by: no number unless every seed is done, and none where one never got to the target."""
        mean = self.mean(measure) if self.status == DONE else None
        return math.nan if mean is None or mean.n < len(self.seeds) or mean.reached < mean.n else mean.mean


@dataclass(frozen=True)
class Sweep:
    """All that a sweep found. *asked* is its file as a plain table; *scenario* the scenario that is varied; *measures* what runs have."""

    name: str
    asked: Mapping[str, Any]
    scenario: Mapping[str, Any]
    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    goals: tuple[Goal, ...]
    pareto: tuple[str, ...]
    target: Target | None
    variants: Sequence[Variant]
    folder: Path
    total: int
    read: int = 0
    late: str = ""
    """Why not all of it is done; empty where all is."""
    notes: Sequence[str] = ()

    @property
    def measures(self) -> list[str]:
        """Return every measure that some run has, those it goes by first."""
        first = [*(goal.measure for goal in self.goals), *self.pareto]
        return list(dict.fromkeys([*first, *(name for each in self.variants for one in each.taken.values() for name in one)]))

    @cached_property
    def ranked(self) -> list[Variant]:
        """Return the variants that are done, the best by the first measure first; those without a value of it last."""
        goal = self.goals[0] if self.goals else Goal("", True)
        done = [each for each in self.variants if each.status == DONE]
        sign = -1.0 if goal.up else 1.0

        def place(each: Variant) -> tuple[bool, float]:
            value = each.value(goal.measure)
            return math.isnan(value), 0.0 if math.isnan(value) else sign * value

        return sorted(done, key=place)

    @cached_property
    def front(self) -> list[Variant]:
        """Return the variants that no other beats in all measures of the Pareto front at once; none where it was not asked for."""
        if not self.pareto:
            return []
        having = [each for each in self.variants if all(not math.isnan(each.value(name)) for name in self.pareto)]
        values = np.array([[each.value(name) * (1.0 if upwards(name) else -1.0) for name in self.pareto] for each in having])
        return [each for each, on in zip(having, front(values.reshape(len(having), -1)), strict=True) if on]

    @property
    def done(self) -> int:
        """Return how many runs are over, whichever way; twins count with their own."""
        return sum(len(each.taken) + len(each.broken) + bool(each.pruned) for each in self.variants if each.twin is None)


def front(values: FloatArray) -> BoolArray:
    """Return which rows no other row dominates: is at least as good everywhere, and better somewhere. More is better.

    Equal rows stand or fall together. Shapes: (n, measures) -> (n,).

    >>> front(np.array([[1.0, 1.0], [2.0, 0.0], [0.5, 0.5], [1.0, 1.0]])).tolist()
    [True, True, False, True]
    """
    kept = np.ones(len(values), dtype=bool)
    for i, row in enumerate(values):
        kept[i] = not np.any(np.all(values >= row, axis=1) & np.any(values > row, axis=1))
    return kept
