"""The runs of a sweep, wave by wave: variants are asked for, run with every seed or read, and what they come to is told. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from fedsim.core.errors import RunError, ScenarioError, must
from fedsim.core.keys import Key
from fedsim.many.runs import Asked, Crew, Outcome, Reader, find
from fedsim.scenario.load import Loaded, load
from fedsim.score.run import Run
from fedsim.score.target import Target
from fedsim.sweeping.found import DONE, PRUNED, REFUSED, UNFINISHED, Goal, Sweep, Variant, figures, named, upwards
from fedsim.sweeping.points import Point, fixed, numbered, told_by_kind, words
from fedsim.sweeping.pruning import Past, Rule, judged, watched
from fedsim.sweeping.space import Space
from fedsim.sweeping.trials import Trials

FULL = "No space left on device"
"""The system's words for a full disk, on which no other run will fare better."""


class Way(Protocol):
    """How variants are found."""

    def ask(self) -> list[Point]:
        """Return the next wave; empty when that was all."""
        ...

    def tell(self, wave: Sequence[Variant], goals: Sequence[Goal]) -> None:
        """Take what the wave that was asked for last came to."""
        ...


@dataclass
class Listed:
    """Variants that are known beforehand, *at_once* in a wave."""

    points: Sequence[Point]
    at_once: int
    _next: int = 0

    def ask(self) -> list[Point]:
        """Return the next of them."""
        found = list(self.points[self._next : self._next + self.at_once])
        self._next += len(found)
        return found

    def tell(self, wave: Sequence[Variant], goals: Sequence[Goal]) -> None:
        """Take note of nothing."""


@dataclass
class Sampled:
    """Variants that optuna's sampler asks for: *count* in all, *at_once* in a wave."""

    trials: Trials
    count: int
    at_once: int
    by_kind: frozenset[str]
    _next: int = 0

    def ask(self) -> list[Point]:
        """Return the next wave of trials."""
        asked = enumerate(self.trials.ask(min(self.at_once, self.count - self._next)), self._next)
        found = [Point(number, numbered(number, words(each, self.by_kind)), each) for number, each in asked]
        self._next += len(found)
        return found

    def tell(self, wave: Sequence[Variant], goals: Sequence[Goal]) -> None:
        """Tell the sampler what the wave came to, in the order of asking."""
        for each in wave:
            values = [_value(each, goal.measure) for goal in goals]
            self.trials.tell(each.point.number, values if each.status == DONE else None, each.seen, pruned=each.status == PRUNED)


def _value(each: Variant, measure: str) -> float:
    """Return the mean of *measure*; of runs that never got to their target what they had spent, which is the least it can be."""
    mean = each.mean(measure)
    return math.nan if mean is None else mean.mean


def way_of(space: Space, seed: int, directions: Sequence[str]) -> Way:
    """Return how the variants of *space* are found, with draws of *seed*."""
    search, key = space.file.search, Key(seed).fold("sweep")
    if search.kind == "optuna":
        trials = Trials(space.axes, search.sampler or {"kind": "tpe"}, directions, key.fold("sampler"))
        return Sampled(trials, search.trials or 0, search.wave, told_by_kind(space))
    points = fixed(space, key)
    return Listed(points, search.wave if search.pruner else len(points))


def seeded(loaded: Loaded, seed: int) -> Loaded:
    """Return a checked scenario with another *seed*."""
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"seed": seed}))


def directions_of(space: Space) -> list[str]:
    """Return optuna's word for the way of each measure, before anybody knows which measures there are."""
    measures = space.file.measure or "final accuracy"
    measures = [measures] if isinstance(measures, str) else measures
    asked = space.file.direction
    if asked is not None:
        return [asked] if isinstance(asked, str) else list(asked)
    return ["maximize" if upwards(name) else "minimize" for name in measures]


