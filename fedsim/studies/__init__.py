"""Studies: many runs of one scenario, varied by a plan, and what they come to. ``fedsim.study`` and ``fedsim study`` are this."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ScenarioError, choices
from fedsim.scenario.load import Loaded, load
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.many.runs import Told
    from fedsim.studies.found import Study

STUDIES = ("batch-size",)
STRETCH = 4.0
"""How many times the scenario's rounds a run may take to reach the target."""


def study(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    question: str = "batch-size",
    *,
    batches: str | Sequence[int | str] | None = None,
    target: str | None = None,
    seeds: int | Sequence[int] | None = None,
    quick: bool = False,
    stretch: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    budget: str | float | None = None,
) -> pd.DataFrame:
    """Run the study *question* of *scenario* and return its table, one row per batch size, with every figure and its interval.

    *batches* are sizes, ``"full"`` and ``"dynamic"``; *target* is a score like ``"accuracy=0.9"`` (the scenario's [stop] unless given);
    *seeds* how many, from the scenario's own on, or which; *quick* takes three sizes, two rates, one seed and few rounds; *stretch* how
    many times the scenario's rounds a run may take to the target. The runs stand in the folder *out* (``runs/NAME.study``), with
    ``study.csv`` and ``study.html``; what is done there is read, and not run again. After *budget* ("10m",
    or seconds) of wall time it ends as after Ctrl-C, and the same call goes on. ``frame.attrs["study"]`` has paths, target, fit and
    verdicts. Raises ScenarioError before anything runs, where the arguments or the scenario are not what can be studied.
    """
    from fedsim.studies.table import frame

    loaded = load(scenario, overrides, seed)
    return frame(studied(
        loaded, question, batches=batches, target=target, seeds=seeds, quick=quick, stretch=stretch, jobs=jobs, out=out,
        budget=budget,
    ))  # fmt: skip


def studied(
    loaded: Loaded,
    question: str = "batch-size",
    *,
    batches: str | Sequence[int | str] | None = None,
    target: str | None = None,
    seeds: int | Sequence[int] | None = None,
    quick: bool = False,
    stretch: float | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    budget: str | float | None = None,
    told: Told | None = None,
) -> Study:
    """Return what a study found, its files written; *told* hears how far it is. See ``study``."""
    if question not in STUDIES:
        raise ScenarioError(f"study {question!r}: no such study. {choices(question, STUDIES)}")
    import numpy as np

    from fedsim.core.machine import ALONE
    from fedsim.many.asked import jobs_of, read_seeds, span
    from fedsim.many.runs import Crew
    from fedsim.record.leaving import Interrupted, Spent
    from fedsim.record.place import check_place
    from fedsim.scenario.build import build
    from fedsim.score.target import Target
    from fedsim.studies import plan as plans
    from fedsim.studies.batch_size import Course
    from fedsim.studies.host import measured
    from fedsim.studies.page import write_page
    from fedsim.studies.table import write_csv

    if stretch is not None and not 1 <= stretch <= 1000:
        raise ScenarioError(f"--stretch {stretch:g}: must be between 1 and 1000, times the scenario's rounds.")
    jobs = jobs_of(jobs)
    if quick:
        rounds = min(loaded.scenario.server.rounds, plans.QUICK_ROUNDS)
        loaded = replace(loaded, scenario=load(loaded.scenario, {"server.rounds": rounds}).scenario)
    scenario, notes = loaded.scenario, list[str]()
    asked = plans.read_batches(batches if batches is not None else plans.QUICK_SIZES if quick else plans.SIZES)
    dynamic = scenario.training.model_dump().get("batch_policy")
    if "dynamic" in asked and not plans.policies():
        asked = tuple(batch for batch in asked if batch != "dynamic")
        if not asked:
            raise ScenarioError("--batches dynamic: this version has no policies that choose batch sizes.")
        notes.append("The row 'dynamic' is left out: this version has no policies that choose batch sizes.")
    which = read_seeds(seeds if seeds is not None else 1 if quick else 3, scenario.seed)
    folder = Path("runs") / f"{scenario.name}.study" if out is None else Path(out)
    check_place(f"{scenario.name}.study", scenario.seed, None if out is None else folder / "x")
    plans.check(scenario, ())
    grid = 2 if quick else plans.GRID
    until_s = None if budget is None else time.monotonic() + span(budget, "--budget", "10m, 90s or 2h, of wall time")
    with Crew(folder, jobs, told, until=until_s, everywhere=scenario.engine.everywhere) as crew:
        with ALONE:
            parts = build(loaded)
        plans.check(scenario, parts.controller.changes if parts.controller else ())
        scores = sorted(parts.engine.evaluate(parts.first, *(tensor[:1] for tensor in parts.test)))
        stop = Target.of(scenario.stop.model_dump()) if scenario.stop else None
        goal = Target.read(target, scores, scenario.training.objective["kind"]) if target is not None else stop
        sizes = parts.federation.sizes(np.arange(min(parts.federation.count, LOOKED_AT)))
        rows = plans.rows_of(asked, sizes, scenario.training.batch_size, parts.job.accumulate)
        host = measured(parts, [row.batch for row in rows if not row.dynamic], int(sizes.max()))
        plan = plans.Plan(
            loaded, parts.job, sizes, rows, which, goal, grid, stretch or (1.0 if quick else STRETCH), dynamic or {"kind": DYNAMIC}
        )
        del parts
        if scenario.engine.everywhere:
            notes.append("Speeds are timed by this machine's own kernels; with engine.reproducible = 'everywhere' steps take longer.")
        if quick:
            notes.append("A look, not a finding: few rounds, two rates and one seed, so that no interval is known.")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = Course(plan, crew, host, scores, notes=notes).go()
        except KeyboardInterrupt as stopped:
            how = f"interrupted, at the end of {stopped}" if isinstance(stopped, Spent) else "interrupted"
            raise Interrupted(
                f"{how}; {crew.done:,} runs and measurements are done, and safe in {folder}. The same command goes on from there."
            ) from None
    write_csv(found)
    write_page(found)
    return found


LOOKED_AT = 100_000
"""Clients whose sizes are looked at, at most."""
DYNAMIC = "noise_scale"
"""The policy of the row ``dynamic`` where the scenario names none."""
