"""Sweeps: a scenario with many values of its keys, searched as a file says. ``fedsim.sweep`` and ``fedsim sweep`` are this."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import RunError, ScenarioError

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.many.runs import Crew, Told
    from fedsim.sweeping.course import Course, Way
    from fedsim.sweeping.found import Sweep
    from fedsim.sweeping.space import Space

Said = Callable[[str], None]


def sweep(
    file: str | Path | Mapping[str, Any],
    *,
    pareto: Sequence[str] = (),
    target: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    budget: str | float | None = None,
    out: str | Path | None = None,
    only_read: bool = False,
) -> pd.DataFrame:
    """Run the sweep in *file* (a TOML file, the same as a table, or a sweep's folder) and return a frame of one row per variant.

    A table's *scenario* may be a table, too. *pareto* are measures whose front is wanted, like ``["accuracy", "bytes_up"]``; *target* a
    score like ``"accuracy=0.9"``; *overrides* are keys of the scenario, for all variants; *seed* is the first of its seeds; *budget* wall
    time ("10m", or seconds). Runs stand in *out* (``runs/NAME.sweep``) in folders of their own, VARIANT-SEED; what is done there is read
    and not run again. With *only_read* nothing is run. ``sweep.csv``, ``runs.csv`` and ``sweep.html`` lie beside the runs.

    Columns: number (from 0), variant, a column per varied key, status (done, pruned, failed, refused, unfinished), why, seeds (done),
    pareto (whether it is on the front); then per measure its mean over seeds, and ``MEASURE low`` and ``MEASURE high`` (Student's t, 95 %,
    NaN for one seed); of measures to a target ``MEASURE reached``, how many runs got there. ``frame.attrs["sweep"]`` has the rest as plain
    values. Raises ScenarioError for what is no sweep, before anything runs where that shows; RunError where another process is at it.
    """
    from fedsim.sweeping.table import frame

    return frame(swept(
        file, pareto=pareto, target=target, overrides=overrides, seed=seed, jobs=jobs, budget=budget, out=out, only_read=only_read
    ))  # fmt: skip


def swept(
    file: str | Path | Mapping[str, Any],
    *,
    pareto: Sequence[str] = (),
    target: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    budget: str | float | None = None,
    out: str | Path | None = None,
    only_read: bool = False,
    told: Told | None = None,
    said: Said | None = None,
) -> Sweep:
    """Return what a sweep found, its files written; *told* hears how far it is, *said* the plan, before anything runs. See ``sweep``."""
    from fedsim.many.asked import jobs_of, span
    from fedsim.many.runs import Crew
    from fedsim.record.place import check_place
    from fedsim.sweeping import state
    from fedsim.sweeping.checking import asked
    from fedsim.sweeping.space import read

    until = None if budget is None else time.monotonic() + span(budget, "--budget", "10m, 90s or 2h, of wall time")
    more = {"pareto": list(pareto) or None, "target": target}
    here = not isinstance(file, Mapping) and Path(file).is_dir()
    space = state.again(Path(str(file)), overrides, **more) if here else read(file, overrides, **more)
    folder = Path(str(file)) if here and out is None else Path("runs") / f"{space.name}.sweep" if out is None else Path(out)
    if only_read:
        return _written(_read(space, folder, seed))
    check_place(f"{space.name}.sweep", 0, None if out is None and not here else folder / "x")
    with Crew(folder, jobs_of(jobs)) as crew:  # They import while we look at the sweep.
        course, way, total, notes = _looked_at(space, seed)
        asked(space, course.base, crew)
        crew.until, crew.everywhere = until, course.base.scenario.engine.everywhere
        with state.claimed(folder):
            _plan(course, way, total, crew, said)
            return _written(_run(course, way, total, notes, crew, told))


def _written(found: Sweep) -> Sweep:
    """Return *found*, its tables and its page written."""
    from fedsim.sweeping.page import write_page
    from fedsim.sweeping.table import write_tables

    write_tables(found)
    write_page(found)
    return found


def _looked_at(space: Space, seed: int | None) -> tuple[Course, Way, int, list[str]]:
    """Return how *space* is searched, in how many runs, and what a reader must know of that. Raises ScenarioError for what is no sweep."""
    from fedsim.scenario.load import load
    from fedsim.score.target import Target
    from fedsim.sweeping.checking import measured, probed
    from fedsim.sweeping.course import Course, directions_of, way_of

    try:
        base = load(space.source, space.file.set, seed)
    except ScenarioError as error:  # Of a file that is not there; what is wrong in one names its own keys.
        if isinstance(space.file.scenario, str) and str(error).startswith(f"{space.source}: "):
            raise ScenarioError(f"scenario = {space.file.scenario!r}: {error}") from None
        raise
    seeds = _seeds(space, base.scenario.seed, seed)
    goal = space.file.target
    if goal is None:
        aim = Target.of(base.scenario.stop.model_dump()) if base.scenario.stop else None
    else:
        metric = re.split(r"[<>=]", goal, maxsplit=1)[0].strip()
        kind = base.scenario.training.objective["kind"]
        aim = Target.read(goal, [metric] if metric else [], kind, "target =")  # Whether it is reported shows with the first run.
    if space.file.search.pruner is not None:
        _try_pruner(space)
    measured(space, base, aim)
    probed(space, base)
    way = way_of(space, seeds[0], directions_of(space))
    course = Course(space, base, seeds, aim, tuple(space.file.pareto or ()))
    trials = space.file.search.trials if space.file.search.kind == "optuna" else len(getattr(way, "points", ()))
    total = (trials or 0) * len(seeds)
    return course, way, total, _notes(way, course, trials or 0)


def _seeds(space: Space, first: int, asked: int | None) -> tuple[int, ...]:
    """Return the seeds: so many from the *first* on, or those that the file names, which one that was *asked* for counts anew."""
    from fedsim.many.asked import read_seeds

    given = space.file.seeds
    return read_seeds(len(given) if isinstance(given, list) and asked is not None else given, first, "seeds =")


def _try_pruner(space: Space) -> None:
    """Raise ScenarioError for a pruner that there is not, or that takes no such settings."""
    from fedsim.sweeping.pruning import Judge, Rule

    Judge(Rule(space.file.search.pruner or {}, "accuracy", "maximize", 1, 10), [], 0)


def _notes(way: Way, course: Course, trials: int) -> list[str]:
    from fedsim.sweeping.course import Sampled

    found = list[str]()
    if isinstance(way, Sampled) and (said := way.trials.remark(trials)):
        found.append(said)
    if course.space.file.search.pruner is not None and len(course.seeds) > 1:
        found.append(f"The pruner looks at the runs of seed {course.seeds[0]}; a variant that it prunes has no runs of the other seeds.")
    return found


def _plan(course: Course, way: Way, total: int, crew: Crew, said: Said | None) -> None:
    """Say what is to be done, and how much of it is there."""
    if said is None:
        return
    variants, seeds = total // len(course.seeds), len(course.seeds)
    kind = course.space.file.search.kind
    there, known = course.there(way, crew.folder)
    done = f"{there:,} are there already" if known else "what is there already is read"
    said(
        f"{course.space.name}: {kind}, {variants:,} variant{'s' * (variants != 1)} x {seeds} seed{'s' * (seeds != 1)} = {total:,} runs of"
        f" {course.base.scenario.name}; {done}. {crew.jobs} process{'es' * (crew.jobs != 1)}, in {crew.folder}."
    )


def _read(space: Space, folder: Path, seed: int | None) -> Sweep:
    """Return what the sweep of *space* in *folder* has come to so far."""
    from fedsim.many.runs import Reader

    if not folder.is_dir():
        raise ScenarioError(f"{folder}: no such folder; --read looks at what a sweep has done there.")
    course, way, total, notes = _looked_at(space, seed)
    reader = Reader(folder)
    course.run(way, reader)
    if not course.goals:
        raise ScenarioError(f"{folder}: no run of this sweep is done there; there is nothing to look at.")
    return replace(course.sweep(reader, total, notes), late="it was only read" if course.late else "")


def _run(course: Course, way: Way, total: int, notes: Sequence[str], crew: Crew, told: Told | None) -> Sweep:
    """Run the sweep in the folder of *crew*, which says how it stands all the while."""
    from fedsim.record.leaving import Interrupted
    from fedsim.sweeping import state

    last, folder = 0.0, crew.folder

    def tell(done: int, _: int, name: str) -> None:
        nonlocal last
        if time.monotonic() - last > TOLD_WALL_S:
            last = time.monotonic()
            with suppress(OSError):  # What broke there breaks the runs, which say so.
                state.tell(folder, course.space, course.seeds, state.RUNNING, done, total)
        if told is not None:
            told(done, max(done, total), name)

    state.tell(folder, course.space, course.seeds, state.RUNNING, 0, total)
    status, crew.told = "failed", tell
    try:
        course.run(way, crew)
        found = course.sweep(crew, total, notes)
        status = "interrupted" if course.late else "done"
        return found
    except KeyboardInterrupt:
        status = "interrupted"
        raise Interrupted(
            f"interrupted; {crew.done:,} of {total:,} runs are over, and safe in {folder}. The same command goes on from there;"
            f" with --read it shows what is done."
        ) from None
    except RunError as error:
        raise RunError(f"{error} {crew.done:,} of {total:,} runs are over, and safe in {folder}.") from None
    finally:
        with suppress(OSError):
            state.tell(folder, course.space, course.seeds, status, crew.done, total)


TOLD_WALL_S = 2.0
"""How stale ``sweep.json`` may be while a sweep goes."""
