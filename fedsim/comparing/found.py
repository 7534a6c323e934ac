"""What a comparison found: a side against the first, measure by measure, and one verdict. Values, and how they follow from figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.comparing.variants import Side
from fedsim.core.errors import ScenarioError, choices
from fedsim.core.types import FloatArray
from fedsim.score.resampled import bootstrapped
from fedsim.score.run import Run
from fedsim.score.spending import ABOVE, ALIKE, ALPHA, BELOW, OPEN, Interval, Rule, detectable, paired, unpaired, unpaired_runs
from fedsim.score.taken import TO_TARGET, Figure, Taken, better_upwards, side_by_side
from fedsim.score.target import Target

NOISE_KNOWN = 5
"""From so many pairs on a noise is known well enough to say what it lets one find; of two it may be thirty times as much."""
WORDS = {ABOVE: "above", BELOW: "below", ALIKE: "alike", OPEN: "not decided"}


@dataclass(frozen=True)
class Plan:
    """What was asked: whose *target*, what decides (*by*, None for what suits), what *matters*, pairs or not, and when it is looked."""

    target: Target | None = None
    by: str | None = None
    matters: float = 0.0
    pairs: bool = True
    looks: tuple[int, ...] = ()
    sequential: bool = False


@dataclass(frozen=True)
class Row:
    """One measure of a side (*ours*) against the first's (*theirs*): means, the difference and its intervals.

    *reached* counts the runs of both that got to the target, None where the measure has none; *n* are the runs of both.
    """

    measure: str
    ours: float
    theirs: float
    interval: Interval
    boot: tuple[float, float]
    n: tuple[int, int]
    reached: tuple[int, int] | None = None

    @property
    def cut(self) -> bool:
        """Return whether a run that did not reach its target counts with what it had spent."""
        return self.reached is not None and self.reached != self.n


@dataclass(frozen=True)
class Against:
    """A side held against the first one. *says* is a verdict of ``spending``, about the measure *by*; *why* there is none.

    *unpaired* is how many runs of each side would have been needed without pairs; *finds* the difference that the rule finds with a power
    of 80 %, NaN where too few pairs tell the noise; *same* tells that every run has the digest of its pair.
    """

    side: Side
    base: Side
    seeds: tuple[int, ...]
    rows: Sequence[Row]
    by: str
    says: int
    why: str = ""
    unpaired: int = 0
    finds: float = math.nan
    same: bool = False

    @property
    def verdict(self) -> str:
        """Return better, worse, alike or not decided, of *side*."""
        if self.says in (ALIKE, OPEN):
            return "alike" if self.says == ALIKE else "not decided"
        return "better" if (self.says == ABOVE) == better_upwards(self.by) else "worse"

    @property
    def row(self) -> Row | None:
        """Return the measure that the verdict is about; None where no pair has it."""
        return next((row for row in self.rows if row.measure == self.by), None)


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found. *taken* has the figures of every run by side and seed, *runs* the runs; *faults* are lines."""

    plan: Plan
    rule: Rule
    sides: Sequence[Side]
    against: Sequence[Against]
    taken: Mapping[str, Mapping[int, Taken]]
    runs: Mapping[str, Mapping[int, Run]]
    folder: Path | None
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()
    read: int = 0
    unlike: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def deciding(plan: Plan, scenarios: Sequence[Mapping[str, Any]], figures: Sequence[Taken]) -> str:
    """Return the measure that decides: the one asked for; the time to the target where all runs stop there; else the final score."""
    known = [name for name in figures[0] if all(name in each for each in figures)]
    if plan.by is not None:
        if plan.by not in known:
            raise ScenarioError(f"--by {plan.by!r}: is no measure of these runs. {choices(plan.by, known)}")
        return plan.by
    stop = scenarios[0].get("stop")
    stops = stop is not None and all(scenario.get("stop") == stop for scenario in scenarios)
    if plan.target is not None and stops and Target.of(stop) == plan.target:
        return "virtual_s_to_target"
    return next((name for name in ("final accuracy", "final loss") if name in known), known[0])


def held(
    side: Side, base: Side, taken: Mapping[str, Mapping[int, Taken]], plan: Plan, by: str, level: float, *, verdict: bool = True,
    why: str = "", rule: Rule | None = None,
) -> Against:  # fmt: skip
    """Return *side* against *base* by the figures *taken*; with an interval of *level*, and a verdict if there is to be one."""
    ours, theirs = taken[side.name], taken[base.name]
    seeds = tuple(sorted(set(ours) & set(theirs)))
    mine, others = (seeds, seeds) if plan.pairs else (tuple(sorted(ours)), tuple(sorted(theirs)))
    if not mine or not others:
        return Against(side, base, seeds, [], by, OPEN, why or "there is no run to compare")
    measures = [name for name in ours[mine[0]] if all(name in ours[s] for s in mine) and all(name in theirs[s] for s in others)]
    rows = [
        _row(name, [ours[s][name] for s in mine], [theirs[s][name] for s in others], plan, level if name == by else ALPHA)
        for name in measures
    ]
    found = next((row for row in rows if row.measure == by), None)
    if found is None:
        return Against(side, base, seeds, rows, by, OPEN, why or f"not all runs have a {by}")
    says = found.interval.says(plan.matters) if verdict and not why else OPEN
    if says == OPEN and not why:
        where = f"beyond {plan.matters:g} on one side" if plan.matters else "on one side of 0"
        why = f"the interval does not lie {where}" if math.isfinite(found.interval.low) else "one run of each says nothing of the noise"
    needed, finds = 0, math.nan
    a, b = _values([ours[s][by] for s in mine], [theirs[s][by] for s in others], plan)
    if plan.pairs and len(mine) > 1:
        needed = unpaired_runs(a, b, level)
        if says == OPEN and rule is not None and len(mine) >= NOISE_KNOWN:
            finds = detectable(float(np.std(a - b, ddof=1)), rule)
    return Against(side, base, seeds, rows, by, says, why if says == OPEN else "", needed, finds)


def _row(name: str, ours: Sequence[Figure], theirs: Sequence[Figure], plan: Plan, level: float) -> Row:
    a, b = _values(ours, theirs, plan)
    interval = paired(a - b, level) if plan.pairs else unpaired(a, b, level)
    reached = (sum(f.reached for f in ours), sum(f.reached for f in theirs)) if name in TO_TARGET else None
    mean = float(np.mean(a)), float(np.mean(b))
    return Row(name, *mean, interval, bootstrapped(a, b, pairs=plan.pairs), (len(a), len(b)), reached)


def _values(ours: Sequence[Figure], theirs: Sequence[Figure], plan: Plan) -> tuple[FloatArray, FloatArray]:
    return side_by_side(ours, theirs, pairs=plan.pairs)