@dataclass
class Course:
    """A sweep while it goes. *goals* and *pareto* are settled by the first run that is done, which knows what there is to measure."""

    space: Space
    base: Loaded
    seeds: tuple[int, ...]
    target: Target | None
    wanted: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    pareto: tuple[str, ...] = ()
    variants: list[Variant] = field(default_factory=list[Variant])
    past: list[Past] = field(default_factory=list[Past])
    _by_digest: dict[str, Variant] = field(default_factory=dict[str, Variant])
    _loaded: dict[int, Loaded] = field(default_factory=dict[int, Loaded])
    _figures: dict[str, Any] = field(default_factory=dict[str, Any])
    late: str = ""

    def run(self, way: Way, crew: Crew | Reader) -> None:
        """Run what *way* asks for, wave by wave, until that is all or time is up."""
        crew.heard = self._heard
        while not self.late and (points := way.ask()):
            wave = [self._placed(point) for point in points]
            self.variants += wave
            pruned = self._firsts(wave, crew)
            self._runs([(each, seed) for each in wave if each not in pruned for seed in self.seeds[1 if self._rule else 0 :]], crew)
            self._twins(wave)
            if any(each.status == UNFINISHED for each in wave):
                self.late = self.late or "time was up"
            else:
                self._refused(wave)
                way.tell(wave, self.goals)

    def there(self, way: Way, folder: Path) -> tuple[int, bool]:
        """Return how many of the runs lie in *folder* already, and whether that can be known before anything is asked for."""
        if not isinstance(way, Listed) or self._rule is not None:
            return 0, False
        found = 0
        for point in way.points if any(each.is_dir() for each in folder.iterdir()) else ():
            with suppress(ScenarioError):
                first = self.loaded(point, self.seeds[0])
                for seed in self.seeds:
                    found += find(folder, Asked(f"{point.name}-{seed}", seeded(first, seed)))[1] == "there"
        return found, True

    def sweep(self, crew: Crew | Reader, total: int, notes: Sequence[str]) -> Sweep:
        """Return what was found so far."""
        return Sweep(
            self.space.name, self.space.asked, self.base.scenario.plain(), self.space.varied, self.seeds, self.goals, self.pareto,
            self.target, list(self.variants), crew.folder, total, crew.read, self.late, tuple(notes),
        )  # fmt: skip

    def loaded(self, point: Point, seed: int) -> Loaded:
        """Return the scenario of *point* with *seed*. Raises ScenarioError where the two do not go together."""
        return replace(load(self.base.scenario.plain(), point.assignment, seed), folder=self.base.folder)

    def _placed(self, point: Point) -> Variant:
        """Return the variant of *point*: refused where the scenario does not take it, the twin of one that is the same scenario."""
        found = Variant(point, self.seeds)
        try:
            loaded = self.loaded(point, self.seeds[0])
        except ScenarioError as error:
            found.refused = str(error)
            return found
        before = self._by_digest.setdefault(loaded.scenario.digest, found)
        found.twin = None if before is found else before.point.number
        self._loaded[point.number] = loaded
        return found

    @property
    def _rule(self) -> Rule | None:
        pruner = self.space.file.search.pruner
        if pruner is None:
            return None
        word = self.space.file.measure or "accuracy"
        metric = (word if isinstance(word, str) else word[0]).removeprefix("final ").removeprefix("best ")
        scenario = self.base.scenario
        return Rule(pruner, metric, directions_of(self.space)[0], scenario.evaluate.every, scenario.server.rounds)

    def _firsts(self, wave: Sequence[Variant], crew: Crew | Reader) -> list[Variant]:
        """Run the first seed of each of *wave* under the eyes of the pruner, where there is one; return those that it pruned."""
        rule = self._rule
        if rule is None:
            return []
        before = list(self.past)
        asked = list[tuple[Variant, Asked]]()
        for each in wave:
            if each.refused or each.twin is not None:
                continue
            loaded, number = self._loaded[each.point.number], each.point.number
            mine = replace(rule, every=loaded.scenario.evaluate.every, rounds=loaded.scenario.server.rounds)

            def stands(run: Run, mine: Rule = mine, number: int = number) -> bool:
                return judged(run, mine, before, number)[1]

            name = f"{each.point.name}-{self.seeds[0]}"
            asked.append((each, Asked(name, loaded, watched=watched(mine, before, number), stands=stands)))
        outcomes = crew.runs([each for _, each in asked])
        past = dict[int, Past]()
        for (each, wanted), outcome in zip(asked, outcomes, strict=True):
            self._take(each, self.seeds[0], outcome)
            if outcome.run is not None and outcome.status in ("done", "pruned"):
                mine = replace(rule, every=wanted.loaded.scenario.evaluate.every, rounds=wanted.loaded.scenario.server.rounds)
                past[each.point.number], holds = judged(outcome.run, mine, before, each.point.number)
                must(holds, f"{outcome.run.path} was pruned by other rounds than it recorded")
                each.seen = past[each.point.number].seen
        self.past += [past.get(each.point.number, Past("FAIL", {})) for each in wave]
        return [each for each in wave if each.pruned]

    def _runs(self, wanted: Sequence[tuple[Variant, int]], crew: Crew | Reader) -> None:
        wanted = [(each, seed) for each, seed in wanted if not each.refused and each.twin is None]
        if self.late or not wanted:
            return
        asked = [Asked(f"{each.point.name}-{seed}", seeded(self._loaded[each.point.number], seed)) for each, seed in wanted]
        for (each, seed), outcome in zip(wanted, crew.runs(asked), strict=True):
            self._take(each, seed, outcome)

    def _take(self, each: Variant, seed: int, outcome: Outcome) -> None:
        if outcome.status == "unfinished":
            self.late = outcome.error.rstrip(".")
        elif outcome.status == "pruned":
            each.pruned = outcome.error
        elif outcome.run is not None and outcome.done:
            each.runs[seed], each.taken[seed] = outcome.run, self._figures.pop(str(outcome.run.path))
        else:
            each.broken[seed] = outcome.status, outcome.error

    def _heard(self, asked: Asked, outcome: Outcome) -> None:
        """Take the figures of a run while others go; the first settles what is measured. Raises what ends the sweep at once."""
        if outcome.status == "failed" and FULL in outcome.error:
            raise RunError(f"{outcome.error} Free some space; the same command goes on from what is done.")
        if outcome.run is not None and outcome.done:
            found = figures(outcome.run, self.target)
            self._figures[str(outcome.run.path)] = found
            if not self.goals:
                self._settle(list(found))

    def _settle(self, known: Sequence[str]) -> None:
        asked = self.space.file.measure
        names = [asked] if isinstance(asked, str) else asked
        ways = directions_of(self.space)
        if names is None:  # A sampler and a pruner went by the accuracy from the start.
            bound = self._rule is not None or self.space.file.search.kind == "optuna"
            names = ["final accuracy" if bound or "final accuracy" in known else "final loss"]
            ways = ways if bound or self.space.file.direction else ["maximize" if upwards(name) else "minimize" for name in names]
        given = [named(name, known, "measure") for name in names]
        self.pareto = tuple(named(name, known, "--pareto") for name in self.wanted)
        self.goals = tuple(Goal(name, way == "maximize") for name, way in zip(given, ways, strict=True))

    def _twins(self, wave: Sequence[Variant]) -> None:
        for each in wave:
            if each.twin is not None:
                first = self.variants[each.twin]
                each.runs, each.taken, each.broken = dict(first.runs), dict(first.taken), dict(first.broken)
                each.pruned, each.refused, each.seen = first.pruned, first.refused, first.seen

    def _refused(self, wave: Sequence[Variant]) -> None:
        """Raise ScenarioError where the scenario took nothing of the first wave: that is the reader's mistake, and not a variant's."""
        reasons = [each.refused or next((error for status, error in each.broken.values() if status == REFUSED), "") for each in wave]
        if len(wave) == len(self.variants) and all(reasons):
            raise ScenarioError(f"{wave[0].point.name}: {reasons[0]} (nor does the scenario take any of the {len(wave)} others)"
                                if len(wave) > 1 else f"{wave[0].point.name}: {reasons[0]}")  # fmt: skip
