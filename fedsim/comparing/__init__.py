"""Comparisons: scenarios on the same luck, with a verdict that knows its own noise. ``fedsim.compare`` and ``fedsim compare``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.comparing.variants import Side, What, sides
from fedsim.core.errors import ScenarioError

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.comparing.found import Comparison
    from fedsim.many.runs import Told

SEEDS = 5


def compare(
    *what: What,
    variants: Sequence[str | Mapping[str, Any]] = (),
    seeds: int | Sequence[int] | None = None,
    until_decided: bool = False,
    budget: str | float | None = None,
    matters: float = 0.0,
    by: str | None = None,
    target: str | None = None,
    unpaired: bool = False,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Compare scenarios, variants of one, or runs that are done; return a frame of one row per variant and measure.

    *what* are scenario files or tables, or runs (or their folders, or a folder of them); *variants* overrides of the one scenario, each a
    table by dotted key or words as ``--with`` takes them. Each runs with the same *seeds* (how many, 5 unless given, or which), or with 5,
    10, 20 and 40 *until_decided*, within *budget* ("10m", or seconds). Runs and page lie in *out* (``runs/NAME.compare``); what is done
    there is read. A difference within *matters* is none; *by* is the measure that decides, *target* a score like ``"accuracy=0.9"``.

    Columns: variant, against, measure, mean and against_mean, difference with low and high (Student's t) and boot_low and boot_high
    (percentile bootstrap, 95 %), n and against_n, reached and against_reached, verdict (of the measure that decides; else empty).
    ``frame.attrs["compare"]`` has the rest as plain values, the figures of each run among them. Raises ScenarioError for what is no
    comparison, before anything runs where that shows.
    """
    from fedsim.comparing.table import frame

    return frame(compared(
        *what, variants=variants, seeds=seeds, until_decided=until_decided, budget=budget, matters=matters, by=by, target=target,
        unpaired=unpaired, overrides=overrides, seed=seed, jobs=jobs, out=out,
    ))  # fmt: skip


def compared(
    *what: What,
    variants: Sequence[str | Mapping[str, Any]] = (),
    seeds: int | Sequence[int] | None = None,
    until_decided: bool = False,
    budget: str | float | None = None,
    matters: float = 0.0,
    by: str | None = None,
    target: str | None = None,
    unpaired: bool = False,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    told: Told | None = None,
) -> Comparison:
    """Return what a comparison found, its page written where there is a folder for it; *told* hears how far it is. See ``compare``."""
    from fedsim.comparing.course import Course, now
    from fedsim.many.asked import span

    began = now()
    if not (isinstance(matters, int | float) and math.isfinite(matters) and matters >= 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ScenarioError(f"--matters {matters!r}: must be a number >= 0, in the unit of the measure that decides, like 0.01.")
    if until_decided and seeds is not None:
        raise ScenarioError("--until-decided: says itself how many seeds (5, 10, 20, 40). Leave --seeds out.")
    budget_s = None if budget is None else span(budget, "--budget", "10m, 90s or 2h, of wall time")
    if budget_s is not None and not until_decided:
        raise ScenarioError("--budget: goes with --until-decided.")
    found = sides(what, variants, overrides, seed)
    base, *others = found
    running = base.loaded is not None
    if not running and (until_decided or seeds is not None or jobs is not None):
        raise ScenarioError("--seeds, --until-decided and --jobs: go with scenarios; these runs are done.")
    plan = planned(found, by=by, target=target, matters=float(matters), pairs=not unpaired)
    apart = {side.name: _unlike(side, base) for side in others}
    if plan.pairs and (reasons := [f"{base.name} and {name}: {'; '.join(why)}" for name, why in apart.items() if why]):
        raise ScenarioError(
            f"not on the same luck, so no pairs: {'. '.join(reasons)}. --unpaired (in Python unpaired=True) compares them all the same, and"
            f" says so."
        )
    if running:
        return _run(plan, found, apart, began, seeds, until_decided, budget_s, jobs, out, told)
    result = Course(plan, found, apart).there()
    if out is not None:
        from fedsim.comparing.page import write_page

        write_page(result, Path(out))
    return result


def planned(found: Sequence[Side], *, by: str | None, target: str | None, matters: float, pairs: bool) -> Any:
    """Return the plan without its looks; the target is the one named, or where all scenarios stop at one, that."""
    from fedsim.comparing.found import Plan
    from fedsim.score.target import OURS, Target

    stops = [Target.of(side.scenario.get("stop")) for side in found]
    goal = stops[0] if all(stop == stops[0] for stop in stops) else None
    if target is not None:
        metric = re.split(r"[<>=]", target, maxsplit=1)[0].strip()
        kinds = {str(side.scenario.get("training", {}).get("objective", {}).get("kind", OURS)) for side in found}
        goal = Target.read(target, [metric] if metric else [], *kinds if len(kinds) == 1 else ())  # Reported or not: see the first runs.
    return Plan(goal, by, matters, pairs)


def _unlike(side: Side, base: Side) -> list[str]:
    from fedsim.score.likeness import unlike, unlike_runs

    if side.runs and base.runs:
        return unlike_runs(next(iter(base.runs.values())).manifest, next(iter(side.runs.values())).manifest)
    return unlike(base.scenario, side.scenario)


def _run(
    plan: Any, found: Sequence[Side], apart: Mapping[str, Sequence[str]], began: float, seeds: int | Sequence[int] | None,
    until_decided: bool, budget_s: float | None, jobs: int | None, out: str | Path | None, told: Told | None,
) -> Comparison:  # fmt: skip
    """Run the scenarios of a comparison, and write its page into their folder."""
    from dataclasses import replace

    from fedsim.comparing.course import Course
    from fedsim.comparing.page import write_page
    from fedsim.many.asked import jobs_of, read_seeds, safe
    from fedsim.many.runs import Crew
    from fedsim.record.leaving import Interrupted
    from fedsim.record.place import check_place
    from fedsim.score.spending import LOOKS

    scenario = found[0].scenario
    which = read_seeds(LOOKS[-1] if until_decided else SEEDS if seeds is None else seeds, int(scenario["seed"]))
    plan = replace(plan, looks=LOOKS if until_decided else (len(which),), sequential=until_decided)
    folder = Path("runs") / f"{scenario['name']}.compare" if out is None else Path(out)
    check_place(f"{scenario['name']}.compare", which[0], None if out is None else folder / "x")
    pinned = scenario.get("engine", {}).get("reproducible") == "everywhere"
    with Crew(folder, jobs_of(jobs), told, everywhere=pinned) as crew:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = Course(plan, found, apart).run(crew, which, budget_s, began)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {safe(crew.done, folder)}. The same command goes on from there."
            ) from None
    write_page(result, folder)
    return result
