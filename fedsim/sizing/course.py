"""The runs of a sizing: many dry ones, few that learn; what is there is read. Decides which settings are worth learning with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedsim.core.errors import RunError, ScenarioError
from fedsim.core.types import Seconds
from fedsim.many.runs import Asked, Crew
from fedsim.scenario.load import Loaded, load
from fedsim.score.run import Run
from fedsim.score.taken import best_of, taken
from fedsim.sizing import dry
from fedsim.sizing.plan import Plan
from fedsim.sizing.seen import Figures, Seen, Setting, figures

SPARED = 0.05
"""The share of late replies up to which a deadline is taken to spare learning: there rounds to a target are measured first, and without
a target nothing beyond is advised.
"""
CONFIRMED = 4
"""How many more settings are learned with, at most, that looked best by what was measured of others."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A run that learned: after how many rounds it reached the target, or None; what these, or all of its rounds, came to; its best."""

    run: Run
    seed: int
    rounds: int | None
    figures: Figures
    best: float = math.nan


@dataclass(frozen=True, slots=True)
class Row:
    """What a setting comes to: *rounds* to the target, measured where it was *learned* with, else estimated; *each* by seed, dry or not."""

    setting: Setting
    rounds: float
    each: tuple[Figures, ...]
    learned: tuple[Learned, ...]
    rehearsed: int
    why: str = ""

    @property
    def missed(self) -> int:
        """Return how many of its runs never reached the target."""
        return sum(each.rounds is None for each in self.learned)

    @property
    def whole_s(self) -> tuple[Seconds, ...]:
        """Return the virtual time to the target, by seed."""
        return tuple(each.whole_s for each in self.each)

    @property
    def moved(self) -> float:
        """Return the bytes that a client sends and receives, in the mean over clients and seeds."""
        return float(np.mean([each.client_bytes.mean() for each in self.each])) if self.each else math.nan


