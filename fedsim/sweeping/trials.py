"""Optuna's samplers, asked in waves and told in the order of asking: the same trials whatever runs beside what, and after a kill.

The study lies in memory only: a sweep that goes on asks its first wave again, is told what the runs in its folder came to, and so comes to
where it was. Knows no run; optuna is imported when the first sweep needs it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

from fedsim.core.errors import ScenarioError, choices, door
from fedsim.core.keys import Key
from fedsim.sweeping.space import Assignment, Axis, chosen_of

_MUTATED = ("population_size", "mutation_prob", "crossover_prob", "swapping_prob")
SAMPLERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tpe": ("TPESampler", ("n_startup_trials", "n_ei_candidates", "multivariate", "group")),
    "gp": ("GPSampler", ("n_startup_trials", "deterministic_objective")),
    "qmc": ("QMCSampler", ("qmc_type", "scramble")),
    "nsga2": ("NSGAIISampler", _MUTATED),
    "nsga3": ("NSGAIIISampler", (*_MUTATED, "dividing_parameter")),
    "random": ("RandomSampler", ()),
}
"""Optuna's samplers that need no further package, by our name: its class, and the settings that a file may give, under optuna's names."""


@contextmanager
def quietly() -> Generator[Any]:
    """Yield optuna, which says nothing within: no log lines, and no word on what of it is new."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)


def made(module: Any, known: Mapping[str, tuple[str, tuple[str, ...]]], table: Mapping[str, Any], at: str, **given: Any) -> Any:
    """Return what *table*, which stands at *at*, names among *known*, made by optuna's *module*. Raises ScenarioError."""
    kind = str(table.get("kind", ""))
    chosen_of(kind, sorted(known), at)
    name, takes = known[kind]
    settings = {key: value for key, value in table.items() if key != "kind"}
    for key, value in settings.items():
        if key not in takes:
            raise ScenarioError(f"{at}.{key}: {kind!r} has no such setting. {choices(key, takes)}")
        if not isinstance(value, int | float | str):
            raise ScenarioError(f"{at}.{key} = {value!r:.60}: must be a number, text, or true or false.")
    function = getattr(module, name)
    wanted = {key: value for key, value in given.items() if key in signature(function).parameters}
    with door(f"{at}.kind = {kind!r}"):
        return function(**{**wanted, **settings})


@dataclass
class Trials:
    """Optuna's study of *axes*, as far as it has come."""

    axes: Sequence[Axis]
    sampler: Mapping[str, Any]
    directions: Sequence[str]
    key: Key

    def __post_init__(self) -> None:
        with quietly() as optuna:
            seed = self.key.seed64() % 2**32
            sampler = made(optuna.samplers, SAMPLERS, self.sampler, "search.sampler", seed=seed, constant_liar=True)
            self._study = optuna.create_study(sampler=sampler, directions=list(self.directions))
            self._spans = {axis.name: self._distribution(optuna.distributions, axis) for axis in self.axes}
        self._open: dict[int, Any] = {}

    def remark(self, trials: int) -> str:
        """Return what a reader must know of so many *trials* with this sampler; empty where there is nothing."""
        kind = self.sampler["kind"]
        default = 50 if kind.startswith("nsga") else 10 if kind in ("tpe", "gp") else 0
        name = "population_size" if kind.startswith("nsga") else "n_startup_trials"
        first = int(self.sampler.get(name, default))
        return f"All {trials} trials of {kind} are drawn at random: its {name} is {first}." if default and trials <= first else ""

    def ask(self, count: int) -> list[Assignment]:
        """Return the assignments of the next *count* trials, none of which knows what the others come to."""
        found: list[Assignment] = []
        with quietly(), self._alone():
            for _ in range(count):
                trial = self._study.ask(self._spans)
                self._open[trial.number] = trial
                found.append({key: value for axis in self.axes for key, value in self._assigned(axis, trial.params[axis.name]).items()})
        return found

    def tell(self, number: int, values: Sequence[float] | None, seen: Mapping[int, float], *, pruned: bool) -> None:
        """Take what trial *number* came to: *values*, one per direction, None where it broke; *seen* by round, where it was *pruned*."""
        with quietly() as optuna:
            trial, states = self._open.pop(number), optuna.trial.TrialState
            if pruned:
                for step, value in seen.items():
                    if math.isfinite(value):
                        trial.report(value, step)
                self._study.tell(trial, state=states.PRUNED)
            elif values is None or not all(math.isfinite(value) for value in values):
                self._study.tell(trial, state=states.FAIL)
            else:
                self._study.tell(trial, list(values))

    def _alone(self) -> Any:
        """Return what has torch take one thread: the bits of a Gaussian process's fit, and so its trials, depend on how many there are."""
        if self.sampler["kind"] != "gp":
            return nullcontext()
        from fedsim.learn.engine.cohort import one_thread

        return one_thread()

    @staticmethod
    def _distribution(module: Any, axis: Axis) -> Any:
        span = axis.span
        if span is None:
            return module.CategoricalDistribution(list(range(len(axis.choices))))  # By their places: a choice may be a table.
        if span.integer:
            return module.IntDistribution(int(span.low), int(span.high), log=span.log, step=int(span.step) or 1)
        return module.FloatDistribution(span.low, span.high, log=span.log, step=span.step or None)

    @staticmethod
    def _assigned(axis: Axis, value: Any) -> Assignment:
        return axis.choices[value] if axis.span is None else {axis.name: axis.span.number(value, 12 if axis.span.step else 6)}
