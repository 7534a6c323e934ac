"""Optuna's pruners, asked between rounds about one run, from what whole waves before it came to: never from what runs beside it.

A trial is pruned by the run of its first seed. The run's process asks while it goes (``watcher``); whoever reads its folder asks again, of
the recorded rounds, and comes to the same (``judged``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import Frame
from fedsim.record.leaving import Pruned
from fedsim.score.run import Run
from fedsim.sweeping.trials import made, quietly

if TYPE_CHECKING:
    from fedsim.session import Progress

BY = "fedsim.sweeping.pruning:watcher"
_STEPS = ("n_startup_trials", "n_warmup_steps", "interval_steps", "n_min_trials")
PRUNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "median": ("MedianPruner", _STEPS),
    "percentile": ("PercentilePruner", ("percentile", *_STEPS)),
    "successive_halving": ("SuccessiveHalvingPruner", ("min_resource", "reduction_factor", "min_early_stopping_rate", "bootstrap_count")),
    "hyperband": ("HyperbandPruner", ("min_resource", "max_resource", "reduction_factor", "bootstrap_count")),
    "threshold": ("ThresholdPruner", ("lower", "upper", "n_warmup_steps", "interval_steps")),
}
"""Optuna's pruners, by our name: its class, and the settings that a file may give, under optuna's names; a step is a round."""
STUDY = "fedsim"
"""The name of the study, by which hyperband sorts trials into brackets."""


@dataclass(frozen=True)
class Past:
    """What the first run of a trial came to: its *state* in optuna's words, its score by round, and what the pruner noted of it."""

    state: str
    seen: Mapping[int, float]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def plain(self) -> dict[str, Any]:
        """Return it as it travels to another process."""
        return {"state": self.state, "seen": list(self.seen.items()), "notes": dict(self.notes)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Past:
        """Return what ``plain`` gave."""
        return cls(plain["state"], {int(step): float(value) for step, value in plain["seen"]}, plain["notes"])


@dataclass(frozen=True)
class Rule:
    """Who prunes: the table *pruner*, by which central *metric*, which way, in rounds that are scored, before the last of *rounds*."""

    pruner: Mapping[str, Any]
    metric: str
    direction: str
    every: int
    rounds: int

    def counts(self, server_round: int) -> bool:
        """Return whether a run may be pruned after *server_round*."""
        return 0 < server_round < self.rounds and server_round % self.every == 0


class Judge:
    """Tells after each round of trial *number* whether it is pruned, by the trials *before* it, which fill whole waves."""

    def __init__(self, rule: Rule, before: Sequence[Past], number: int) -> None:
        with quietly() as optuna:
            longest = {"max_resource": rule.rounds}
            self._pruner = made(optuna.pruners, PRUNERS, rule.pruner, "search.pruner", **longest)
            self._study = optuna.create_study(
                direction=rule.direction, pruner=self._pruner, study_name=STUDY, sampler=optuna.samplers.RandomSampler(0)
            )
            states = optuna.trial.TrialState
            for each in before:
                last = list(each.seen.values())[-1:] or [0.0]
                self._study.add_trial(optuna.trial.create_trial(
                    state=states[each.state], value=last[0] if each.state == "COMPLETE" else None, intermediate_values=dict(each.seen),
                    system_attrs=dict(each.notes),
                ))  # fmt: skip
            for _ in range(number - len(before)):  # Those of its own wave, of which nobody knows anything yet.
                self._study.add_trial(optuna.trial.create_trial(state=states.FAIL))
            self._trial = self._study.ask()

    def prunes(self, step: int, value: float) -> bool:
        """Return whether a trial that scores *value* after round *step* is pruned."""
        with quietly():
            self._trial.report(value, step)
            return bool(self._trial.should_prune())

    @property
    def notes(self) -> dict[str, Any]:
        """Return what the pruner noted of the trial."""
        return dict(self._study.get_trials(deepcopy=False)[self._trial.number].system_attrs)


def watched(rule: Rule, before: Sequence[Past], number: int) -> dict[str, Any]:
    """Return what the process of a run is told, so that it prunes trial *number*."""
    return {
        "by": BY, "pruner": dict(rule.pruner), "metric": rule.metric, "direction": rule.direction, "every": rule.every,
        "rounds": rule.rounds, "before": [each.plain() for each in before], "number": number,
    }  # fmt: skip


def watcher(table: Mapping[str, Any]) -> Callable[[Progress], None]:
    """Return who watches a run by what ``watched`` said: raises Pruned when it is enough."""
    rule = Rule(table["pruner"], table["metric"], table["direction"], table["every"], table["rounds"])
    judge = Judge(rule, [Past.of(each) for each in table["before"]], table["number"])

    def watch(where: Progress) -> None:
        if rule.metric not in where.scores:
            said = f"goes by a score that rounds have, and measure = {rule.metric!r} is none"
            raise ScenarioError(f"search.pruner: {said}. {choices(rule.metric, where.scores)}")
        if rule.counts(where.round) and judge.prunes(where.round, value := where.scores[rule.metric]):
            said = f"with {rule.metric} {value:.4g} it does not keep up with the trials before it"
            raise Pruned(f"{said} (search.pruner {rule.pruner['kind']!r}).")

    return watch


def judged(run: Run, rule: Rule, before: Sequence[Past], number: int) -> tuple[Past, bool]:
    """Return what trial *number* came to by the rounds of *run*, and whether the pruner says so: where it ended, and not earlier."""
    metrics = run.metrics
    scores: Frame = metrics[(metrics.scope == "central") & (metrics.name == rule.metric)]
    pairs = zip(scores["round"].tolist(), scores["value"].tolist(), strict=True)
    seen = {int(each): float(value) for each, value in pairs if rule.counts(int(each))}
    judge = Judge(rule, before, number)
    ends = [step for step, value in seen.items() if judge.prunes(step, value)]
    pruned = run.status == "pruned"
    holds = ends == [list(seen)[-1]] if pruned and seen else not ends and not pruned
    return Past("PRUNED" if pruned else "COMPLETE", seen, judge.notes), holds
