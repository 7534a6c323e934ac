"""Sizing: what to deploy so that a model has learned by a deadline, and what that costs. ``fedsim.size`` and ``fedsim size``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import ScenarioError
from fedsim.scenario.load import Loaded, load
from fedsim.scenario.schema import Scenario

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.many.runs import Told
    from fedsim.sizing.course import Row
    from fedsim.sizing.plan import Plan

SEEDS = 3
WALL_S = 20.0
"""Wall time of one dry run at most, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a sizing found: a row for each setting that was looked at, the *best* of them, or None; where the runs are, and notes."""

    name: str
    plan: Plan
    rows: tuple[Row, ...]
    best: Row | None
    count: int
    folder: Path
    dry_runs: int
    notes: tuple[str, ...]


def size(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    target: str | None = None,
    deadline: str | float | None = None,
    clients: str | Sequence[int] | None = None,
    timeouts: str | Sequence[float] | None = None,
    least: str | None = None,
    seeds: int | Sequence[int] | None = None,
    budget: str | float | None = None,
    wall_s: float = WALL_S,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Search how many clients a round is to ask, and how long to wait for them; return a frame of one row per setting.

    *target* is a score like ``"accuracy=0.9"``; without it all of ``server.rounds`` are looked at, nothing is trained, and a model and
    examples of which only sizes are known will do (kinds ``sized`` and ``counted``). *deadline* is by when the target is to be reached, in
    virtual time (``"6h"``, or seconds). *clients* lists how many a round asks (around the scenario's own unless given, 1.3 times as many
    among them), *timeouts* how long it waits, in seconds (by when half of all replies to the last are there, unless given). Of what meets
    the deadline with each of the *seeds* (3), what moves the *least* "bytes" (the default), or takes the least "time" (the default without
    a target, when no more than 5 % of replies may be late), is the best. Most runs are dry,
    each at most *wall_s* long; those that learn are few, and the first that looked best by the others are learned with, too. *budget*
    ("10m", or seconds of wall time) ends the search. Runs, ``size.csv`` and ``size.html`` lie in *out*
    (``runs/NAME.size``); what is there is read.

    Columns: clients, timeout_s, rounds (to the target), measured (whether runs learned with this setting, else rounds are estimated from
    those of others), runs, missed (runs that never reached it); of seeds: whole_s (virtual time), with whole_low_s and whole_high_s (least
    and most); round_p50_s and round_p95_s; late and failed (shares of messages), heard (replies a round), unheard (share of clients);
    client_bytes, client_p95_bytes and client_max_bytes (of a client, both ways), server_down_bytes, server_up_bytes; meets, best.
    ``frame.attrs["size"]`` has the rest as plain values. Raises ScenarioError before anything runs, for what cannot be sized.
    """
    from fedsim.sizing.table import frame

    return frame(sized(
        load(scenario, overrides, seed), target=target, deadline=deadline, clients=clients, timeouts=timeouts, least=least, seeds=seeds,
        budget=budget, wall_s=wall_s, jobs=jobs, out=out,
    ))  # fmt: skip


def sized(
    loaded: Loaded,
    *,
    target: str | None = None,
    deadline: str | float | None = None,
    clients: str | Sequence[int] | None = None,
    timeouts: str | Sequence[float] | None = None,
    least: str | None = None,
    seeds: int | Sequence[int] | None = None,
    budget: str | float | None = None,
    wall_s: float = WALL_S,
    jobs: int | None = None,
    out: str | Path | None = None,
    told: Told | None = None,
) -> Sizing:
    """Return what a sizing found, its table written; *told* hears how far it is. See ``size``."""
    import time

    import numpy as np

    from fedsim.core.machine import ALONE
    from fedsim.many.asked import jobs_of, read_seeds, safe, span
    from fedsim.many.runs import Crew
    from fedsim.record.leaving import Interrupted
    from fedsim.record.place import check_place
    from fedsim.scenario.build import build
    from fedsim.scenario.hollow import hollow
    from fedsim.score.target import Target
    from fedsim.sizing import plan as plans
    from fedsim.sizing.course import Course, best
    from fedsim.sizing.page import write_page
    from fedsim.sizing.seen import Setting
    from fedsim.sizing.table import write_csv

    began, scenario = time.monotonic(), loaded.scenario
    if scenario.stream is not None:
        raise ScenarioError("size: is for data that are there from the start; on a [stream], what comes when decides. See fedsim check.")
    if least is not None and least not in plans.LEAST:
        raise ScenarioError(f"--least {least!r}: must be {' or '.join(plans.LEAST)}.")
    deadline_s = None if deadline is None else span(deadline, "--deadline", "6h, 90m or 2d, of virtual time")
    budget_s = None if budget is None else span(budget, "--budget", "10m, 90s or 2h, of wall time")
    asked = plans.cohorts(scenario, clients)
    waits = None if timeouts is None else plans.numbers("--timeouts", timeouts, "30,60,120")
    which = read_seeds(SEEDS if seeds is None else seeds, scenario.seed)
    folder = Path("runs") / f"{scenario.name}.size" if out is None else Path(out)
    check_place(f"{scenario.name}.size", scenario.seed, None if out is None else folder / "x")
    with Crew(folder, jobs_of(jobs), told, everywhere=scenario.engine.everywhere) as crew:
        crew.until = None if budget_s is None else began + budget_s
        with ALONE:
            parts = build(loaded)
        what = hollow(scenario, parts.model, parts.federation)
        scores = [] if what else sorted(parts.engine.evaluate(parts.first, *(tensor[:1] for tensor in parts.test)))
        if what and target is not None:
            raise ScenarioError(f"--target {target}: {what} has sizes, and no numbers to learn from. Leave the target out.")
        stop = Target.of(scenario.stop.model_dump()) if scenario.stop and not what else None
        goal = Target.read(target, scores, scenario.training.objective["kind"]) if target is not None else stop
        del parts
        (folder / "dry").mkdir(parents=True, exist_ok=True)
        course = Course(loaded, crew, wall_s)
        try:
            own = Setting(plans.own_clients(scenario), scenario.server.round_timeout_s)
            if waits is None:
                patient = replace(own, timeout_s=plans.PATIENT_S)
                course.rehearse([patient], which[:1])
                if patient in course.broken:
                    raise ScenarioError(f"size: the scenario cannot be rehearsed. {course.broken[patient]}")
                took_s = course.seen[patient][which[0]].took_s
                waits = plans.deadlines(took_s[np.isfinite(took_s)], own.timeout_s)
            settings = tuple(Setting(number, wait) for number in asked for wait in waits)
            least = least or ("time" if goal is None else "bytes")
            plan = plans.Plan(settings, own, which, scenario.server.rounds, goal, deadline_s, least)
            rows = course.run(plan)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; {safe(crew.done, folder)}. The same command goes on from there.") from None
    notes = [f"{row.setting.name}: {row.why}" for row in rows if row.why]
    if course.late:
        notes.append("The budget ended before all was looked at; the same command goes on from here.")
    dry_runs = sum(len(seeds) for seeds in course.seen.values())
    looks_best = best(plan, [row for row in rows if row.learned]) if goal is not None else None
    if looks_best is None and (looks_best := best(plan, rows)) is not None and goal is not None:
        notes.append(f"{looks_best.setting.name}: would do by what was measured of others, and was not learned with itself.")
    found = Sizing(scenario.name, plan, tuple(rows), looks_best, scenario.clients.count, folder, dry_runs, tuple(notes))
    write_csv(found)
    write_page(found, loaded)
    return found
