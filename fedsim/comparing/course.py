"""The runs of a comparison, look by look: what is there is read, the rest is run, until it is decided or time is up. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsim.comparing.found import Against, Comparison, Plan, deciding, held
from fedsim.comparing.variants import Side, readable
from fedsim.core.errors import ScenarioError
from fedsim.many.asked import safe
from fedsim.many.runs import Asked, Crew
from fedsim.score.likeness import cohort
from fedsim.score.run import Run
from fedsim.score.spending import OPEN, Rule
from fedsim.score.taken import Taken, taken


@dataclass
class Course:
    """A comparison while it goes."""

    plan: Plan
    sides: Sequence[Side]
    unlike: Mapping[str, Sequence[str]]
    taken: dict[str, dict[int, Taken]] = field(default_factory=dict[str, dict[int, Taken]])
    runs: dict[str, dict[int, Run]] = field(default_factory=dict[str, dict[int, Run]])
    broken: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    notes: list[str] = field(default_factory=list[str])
    late: bool = False

    def __post_init__(self) -> None:
        for side in self.sides:
            self.taken[side.name], self.runs[side.name], self.broken[side.name] = {}, {}, {}
        self.by = ""

    def there(self) -> Comparison:
        """Compare runs that are done, looked at once."""
        for side in self.sides:
            for seed, run in side.runs.items():
                self._take(side, seed, run)
        base, others = self.sides[0], self.sides[1:]
        self._decide()
        found: list[Against] = []
        for side in others:
            common, apart = set(side.runs) & set(base.runs), set(side.runs) ^ set(base.runs)
            if self.plan.pairs and not common:
                raise ScenarioError(
                    f"compare: {base.name} ran with seeds {_listed(base.runs)}, {side.name} with {_listed(side.runs)}: no pair."
                    f" Run one of them with the other's seeds, or compare them unpaired (--unpaired, in Python unpaired=True)."
                )
            if self.plan.pairs and apart:
                self.notes.append(f"{side.name}: seeds {_listed(apart)} ran on one side only, and are left out.")
            rule = Rule.of([len(common) if self.plan.pairs else len(side.runs)], self.plan.matters, len(others))
            found.append(self._held(side, rule, rule.levels[0]))
        rule = Rule.of([max(len(each.seeds) for each in found) if self.plan.pairs else len(base.runs)], self.plan.matters, len(others))
        return self._comparison(rule, found, None)

    def run(self, crew: Crew, seeds: Sequence[int], budget_s: float | None, began: float) -> Comparison:
        """Run what is wanted with *seeds*, in the order of these, look by look; what ends after *budget_s* is left."""
        base, others = self.sides[0], list(self.sides[1:])
        rule = Rule.of(self.plan.looks, self.plan.matters, len(others))
        if budget_s is not None:
            crew.until = began + budget_s
        found: dict[str, Against] = {}
        passed = 0
        for look, (n, level) in enumerate(zip(rule.looks, rule.levels, strict=True)):
            open_ = [side for side in others if found.get(side.name) is None or found[side.name].says == OPEN]
            open_ = [side for side in open_ if not self.broken[side.name] and not self.broken[base.name]]
            if not open_:
                break
            wanted = [(side, seed) for seed in seeds[:n] for side in (base, *open_)]
            if look == 0:  # What a scenario refuses is known after its first run, and what is no measure.
                first = [each for each in wanted if each[1] == seeds[0]]
                self._run(crew, first, refusing=True)
                self._decide()
            if self.late:
                break
            self._run(crew, [(side, seed) for side, seed in wanted if seed not in {*self.runs[side.name], *self.broken[side.name]}])
            if self.late:
                break
            passed = n
            for side in open_:
                found[side.name] = self._held(side, rule, level)
        if self.late and budget_s is not None:
            done = sum(map(len, self.runs.values()))
            self.notes.append(f"{safe(done, crew.folder)}; the same command goes on from there.")
            level = dict(zip(rule.looks, rule.levels, strict=True)).get(passed, rule.levels[0])
            for side in others:
                before, pairs = found.get(side.name), len(set(self.taken[side.name]) & set(self.taken[base.name]))
                if before is None or before.says == OPEN:
                    why = f"the budget of {_span(budget_s)} ended after {pairs} pairs, and looks are at {_listed(self.plan.looks)} only"
                    found[side.name] = self._held(side, rule, level, why=why, most=passed or None)
        return self._comparison(rule, [found[side.name] for side in others if side.name in found], crew)

    def _run(self, crew: Crew, wanted: Sequence[tuple[Side, int]], *, refusing: bool = False) -> None:
        outcomes = crew.runs([Asked(f"{side.stem}-{seed}", side.of(seed)) for side, seed in wanted])
        for (side, seed), outcome in zip(wanted, outcomes, strict=True):
            if outcome.status == "unfinished":
                self.late = True
            elif outcome.run is not None and outcome.done:
                self._take(side, seed, outcome.run)
            elif refusing and outcome.status == "refused":
                raise ScenarioError(f"{side.name}: {outcome.error}")
            else:
                self.broken[side.name][seed] = f"{side.name}, seed {seed}: {outcome.status}: {outcome.error}"

    def _take(self, side: Side, seed: int, run: Run) -> None:
        readable(run)
        self.taken[side.name][seed] = taken(run, self.plan.target)
        self.runs[side.name][seed] = run

    def _decide(self) -> None:
        """Settle which measure decides, from what the runs so far have."""
        figures = [figure for by_seed in self.taken.values() for figure in by_seed.values()]
        if figures and not self.by:
            self.by = deciding(self.plan, [side.scenario for side in self.sides], figures)

    def _held(self, side: Side, rule: Rule, level: float, *, why: str = "", most: int | None = None) -> Against:
        base = self.sides[0]
        broken = {**self.broken[side.name], **self.broken[base.name]}
        if broken and not why:
            broke = {name: len(self.broken[name]) for name in (side.name, base.name) if self.broken[name]}
            why = " and ".join(f"{n} of {len(self.taken[name]) + n} runs of {name} broke" for name, n in broke.items())
        seen = self.taken
        if most is not None:
            common = sorted(set(seen[side.name]) & set(seen[base.name]))[:most]
            seen = {name: {seed: figures[seed] for seed in common} for name, figures in seen.items() if name in (side.name, base.name)}
        found = held(side, base, seen, self.plan, self.by, level, why=why, rule=rule)
        pairs = [(self.runs[side.name][seed], self.runs[base.name][seed]) for seed in found.seeds]
        same = bool(pairs) and self.plan.pairs and all(a.digest == b.digest for a, b in pairs)
        return replace(found, same=same)

    def _comparison(self, rule: Rule, found: Sequence[Against], crew: Crew | None) -> Comparison:
        base = self.sides[0]
        for side in self.sides[1:]:
            ours, theirs = cohort(side.scenario), cohort(base.scenario)
            if ours != theirs:
                self.notes.append(f"Cohorts differ: a round asks {theirs} in {base.name}, and {ours} in {side.name}.")
            if (mine := side.scenario["server"]["rounds"]) != (other := base.scenario["server"]["rounds"]):
                lengths = f"{other:,} rounds in {base.name}, and {mine:,} in {side.name}"
                self.notes.append(f"Lengths differ: {lengths}; final scores are of their ends.")
        stops = [side.name for side in self.sides if side.scenario.get("stop")]
        if stops and self.by.startswith("final"):
            self.notes.append(f"[stop] ends runs of {', '.join(stops)} early: final scores are of different rounds.")
        versions = {str(sorted(run.manifest["versions"].items())) for runs in self.runs.values() for run in runs.values()}
        if len(versions) > 1:
            self.notes.append("The runs are of several versions of Python or its packages (manifest): part of a difference may be theirs.")
        faults = [line for lines in self.broken.values() for line in lines.values()]
        return Comparison(
            self.plan, rule, self.sides, found, self.taken, self.runs, None if crew is None else crew.folder, faults,
            list(dict.fromkeys(self.notes)), 0 if crew is None else crew.read, self.unlike,
        )  # fmt: skip


def now() -> float:
    """Return the wall clock that budgets go by, in seconds."""
    return time.monotonic()


def _listed(numbers: Sequence[int] | Mapping[int, object] | set[int]) -> str:
    shown = sorted(numbers)
    return ", ".join(map(str, shown[:8])) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _span(seconds: float) -> str:
    """Return a budget as it is written.

    >>> _span(600.0), _span(90.0), _span(7200.0)
    ('10m', '90s', '2h')
    """
    for unit, name in ((3600.0, "h"), (60.0, "m")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g}{name}"
    return f"{seconds:g}s"