@dataclass
class Course:
    """A sizing while it goes."""

    loaded: Loaded
    crew: Crew
    wall_s: float
    seen: dict[Setting, dict[int, Seen]] = field(default_factory=dict[Setting, dict[int, Seen]])
    learned: dict[Setting, dict[int, Learned]] = field(default_factory=dict[Setting, dict[int, Learned]])
    broken: dict[Setting, str] = field(default_factory=dict[Setting, str])
    late: bool = False

    def rehearse(self, settings: Sequence[Setting], seeds: Sequence[int]) -> None:
        """Rehearse each of *settings* with each of *seeds*, but for what was."""
        asked = {
            (setting, seed): dry.request(self._of(setting, seed), self.crew.folder / "dry", setting.name, self.wall_s)
            for setting in settings for seed in seeds if seed not in self.seen.get(setting, {}) and setting not in self.broken
        }  # fmt: skip
        wanted = {key: request for key, request in asked.items() if not Path(request["out"]).is_file()}
        errors = dict(zip(wanted, self.crew.done_by(dry.WORK, list(wanted.values())), strict=True)) if wanted else {}
        for (setting, seed), request in asked.items():
            if error := errors.get((setting, seed), ""):
                self.late = self.late or error == "time was up."
                self.broken[setting] = error
            else:
                self.seen.setdefault(setting, {})[seed] = Seen.read(Path(request["out"]))

    def learn(self, settings: Sequence[Setting], plan: Plan) -> None:
        """Train with each of *settings* until the target is reached, with each seed of *plan*, but for what was."""
        assert plan.target is not None
        wanted = [(setting, seed) for setting in settings for seed in plan.seeds if seed not in self.learned.get(setting, {})]
        asked = [Asked(f"{setting.name}-{seed}", self._of(setting, seed, stop=plan.target.stop)) for setting, seed in wanted]
        for (setting, seed), outcome in zip(wanted, self.crew.runs(asked), strict=True):
            if outcome.run is None:
                self.late = self.late or outcome.status == "unfinished"
                self.broken[setting] = f"{outcome.status}: {outcome.error}"
                if outcome.status == "refused":
                    raise ScenarioError(outcome.error)
                continue
            figure = taken(outcome.run, plan.target)["rounds_to_target"]
            seen = Seen.of_run(outcome.run)
            rounds = int(figure.value) if figure.reached else None
            if rounds == 0:
                raise ScenarioError(
                    f"size: with seed {seed} {plan.target} holds before the first round, and nothing is left to learn. Set another target."
                )
            known = figures(seen, max(1, rounds or seen.rounds))
            self.learned.setdefault(setting, {})[seed] = Learned(outcome.run, seed, rounds, known, best_of(outcome.run, plan.target))

    def run(self, plan: Plan) -> list[Row]:
        """Rehearse all settings, learn with few, and return what each comes to."""
        self.rehearse(plan.settings, plan.seeds)
        if len(self.broken) == len(plan.settings):
            raise RunError(f"nothing could be rehearsed. {next(iter(self.broken.values()))}")
        if plan.target is None:
            return self.rows(plan)
        self.learn(self._first(plan), plan)
        for _ in range(CONFIRMED):
            if self.late:
                break
            rows = self.rows(plan)
            looks_best = best(plan, rows)
            if looks_best is None or looks_best.learned:
                break
            self.learn([looks_best.setting], plan)
        return self.rows(plan)

    def rows(self, plan: Plan) -> list[Row]:
        """Return what each setting comes to by what is known."""
        known = self._rounds_by_heard(plan)
        return [self._row(setting, plan, known) for setting in plan.settings]

    def _row(self, setting: Setting, plan: Plan, known: Mapping[float, float]) -> Row:
        dry_ones, learned = self.seen.get(setting, {}), tuple(self.learned.get(setting, {}).values())
        rehearsed = min((seen.rounds for seen in dry_ones.values()), default=0)
        why = self.broken.get(setting, "")
        if learned:
            reached = [each.rounds for each in learned if each.rounds is not None]
            rounds = float(np.mean(reached)) if reached else math.nan
            return Row(setting, rounds, tuple(each.figures for each in learned), learned, rehearsed, why)
        rounds = float(plan.rounds)
        if plan.target is not None:
            heard = [figures(seen, seen.rounds).heard for seen in dry_ones.values()]
            rounds = between(known, float(np.mean(heard))) if heard else math.nan
        each = [figures(seen, max(1.0, rounds)) for seen in dry_ones.values()] if math.isfinite(rounds) else []
        return Row(setting, rounds, tuple(each), (), rehearsed, why)

    def _first(self, plan: Plan) -> list[Setting]:
        """Return where rounds to the target are measured first: with each cohort, the shortest deadline that spares learning."""
        found: list[Setting] = []
        for clients in dict.fromkeys(setting.clients for setting in plan.settings):
            there = [setting for setting in plan.settings if setting.clients == clients and setting in self.seen]
            there.sort(key=lambda setting: setting.timeout_s)
            if there:
                late = {setting: np.mean([figures(seen, seen.rounds).late for seen in self.seen[setting].values()]) for setting in there}
                found.append(next((setting for setting in there if late[setting] <= SPARED), there[-1]))
        return found

    def _rounds_by_heard(self, plan: Plan) -> dict[float, float]:
        """Return, by how many replies a round took in, after how many rounds the target was reached, in the mean."""
        found: dict[float, float] = {}
        for runs in self.learned.values():
            reached = [each for each in runs.values() if each.rounds is not None]
            if reached and len(reached) == len(runs):
                heard = float(np.mean([each.figures.heard for each in reached]))
                found[heard] = float(np.mean([each.rounds or 0 for each in reached]))
        return dict(sorted(found.items()))

    def _of(self, setting: Setting, seed: int, **more: object) -> Loaded:
        scenario = load(self.loaded.scenario.plain(), {**setting.changes, "seed": seed, **more}).scenario
        return replace(self.loaded, scenario=scenario)


def between(known: Mapping[float, float], heard: float) -> float:
    """Return the rounds for *heard* replies a round, by straight lines between what is *known*, on logarithms; beyond, as at the end.

    >>> between({5.0: 40.0, 20.0: 10.0}, 10.0), between({5.0: 40.0}, 3.0), between({}, 3.0)
    (20.0, 40.0, nan)
    """
    if not known or heard <= 0:
        return math.nan
    at = np.interp(math.log(heard), np.log(list(known)), np.log(list(known.values())))
    return float(f"{math.exp(float(at)):.9g}")


def meets(plan: Plan, row: Row) -> bool:
    """Return whether *row* is there by the deadline, with every seed; where nothing learns, and so nothing else tells, few are late."""
    if not row.each or row.missed or (plan.target is None and not spares(row)):
        return False
    return plan.deadline_s is None or max(row.whole_s) <= plan.deadline_s


def spares(row: Row) -> bool:
    """Return whether the deadline of *row* spares learning: few replies are late."""
    return bool(np.mean([each.late for each in row.each]) <= SPARED)


def best(plan: Plan, rows: Sequence[Row]) -> Row | None:
    """Return the row to deploy: of those that are there by the deadline, that with the least of what the plan says; None without any."""
    there = [row for row in rows if meets(plan, row) and math.isfinite(row.rounds)]
    time = {id(row): float(np.mean(row.whole_s)) for row in there}
    return min(there, key=lambda row: (row.moved, time[id(row)]) if plan.least == "bytes" else (time[id(row)], row.moved), default=None)
