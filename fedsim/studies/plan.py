"""What a study of batch sizes varies: its rows, its budgets, its grid of rates; each variant as overrides of the scenario. Runs nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fedsim.core.errors import ScenarioError
from fedsim.core.types import IntArray
from fedsim.learn.job import Job
from fedsim.scenario.load import Loaded, load
from fedsim.scenario.schema import Scenario, Training
from fedsim.score.target import Target

SIZES: tuple[int | str, ...] = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, "full", "dynamic")
QUICK_SIZES: tuple[int | str, ...] = (1, 16, "full")
QUICK_ROUNDS = 5
GRID = 5
"""Rates that each batch size is tried with; more where the best of them is the first or the last."""
SPACING = 2.0
"""The ratio of neighbours in the grid."""
FURTHER = 6
"""Rates that a grid grows by at most."""

Budget = Literal["epochs", "steps", "target"]


@dataclass(frozen=True, slots=True)
class Row:
    """A batch size of the table: what the table calls it, what runs take, and how many examples such a batch has on average.

    *batch* is what ``training.batch_size`` is set to: a size that no client fills is "full". *size* weighs clients by their examples.
    """

    label: str
    batch: int | str
    size: float

    @property
    def whole(self) -> bool:
        """Return whether a batch is all that a client has."""
        return self.batch == "full"

    @property
    def dynamic(self) -> bool:
        """Return whether it is a policy that chooses."""
        return self.batch == "dynamic"


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of a study."""

    batch: int | str
    rate: float
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """Return what its folder is called."""
        return f"b{self.batch}-lr{self.rate:g}-{self.budget}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study was asked, and what it needs to know of the scenario's world to lay out its runs."""

    loaded: Loaded
    job: Job
    sizes: IntArray
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    target: Target | None
    grid: int
    stretch: float
    policy: Mapping[str, Any] | None

    @property
    def scenario(self) -> Scenario:
        """Return the scenario as it was given."""
        return self.loaded.scenario

    @property
    def own(self) -> int | str:
        """Return the scenario's own batch size."""
        return self.scenario.training.batch_size

    @property
    def steps(self) -> int:
        """Return the local steps of a task in the budget of equal steps: the scenario's own, the mean over clients."""
        return max(1, round(float(np.mean([self.job.batches(int(n)) for n in self.sizes]))))

    @property
    def longest(self) -> int:
        """Return how many rounds a run may take to the target."""
        return max(1, math.ceil(self.scenario.server.rounds * self.stretch))

    def loaded_of(self, variant: Variant) -> Loaded:
        """Return the scenario of *variant*. Raises ScenarioError where the scenario refuses its settings."""
        dynamic = variant.batch == "dynamic"
        changes: dict[str, Any] = {
            "training.batch_size": self.own if dynamic else variant.batch, "training.optimizer.lr": variant.rate, "stop": None,
            "engine.workers": 1, "engine.executor": None,
        }  # fmt: skip
        if policies():
            changes["training.batch_policy"] = dict(self.policy or {}) if dynamic else None
        if variant.budget == "steps":
            changes["training.steps"] = self.steps
        elif self.scenario.training.epochs is None:
            changes["training.epochs"] = self.epochs
        if variant.budget == "target" and self.target is not None:
            changes |= {"stop": self.target.stop, "server.rounds": self.longest}
        return replace(load(self.scenario.plain(), changes, variant.seed), folder=self.loaded.folder)

    @property
    def epochs(self) -> int | float:
        """Return the epochs of a task in the budget of equal epochs: the scenario's own, or as many as its own steps amount to."""
        own = self.scenario.training.epochs
        if own is not None:
            return int(own) if own == int(own) else own
        same = float(f"{float(np.mean([self.job.seen(int(n)) for n in self.sizes]) / np.mean(self.sizes)):.3g}")
        return int(same) if same == int(same) else same

    def job_of(self, variant: Variant) -> Job:
        """Return what a task of *variant* is, as far as its steps and examples go."""
        batch = self.job.batch_size if variant.batch == "dynamic" else 0 if variant.batch == "full" else int(variant.batch)
        if variant.budget == "steps":
            return replace(self.job, batch_size=batch, epochs=0, steps=self.steps)
        return replace(self.job, batch_size=batch, epochs=self.epochs, steps=0)

    def guess(self, row: Row) -> float:
        """Return the rate that the linear rule gives *row*, from the scenario's own; where the scenario scales by itself, its own."""
        if row.dynamic or self.scenario.training.scale_with_batch is not None:
            return self.job.lr
        return rounded(self.job.lr * row.size / mean_size(self.own, self.sizes, self.job.accumulate))

    def rates(self, row: Row) -> tuple[float, ...]:
        """Return the rates that *row* is tried with first, ascending: a log grid around the guess; in short, the guess and its own."""
        middle = self.guess(row)
        if self.grid < GRID:
            return tuple(sorted({middle, rounded(self.job.lr)}))
        return tuple(rounded(middle * SPACING ** (i - self.grid // 2)) for i in range(self.grid))


def policies() -> bool:
    """Return whether a scenario can name a policy that chooses batch sizes."""
    return "batch_policy" in Training.model_fields


def rounded(rate: float) -> float:
    """Return *rate* to three digits, as a person writes it.

    >>> rounded(0.1 * 2**0.5)
    0.141
    """
    return float(f"{rate:.3g}")


def mean_size(batch: int | str, sizes: IntArray, accumulate: int = 1) -> float:
    """Return how many examples an update has, on average over examples; no client fills a batch that it has no examples for."""
    most = np.inf if isinstance(batch, str) else batch * accumulate
    return float(np.average(np.minimum(sizes, most), weights=sizes))


def rows_of(asked: Sequence[int | str], sizes: IntArray, own: int | str, accumulate: int = 1) -> tuple[Row, ...]:
    """Return the rows of the table, in order of size; a batch that no client fills is a full one."""
    largest = int(sizes.max())
    numbers = sorted({b for b in asked if isinstance(b, int)})
    rows = [Row(str(b), b if b < largest else "full", mean_size(b, sizes, accumulate)) for b in numbers]
    rows += [Row("full", "full", mean_size("full", sizes))] * ("full" in asked)
    return (*rows, *([Row("dynamic", "dynamic", mean_size(own, sizes, accumulate))] * ("dynamic" in asked)))


def read_batches(words: str | Sequence[int | str]) -> tuple[int | str, ...]:
    """Return the batch sizes that ``--batches 1,8,64,full`` names. Raises ScenarioError for what is none.

    >>> read_batches("1, 8,full")
    (1, 8, 'full')
    """
    given = [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)
    found: list[int | str] = []
    for word in given:
        text = str(word)
        if text in ("full", "dynamic"):
            found.append(text)
        elif not isinstance(word, bool) and re.fullmatch(r"\d{1,9}", text) and int(text) > 0:
            found.append(int(text))
        else:
            raise ScenarioError(f"--batches: {text!r:.60} is no batch size. Whole numbers from 1 work, 'full' and 'dynamic'.")
    if not found:
        raise ScenarioError("--batches: names no batch size. --batches 1,8,64,full works.")
    return tuple(dict.fromkeys(found))


def check(scenario: Scenario, changes: Iterable[str]) -> None:
    """Refuse a scenario of which a study could not say what it varied. *changes* are what its controller may change."""
    if scenario.stream is not None:
        raise ScenarioError(
            "stream: a study compares batch sizes at equal epochs and equal steps, and on a stream what a task trains on grows with the"
            " time that other tasks take. Study the same data without [stream]."
        )
    if scenario.training.stopping is not None:
        raise ScenarioError(
            "training.stopping: ends tasks by their own losses, so that neither epochs nor steps would be equal. Leave it out."
        )
    course = scenario.training.curriculum
    if course is not None and course.clock not in ("round", "version"):
        raise ScenarioError(
            f"training.curriculum.clock = {course.clock!r}: lets a task train on more of its examples the more steps, or time, those before"
            f" took, which goes with the batch size, so that equal epochs would not be equal. 'round' and 'version' work."
        )
    if taken := sorted({"batch_size", "epochs", "steps"} & set(changes)):
        raise ScenarioError(f"server.controller: changes {' and '.join(taken)}, which is what a study sets. Leave it out.")
