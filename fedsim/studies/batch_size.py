"""The study of batch sizes: which runs it takes, one wave after the other, and what each row of its table comes to. Writes no page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import ScenarioError
from fedsim.many.runs import Asked, Crew, Outcome
from fedsim.record.leaving import Spent
from fedsim.score.run import Run
from fedsim.score.target import Target, upwards
from fedsim.studies import grades
from fedsim.studies.fit import fit
from fedsim.studies.found import Line, Study
from fedsim.studies.grades import TEXTBOOK, Cell
from fedsim.studies.host import Host
from fedsim.studies.measures import Estimate, Measured, Reached, compute_share, mean_batch, points_of, reached, virtual_speed
from fedsim.studies.plan import FURTHER, GRID, SPACING, Budget, Plan, Row, Variant, rounded

AWAY = 0.9
"""A target that nobody named: this share of the way from the untrained model's score to what the scenario's own run ends at."""


@dataclass
class Course:
    """A study while it goes: what came of which variant."""

    plan: Plan
    crew: Crew
    host: Host
    scores: Sequence[str]
    found: dict[Variant, Outcome] = field(default_factory=dict[Variant, Outcome])
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.metric = "accuracy" if "accuracy" in self.scores else self.plan.target.metric if self.plan.target else "loss"
        rounds = self.plan.scenario.server.rounds
        self.points = tuple(dict.fromkeys(points_of(rounds).values()))

    def go(self) -> Study:
        """Run all that is wanted, and return what was found."""
        plan, rows = self.plan, {row.batch: row for row in self.plan.rows}  # A size that no client fills is run once.
        first, own = plan.seeds[0], rounded(plan.job.lr)
        if plan.target is None:
            self._choose_target()
            plan = self.plan
        self.take([Variant(b, rate, "epochs", first) for b, row in rows.items() for rate in {*self._grid(row), own}])
        tried = {b: self._grid(row) for b, row in rows.items()}
        while more := {b: rate for b, row in rows.items() if (rate := self._further(row, tried[b])) is not None}:
            self.take([Variant(b, rate, "epochs", first) for b, rate in more.items()])
            tried = {b: (*tried[b], more[b]) if b in more else tried[b] for b in rows}
        best = {b: self._best(b, (*tried[b], own)) for b in rows}
        quick = {b: self._quickest(b, (*tried[b], own), best[b]) for b in rows}
        if plan.grid < GRID:  # A look: one rate serves all.
            quick = long = best
        else:
            long = self._climbed(best, "steps")
            if plan.longest > plan.scenario.server.rounds:
                quick |= self._climbed({b: rate for b, rate in quick.items() if self.to_target(b, rate, first) is None}, "target")
        self.take([
            *(Variant(b, rate, "epochs", s) for b in rows for rate in {own, best[b]} for s in plan.seeds),
            *(Variant(b, long[b], "steps", s) for b in rows for s in plan.seeds),
        ])  # fmt: skip
        if plan.longest > plan.scenario.server.rounds or any(quick[b] != best[b] for b in rows):
            self.take([
                Variant(b, quick[b], "target", s) for b in rows for s in plan.seeds
                if self.to_target(b, quick[b], s) is None and self._may(b, quick[b], s)
            ])  # fmt: skip
        self._measure([Variant(b, best[b], "epochs", s) for b in rows for s in plan.seeds])
        self._tidy()
        return self._summed(tried, best, long, quick)

    def _grid(self, row: Row) -> tuple[float, ...]:
        return (rounded(self.plan.job.lr),) if row.dynamic else self.plan.rates(row)

    def take(self, variants: Iterable[Variant]) -> None:
        """Run those of *variants* that were not run yet, the slowest first: small batches take many steps."""
        new = sorted({v for v in variants if v not in self.found}, key=lambda v: (self._size(v), v.name))
        asked: list[Asked] = []
        taken: list[Variant] = []
        for v in new:
            try:  # The models of some rounds are left by all, since nobody knows yet which rate will be looked at.
                asked.append(Asked(v.name, self.plan.loaded_of(v), self.points if v.budget == "epochs" else ()))
                taken.append(v)
            except ScenarioError as error:
                self.found[v] = Outcome("refused", str(error))
        self.found.update(zip(taken, self._outcomes(asked), strict=True))

    def _outcomes(self, asked: Sequence[Asked]) -> list[Outcome]:
        """Return what came of each of *asked*. Raises Spent where there was no time for all."""
        found = self.crew.runs(asked)
        if any(outcome.status == "unfinished" for outcome in found):
            raise Spent("its budget of wall time")
        return found

    def _size(self, variant: Variant) -> float:
        return next((row.size for row in self.plan.rows if row.batch == variant.batch), 0.0)

    def _run(self, variant: Variant) -> Run | None:
        outcome = self.found.get(variant)
        return outcome.run if outcome and outcome.done else None

    def _may(self, batch: int | str, rate: float, seed: int) -> bool:
        """Return whether a longer run may reach what a shorter one did not: one that diverged or was refused does not."""
        before = self.found.get(Variant(batch, rate, "epochs", seed))
        if before is not None and not before.done:
            return False
        return before is None or self.plan.longest > self.plan.scenario.server.rounds

    def score(self, variant: Variant) -> float:
        """Return the score at the end of a run; NaN where there is none."""
        run = self._run(variant)
        return float(run.final.get(self.metric, math.nan)) if run else math.nan

    def _better(self, a: float, b: float) -> bool:
        return a > b if upwards(self.metric) else a < b

    def _best(self, batch: int | str, rates: Sequence[float]) -> float:
        """Return the rate whose first seed ends best; the least where all diverge."""
        best = min(rates)
        for rate in sorted(set(rates)):
            before, now = (self.score(Variant(batch, r, "epochs", self.plan.seeds[0])) for r in (best, rate))
            if not math.isnan(now) and (math.isnan(before) or self._better(now, before)):
                best = rate
        return best

    def _quickest(self, batch: int | str, rates: Sequence[float], best: float) -> float:
        """Return the rate whose first seed reaches the target first, by steps; *best* where none does."""
        taken = {rate: self.to_target(batch, rate, self.plan.seeds[0]) for rate in {*rates}}
        reach = {rate: (found.steps, rate != best, rate) for rate, found in taken.items() if found is not None}
        return min(reach, key=lambda rate: reach[rate]) if reach else best

    def _climbed(self, starts: Mapping[int | str, float], budget: Budget) -> dict[int | str, float]:
        """Return the best rates for *budget*, by the first seed, uphill from *starts*: what a policy trains with stays."""
        first, tried = self.plan.seeds[0], {b: [rate] for b, rate in starts.items() if b != "dynamic"}

        def worth(b: int | str, rate: float) -> tuple[float, float]:
            found, score = self.to_target(b, rate, first) if budget == "target" else None, self.score(Variant(b, rate, budget, first))
            sign = 1 if upwards(self.metric) else -1
            return -math.inf if found is None else -found.steps, -math.inf if math.isnan(score) else score * sign

        best = dict(starts)
        while more := {
            (b, rounded(best[b] * ratio)) for b, rates in tried.items() for ratio in (1 / SPACING, SPACING) if len(rates) < FURTHER
        } - {(b, rate) for b, rates in tried.items() for rate in rates}:
            self.take([Variant(b, rate, budget, first) for b, rate in {*more, *((b, best[b]) for b in tried)}])
            for b, rate in more:
                tried[b].append(rate)
            best |= {b: max(sorted(rates), key=lambda rate, b=b: worth(b, rate)) for b, rates in tried.items()}
        return best

    def _further(self, row: Row, tried: Sequence[float]) -> float | None:
        """Return the next rate to try where the best one is at an end of those tried; None where it is not, or it is enough."""
        if row.dynamic or self.plan.grid < GRID or len(tried) >= GRID + FURTHER:
            return None
        outcomes = [self.found[Variant(row.batch, rate, "epochs", self.plan.seeds[0])] for rate in tried]
        if all(outcome.status == "refused" for outcome in outcomes):
            return None
        best, any_ = self._best(row.batch, tried), any(outcome.done for outcome in outcomes)
        ends = {best, self._quickest(row.batch, tried, best)}
        if min(tried) in ends:  # Where all diverge too. What is much too large is not left in small steps.
            return rounded(min(tried) / (SPACING if any_ else SPACING**3))
        return rounded(max(tried) * SPACING) if max(tried) in ends else None

    def _choose_target(self) -> None:
        """Set the target that the scenario and the caller left open, by the scenario's own run."""
        plan = self.plan
        own = Variant(plan.own, rounded(plan.job.lr), "epochs", plan.seeds[0])
        self.take([own])
        run = self._run(own)
        if run is None:
            raise ScenarioError(
                f"--target: is needed, because the scenario has no [stop], and its own run gives no score ({self.found[own].error})"
            )
        curve = run.series(self.metric)["value"].tolist()
        value = float(f"{curve[0] + AWAY * (curve[-1] - curve[0]):.3g}")
        self.plan = replace(plan, target=Target(self.metric, value, upwards(self.metric)))
        self.notes.append(
            f"No target was named, and the scenario has no [stop] with one: {self.plan.target} is {100 * AWAY:.0f} % of the way from an"
            f" untrained model to the end of the scenario's own run. --target {self.metric}=X names another."
        )

    def to_target(self, batch: int | str, rate: float, seed: int) -> Reached | None:
        """Return what it took to the target: by the run at equal epochs, whose first rounds they are, or by the longer one."""
        if self.plan.target is None:
            return None
        for budget in ("epochs", "target"):
            variant = Variant(batch, rate, budget, seed)
            run = self._run(variant)
            if run and (found := reached(run, self.plan.target, self.plan.job_of(variant))):
                return found
        return None

    def _measure(self, variants: Sequence[Variant]) -> None:
        """See to it that noise and training scores of the runs of *variants* are measured."""
        requests: list[dict[str, Any]] = []
        for variant in sorted(set(variants), key=lambda v: v.seed):  # Whose data are the same, one after the other.
            run = self._run(variant)
            if run is None:
                continue
            before = Measured.of(run)
            if before is not None and before.covers(self.points):
                continue
            asked = Asked(variant.name, self.plan.loaded_of(variant), self.points, must=True)
            if asked.lacks(run.path):  # Tidied away, when another rate was the best: run again.
                self.found[variant] = self._outcomes([asked])[0]
                run = self._run(variant)
            if run is not None:
                base = {**self.plan.scenario.plain(), "seed": variant.seed}
                requests.append({"scenario": base, "folder": str(self.plan.loaded.folder), "out": str(run.path), "points": self.points})
        for request, wrong in zip(requests, self.crew.done_by("fedsim.studies.measures:measure", requests), strict=True):
            if wrong and self.crew.until is not None and time.monotonic() > self.crew.until:
                raise Spent("its budget of wall time")
            if wrong:
                self.notes.append(f"{Path(request['out']).name}: gradients could not be measured. {wrong}")

    def _tidy(self) -> None:
        """Let go of the models of single rounds: those that matter are measured."""
        for outcome in self.found.values():
            for each in outcome.run.path.glob("model-*.safetensors") if outcome.run else ():
                each.unlink(missing_ok=True)

    def _summed(
        self, tried: Mapping[int | str, Sequence[float]], best: Mapping[int | str, float], long: Mapping[int | str, float],
        quick: Mapping[int | str, float],
    ) -> Study:  # fmt: skip
        own = rounded(self.plan.job.lr)
        figures = {b: self._figures(b, best[b], long[b], quick[b], own) for b in tried}
        cells = self._cells(best, long, figures)
        lines = [
            Line(
                row, {"own": own, "epochs": best[row.batch], "steps": long[row.batch], "target": quick[row.batch]},
                {rate: self.score(Variant(row.batch, rate, "epochs", self.plan.seeds[0])) for rate in sorted({*tried[row.batch], own})},
                figures[row.batch][0], figures[row.batch][1], cells[row.label], self._wrong(row, best[row.batch], long[row.batch]),
            )
            for row in self.plan.rows
        ]  # fmt: skip
        assert self.plan.target is not None
        sized = {line.taken: line for line in lines if not line.row.dynamic and math.isfinite(line.taken)}
        found = fit(list(sized), [line.figures["steps_to_target"].mean for line in sized.values()])
        return Study(
            self.plan, self.plan.target, self.metric, lines, found, self.crew.folder, self.host, len(self.found), self.crew.read,
            tuple(self.notes),
        )  # fmt: skip

    def _wrong(self, row: Row, best: float, long: float) -> list[str]:
        """Return what of a row's runs gave nothing."""
        said: list[str] = []
        kinds: tuple[tuple[Budget, float], ...] = (("epochs", best), ("steps", long))
        for budget, rate in kinds:
            outcomes = [self.found.get(Variant(row.batch, rate, budget, seed)) for seed in self.plan.seeds]
            broken = [outcome for outcome in outcomes if outcome is not None and not outcome.done]
            if broken:
                said.append(f"{row.label}: {len(broken)} of {len(outcomes)} runs at equal {budget} gave nothing. {broken[0].error}")
        if row.whole and row.label != "full":
            said.append(f"{row.label}: no client holds more than {int(self.plan.sizes.max())} examples, so it is a full batch.")
        return said

    def _figures(self, batch: int | str, best: float, long: float, quick: float, own: float) -> tuple[dict[str, Estimate], dict[str, str]]:
        """Return the figures of a batch size by name, and how many seeds reached the target."""
        plan, seeds, found, arrived = self.plan, self.plan.seeds, dict[str, Estimate](), dict[str, str]()
        size = next(row.size for row in plan.rows if row.batch == batch)
        for name, rate in (("", quick), ("_own", own)):
            took = [self.to_target(batch, rate, seed) for seed in seeds]
            arrived["tuned" if not name else "own"] = f"{sum(t is not None for t in took)}/{len(seeds)}"
            for each in ("rounds", "steps", "updates", "examples", "bytes", "virtual_s"):
                found[f"{each}_to_target{name}"] = Estimate.of([math.nan if t is None else float(getattr(t, each)) for t in took])
        kinds: tuple[tuple[str, float, Budget], ...] = (("epochs", best, "epochs"), ("steps", long, "steps"), ("own", own, "epochs"))
        for name, rate, budget in kinds:
            variants = [Variant(batch, rate, budget, seed) for seed in seeds]
            found[f"score_{name}"] = Estimate.of([self.score(v) for v in variants])
        runs = [(v, run) for seed in seeds if (run := self._run(v := Variant(batch, best, "epochs", seed)))]
        found["mean_batch"] = Estimate.of([mean_batch(run, plan.job_of(v)) for v, run in runs])
        size = found["mean_batch"].mean if batch == "dynamic" else size
        finals, noise = list[float](), dict[int, list[float]]()
        for seed in seeds:
            run = self._run(Variant(batch, best, "epochs", seed))
            measured = Measured.of(run) if run else None
            for share, point in points_of(plan.scenario.server.rounds).items():
                trace, square = measured.noise.get(point, (math.nan, math.nan)) if measured else (math.nan, math.nan)
                noise.setdefault(share, []).append(math.inf if batch == "full" and trace == trace else _ratio(square, trace / size))
                noise.setdefault(-share, []).append(_ratio(trace, square))
            train = measured.train.get(self.metric, math.nan) if measured else math.nan
            finals.append((train - self.score(Variant(batch, best, "epochs", seed))) * (1 if upwards(self.metric) else -1))
        found["gap_epochs"] = Estimate.of(finals)
        for share in sorted(noise, key=abs):
            found[f"snr_{share}" if share > 0 else f"noise_scale_{-share}"] = Estimate.of(noise[share])
        found["virtual_samples_per_s"] = Estimate.of([virtual_speed(run, plan.job_of(v)) for v, run in runs])
        found["compute_share"] = Estimate.of([compute_share(run) for _, run in runs])
        if batch != "dynamic":
            found |= self.host.figures(batch)
        return found, arrived

    def _cells(
        self, best: Mapping[int | str, float], long: Mapping[int | str, float],
        figures: Mapping[int | str, tuple[dict[str, Estimate], dict[str, str]]],
    ) -> dict[str, dict[str, Cell]]:
        """Return the graded cells by label and column."""
        plan = self.plan
        fixed = [row for row in plan.rows if not row.dynamic]
        rates = [figures[row.batch][0]["samples_per_s"].mean for row in fixed] or [math.nan]
        most = max((figures[row.batch][0]["memory_ratio"].mean for row in fixed), default=math.nan)
        found: dict[str, dict[str, Cell]] = {}
        for row in plan.rows:
            says, have = TEXTBOOK[grades.group(row)], figures[row.batch][0]
            if row.dynamic:
                found[row.label] = {"time to target": self._dynamic(says["time to target"])}
                continue
            cells = {
                "memory": grades.judged(have["memory_ratio"], lambda r: grades.memory(r, most), grades.MEMORY, says["memory"]),
                "speed": grades.judged(
                    have["samples_per_s"], lambda r: grades.speed(r, min(rates), max(rates)), grades.SPEED, says["speed"]
                ),
                "stability": grades.judged(have["snr_10"], grades.stability, grades.STABILITY, says["stability"]),
                "utilisation": grades.judged(have["utilisation"], grades.utilisation, grades.UTILISATION, says["utilisation"]),
            }
            kinds: tuple[tuple[Budget, Mapping[int | str, float]], ...] = (("epochs", best), ("steps", long))
            for budget, at in kinds:
                scores = {b: {s: self.score(Variant(b, at[b], budget, s)) for s in plan.seeds} for b in best if b != "dynamic"}
                whole = {b: Estimate.of(list(each.values())).mean for b, each in scores.items()}
                good = {b: mean for b, mean in whole.items() if math.isfinite(mean)}
                if not good:
                    continue
                top = max(good, key=lambda b: good[b]) if upwards(self.metric) else min(good, key=lambda b: good[b])
                cells[f"generalisation, equal {budget}"] = grades.generalisation(
                    scores[row.batch], scores[top], upwards(self.metric), not upwards(self.metric), says["generalisation"]
                )
            found[row.label] = cells
        return found

    def _dynamic(self, textbook: str) -> Cell:
        """Return the cell of the policy: time to the target untuned, beside the best size, untuned."""
        own, seeds = rounded(self.plan.job.lr), self.plan.seeds
        times = {
            b: {s: took.virtual_s if (took := self.to_target(b, own, s)) else math.nan for s in seeds}
            for b in {row.batch for row in self.plan.rows}
        }
        means = {b: mean for b, each in times.items() if b != "dynamic" and math.isfinite(mean := Estimate.of(list(each.values())).mean)}
        if not means:
            return Cell(Estimate.of(list(times["dynamic"].values())), "", textbook, "undecided")
        return grades.dynamic(times["dynamic"], times[min(means, key=lambda b: means[b])], textbook)


def _ratio(over: float, under: float) -> float:
    """Return a ratio of estimates; an estimate of a square below 0 is 0, as near as can be told."""
    if math.isnan(over) or math.isnan(under):
        return math.nan
    over = max(0.0, over)
    return over / under if under > 0 else math.inf if over else math.nan
